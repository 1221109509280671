//! What a phase came to: rates, latencies, amplification, by window and in all.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use serde::{Deserialize, Serialize};

use crate::content::KEY_BYTES;
use crate::engine::Facts;
use crate::machine::{self, Counters, Meter};
use crate::phase::{Phase, Window, no_latencies};

/// How often memory and space are looked at.
const SAMPLE_EVERY: Duration = Duration::from_millis(250);
/// Every so many looks, how much space is taken.
const SPACE_EVERY: u32 = 4;

/// Latencies in microseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Latencies {
    /// Operations.
    pub count: u64,
    pub p50_us: u64,
    pub p99_us: u64,
    pub p999_us: u64,
    pub max_us: u64,
}

impl Latencies {
    fn of(histogram: &Histogram<u32>) -> Latencies {
        Latencies {
            count: histogram.len(),
            p50_us: histogram.value_at_quantile(0.5),
            p99_us: histogram.value_at_quantile(0.99),
            p999_us: histogram.value_at_quantile(0.999),
            max_us: histogram.max(),
        }
    }
}

/// What happened in one window of time.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct WindowResult {
    /// From the start of the phase to the end of the window (the last one may be cut short).
    pub until_seconds: f64,
    pub operations_per_second: f64,
    pub puts: Latencies,
    pub gets: Latencies,
    /// The longest time without an operation that ended.
    pub stall_us: u64,
    pub device_written: u64,
    pub device_reads: u64,
    pub resident_bytes: u64,
    pub space_bytes: u64,
}

/// Memory and space at one moment.
#[derive(Clone, Copy, Debug, Default)]
pub struct Sample {
    pub counters: Counters,
    pub resident_bytes: u64,
    pub space_bytes: u64,
}

impl Sample {
    /// Now.
    pub fn take(meter: &Meter, dir: &Path) -> Sample {
        Sample {
            counters: meter.read(),
            resident_bytes: machine::resident_bytes(),
            space_bytes: machine::space_bytes(dir),
        }
    }
}

/// What a phase came to.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct PhaseResult {
    pub name: String,
    pub measured: bool,
    pub seconds: f64,
    pub operations_per_second: f64,
    pub puts: Latencies,
    pub gets: Latencies,
    /// The longest time without an operation that ended.
    pub stall_us: u64,
    pub windows: Vec<WindowResult>,
    /// Bytes of keys and values that were written.
    pub user_bytes: u64,
    /// What was counted while it ran.
    pub counters: Counters,
    /// What was counted until the engine had settled (the same if nobody waited for that).
    pub settled: Counters,
    /// Bytes of keys and values that are there at its end.
    pub live_bytes: u64,
    /// Space taken at its end, at its peak, and when the engine had settled.
    pub space_end: u64,
    pub space_peak: u64,
    pub space_settled: u64,
    pub resident_peak: u64,
    pub wrong: u64,
    pub lost: u64,
    pub failed: u64,
    /// Operations a second that were to be begun, if that was fixed.
    pub rate: Option<f64>,
    /// Bytes that were resident before the engine was opened.
    pub resident_before: u64,
    /// What the engine tells of itself before and afterwards.
    pub facts_before: Facts,
    pub facts: Facts,
}

impl PhaseResult {
    /// Of a phase that has ended after `seconds`.
    pub fn of(phase: &Arc<Phase>, seconds: f64, samples: Samples) -> PhaseResult {
        let (windows, stall_us) = phase.take_windows();
        let (mut puts, mut gets) = (no_latencies(), no_latencies());
        for window in windows.values() {
            for (all, part) in [(&mut puts, &window.puts), (&mut gets, &window.gets)] {
                if let Some(part) = part {
                    all.add(part).expect("they have the same bounds");
                }
            }
        }
        let load = |counter: &std::sync::atomic::AtomicU64| {
            counter.load(std::sync::atomic::Ordering::SeqCst)
        };
        let last = windows.keys().next_back().copied();
        let results = windows.into_iter().map(|(index, window)| {
            let is_last = Some(index) == last;
            samples.window(index, window, is_last.then_some(seconds))
        });
        PhaseResult {
            name: phase.spec.name.clone(),
            measured: phase.spec.measured,
            seconds,
            operations_per_second: (puts.len() + gets.len()) as f64 / seconds,
            puts: Latencies::of(&puts),
            gets: Latencies::of(&gets),
            stall_us,
            windows: results.collect(),
            space_peak: samples.space_peak,
            resident_peak: samples.resident_peak,
            wrong: load(&phase.wrong),
            lost: load(&phase.lost),
            failed: load(&phase.failed),
            ..PhaseResult::default()
        }
    }

    /// Notes what was counted from `before` to `after`, and until it had settled.
    pub fn count(
        &mut self,
        before: Counters,
        after: Counters,
        settled: Option<Sample>,
        value_bytes: usize,
    ) {
        self.user_bytes = self.puts.count * (KEY_BYTES + value_bytes) as u64;
        self.counters = after.since(&before);
        let end = settled.map_or(after, |sample| sample.counters);
        self.settled = end.since(&before);
    }

    /// Notes how much space is taken for `live` bytes.
    pub fn measure_space(&mut self, live: u64, space: u64, settled: Option<Sample>) {
        self.live_bytes = live;
        self.space_end = space;
        self.space_peak = self.space_peak.max(space);
        self.space_settled = settled.map_or(space, |sample| sample.space_bytes);
    }

    /// Answers that were wrong, records that were lost, operations that failed.
    pub fn errors(&self) -> u64 {
        self.wrong + self.lost + self.failed
    }

    /// Bytes that this process wrote for each byte of the user's, until it had settled.
    pub fn write_amplification(&self) -> f64 {
        ratio(self.settled.written, self.user_bytes)
    }

    /// The same by the device's count.
    pub fn device_write_amplification(&self) -> f64 {
        ratio(self.settled.device_written, self.user_bytes)
    }

    /// Space at the end, when settled, for each live byte.
    pub fn space_amplification(&self) -> f64 {
        ratio(self.space_settled, self.live_bytes)
    }

    /// Space at the peak for each live byte (of the end).
    pub fn space_amplification_peak(&self) -> f64 {
        ratio(self.space_peak, self.live_bytes)
    }

    /// The device's reads for each read of a record.
    pub fn reads_per_get(&self) -> f64 {
        ratio(self.counters.device_reads, self.gets.count)
    }

    /// By how much a fact has risen.
    pub fn risen(&self, name: &str) -> u64 {
        let value = |facts: &Facts| facts.get(name).copied().unwrap_or(0);
        value(&self.facts).saturating_sub(value(&self.facts_before))
    }

    /// The device's reads for each read of a record that no cache of records answered.
    pub fn reads_per_cold_get(&self) -> f64 {
        let cold = self.gets.count.saturating_sub(self.risen("row_cache_hits"));
        ratio(self.counters.device_reads, cold)
    }

    /// Bytes read for each read of a record.
    pub fn bytes_per_get(&self) -> f64 {
        ratio(self.counters.read, self.gets.count)
    }

    /// The part of all CPU time used meanwhile that was not this process's.
    pub fn cpu_of_others(&self) -> f64 {
        (1.0 - self.counters.cpu / self.counters.cpu_all.max(0.01)).max(0.0)
    }
}

fn ratio(part: u64, whole: u64) -> f64 {
    if whole == 0 {
        return 0.0;
    }
    part as f64 / whole as f64
}

/// What a sampler has seen.
#[derive(Default)]
pub struct Samples {
    window: Duration,
    first: Counters,
    /// At the end of each window.
    ends: Vec<Sample>,
    /// At the end of the phase.
    end: Sample,
    space_peak: u64,
    resident_peak: u64,
}

impl Samples {
    /// Window `index`; the last one ends with the phase.
    fn window(&self, index: u64, window: Window, end: Option<f64>) -> WindowResult {
        let start = index as f64 * self.window.as_secs_f64();
        let until_seconds = end.unwrap_or(start + self.window.as_secs_f64());
        let long = |part: Option<Histogram<u32>>| {
            let mut all = no_latencies();
            if let Some(part) = &part {
                all.add(part).expect("they have the same bounds");
            }
            Latencies::of(&all)
        };
        let (puts, gets) = (long(window.puts), long(window.gets));
        let index = index as usize;
        let before = match index.checked_sub(1) {
            Some(before) => self.ends.get(before).map(|sample| sample.counters),
            None => Some(self.first),
        };
        let at_end = self.ends.get(index).filter(|_| end.is_none());
        let end = at_end.copied().unwrap_or(self.end);
        let counted = end.counters.since(&before.unwrap_or(end.counters));
        WindowResult {
            until_seconds,
            operations_per_second: (puts.count + gets.count) as f64
                / (until_seconds - start).max(0.001),
            puts,
            gets,
            stall_us: window.stall_us,
            device_written: counted.device_written,
            device_reads: counted.device_reads,
            resident_bytes: end.resident_bytes,
            space_bytes: end.space_bytes,
        }
    }
}

/// Looks at memory, space and counters while a phase runs, and says how far it is.
pub struct Sampler {
    stop: Sender<()>,
    thread: JoinHandle<Samples>,
}

impl Sampler {
    /// Begins to look.
    pub fn start(phase: &Arc<Phase>, meter: &Meter, dir: &Path, window: Duration) -> Sampler {
        let (stop, stopped) = channel();
        let watch = Watch {
            phase: Arc::clone(phase),
            meter: meter.clone(),
            dir: dir.to_owned(),
            done_before: 0,
        };
        let thread = std::thread::spawn(move || {
            watch.run(window, || {
                stopped.recv_timeout(SAMPLE_EVERY) == Err(RecvTimeoutError::Timeout)
            })
        });
        Sampler { stop, thread }
    }

    /// What it has seen, of a phase that had ended at `end`.
    pub fn stop(self, end: Sample) -> Samples {
        // If it is gone, joining says so.
        let _ = self.stop.send(());
        let seen = self.thread.join().unwrap_or_default();
        Samples { end, ..seen }
    }
}

struct Watch {
    phase: Arc<Phase>,
    meter: Meter,
    dir: PathBuf,
    done_before: u64,
}

impl Watch {
    fn run(mut self, window: Duration, goes_on: impl Fn() -> bool) -> Samples {
        let mut samples = Samples {
            window,
            first: self.meter.read(),
            ..Samples::default()
        };
        let mut looks = 0;
        let mut told = Instant::now();
        while goes_on() {
            looks += 1;
            samples.resident_peak = samples.resident_peak.max(machine::resident_bytes());
            if looks % SPACE_EVERY == 0 {
                samples.space_peak = samples.space_peak.max(machine::space_bytes(&self.dir));
            }
            let windows = (self.phase.started().elapsed().as_nanos() / window.as_nanos()) as usize;
            if windows > samples.ends.len() {
                let sample = Sample::take(&self.meter, &self.dir);
                samples.ends.resize(windows, sample);
                self.tell(told.elapsed(), &sample);
                told = Instant::now();
            }
        }
        samples
    }

    fn tell(&mut self, since: Duration, sample: &Sample) {
        let done = self.phase.done();
        eprintln!(
            "  {} {:5.0} s: {:9} operations, {:8.0}/s, {:6} MiB resident, {:7} MiB on disk",
            self.phase.spec.name,
            self.phase.started().elapsed().as_secs_f64(),
            done,
            (done - self.done_before) as f64 / since.as_secs_f64(),
            sample.resident_bytes >> 20,
            sample.space_bytes >> 20,
        );
        self.done_before = done;
    }
}
