//! What stands on standard error while a run goes on: one line that is written over, or, where
//! nobody watches, a line now and then.

use std::io::{IsTerminal, Write};

use crate::core::Phase;
use crate::report::thousands;
use crate::run::Observer;
use crate::series::Point;

/// Seconds between two lines where they stay.
const LINES_APART: f64 = 10.0;

/// See the head of the file.
pub struct Console {
    is_quiet: bool,
    is_terminal: bool,
    last: f64,
}

impl Console {
    pub fn new(is_quiet: bool) -> Console {
        Console {
            is_quiet,
            is_terminal: std::io::stderr().is_terminal(),
            last: 0.0,
        }
    }

    /// Ends the line that is written over.
    pub fn finish(&mut self) {
        if self.is_terminal && !self.is_quiet {
            eprintln!();
        }
    }
}

impl Observer for Console {
    fn on_phase(&mut self, phase: Phase) {
        self.last = -LINES_APART;
        let what = match phase {
            Phase::Fill => "writing every record once",
            Phase::Work => return,
            Phase::ReadBack => "reading all acknowledged writes back",
        };
        if !self.is_quiet {
            eprintln!("{what}");
        }
    }

    fn on_point(&mut self, _: Phase, point: &Point) {
        let is_due = self.is_terminal || point.from_seconds - self.last >= LINES_APART;
        if self.is_quiet || !is_due {
            return;
        }
        self.last = point.from_seconds;
        let line = format!(
            "{:6.0} s  {:>10}/s  p50 {:.3}  p99 {:.3}  p99.9 {:.3}  max {:.3} ms  failures {}",
            point.from_seconds + point.seconds,
            thousands(point.rate()),
            point.p50_ms,
            point.p99_ms,
            point.p999_ms,
            point.max_ms,
            point.failures
        );
        let (start, end) = if self.is_terminal {
            ("\r\x1b[K", "")
        } else {
            ("", "\n")
        };
        let mut out = std::io::stderr().lock();
        // Progress that cannot be shown is no reason to stop.
        let _ = write!(out, "{start}{line}{end}").and_then(|()| out.flush());
    }
}
