//! What guests were promised, and whether it is kept.
//!
//! **blk.** Changes of a sector come into effect in the order in which its
//! guest asked for them (BLK-8, BLK-11), so all values that a sector ever had
//! or may yet have stand in one line. A *floor* says which of them is the
//! oldest that it can still have: an acknowledged change raises it, and so does
//! every read, for what one read has seen no later read may unsee. That is
//! linearizability for this order. A flush makes the floor of its beginning the
//! floor of what a power cut leaves.
//!
//! When a guest dies with changes under way, each may have happened or not, and
//! the next life must find which and keep it: at its first connect all earlier
//! requests have ended, so whatever the disk holds then is a new beginning.

use ring_proto::blk::Op;

use crate::disk::MOST;
use crate::report::{rule, violated};

/// What a sector was, is and may become.
#[derive(Debug)]
struct Sector {
    /// Its values, in order.
    values: Vec<u64>,
    /// It is at least here.
    floor: usize,
    /// A power cut leaves at least this.
    durable: usize,
    /// The present life of its guest began here.
    life: usize,
    /// From here on a dead guest's changes were cut short: anything may be there.
    unsure: Option<usize>,
}

impl Sector {
    /// The place of a value at or after `from`, if it can be there.
    fn find(&self, value: u64, from: usize) -> Option<usize> {
        let rest = self.values.get(from..).unwrap_or_default();
        rest.iter().position(|&v| v == value).map(|at| at + from)
    }
}

/// A request that is under way.
#[derive(Clone, Debug)]
pub(crate) struct Asked {
    pub(crate) op: Op,
    /// First sector of the volume.
    pub(crate) sector: usize,
    pub(crate) sectors: usize,
    /// Change: the place of each sector's value in its line. Read: the floor.
    places: [usize; MOST],
    /// Flush: the floor of every sector.
    floors: Vec<usize>,
}

/// The judge of one guest's volume.
#[derive(Debug)]
pub(crate) struct Volume {
    sectors: Vec<Sector>,
    /// Where it begins on the disk.
    pub(crate) first: usize,
    next_stamp: u64,
    /// By token.
    asked: Vec<Option<Asked>>,
    /// The guest's present life was connected once.
    pub(crate) settled: bool,
    pub(crate) completed: u64,
}

impl Volume {
    /// A volume of zeroes whose stamps begin at `stamp`.
    pub(crate) fn new(first: usize, sectors: usize, stamp: u64) -> Self {
        let sector = || Sector { values: vec![0], floor: 0, durable: 0, life: 0, unsure: None };
        Self {
            sectors: (0..sectors).map(|_| sector()).collect(),
            first,
            next_stamp: stamp,
            asked: Vec::new(),
            settled: false,
            completed: 0,
        }
    }

    /// Requests that were asked for by the present life and not completed.
    pub(crate) fn outstanding(&self) -> usize {
        self.asked.iter().flatten().count()
    }

    /// The guest asks. Returns the request's token and the stamp of its first
    /// sector; the others have those that follow.
    pub(crate) fn ask(&mut self, op: Op, sector: usize, sectors: usize) -> (u64, u64) {
        let stamp = self.next_stamp;
        let mut asked = Asked { op, sector, sectors, places: [0; MOST], floors: Vec::new() };
        if op == Op::Flush {
            asked.floors = self.sectors.iter().map(|s| s.floor).collect();
        }
        for s in 0..sectors {
            let line = &mut self.sectors[sector + s];
            asked.places[s] = match op {
                Op::Read => line.floor,
                _ => {
                    line.values.push(if op == Op::Write { stamp + s as u64 } else { 0 });
                    line.values.len() - 1
                }
            };
        }
        self.next_stamp += sectors as u64;
        self.asked.push(Some(asked));
        (self.asked.len() as u64 - 1, stamp)
    }

    /// The guest got a completion.
    pub(crate) fn complete(&mut self, token: u64) -> Asked {
        let asked = self.asked.get_mut(token as usize).and_then(Option::take);
        rule!(asked.is_some(), "a request completed twice, or was never asked for: {token}");
        self.completed += 1;
        match asked {
            Some(asked) => asked,
            None => unreachable!("the rule above"),
        }
    }

    /// A read completed with these values.
    pub(crate) fn has_read(&mut self, asked: &Asked, values: [u64; MOST]) {
        let floors = asked.places.iter().zip(values).take(asked.sectors);
        for ((&floor, value), number) in floors.zip(asked.sector..) {
            let line = &mut self.sectors[number];
            let from = floor.max(line.life);
            let Some(at) = line.find(value, from) else {
                let when = line.values.iter().rposition(|&v| v == value);
                violated(format_args!(
                    "a read of sector {number} returned {value:#x}, which was number {when:?} of \
                     its values; at least number {from} was there before: {:x?}",
                    line.values,
                ))
            };
            line.floor = line.floor.max(at);
        }
    }

    /// A change completed; this is what the disk holds now.
    pub(crate) fn has_changed(&mut self, asked: &Asked, current: &[u64]) {
        for s in 0..asked.sectors {
            let number = asked.sector + s;
            let line = &mut self.sectors[number];
            line.floor = line.floor.max(asked.places[s]);
            let now = current[self.first + number];
            rule!(
                line.find(now, asked.places[s]).is_some(),
                "{:?} of sector {number} was acknowledged, and the disk holds {now:#x}; its \
                 values: {:x?}, and this was number {}",
                asked.op,
                line.values,
                asked.places[s],
            );
        }
    }

    /// A flush completed; this is what a power cut would leave.
    pub(crate) fn has_flushed(&mut self, asked: &Asked, stable: &[u64]) {
        for (line, &floor) in self.sectors.iter_mut().zip(&asked.floors) {
            line.durable = line.durable.max(floor);
        }
        self.check_durable(stable, "a flush was acknowledged");
    }

    /// Whether what a power cut leaves is new enough.
    pub(crate) fn check_durable(&self, stable: &[u64], when: &str) {
        for (line, number) in self.sectors.iter().zip(0..) {
            let value = stable[self.first + number];
            let cut_short = line.unsure.is_some_and(|since| since > line.durable);
            rule!(
                cut_short || line.find(value, line.durable).is_some(),
                "{when}, and sector {number} is durable as {value:#x}; at least number {} of \
                 its values is to be: {:x?}",
                line.durable,
                line.values,
            );
        }
    }

    /// The guest's life ended.
    pub(crate) fn guest_died(&mut self) {
        for asked in self.asked.iter().flatten() {
            if matches!(asked.op, Op::Read | Op::Flush) {
                continue;
            }
            for line in &mut self.sectors[asked.sector..asked.sector + asked.sectors] {
                line.unsure = Some(line.values.len());
            }
        }
        self.asked.clear();
        self.settled = false;
    }

    /// The guest's present life is connected for the first time: no request
    /// of an earlier one can be under way.
    pub(crate) fn settle(&mut self, current: &[u64]) {
        self.settled = true;
        for (line, number) in self.sectors.iter_mut().zip(0..) {
            let value = current[self.first + number];
            let cut_short = line.unsure.is_some_and(|since| since > line.life);
            rule!(
                cut_short || line.find(value, line.floor).is_some(),
                "sector {number} holds {value:#x} when its guest comes back; at least number {} \
                 of its values is to be there: {:x?}",
                line.floor,
                line.values,
            );
            (line.life, line.floor) = (line.values.len(), line.values.len());
            line.values.push(value);
        }
    }

    /// The power was cut and this is what is left.
    pub(crate) fn power_cut(&mut self, stable: &[u64]) {
        self.check_durable(stable, "the power was cut");
        self.guest_died();
        for (line, number) in self.sectors.iter_mut().zip(0..) {
            // What is there is durable; what was there before counts no more.
            line.values.push(stable[self.first + number]);
            (line.floor, line.durable) = (line.values.len() - 1, line.values.len() - 1);
            (line.life, line.unsure) = (line.floor, None);
        }
    }

    /// At the end: whether the disk holds what was promised.
    pub(crate) fn check_end(&self, current: &[u64]) {
        rule!(self.outstanding() == 0, "{} requests never ended", self.outstanding());
        for (line, number) in self.sectors.iter().zip(0..) {
            let value = current[self.first + number];
            // Nothing is under way: it is the last value.
            rule!(
                line.values.last() == Some(&value),
                "at the end sector {number} holds {value:#x}; its values: {:x?}",
                line.values,
            );
        }
    }
}

/// A frame that a guest sent.
#[derive(Clone, Copy, Debug)]
struct Sent {
    /// Times that it was on the wire.
    seen: u32,
    /// How often the connection had gone down before.
    losses: u64,
}

/// The judge of one guest's frames.
#[derive(Debug, Default)]
pub(crate) struct Frames {
    /// By number; those of earlier lives are not judged any more.
    sent: Vec<Sent>,
    first_of_life: usize,
    /// By number: times that the driver handed it over, and that it came.
    delivered: Vec<(u32, u32)>,
    /// Connections that went down, in earlier lives and in the present one.
    losses: u64,
    pub(crate) present: u64,
    pub(crate) lost: u64,
}

impl Frames {
    pub(crate) fn send(&mut self, losses: u64) -> usize {
        self.sent.push(Sent { seen: 0, losses });
        self.sent.len() - 1
    }

    /// A frame is on the wire.
    pub(crate) fn on_the_wire(&mut self, number: usize) {
        let Some(sent) = self.sent.get_mut(number) else {
            violated(format_args!("frame {number} on the wire was never sent"))
        };
        sent.seen += 1;
        rule!(sent.seen <= 2, "frame {number} is on the wire {} times", sent.seen);
    }

    /// A frame for the guest came in; returns its number.
    pub(crate) fn incoming(&mut self) -> usize {
        self.delivered.push((0, 0));
        self.delivered.len() - 1
    }

    /// The driver put a frame into the guest's buffer.
    pub(crate) fn delivered(&mut self, number: usize) {
        self.delivered[number].0 += 1;
    }

    /// The guest received a frame.
    pub(crate) fn received(&mut self, number: usize) {
        let Some((delivered, received)) = self.delivered.get_mut(number) else {
            violated(format_args!("received frame {number} was never on the wire"))
        };
        *received += 1;
        rule!(*received <= *delivered, "frame {number} was received {received} times");
    }

    /// The guest's life ended.
    pub(crate) fn guest_died(&mut self) {
        self.first_of_life = self.sent.len();
        // Once more by its death, and once perhaps in the round in which it died.
        self.losses += std::mem::take(&mut self.present) + 2;
    }

    /// At the end of the run, with nothing under way: how many frames may be
    /// missing. `buffers`: what the guest posts.
    pub(crate) fn check_end(&mut self, buffers: u64) {
        let losses = self.present;
        let life = self.sent.iter().enumerate().skip(self.first_of_life);
        for (number, sent) in life.filter(|(_, sent)| sent.seen == 0) {
            self.lost += 1;
            let since = losses - sent.losses;
            rule!(
                since >= 2,
                "frame {number} was never on the wire; its connection went down {since} times"
            );
        }
        let missing = self.delivered.iter().map(|&(d, r)| u64::from(d - r)).sum::<u64>();
        let bound = (self.losses + losses) * buffers;
        self.lost += missing;
        rule!(missing <= bound, "{missing} received frames are missing, {bound} at the most may");
    }
}
