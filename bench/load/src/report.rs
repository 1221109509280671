//! What a run leaves behind: a table for people, JSON for programs, percentile files that
//! HdrHistogram's plotters read, and a page with curves.

use std::fmt::Write;
use std::path::Path;

use hdrhistogram::Histogram;

use crate::page;
use crate::run::Measured;
use crate::summary::{Judged, Summary};
use crate::target::millis;

/// Percentile lines for each halving of what is left to 100%.
const TICKS_PER_HALF: u32 = 5;

/// The table, and what else there is to say.
pub fn text(summary: &Summary) -> String {
    let mut out = String::new();
    // Writing to a string cannot fail.
    let mut line = |text: String| writeln!(out, "{text}").expect("a string takes it");
    let offered = summary.offered_rate.map_or(String::new(), |rate| {
        format!(", {} offered", thousands(rate))
    });
    line(format!(
        "\n{}: {} requests/s{offered}, {:.1} s, {} answers, {} failures",
        summary.workload,
        thousands(summary.rate),
        summary.seconds,
        thousands(summary.answers as f64),
        thousands(summary.failures as f64)
    ));
    line(format!(
        "{:<8} {:>12} {:>10} {:>9} {:>9} {:>9} {:>9} {:>9} {:>9} {:>9} {:>9} {:>9}",
        "",
        "answers",
        "/s",
        "mean ms",
        "p50",
        "p90",
        "p99",
        "p99.9",
        "p99.99",
        "max",
        "misses",
        "failures"
    ));
    for of in &summary.operations {
        line(format!(
            "{:<8} {:>12} {:>10} {:>9.3} {:>9} {:>9} {:>9} {:>9} {:>9} {:>9.3} {:>9} {:>9}",
            of.name,
            thousands(of.answers as f64),
            thousands(of.rate),
            of.mean_ms,
            shown(of.p50_ms),
            shown(of.p90_ms),
            shown(of.p99_ms),
            shown(of.p999_ms),
            shown(of.p9999_ms),
            of.max_ms,
            of.misses,
            of.failures
        ));
    }
    for (class, failure) in &summary.failure_kinds {
        line(format!(
            "failed: {class} {} times, first with: {}",
            failure.count,
            printable(&failure.example)
        ));
    }
    if summary.tried_again > 0 {
        line(format!(
            "{} requests failed at first, {} were tried again at another server",
            summary.failed_at_first, summary.tried_again
        ));
    }
    if let Some(gaps) = &summary.gaps {
        line(format!(
            "longest without a success while somebody asked: {:.1} ms for reads of a key, {:.1} for writes, {:.1} for all keys",
            gaps.reads.ms, gaps.writes.ms, gaps.all.ms
        ));
    }
    if summary.redirects + summary.reconnects > 0 {
        line(format!(
            "{} redirections, {} lost connections",
            summary.redirects, summary.reconnects
        ));
    }
    if let Some(of) = &summary.verification {
        line(format!("verified during the run: {}", judged(&of.during)));
        line(format!(
            "verified reading back:   {}, {} could not be read",
            judged(&of.read_back),
            of.unread
        ));
    }
    if summary.verification.is_some() {
        line(format!(
            "writes: {} acknowledged, {} refused, {} unknown",
            summary.writes.acknowledged, summary.writes.refused, summary.writes.unknown
        ));
    }
    if let Some(of) = &summary.linear {
        line(format!(
            "one order explains all that was told of {} keys, {} operations ({} writes unknown): {} exceptions",
            of.records, of.operations, of.unknown, of.wrong
        ));
        for fault in &of.faults {
            line(format!("no order explains {fault}"));
        }
    }
    let busy = summary
        .threads_busy
        .iter()
        .map(|busy| format!("{:.0}%", busy * 100.0));
    let busy = busy.collect::<Vec<_>>().join(" ");
    let late = match summary.offered_rate {
        Some(_) => format!(
            "; sent p50 {:.3}, p99 {:.3} ms after it was due; p99 {:.3} ms if counted from the sending",
            summary.lag_p50_ms, summary.lag_p99_ms, summary.service_p99_ms
        ),
        None => String::new(),
    };
    line(format!("load threads busy: {busy}{late}"));
    for target in &summary.targets {
        let verdict = if target.is_met { "met" } else { "MISSED" };
        line(format!(
            "target {} p{} within {} ms: {} ms, {verdict}",
            target.operation,
            target.quantile * 100.0,
            target.limit_ms,
            shown(target.seen_ms)
        ));
    }
    out
}

fn judged(of: &Judged) -> String {
    format!(
        "{} sound, {} lost, {} stale, {} corrupt",
        of.sound, of.lost, of.stale, of.corrupt
    )
}

fn shown(millis: Option<f64>) -> String {
    millis.map_or("never".to_owned(), |millis| format!("{millis:.3}"))
}

/// What a server said may hold anything.
fn printable(text: &str) -> String {
    text.chars()
        .map(|letter| if letter.is_control() { '?' } else { letter })
        .collect()
}

/// A whole number, in groups of three digits.
pub fn thousands(number: f64) -> String {
    let digits = format!("{number:.0}");
    let mut out = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

/// The format of HdrHistogram's `outputPercentileDistribution`, in milliseconds.
pub fn hgrm(latency: &Histogram<u64>) -> String {
    let mut out = format!(
        "{:>12} {:>14} {:>10} {:>14}\n\n",
        "Value", "Percentile", "TotalCount", "1/(1-Percentile)"
    );
    let mut total = 0;
    for step in latency.iter_quantiles(TICKS_PER_HALF) {
        total += step.count_since_last_iteration();
        let quantile = step.quantile_iterated_to();
        let value = millis(step.value_iterated_to());
        let line = match quantile < 1.0 {
            true => format!(
                "{value:>12.3} {quantile:>2.12} {total:>10} {:>14.2}\n",
                1.0 / (1.0 - quantile)
            ),
            false => format!("{value:>12.3} {quantile:>2.12} {total:>10}\n"),
        };
        out.push_str(&line);
    }
    out + &format!(
        "#[Mean    = {:>12.3}, StdDeviation   = {:>12.3}]\n#[Max     = {:>12.3}, Total count    = {:>12}]\n\
         #[Buckets = {:>12}, SubBuckets     = {:>12}]\n",
        latency.mean() / 1e6,
        latency.stdev() / 1e6,
        millis(latency.max()),
        latency.len(),
        latency.buckets(),
        2048
    )
}

/// Writes `result.json`, `report.html`, and one `.hgrm` for each kind of operation.
pub fn write_all(directory: &Path, summary: &Summary, work: &Measured) -> Result<(), String> {
    let write = |name: &str, text: &str| {
        let path = directory.join(name);
        std::fs::write(&path, text).map_err(|why| format!("{}: {why}", path.display()))
    };
    std::fs::create_dir_all(directory).map_err(|why| format!("{}: {why}", directory.display()))?;
    write("result.json", &json(summary)?)?;
    write("report.html", &page::html(summary, work)?)?;
    for (kind, of) in work.tally.kinds().filter(|(_, of)| !of.latency.is_empty()) {
        write(&format!("{}.hgrm", kind.name()), &hgrm(&of.latency))?;
    }
    Ok(())
}

pub fn json(summary: &Summary) -> Result<String, String> {
    serde_json::to_string_pretty(summary).map_err(|why| why.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tally::histogram;

    #[test]
    fn numbers_are_grouped_by_thousands() {
        for (number, text) in [
            (0.0, "0"),
            (999.4, "999"),
            (1000.0, "1,000"),
            (1_234_567.0, "1,234,567"),
        ] {
            assert_eq!(thousands(number), text);
        }
    }

    /// Plotters of HdrHistogram read four columns, rising, and the total at the end.
    #[test]
    fn percentile_files_rise_to_the_maximum_and_count_everything() {
        let mut latency = histogram();
        (1..=10_000_u64).for_each(|micros| latency.saturating_record(micros * 1000));
        let text = hgrm(&latency);
        let rows: Vec<Vec<f64>> = text
            .lines()
            .skip(2)
            .filter(|line| !line.starts_with('#'))
            .map(|line| {
                line.split_whitespace()
                    .map(|word| word.parse().expect("a number"))
                    .collect()
            })
            .collect();
        assert!(
            rows.len() > 20
                && rows
                    .windows(2)
                    .all(|pair| pair[0][0] <= pair[1][0] && pair[0][2] <= pair[1][2])
        );
        let last = rows.last().expect("rows");
        assert_eq!((last[1], last[2]), (1.0, 10_000.0));
        assert!((last[0] - 10.0).abs() < 0.01);
        let median = rows.iter().find(|row| row[1] >= 0.5).expect("a median");
        assert!(
            (median[0] - 5.0).abs() < 0.01 && (median[3] - 2.0).abs() < 0.01,
            "{median:?}"
        );
    }

    #[test]
    fn what_a_server_says_cannot_drive_the_terminal() {
        assert_eq!(printable("a\x1b[31mb\n"), "a?[31mb?");
    }
}
