//! What happened in each second of a run, for the progress line and the curves. Pure, and bounded:
//! a long run has fewer and longer points.

use std::collections::BTreeMap;

use hdrhistogram::Histogram;
use serde::Serialize;

use crate::tally::{Tally, histogram};
use crate::target::millis;

/// Points of a curve; twice as long ones take their place when there are more.
const POINTS_MAX: usize = 1200;
/// Seconds that wait for a thread that is late with its part.
const OPEN_MAX: usize = 4;
const NANOS_PER_SECOND: f64 = 1e9;

/// A second, or more of them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Point {
    /// Since the warm-up.
    pub from_seconds: f64,
    pub seconds: f64,
    pub answers: u64,
    pub failures: u64,
    pub p50_ms: f64,
    pub p99_ms: f64,
    pub p999_ms: f64,
    pub max_ms: f64,
}

impl Point {
    pub fn rate(&self) -> f64 {
        self.answers as f64 / self.seconds.max(1e-9)
    }

    /// Two that follow each other. Their quantiles are gone; the worse of both is no better than
    /// the truth.
    fn with(self, next: Point) -> Point {
        Point {
            from_seconds: self.from_seconds,
            seconds: self.seconds + next.seconds,
            answers: self.answers + next.answers,
            failures: self.failures + next.failures,
            p50_ms: self.p50_ms.max(next.p50_ms),
            p99_ms: self.p99_ms.max(next.p99_ms),
            p999_ms: self.p999_ms.max(next.p999_ms),
            max_ms: self.max_ms.max(next.max_ms),
        }
    }
}

/// A second of which parts are missing.
struct Open {
    latency: Histogram<u64>,
    failures: u64,
    parts: usize,
    from: u64,
    to: u64,
}

/// Puts the threads' intervals together.
pub struct Series {
    threads: usize,
    open: BTreeMap<u64, Open>,
    points: Vec<Point>,
    /// How many seconds a point has, and those of the next.
    stride: usize,
    gathered: Option<(Point, usize)>,
}

impl Series {
    pub fn new(threads: usize) -> Series {
        Series {
            threads,
            open: BTreeMap::new(),
            points: Vec::new(),
            stride: 1,
            gathered: None,
        }
    }

    /// A thread's interval, in nanoseconds since the warm-up; the seconds that are whole by it.
    pub fn add(&mut self, from: u64, to: u64, tally: &Tally) -> Vec<Point> {
        // Intervals begin a moment after the second that they are of.
        let second = (from as f64 / NANOS_PER_SECOND).round() as u64;
        let open = self.open.entry(second).or_insert_with(|| Open {
            latency: histogram(),
            failures: 0,
            parts: 0,
            from,
            to,
        });
        for (_, of) in tally.kinds() {
            open.latency += &of.latency;
            open.failures += of.failures;
        }
        open.parts += 1;
        open.from = open.from.min(from);
        open.to = open.to.max(to);
        let mut whole = Vec::new();
        while let Some(first) = self.open.first_entry() {
            if first.get().parts < self.threads && self.open.len() <= OPEN_MAX {
                break;
            }
            whole.extend(self.close_first());
        }
        whole
    }

    /// All points; the last seconds may lack a thread's part.
    pub fn finish(mut self) -> Vec<Point> {
        while self.close_first().is_some() {}
        self.points.extend(self.gathered.map(|(point, _)| point));
        self.points
    }

    fn close_first(&mut self) -> Option<Point> {
        let (_, open) = self.open.pop_first()?;
        let at = |quantile| millis(open.latency.value_at_quantile(quantile));
        let point = Point {
            from_seconds: open.from as f64 / NANOS_PER_SECOND,
            seconds: (open.to - open.from) as f64 / NANOS_PER_SECOND,
            answers: open.latency.len(),
            failures: open.failures,
            p50_ms: at(0.5),
            p99_ms: at(0.99),
            p999_ms: at(0.999),
            max_ms: millis(open.latency.max()),
        };
        self.keep(point);
        Some(point)
    }

    fn keep(&mut self, point: Point) {
        let (point, count) = match self.gathered.take() {
            None => (point, 1),
            Some((before, count)) => (before.with(point), count + 1),
        };
        if count < self.stride {
            self.gathered = Some((point, count));
            return;
        }
        self.points.push(point);
        if self.points.len() == POINTS_MAX {
            let pairs = self
                .points
                .chunks_exact(2)
                .map(|pair| pair[0].with(pair[1]));
            self.points = pairs.collect();
            self.stride *= 2;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::workload::Kind;

    const SECOND: u64 = 1_000_000_000;

    fn tally(count: u64, nanos: u64) -> Tally {
        let mut tally = Tally::new([Kind::Get].into_iter());
        (0..count).for_each(|_| tally.answered(Kind::Get, nanos));
        tally
    }

    #[test]
    fn a_second_is_whole_when_all_threads_have_told_theirs() {
        let mut series = Series::new(2);
        assert_eq!(series.add(10, SECOND + 20, &tally(5, 1000)), []);
        let points = series.add(3, SECOND + 5, &tally(7, 2_000_000));
        assert_eq!((points.len(), points[0].answers), (1, 12));
        assert!((points[0].max_ms - 2.0).abs() < 0.01 && points[0].p50_ms > 1.9);
        series.add(SECOND + 20, SECOND * 3 / 2, &tally(1, 1000));
        let all = series.finish();
        assert_eq!(
            all.iter().map(|point| point.answers).collect::<Vec<_>>(),
            [12, 1],
            "the last one, too"
        );
    }

    /// A day of seconds must neither fill memory nor lose the one bad second.
    #[test]
    fn a_long_run_has_bounded_points_that_add_up_and_keep_the_worst() {
        let mut series = Series::new(1);
        let (usual, worst) = (tally(10, 1000), tally(10, 5 * SECOND));
        for second in 0..86_400_u64 {
            let of = if second == 4567 { &worst } else { &usual };
            series.add(second * SECOND, (second + 1) * SECOND, of);
        }
        let points = series.finish();
        assert!(points.len() <= POINTS_MAX);
        assert_eq!(
            points.iter().map(|point| point.answers).sum::<u64>(),
            864_000
        );
        assert_eq!(
            points.iter().filter(|point| point.p99_ms > 4000.0).count(),
            1
        );
        let seconds: f64 = points.iter().map(|point| point.seconds).sum();
        assert!((seconds - 86_400.0).abs() < 0.01);
    }

    /// A thread that hangs must not hold all seconds of the others in memory.
    #[test]
    fn seconds_that_stay_incomplete_are_given_up() {
        let mut series = Series::new(2);
        let told: usize = (0..1000)
            .map(|second| {
                series
                    .add(second * SECOND, (second + 1) * SECOND, &tally(1, 1))
                    .len()
            })
            .sum();
        assert!(told >= 990 && series.open.len() <= OPEN_MAX);
    }
}
