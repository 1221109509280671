//! What is shown of a result: settings, tables, bars; and the same as JSON.

use std::path::Path;

use bytesize::ByteSize;
use serde_json::{Value, json};

use crate::failure::Outcome;
use crate::machine;
use crate::parent::{Common, Sizes};
use crate::result::{Latencies, PhaseResult};

/// Is a bar met?
#[derive(Clone, Debug)]
pub struct Bar {
    /// What must hold.
    what: String,
    /// What was measured.
    measured: String,
    is_met: bool,
}

impl Bar {
    /// `measured` must be `most` at most.
    pub fn at_most(what: impl Into<String>, measured: f64, most: f64) -> Bar {
        Bar {
            what: format!("{}: at most {most}", what.into()),
            measured: format!("{measured:.3}"),
            is_met: measured <= most,
        }
    }

    /// `measured` must be `least` at least.
    pub fn at_least(what: impl Into<String>, measured: f64, least: f64) -> Bar {
        Bar {
            what: format!("{}: at least {least}", what.into()),
            measured: format!("{measured:.3}"),
            is_met: measured >= least,
        }
    }
}

/// All that a run says, in its order.
pub struct Report {
    json: serde_json::Map<String, Value>,
    bars: Vec<Bar>,
    /// Run by hand on a machine that others use, too?
    others_max: f64,
}

impl Report {
    /// Begins with the settings.
    pub fn new(experiment: &str, common: &Common, sizes: Sizes, more: &[(&str, String)]) -> Report {
        let mut facts = machine::facts(&common.dir);
        let own = [
            ("experiment", experiment.to_owned()),
            (
                "command",
                std::env::args().skip(1).collect::<Vec<_>>().join(" "),
            ),
            ("memory budget", ByteSize(sizes.memory).to_string()),
            (
                "data",
                format!(
                    "{}: {} records of {} B of key and {} B of value",
                    ByteSize(sizes.data),
                    sizes.records(),
                    crate::content::KEY_BYTES,
                    sizes.value_bytes
                ),
            ),
            ("cores used", common.core_count().to_string()),
            (
                "quoit's configuration",
                match &common.quoit_config {
                    Some(path) => path.display().to_string(),
                    None => "default".to_owned(),
                },
            ),
        ];
        let own = own.into_iter().chain(more.iter().cloned());
        facts.extend(own.map(|(name, value)| (name.to_owned(), value)));
        println!("\n# engines {experiment}\n");
        for (name, value) in &facts {
            println!("{name:>22}: {value}");
        }
        println!();
        let settings = facts.into_iter().map(|(name, value)| (name, json!(value)));
        let mut json = serde_json::Map::new();
        json.insert("settings".to_owned(), Value::Object(settings.collect()));
        Report {
            json,
            bars: Vec::new(),
            others_max: 0.0,
        }
    }

    /// Adds to the JSON.
    pub fn add(&mut self, name: &str, value: impl serde::Serialize) -> Outcome<()> {
        self.json
            .insert(name.to_owned(), serde_json::to_value(value)?);
        Ok(())
    }

    /// Notes a bar.
    pub fn bar(&mut self, bar: Bar) {
        self.bars.push(bar);
    }

    /// Notes how much CPU others used beside a phase.
    pub fn note_others(&mut self, result: &PhaseResult) {
        self.others_max = self.others_max.max(result.cpu_of_others());
    }

    /// Shows the bars, and writes the JSON if that was asked for. False if a bar is missed.
    pub fn finish(mut self, json: Option<&Path>) -> Outcome<bool> {
        if self.others_max > 0.1 {
            println!(
                "\nOther processes took up to {:.0}% of the CPU time beside a phase: the machine was not quiet.",
                self.others_max * 100.0
            );
        }
        if !self.bars.is_empty() {
            let rows = self.bars.iter().map(|bar| {
                let verdict = if bar.is_met { "met" } else { "MISSED" };
                vec![bar.what.clone(), bar.measured.clone(), verdict.to_owned()]
            });
            println!("\n## Bars\n");
            table(&["bar", "measured", ""], &rows.collect::<Vec<_>>());
        }
        let bars: Vec<Value> = self
            .bars
            .iter()
            .map(|bar| json!({"bar": bar.what, "measured": bar.measured, "met": bar.is_met}))
            .collect();
        self.json.insert("bars".to_owned(), Value::Array(bars));
        if let Some(path) = json {
            let text = serde_json::to_string_pretty(&Value::Object(self.json))?;
            std::fs::write(path, text)?;
        }
        Ok(self.bars.iter().all(|bar| bar.is_met))
    }
}

/// A table in Markdown, its columns as wide as they need to be.
pub fn table(heads: &[&str], rows: &[Vec<String>]) {
    let width = |column: usize| {
        let cells = rows.iter().filter_map(|row| row.get(column));
        let cells = cells.map(|cell| cell.chars().count());
        cells.max().unwrap_or(0).max(heads[column].chars().count())
    };
    let widths: Vec<usize> = (0..heads.len()).map(width).collect();
    let line = |cells: &[String]| {
        let cells = cells.iter().zip(&widths).enumerate();
        let cells = cells.map(|(column, (cell, width))| match column {
            0 => format!(" {cell:<width$} "),
            _ => format!(" {cell:>width$} "),
        });
        println!("|{}|", cells.collect::<Vec<_>>().join("|"));
    };
    line(
        &heads
            .iter()
            .map(|head| (*head).to_owned())
            .collect::<Vec<_>>(),
    );
    let rules = widths
        .iter()
        .enumerate()
        .map(|(column, width)| match column {
            0 => "-".repeat(width + 2),
            _ => format!("{}:", "-".repeat(width + 1)),
        });
    println!("|{}|", rules.collect::<Vec<_>>().join("|"));
    rows.iter().for_each(|row| line(row));
}

/// Microseconds as milliseconds.
pub fn ms(us: u64) -> String {
    format!("{:.2}", us as f64 / 1000.0)
}

/// p50, p99, p99.9 and max in milliseconds, or nothing where there was no operation.
pub fn latencies(of: &Latencies) -> String {
    match of.count {
        0 => "-".to_owned(),
        _ => format!(
            "{} / {} / {} / {}",
            ms(of.p50_us),
            ms(of.p99_us),
            ms(of.p999_us),
            ms(of.max_us)
        ),
    }
}

/// A number of bytes in MiB.
pub fn mib(bytes: u64) -> String {
    format!("{}", bytes >> 20)
}

fn or_dash(is_there: bool, text: String) -> String {
    if is_there { text } else { "-".to_owned() }
}

/// All phases, one a line.
pub fn phases(results: &[PhaseResult]) {
    println!("\n## Phases\n");
    println!(
        "Latencies: p50 / p99 / p99.9 / max in ms. Written: bytes to the device for each byte of key and value,"
    );
    println!(
        "by this process's count until it had settled, and by the device's count. Space: for each live byte,"
    );
    println!(
        "settled and at the peak. Reads: the device's requests for each GET, for each GET that no cache of"
    );
    println!(
        "records answered, and KiB read for each GET. CPU: cores busy with this process, and with others.\n"
    );
    let rows = results.iter().map(|result| {
        let (has_puts, has_gets) = (result.puts.count > 0, result.gets.count > 0);
        vec![
            result.name.clone(),
            format!("{:.1}", result.seconds),
            format!("{:.0}", result.operations_per_second),
            latencies(&result.puts),
            latencies(&result.gets),
            ms(result.stall_us),
            or_dash(
                has_puts,
                format!(
                    "{:.3} / {:.3}",
                    result.write_amplification(),
                    result.device_write_amplification()
                ),
            ),
            format!(
                "{:.3} / {:.3}",
                result.space_amplification(),
                result.space_amplification_peak()
            ),
            or_dash(
                has_gets && !has_puts,
                format!(
                    "{:.2} / {:.2} / {:.1}",
                    result.reads_per_get(),
                    result.reads_per_cold_get(),
                    result.bytes_per_get() / 1024.0
                ),
            ),
            mib(result.resident_peak),
            format!(
                "{:.1} / {:.1}",
                result.counters.cpu / result.seconds,
                (result.counters.cpu_all - result.counters.cpu) / result.seconds
            ),
        ]
    });
    let heads = [
        "phase",
        "s",
        "op/s",
        "writes ms",
        "reads ms",
        "stall ms",
        "written",
        "space",
        "reads",
        "RSS MiB",
        "CPU",
    ];
    table(&heads, &rows.collect::<Vec<_>>());
}

/// One phase by windows of time.
pub fn windows(result: &PhaseResult) {
    println!("\n## {} by windows of time\n", result.name);
    let rows = result.windows.iter().map(|window| {
        vec![
            format!("{:.1}", window.until_seconds),
            format!("{:.0}", window.operations_per_second),
            latencies(&window.puts),
            latencies(&window.gets),
            ms(window.stall_us),
            mib(window.device_written),
            window.device_reads.to_string(),
            mib(window.resident_bytes),
            mib(window.space_bytes),
        ]
    });
    let heads = [
        "until s",
        "op/s",
        "writes ms",
        "reads ms",
        "stall ms",
        "written MiB",
        "device reads",
        "RSS MiB",
        "space MiB",
    ];
    table(&heads, &rows.collect::<Vec<_>>());
}

/// What the engine told of itself after a phase.
pub fn facts(result: &PhaseResult) {
    let facts = result
        .facts
        .iter()
        .map(|(name, value)| format!("{name} {value}"));
    println!(
        "\nAfter {}: {}.",
        result.name,
        facts.collect::<Vec<_>>().join(", ")
    );
}

/// The middle one.
pub fn median(values: &[f64]) -> f64 {
    let mut values = values.to_vec();
    values.sort_by(f64::total_cmp);
    match values.len() {
        0 => 0.0,
        count if count % 2 == 1 => values[count / 2],
        count => (values[count / 2 - 1] + values[count / 2]) / 2.0,
    }
}
