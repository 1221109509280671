//! Who may have the file descriptors of the process, and telling the operator in time that they run
//! out.
//!
//! Every segment of the value log and every table has one, and so has every connection. An eighth
//! of them is for the data: connections are refused first, and then, when there are no descriptors
//! for the data either, writes (`Error::TooManyFiles`). The data leaves some to a few clients.

use std::rc::Rc;
use std::time::Duration;

use super::Shard;
use crate::rt;

/// Open files are counted so often.
const LOOK_EVERY: Duration = Duration::from_secs(5);
const ADVICE: &str = "raise its limit (`ulimit -n`, LimitNOFILE= of the unit)";

/// So many clients may come, however many files the data has.
const CLIENTS_MIN: usize = 32;
/// What they leave, for moments: see [`rt::FILES_LAST`].
const MOMENTS: u64 = rt::FILES_LAST - CLIENTS_MIN as u64;

/// Beyond so many of `most` files, only those may be opened that are the data's.
fn for_clients(most: u64) -> u64 {
    (most - most / 8).saturating_sub(rt::FILES_LAST)
}

/// May there be one client more, beside so many, when `open` files of `most` are open?
pub fn has_room(clients: usize, open: u64, most: u64) -> bool {
    let is_exception = clients < CLIENTS_MIN && open <= most.saturating_sub(MOMENTS);
    open <= for_clients(most) || is_exception
}

/// Whether the operator knows.
#[derive(Default)]
struct Watch {
    has_told: bool,
}

impl Watch {
    /// True if it is time to tell that `open` of `most` files are open: more than 80 in a hundred,
    /// for the first time since there were less than 70.
    fn is_to_tell(&mut self, open: u64, most: u64) -> bool {
        let is_high = open >= most - most / 5;
        let is_low = open < most - most / 10 * 3;
        let tells = is_high && !self.has_told;
        self.has_told = is_high || (self.has_told && !is_low);
        tells
    }
}

impl Shard {
    /// Looks after the open files of the whole process, until the node stops.
    pub(super) async fn watch_files(self: Rc<Self>) {
        let (open, most) = rt::open_files();
        let clients = for_clients(most).saturating_sub(open);
        if clients < self.config.limits.clients_max as u64 {
            log::warn!(
                "{open} files are open, and {most} may be: {clients} clients can connect, not {}, and \
                 fewer as data grows; {ADVICE}",
                self.config.limits.clients_max
            );
        }
        let mut watch = Watch::default();
        while !self.is_stopping() {
            let (open, most) = rt::open_files();
            if watch.is_to_tell(open, most) {
                log::warn!(
                    "{open} files and connections are open, of {most} that may be: beyond that new \
                     connections are refused, and then writes; {ADVICE}"
                );
            }
            rt::sleep(LOOK_EVERY).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Else a burst of clients would leave no file to the data, or much data no client to the node.
    #[test]
    fn clients_leave_files_to_the_data_and_some_get_in_all_the_same() {
        assert!(has_room(900, 827, 1000), "there is enough for all");
        assert!(!has_room(900, 828, 1000), "the rest is for the data");
        assert!(has_room(CLIENTS_MIN - 1, 984, 1000), "somebody must get in");
        assert!(!has_room(CLIENTS_MIN, 984, 1000), "but not so many");
        assert!(!has_room(0, 985, 1000), "the last are for moments");
        assert!(!has_room(0, 1, 0) && has_room(0, 1, u64::MAX), "extremes");
    }

    /// Else the log would be silent, or full of the same line.
    #[test]
    fn what_is_told_is_told_once_until_it_is_over() {
        let mut watch = Watch::default();
        let mut tells = |open| watch.is_to_tell(open, 1000);
        assert!(!tells(799), "there is enough");
        assert!(tells(800), "it is time");
        assert!(!tells(900) && !tells(1000), "it is known");
        assert!(!tells(750) && !tells(850), "it is not over");
        assert!(!tells(699), "now it is over");
        assert!(tells(801), "and begins again");
        assert!(!Watch::default().is_to_tell(0, u64::MAX), "no limit");
    }
}
