//! Where the cluster's map is kept: the section `[cluster]` of config.toml.

use serde::Deserialize;

use super::is_host;

/// Members of etcd that may be named.
const ETCD_MEMBERS_MAX: usize = 16;
/// Bytes of what the keys in etcd begin with.
pub const ETCD_PREFIX_BYTES_MAX: usize = 256;

/// Where the cluster's map is kept, as it is written in config.toml and on the command line.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Metadata {
    /// By up to five of the cluster's own nodes.
    Register,
    /// In an etcd that is there already.
    Etcd,
}

/// Where the cluster's map is kept.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
pub struct Cluster {
    /// By the nodes themselves, or in etcd.
    pub metadata: Metadata,
    /// The members of etcd, as "http://HOST:PORT".
    pub etcd: Vec<String>,
    /// What the keys in etcd begin with.
    pub etcd_prefix: String,
    /// The user of etcd; empty: none.
    pub etcd_user: String,
    /// Its password.
    pub etcd_password: String,
}

impl Default for Cluster {
    fn default() -> Cluster {
        Cluster {
            metadata: Metadata::Register,
            etcd: Vec::new(),
            etcd_prefix: "/quoit".to_owned(),
            etcd_user: String::new(),
            etcd_password: String::new(),
        }
    }
}

/// The host and the port of "http://HOST:PORT", where etcd listens.
pub fn etcd_endpoint(text: &str) -> Option<(&str, u16)> {
    let place = text.strip_prefix("http://")?;
    let place = place.strip_suffix('/').unwrap_or(place);
    host_and_port(place)
}

/// The parts of "HOST:PORT".
pub(super) fn host_and_port(text: &str) -> Option<(&str, u16)> {
    let (host, port) = text.rsplit_once(':')?;
    let inner = host
        .strip_prefix('[')
        .and_then(|host| host.strip_suffix(']'));
    let host = inner.unwrap_or(host);
    let port = port.parse().ok().filter(|port| *port > 0)?;
    (!host.is_empty() && is_host(host)).then_some((host, port))
}

impl Cluster {
    /// The key under which etcd has the map.
    pub fn etcd_key(&self) -> String {
        format!("{}/map", self.etcd_prefix)
    }

    /// What must hold, and how it is said.
    pub(super) fn rules(&self) -> [(bool, &'static str); 7] {
        let is_in_etcd = self.metadata == Metadata::Etcd;
        let is_secure = |text: &String| text.starts_with("https://");
        let prefix = &self.etcd_prefix;
        [
            (
                !self.etcd.iter().any(is_secure),
                "`cluster.etcd` is reached by http:// only: TLS, https://, is not there yet",
            ),
            (
                self.etcd.iter().all(|text| etcd_endpoint(text).is_some()),
                "`cluster.etcd` names the members of etcd as \"http://HOST:PORT\"",
            ),
            (
                self.etcd.len() <= ETCD_MEMBERS_MAX,
                "`cluster.etcd` names at most 16 members of etcd",
            ),
            (
                is_in_etcd || self.etcd.is_empty(),
                "`cluster.etcd` says where etcd is, and `cluster.metadata` does not say \"etcd\"",
            ),
            (
                !is_in_etcd || !self.etcd.is_empty(),
                "`cluster.metadata` is \"etcd\", and `cluster.etcd` does not say where that is",
            ),
            (
                (1..=ETCD_PREFIX_BYTES_MAX).contains(&prefix.len())
                    && prefix.bytes().all(|byte| byte.is_ascii_graphic())
                    && !prefix.ends_with('/'),
                "`cluster.etcd-prefix` is 1 to 256 letters, digits and the like, without spaces and without `/` at its end",
            ),
            (
                self.etcd_user.is_empty() == self.etcd_password.is_empty(),
                "`cluster.etcd-user` and `cluster.etcd-password` are both set, or none of them",
            ),
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;

    /// Else the example of the manual, in three lines, would be refused.
    #[test]
    fn the_map_may_be_kept_in_etcd() {
        let text = "cluster = { metadata = \"etcd\", etcd = [\"http://10.0.0.9:2379\", \"http://[::1]:1/\"] }";
        let config = Config::parse(text).expect("it parses");
        config.check().expect("it is allowed");
        assert_eq!(config.cluster.etcd_key(), "/quoit/map");
        let places: Vec<_> = config
            .cluster
            .etcd
            .iter()
            .map(|text| etcd_endpoint(text))
            .collect();
        assert_eq!(places, [Some(("10.0.0.9", 2379)), Some(("::1", 1))]);
    }
}
