//! What goes wrong in a world of nodes: crashes, partitions, pauses, wrong clocks, disks that fail.

use std::time::Duration;

use quoit::rt::sim::Party;

use crate::cluster::Verdict;
use crate::scene::{Scene, machine};

const DAY_MS: i64 = 86_400_000;

/// What may go wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Weather {
    /// Nodes crash, are cut off and stand still; clocks are off by minutes. Network and disks are
    /// sound.
    Fair,
    /// Everything: clocks are off by up to a day, networks are slow, stall and reset connections,
    /// one power cut takes all nodes, disks are slow, full, or fail what they are asked.
    Foul,
}

impl Weather {
    /// How far clocks may be off.
    pub fn skew_ms(self) -> i64 {
        match self {
            Weather::Fair => 600_000,
            Weather::Foul => DAY_MS,
        }
    }
}

/// What a disk does wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trouble {
    Slow,
    Full,
    ReadsFail,
    WritesFail,
    /// What was to be made durable may not be, though the next sync succeeds.
    SyncsFail,
}

const TROUBLES: [Trouble; 5] = [
    Trouble::Slow,
    Trouble::Full,
    Trouble::ReadsFail,
    Trouble::WritesFail,
    Trouble::SyncsFail,
];

impl Scene {
    /// One thing after the other goes wrong, and some of it ends again.
    pub fn storm(&mut self) -> Verdict {
        let (least, most) = self.shape.steps;
        for _ in 0..self.chance.u32(least..=most) {
            let (least, most) = self.shape.step_us;
            let pause = self.chance.u64(least..most);
            self.world.run_for(Duration::from_micros(pause));
            self.take_leave()?;
            match self.shape.weather {
                Weather::Fair => self.mishap()?,
                Weather::Foul => match self.chance.u8(..10) {
                    0..6 => self.mishap()?,
                    6..8 => self.trouble_a_disk(),
                    8 => self.mend_a_disk()?,
                    _ => self.break_connections(),
                },
            }
        }
        Ok(())
    }

    fn some_node(&mut self) -> u16 {
        self.chance.u16(..self.shape.nodes)
    }

    /// Some node that is not `number`.
    fn some_other(&mut self, number: u16) -> u16 {
        let count = self.shape.nodes;
        (number + self.chance.u16(1..count)) % count
    }

    fn mishap(&mut self) -> Verdict {
        let number = self.some_node();
        let is_foul = self.shape.weather == Weather::Foul;
        match self.chance.u8(..14) {
            0..3 => self.crash(number),
            3..6 => self.start_missing()?,
            6 => {
                let other = self.some_other(number);
                self.cut(number, other);
            }
            7 => {
                let others = self.all().into_iter().filter(|other| *other != number);
                others.for_each(|other| self.cut(number, other));
            }
            8..10 => self.world.heal_all(),
            10 => self.pause(number),
            11 => self.jump_clock(number),
            12 => self.part(),
            // A power cut takes all of them at once.
            _ if is_foul && self.chance.u8(..3) == 0 => {
                let all = self.all();
                all.into_iter().for_each(|number| self.crash(number));
            }
            _ => {
                let other = self.some_other(number);
                self.tally.cuts += 1;
                self.world.cut_one_way(party(number), party(other));
            }
        }
        Ok(())
    }

    /// Lets nothing through between two nodes.
    pub fn cut(&mut self, one: u16, other: u16) {
        self.tally.cuts += 1;
        self.world.cut(party(one), party(other));
    }

    /// Two sides that do not hear each other, or of which one does not hear the other.
    fn part(&mut self) {
        let sides: Vec<bool> = (0..self.shape.nodes).map(|_| self.chance.bool()).collect();
        let is_one_way = self.chance.u8(..3) == 0;
        for (one, is_left) in sides.iter().enumerate() {
            for (other, is_also_left) in sides.iter().enumerate() {
                if *is_left && !is_also_left {
                    let (one, other) = (party(one as u16), party(other as u16));
                    match is_one_way {
                        true => self.world.cut_one_way(one, other),
                        false => self.world.cut(one, other),
                    }
                }
            }
        }
        self.tally.cuts += 1;
    }

    fn pause(&mut self, number: u16) {
        let most_ms = match self.shape.weather {
            Weather::Fair => 800,
            Weather::Foul => [50, 3_000][self.chance.usize(..2)],
        };
        let pause = Duration::from_millis(self.chance.u64(1..most_ms));
        self.tally.pauses += 1;
        self.world.pause_node(machine(number), pause);
    }

    fn jump_clock(&mut self, number: u16) {
        let most_ms = match self.shape.weather {
            Weather::Fair => 60_000,
            Weather::Foul => [1_000, DAY_MS][self.chance.usize(..2)],
        };
        let jump = self.chance.i64(-most_ms..=most_ms);
        self.tally.jumps += 1;
        self.world.jump_clock(machine(number), jump);
    }

    fn break_connections(&mut self) {
        let number = self.some_node();
        let other = match self.chance.u8(..4) {
            0 => Party::Clients,
            _ => party(self.some_other(number)),
        };
        self.world.reset_connections(party(number), other);
    }

    /// Ends a node, if it is up.
    pub fn crash(&mut self, number: u16) {
        let seat = &mut self.seats[usize::from(number)];
        if seat.started.take().is_none() || self.world.node_ended(machine(number)) {
            return;
        }
        seat.ends.push(self.world.elapsed());
        self.tally.crashes += 1;
        match self.chance.bool() {
            true => self.world.crash_node(machine(number)),
            false => self.world.kill_node(machine(number)),
        }
    }

    fn trouble_a_disk(&mut self) {
        let (number, trouble) = (self.some_node(), TROUBLES[self.chance.usize(..5)]);
        let seat = &mut self.seats[usize::from(number)];
        if seat.started.is_none() || seat.trouble.is_some() {
            return;
        }
        (seat.trouble, seat.is_excused) = (Some(trouble), true);
        self.tally.troubles += 1;
        let share = [0.02, 0.3, 1.0][self.chance.usize(..3)];
        let disk = self.world.disk(machine(number));
        match trouble {
            Trouble::Full => disk.leave_free(self.chance.u64(..512) << 10),
            _ => disk.change_faults(|faults| match trouble {
                Trouble::Slow => {
                    faults.latency_us = (1_000, 20_000);
                    faults.sync_us = (5_000, 100_000);
                }
                Trouble::ReadsFail => faults.eio_read = share,
                Trouble::WritesFail => faults.eio_write = share,
                Trouble::SyncsFail => faults.eio_sync = share,
                Trouble::Full => unreachable!("it was just told"),
            }),
        }
    }

    /// A disk is well again. What had failed is not made good by that: a node whose writes or syncs
    /// failed is started anew, as it asks for.
    fn mend_a_disk(&mut self) -> Verdict {
        let troubled = |number: &u16| self.seats[usize::from(*number)].trouble.is_some();
        let Some(number) = self.all().into_iter().find(troubled) else {
            return Ok(());
        };
        if self.mend(number) {
            self.crash(number);
            self.start_missing()?;
        }
        Ok(())
    }

    /// The disk of a node is well from now on; true if the node has to be started anew.
    pub fn mend(&mut self, number: u16) -> bool {
        let seat = &mut self.seats[usize::from(number)];
        seat.is_excused = seat.started.is_some() && seat.is_excused;
        let Some(trouble) = seat.trouble.take() else {
            return false;
        };
        let sound = self.sound.clone();
        let disk = self.world.disk(machine(number));
        disk.change_faults(|faults| *faults = sound);
        matches!(trouble, Trouble::WritesFail | Trouble::SyncsFail)
    }

    /// Everything that went wrong goes right again; who is down stays down.
    pub fn make_peace(&mut self) {
        self.world.heal_all();
        self.world.change_net(|faults| {
            faults.resets = 0.0;
            faults.spikes = 0.0;
        });
        self.sound.spikes = 0.0;
        for number in self.all() {
            if self.mend(number) {
                self.crash(number);
            }
            let disk = self.world.disk(machine(number));
            disk.change_faults(|faults| faults.spikes = 0.0);
        }
    }
}

fn party(number: u16) -> Party {
    Party::Node(machine(number))
}
