//! A wire that does not bring each frame once, whole and in turn.

use std::collections::VecDeque;

use serde::{Deserialize, Serialize};

/// Bytes at the front of an Ethernet frame that are never changed: its addresses. A frame for
/// somebody else is a lost one, which is a fault of its own.
const ADDRESSES: usize = 12;

/// Whither the frames go that are struck.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Towards {
    /// To the driver.
    Driver,
    /// To its peer.
    Peer,
}

/// What becomes of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "what", rename_all = "kebab-case")]
pub enum Mischief {
    /// It is lost.
    Lose,
    /// It comes twice.
    Duplicate,
    /// One bit of it is another, behind its addresses.
    Corrupt {
        /// Which: 2^32ths of them all.
        fraction: u32,
    },
    /// It comes later than it should.
    Delay {
        /// So many others pass it.
        frames: u32,
    },
}

/// Mischief that waits for its frames.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Armed {
    /// So many frames come before.
    pub after: u32,
    /// It happens to so many.
    pub count: u32,
    /// What happens.
    pub mischief: Mischief,
}

/// One direction of a wire.
#[derive(Debug, Default)]
pub struct Wire {
    armed: Option<Armed>,
    struck: bool,
    /// Frames that others are to pass first, and how many still.
    late: VecDeque<(u32, Vec<u8>)>,
}

impl Wire {
    /// Has mischief wait for its frames, or none. What is late then is lost.
    pub fn arm(&mut self, armed: Option<Armed>) {
        *self = Self { armed, struck: false, late: VecDeque::new() };
    }

    /// Whether a frame was struck since it was armed.
    #[must_use]
    pub fn has_struck(&self) -> bool {
        self.struck
    }

    /// A frame comes in at one end; returns what goes out at the other.
    pub fn pass(&mut self, frame: Vec<u8>) -> Vec<Vec<u8>> {
        let Some(mischief) = self.strike() else {
            let mut out = vec![frame];
            self.late.iter_mut().for_each(|(left, _)| *left = left.saturating_sub(1));
            while let Some((_, late)) = self.late.pop_front_if(|(left, _)| *left == 0) {
                out.push(late);
            }
            return out;
        };
        match mischief {
            Mischief::Lose => Vec::new(),
            Mischief::Duplicate => vec![frame.clone(), frame],
            Mischief::Corrupt { fraction } => {
                let mut frame = frame;
                let bits = frame.len().saturating_sub(ADDRESSES) as u64 * 8;
                let bit = (bits * u64::from(fraction)) >> 32;
                let byte = ADDRESSES + usize::try_from(bit / 8).unwrap_or(usize::MAX - ADDRESSES);
                if let Some(byte) = frame.get_mut(byte) {
                    *byte ^= 1 << (bit % 8);
                }
                vec![frame]
            }
            Mischief::Delay { frames } => {
                self.late.push_back((frames, frame));
                Vec::new()
            }
        }
    }

    /// What becomes of the frame that comes now.
    fn strike(&mut self) -> Option<Mischief> {
        let armed = self.armed.as_mut()?;
        if armed.after > 0 {
            armed.after -= 1;
            return None;
        }
        armed.count = armed.count.checked_sub(1)?;
        self.struck = true;
        Some(armed.mischief)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What comes out when frames 0 to 7 go in.
    fn through(after: u32, count: u32, mischief: Mischief) -> Vec<u8> {
        let mut wire = Wire::default();
        wire.arm(Some(Armed { after, count, mischief }));
        let out = (0..8).flat_map(|byte| wire.pass(vec![byte; 64])).map(|frame| frame[0]);
        let out = out.collect();
        assert!(wire.has_struck());
        out
    }

    #[test]
    fn frames_are_lost_doubled_and_late() {
        assert_eq!(through(1, 2, Mischief::Lose), [0, 3, 4, 5, 6, 7]);
        assert_eq!(through(1, 2, Mischief::Duplicate), [0, 1, 1, 2, 2, 3, 4, 5, 6, 7]);
        let late = Mischief::Delay { frames: 3 };
        assert_eq!(through(0, 1, late), [1, 2, 3, 0, 4, 5, 6, 7]);
        assert_eq!(through(0, 2, late), [2, 3, 4, 0, 1, 5, 6, 7]);
    }

    #[test]
    fn one_bit_is_changed_behind_the_addresses() {
        for fraction in (0..64).map(|i| i << 26).chain([u32::MAX]) {
            let mut wire = Wire::default();
            wire.arm(Some(Armed { after: 0, count: 1, mischief: Mischief::Corrupt { fraction } }));
            let [frame] = &wire.pass(vec![0; 64])[..] else { panic!() };
            assert_eq!(frame.len(), 64);
            assert_eq!(frame[..ADDRESSES], [0; ADDRESSES]);
            assert_eq!(frame.iter().map(|byte| byte.count_ones()).sum::<u32>(), 1);
            assert_eq!(wire.pass(vec![0; 64]), [vec![0; 64]]);
        }
        // One that is too short for any.
        let mut wire = Wire::default();
        wire.arm(Some(Armed { after: 0, count: 1, mischief: Mischief::Corrupt { fraction: 0 } }));
        assert_eq!(wire.pass(vec![0; 3]), [[0; 3]]);
    }

    #[test]
    fn without_mischief_all_passes() {
        let mut wire = Wire::default();
        assert_eq!(wire.pass(vec![1]), [[1]]);
        wire.arm(Some(Armed { after: 0, count: 1, mischief: Mischief::Lose }));
        wire.arm(None);
        assert_eq!(wire.pass(vec![1]), [[1]]);
        assert!(!wire.has_struck());
    }
}
