//! What clients ask of nodes that keep hints for each other, and how such nodes come to be.

use std::time::Duration;

use quoit::rt;
use quoit::rt::Bug;

use crate::cluster::{Client, Reply, Verdict, request};
use crate::scene::{Scene, Shape, THREE, words};
use crate::workload;

/// Virtual time after which what a coordinator has begun is done, and what it is to keep is kept.
pub const GRACE: Duration = Duration::from_secs(5);

impl Scene {
    /// So many nodes that know each other, in a cluster that holds data, as all of them know: one
    /// that is no replica of the first key would hear of it later.
    pub fn holding_data(seed: u64, nodes: u16, planted: &[Bug]) -> Verdict<Scene> {
        let shape = Shape { nodes, ..THREE };
        let mut scene = Scene::formed(shape, seed, planted)?;
        scene.talk_to(0, |mut client| async move {
            let first = words("KV.PUT first 1 CONSISTENCY all");
            while !matches!(
                client.must(std::slice::from_ref(&first)).await?[0],
                Reply::Array(_)
            ) {
                rt::sleep(Duration::from_millis(50)).await;
            }
            Ok(())
        })?;
        // Who has not heard of that may keep nothing for others, either.
        scene.talk(|mut client| async move {
            while workload::info(&mut client, "cluster_holds_data").await? == 0 {
                rt::sleep(Duration::from_millis(50)).await;
            }
            Ok(())
        })?;
        Ok(scene)
    }

    /// Returns when each node that is up sees that those that are up are so, and no others.
    pub fn wait_for_those_up(&mut self) -> Verdict {
        let all = self.all().into_iter();
        let up: Vec<u16> = all.filter(|number| self.is_up(*number)).collect();
        self.wait_for_cluster(&up)
    }

    /// What INFO says of hints under this name.
    pub fn info(&self, number: u16, name: &'static str) -> Verdict<u64> {
        self.talk_to(number, move |mut client| async move {
            workload::info(&mut client, name).await
        })
    }

    /// All is well, and nodes have what was kept for them.
    pub fn hand_all_on(&mut self) -> Verdict {
        self.world.heal_all();
        self.start_missing()?;
        self.world.run_for(GRACE);
        self.wait_for_cluster(&self.all())?;
        self.wait_for_hints(&self.all())?;
        self.life.verdict()
    }
}

/// Puts `value` under each of these keys at `level`; what each was told.
pub async fn put(
    mut client: Client,
    keys: std::ops::Range<u64>,
    value: String,
    level: &'static str,
) -> Verdict<Vec<Reply>> {
    let put = |key: u64| {
        let words = [
            "KV.PUT",
            &format!("key:{key}"),
            &value,
            "CONSISTENCY",
            level,
        ];
        request(words)
    };
    let requests: Vec<_> = keys.map(put).collect();
    let mut replies = Vec::new();
    for some in requests.chunks(20) {
        replies.extend(client.must(some).await?);
    }
    Ok(replies)
}

/// What a node tells at ONE of each of these keys: its version and its value.
pub async fn get(
    mut client: Client,
    keys: std::ops::Range<u64>,
) -> Verdict<Vec<Option<(String, String)>>> {
    let mut told = Vec::new();
    for key in keys {
        let get = words(&format!("KV.GET key:{key} CONSISTENCY one"));
        let reply = client.must(&[get]).await?.remove(0);
        told.push(entry(&reply)?);
    }
    Ok(told)
}

fn entry(reply: &Reply) -> Verdict<Option<(String, String)>> {
    match reply {
        Reply::Nil => Ok(None),
        Reply::Array(_) => {
            let of = |name| field(reply, name).ok_or_else(|| format!("no {name} in {reply:?}"));
            Ok(Some((of("version")?, of("value")?)))
        }
        other => Err(format!("a key is told as {other:?}")),
    }
}

/// The field of this name in a map that was told.
pub fn field(reply: &Reply, name: &str) -> Option<String> {
    let Reply::Array(items) = reply else {
        return None;
    };
    let text = |reply: &Reply| match reply {
        Reply::Bulk(bytes) => String::from_utf8_lossy(bytes).into_owned(),
        Reply::Integer(number) => number.to_string(),
        _ => String::new(),
    };
    let mut pairs = items.chunks(2).filter(|pair| pair.len() == 2);
    let pair = pairs.find(|pair| text(&pair[0]) == name)?;
    Some(text(&pair[1]))
}
