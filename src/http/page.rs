//! The page for people: how the node is, without a script and without anything from elsewhere.

use std::fmt::Write;

use bytesize::ByteSize;

use super::metrics::{Figures, METRICS};
use crate::shard::Shard;

const STYLE: &str = "body{font:15px/1.5 system-ui,sans-serif;margin:2em auto;max-width:48em;padding:0 1em}\
                     table{border-collapse:collapse;width:100%}td{border-top:1px solid #ccc;padding:.2em 0}\
                     td+td{text-align:right;font-variant-numeric:tabular-nums}";

/// The page.
pub fn page(shard: &Shard, figures: &Figures) -> String {
    let mut out = String::new();
    let facts = shard.facts();
    // Writing to a String cannot fail.
    let _ = write!(
        out,
        "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"><title>Quoit</title>\
         <style>{STYLE}</style></head><body>\n<h1>Quoit {}</h1>\n<p>Node {}: RESP at {}, HTTP at {}; durability \
         {}. Keys are at <code>/kv/KEY</code>, figures for Prometheus at <a href=\"/metrics\">/metrics</a>, its \
         health at <a href=\"/health\">/health</a>.</p>\n<table>\n",
        env!("CARGO_PKG_VERSION"),
        shard.node().0,
        facts.address,
        facts.http,
        shard.config().durability.name(),
    );
    for metric in METRICS {
        let value = (metric.value)(figures);
        let shown = match metric.name {
            name if name.contains("_bytes") => ByteSize(value as u64).to_string(),
            name if name.ends_with("_ratio") => format!("{:.1} %", value * 100.0),
            _ => format!("{}", value.round()),
        };
        let help = metric.help.trim_end_matches('.');
        let _ = writeln!(out, "<tr><td>{help}</td><td>{shown}</td></tr>");
    }
    out.push_str("</table>\n</body></html>\n");
    out
}
