//! How fast tables are merged, and how fast writers may go. Pure: time is an argument.
//!
//! What matters to readers and writers is how many runs stand unmerged ("young": flushed, and taken
//! up by no merge yet), counted with fractions for the memtables to come. Up to [`RUNS_CALM`]
//! merging only keeps up with what is written; from there to [`RUNS_SOFT`] it goes the faster the
//! more there are, and then as fast as it can. A core whose clients are quiet never makes it wait.
//!
//! From [`RUNS_SOFT`] on writers get a rate, which falls by half for each eighth of the way to
//! [`RUNS_HARD`]: it settles, without a jump, where as much is merged as is written. At
//! [`RUNS_HARD`] they wait.

use std::time::Duration;

use crate::config::{RUNS_CALM, RUNS_HARD, RUNS_SOFT};

/// Where the rate of writers begins, bytes a second, and how often it is halved up to the hard
/// limit.
const WRITE_RATE_MAX: f64 = 256e6;
const WRITE_RATE_HALVINGS: f64 = 8.0;
/// Writers of large values are slowed when garbage is above its bound, and slowed most when it is
/// so much above, in thousandths of the value log.
const GARBAGE_SPAN_PERMILLE: f64 = 60.0;
/// Where their rate begins, bytes a second.
const VALUE_RATE_MAX: f64 = 500e6;
/// A writer that comes when nobody waits need not have been so exact.
const WRITE_BURST: Duration = Duration::from_millis(2);
/// Nobody is made to wait longer for its turn, though the rate says so.
const WRITE_PAUSE_MAX: Duration = Duration::from_millis(1000);
/// Bytes of input a second that merging is allowed however little is written.
const MERGE_RATE_MIN: f64 = 16e6;
/// What one written byte costs in merges: at level 0, and on each level that there is.
const MERGE_BYTES_YOUNG: f64 = 4.0;
const MERGE_BYTES_LEVEL: f64 = 12.0;
/// How much faster merging goes at the soft limit, where it is let loose.
const URGENCY_MAX: f64 = 4.0;
/// The foreground is measured over this time.
const WINDOW: Duration = Duration::from_millis(100);
/// With fewer operations a second the core's clients are quiet.
const BUSY_OPS: f64 = 200.0;
/// Merging is not made to wait longer at a time: things may have changed.
const MERGE_PAUSE_MAX: Duration = Duration::from_millis(50);

/// Bytes a second that may be written with so many unmerged runs; `None`: any number.
pub fn write_rate(runs: f64) -> Option<f64> {
    let over = (runs - RUNS_SOFT as f64) / (RUNS_HARD - RUNS_SOFT) as f64;
    (over > 0.0).then(|| WRITE_RATE_MAX * (-WRITE_RATE_HALVINGS * over.min(1.0)).exp2())
}

/// Bytes of large values a second that may be written while so many thousandths of the value log
/// are garbage and `bound` are wanted; `None`: any number.
pub fn value_rate(garbage: u64, bound: u64) -> Option<f64> {
    let over = garbage.saturating_sub(bound) as f64 / GARBAGE_SPAN_PERMILLE;
    (over > 0.0).then(|| VALUE_RATE_MAX * (-WRITE_RATE_HALVINGS * over.min(1.0)).exp2())
}

/// True if nothing more may be written before something is merged.
pub fn is_stopped(runs: f64) -> bool {
    runs >= RUNS_HARD as f64
}

/// Bytes of input a second that may be merged; `None`: any number.
pub fn merge_rate(runs: f64, depth: u8, load: Load) -> Option<f64> {
    let urgency = (runs - RUNS_CALM as f64) / (RUNS_SOFT - RUNS_CALM) as f64;
    if urgency >= 1.0 || load.ops < BUSY_OPS {
        return None;
    }
    let cost = MERGE_BYTES_YOUNG + MERGE_BYTES_LEVEL * f64::from(depth);
    let needed = (load.written * cost).max(MERGE_RATE_MIN);
    Some(needed * URGENCY_MAX.powf(urgency.max(0.0)))
}

/// How long to wait after `bytes` of input.
pub fn merge_pause(bytes: usize, rate: Option<f64>) -> Duration {
    let pause = rate.map_or(0.0, |rate| bytes as f64 / rate);
    Duration::from_secs_f64(pause).min(MERGE_PAUSE_MAX)
}

/// Writers in line: each gets its turn so long after the one before as its bytes take.
#[derive(Debug, Default)]
pub struct Gate {
    next: Duration,
}

impl Gate {
    /// True if nobody is before one who comes now.
    pub fn is_open(&self, now: Duration) -> bool {
        self.next <= now
    }

    /// Takes a place in line for `bytes`. How long to wait for one's turn.
    pub fn enter(&mut self, bytes: usize, rate: f64, now: Duration) -> Duration {
        let turn = self.next.max(now.saturating_sub(WRITE_BURST));
        self.next = turn + Duration::from_secs_f64(bytes as f64 / rate);
        // The line is never longer than the longest wait: else it would outlive its reason.
        self.next = self.next.min(now + WRITE_PAUSE_MAX);
        turn.saturating_sub(now)
    }
}

/// What the foreground does in a second.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Load {
    /// Reads and writes.
    pub ops: f64,
    /// Bytes written.
    pub written: f64,
}

/// Measures the [`Load`].
#[derive(Debug, Default)]
pub struct Meter {
    since: Duration,
    ops: u64,
    written: u64,
    load: Load,
}

impl Meter {
    /// Counts an operation that wrote so many bytes.
    pub fn count(&mut self, written: usize) {
        self.ops += 1;
        self.written += written as u64;
    }

    /// The load of late.
    pub fn load(&mut self, now: Duration) -> Load {
        let passed = now.saturating_sub(self.since);
        if passed >= WINDOW {
            let a_second = |count: u64| count as f64 / passed.as_secs_f64();
            // A load that comes counts at once, one that goes does so by and by.
            let smooth = |before: f64, fresh: f64| fresh.max((before + fresh) / 2.0);
            self.load = Load {
                ops: a_second(self.ops),
                written: smooth(self.load.written, a_second(self.written)),
            };
            (self.since, self.ops, self.written) = (now, 0, 0);
        }
        self.load
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BUSY: Load = Load {
        ops: 10_000.0,
        written: 10e6,
    };

    #[test]
    fn writers_are_slowed_without_a_jump_and_the_more_the_more_runs_there_are() {
        assert_eq!(write_rate(RUNS_SOFT as f64), None, "slowed for nothing");
        let mut before = WRITE_RATE_MAX;
        for step in 1..=1000 {
            let runs = RUNS_SOFT as f64 + (RUNS_HARD - RUNS_SOFT) as f64 * f64::from(step) / 1000.0;
            let rate = write_rate(runs).expect("over the soft limit");
            assert!(rate < before, "more runs, and no slower: {runs}");
            assert!(rate > before * 0.99, "a jump at {runs}");
            assert_eq!(is_stopped(runs), step == 1000);
            before = rate;
        }
        assert_eq!(write_rate(1e9), Some(before), "never nothing at all");
    }

    #[test]
    fn writers_of_large_values_are_slowed_while_garbage_is_much_too_much() {
        assert_eq!(value_rate(200, 200), None, "slowed for nothing");
        let mut before = VALUE_RATE_MAX;
        for garbage in 201..=260 {
            let rate = value_rate(garbage, 200).expect("too much garbage");
            assert!(rate < before && rate > before * 0.9, "a jump at {garbage}");
            before = rate;
        }
        assert_eq!(value_rate(1000, 200), Some(before), "never nothing at all");
    }

    #[test]
    fn merging_is_held_back_only_while_clients_are_busy_and_little_is_due() {
        let rate = |runs: f64, load: Load| merge_rate(runs, 2, load);
        assert_eq!(rate(1.0, Load::default()), None, "nobody is disturbed");
        let keeping_up = rate(RUNS_CALM as f64, BUSY).expect("clients are busy");
        assert!(keeping_up >= BUSY.written * 20.0, "levels fall behind");
        let mut before = keeping_up;
        for tenths in RUNS_CALM * 10 + 1..RUNS_SOFT * 10 {
            let now = rate(tenths as f64 / 10.0, BUSY).expect("not yet loose");
            assert!(now > before, "more is due, and it goes no faster");
            before = now;
        }
        assert_eq!(
            rate(RUNS_SOFT as f64, BUSY),
            None,
            "writers are slowed for it"
        );
        let reads_only = Load {
            written: 0.0,
            ..BUSY
        };
        assert_eq!(rate(0.0, reads_only), Some(MERGE_RATE_MIN), "never ends");
    }

    #[test]
    fn a_gate_lets_so_many_bytes_a_second_pass_and_nobody_waits_for_long() {
        let mut gate = Gate::default();
        let mut now = Duration::from_secs(5);
        let start = now;
        let mut passed = 0;
        while now < start + Duration::from_secs(2) {
            if gate.is_open(now) {
                assert!(gate.enter(1000, 1e6, now) <= WRITE_BURST);
                passed += 1000;
            }
            now += Duration::from_micros(100);
        }
        assert!(
            (1_900_000..2_100_000).contains(&passed),
            "{passed} in 2 s at 1 MB/s"
        );
        // A thousand at once, and the longest wait.
        let waits = (0..1000).map(|_| gate.enter(100_000, 1e6, now));
        assert!(waits.max().expect("a thousand") <= WRITE_PAUSE_MAX);
        assert!(!gate.is_open(now));
        assert!(
            gate.is_open(now + WRITE_PAUSE_MAX),
            "the line outlives its reason"
        );
    }

    #[test]
    fn a_meter_tells_what_was_done_of_late() {
        let mut meter = Meter::default();
        let mut now = Duration::from_secs(9);
        meter.load(now);
        for _ in 0..1000 {
            now += Duration::from_millis(1);
            meter.count(500);
        }
        let load = meter.load(now);
        assert!((900.0..1100.0).contains(&load.ops), "{load:?}");
        assert!((450e3..550e3).contains(&load.written), "{load:?}");
        now += Duration::from_secs(10);
        assert_eq!(meter.load(now).ops, 0.0, "it is quiet now");
    }

    /// A core with one disk, in steps of a millisecond: what clients would write, what they may.
    #[test]
    fn a_load_that_is_too_much_settles_between_the_limits() {
        const MEMTABLE: f64 = 16e6;
        for merge_speed in [20e6, 100e6, 400e6] {
            let (mut gate, mut written, mut unmerged, mut merging) =
                (Gate::default(), 0.0, 0.0, 0.0);
            let (mut longest, mut waited) = (0.0f64, Duration::ZERO);
            for step in 0..120_000u64 {
                let now = Duration::from_millis(step + 1000);
                let runs = unmerged / MEMTABLE;
                longest = longest.max(runs);
                assert!(!is_stopped(runs), "writers were stopped at {merge_speed}");
                for _ in 0..2000 {
                    match write_rate(runs) {
                        Some(_) if !gate.is_open(now) => break,
                        Some(rate) => waited = waited.max(gate.enter(1000, rate, now)),
                        None => {}
                    }
                    written += 1000.0;
                    unmerged += 1000.0;
                }
                // Each merge takes what is there when it starts, and ten bytes of input for each.
                if merging == 0.0 && runs >= 4.0 {
                    merging = unmerged;
                }
                let done = (merge_speed / 1000.0 / 10.0f64).min(merging);
                merging -= done;
                unmerged -= done;
            }
            let rate = written / 120.0;
            let sustained = merge_speed / 10.0;
            assert!(rate > 0.9 * sustained, "{rate} at {merge_speed}");
            assert!(longest > RUNS_SOFT as f64, "slowed before it was needed");
            assert!(waited <= WRITE_PAUSE_MAX);
        }
    }
}
