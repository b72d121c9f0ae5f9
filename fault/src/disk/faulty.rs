//! What the disk does with each request.

use std::io;
use std::ops::Range;

use super::nbd::{Command, EINVAL, EIO, Request};
use super::{Kind, Misdeed};

/// Bytes that a disk stores whole or not at all.
const SECTOR: usize = 512;
/// Misdirected writes go to multiples of this.
const BLOCK: u64 = 4096;

/// Where the content is.
pub trait Medium {
    /// Reads.
    ///
    /// # Errors
    ///
    /// The host's.
    fn read(&self, offset: u64, to: &mut [u8]) -> io::Result<()>;

    /// Writes.
    ///
    /// # Errors
    ///
    /// The host's.
    fn write(&mut self, offset: u64, bytes: &[u8]) -> io::Result<()>;
}

#[cfg(unix)]
impl Medium for std::fs::File {
    fn read(&self, offset: u64, to: &mut [u8]) -> io::Result<()> {
        std::os::unix::fs::FileExt::read_exact_at(self, to, offset)
    }

    fn write(&mut self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        std::os::unix::fs::FileExt::write_all_at(self, bytes, offset)
    }
}

/// A fault that waits for its request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Armed {
    /// Which requests count.
    pub kind: Kind,
    /// So many of them come before.
    pub after: u32,
    /// What becomes of the one.
    pub misdeed: Misdeed,
}

/// What is answered to a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// What was read, or the error number.
    pub result: Result<Vec<u8>, u32>,
    /// Milliseconds that the answer is withheld.
    pub late_ms: u32,
}

/// The disk.
#[derive(Debug)]
pub struct Disk<M> {
    medium: M,
    size: u64,
    /// Bytes of the volume whose requests are struck.
    volume: Range<u64>,
    armed: Option<Armed>,
    struck: bool,
}

impl<M: Medium> Disk<M> {
    /// A disk of `size` bytes that strikes requests within `volume` only.
    #[must_use]
    pub fn new(medium: M, size: u64, volume: Range<u64>) -> Self {
        Self { medium, size, volume, armed: None, struck: false }
    }

    /// Size, bytes.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Has a fault wait for its request, or none.
    pub fn arm(&mut self, armed: Option<Armed>) {
        self.armed = armed;
        self.struck = false;
    }

    /// Whether the fault that was armed last met its request.
    #[must_use]
    pub fn has_struck(&self) -> bool {
        self.struck
    }

    /// Carries a request out, more or less.
    pub fn carry_out(&mut self, request: &Request) -> Answer {
        let misdeed = self.strike(request);
        let late_ms = if let Some(Misdeed::Late { ms }) = misdeed { ms } else { 0 };
        let result = match misdeed {
            Some(Misdeed::Error) => Err(EIO),
            _ => self.act(request, misdeed),
        };
        Answer { result, late_ms }
    }

    /// What becomes of this request.
    fn strike(&mut self, request: &Request) -> Option<Misdeed> {
        let armed = self.armed.as_mut()?;
        let kind = match request.command {
            Command::Read => Kind::Read,
            Command::Write => Kind::Write,
            _ => return None,
        };
        let end = request.offset.checked_add(request.len.into())?;
        let is_within = self.volume.start <= request.offset && end <= self.volume.end;
        if kind != armed.kind || !is_within || request.len == 0 {
            return None;
        }
        if armed.after > 0 {
            armed.after -= 1;
            return None;
        }
        self.struck = true;
        self.armed.take().map(|armed| armed.misdeed)
    }

    fn act(&mut self, request: &Request, misdeed: Option<Misdeed>) -> Result<Vec<u8>, u32> {
        let (offset, len) = (request.offset, u64::from(request.len));
        if offset.checked_add(len).is_none_or(|end| end > self.size) {
            return Err(EINVAL);
        }
        let nothing = || Ok(Vec::new());
        let done = match request.command {
            Command::Read => {
                let mut data = vec![0; usize::try_from(len).map_err(|_| EINVAL)?];
                self.medium.read(offset, &mut data).map(|()| data)
            }
            Command::Write => self.write(request, misdeed).and_then(|()| nothing()),
            Command::WriteZeroes => {
                let zeroes = vec![0; usize::try_from(len).map_err(|_| EINVAL)?];
                self.medium.write(offset, &zeroes).and_then(|()| nothing())
            }
            // The medium is a file of the host's: there is nothing to do for either.
            Command::Flush | Command::Trim => nothing(),
            Command::Other(_) => return Err(EINVAL),
        };
        done.map_err(|_| EIO)
    }

    fn write(&mut self, request: &Request, misdeed: Option<Misdeed>) -> io::Result<()> {
        let (offset, data) = (request.offset, &request.data);
        match misdeed {
            None | Some(Misdeed::Error | Misdeed::Late { .. }) => self.medium.write(offset, data),
            Some(Misdeed::Lost) => Ok(()),
            Some(Misdeed::Torn { fraction }) => {
                let kept = torn(data.len(), fraction);
                self.medium.write(offset, data.get(..kept).unwrap_or_default())
            }
            Some(Misdeed::Corrupt { fraction, mask }) => {
                let mut data = data.clone();
                let words = data.as_chunks_mut::<8>().0;
                let word = (words.len() * usize::from(fraction)) >> 16;
                if let Some(word) = words.get_mut(word) {
                    *word = (u64::from_le_bytes(*word) ^ mask).to_le_bytes();
                }
                self.medium.write(offset, &data)
            }
            Some(Misdeed::Misdirected { fraction }) => {
                match elsewhere(&self.volume, offset, data.len() as u64, fraction) {
                    Some(place) => self.medium.write(place, data),
                    None => Ok(()),
                }
            }
        }
    }
}

/// How many bytes of `len` are stored. One sector can't be torn: nothing of it is stored.
fn torn(len: usize, fraction: u16) -> usize {
    let sectors = len / SECTOR;
    match sectors.checked_sub(1) {
        None | Some(0) => 0,
        Some(choices) => (1 + ((choices * usize::from(fraction)) >> 16)) * SECTOR,
    }
}

/// Another place in the volume for `len` bytes, which does not overlap with theirs.
fn elsewhere(volume: &Range<u64>, offset: u64, len: u64, fraction: u32) -> Option<u64> {
    let room = volume.end.checked_sub(volume.start)?.checked_sub(len)?;
    let places = || (0..=room / BLOCK).map(|place| volume.start + place * BLOCK);
    let is_other = |place: &u64| place + len <= offset || offset + len <= *place;
    let count = places().filter(is_other).count() as u64;
    let chosen = (u128::from(count) * u128::from(fraction)) >> 32;
    places().filter(is_other).nth(usize::try_from(chosen).ok()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    impl Medium for Vec<u8> {
        fn read(&self, offset: u64, to: &mut [u8]) -> io::Result<()> {
            to.copy_from_slice(&self[offset as usize..][..to.len()]);
            Ok(())
        }

        fn write(&mut self, offset: u64, bytes: &[u8]) -> io::Result<()> {
            self[offset as usize..][..bytes.len()].copy_from_slice(bytes);
            Ok(())
        }
    }

    const SIZE: usize = 16 * 4096;
    const VOLUME: Range<u64> = 4096..12 * 4096;

    fn disk() -> Disk<Vec<u8>> {
        Disk::new(vec![0; SIZE], SIZE as u64, VOLUME)
    }

    fn request(command: Command, block: u64, len: u32, byte: u8) -> Request {
        let data = if command == Command::Write { vec![byte; len as usize] } else { Vec::new() };
        Request { cookie: 0, command, offset: block * 4096, len, data }
    }

    fn write(disk: &mut Disk<Vec<u8>>, block: u64, byte: u8) -> Answer {
        disk.carry_out(&request(Command::Write, block, 4096, byte))
    }

    fn arm(disk: &mut Disk<Vec<u8>>, kind: Kind, after: u32, misdeed: Misdeed) {
        disk.arm(Some(Armed { kind, after, misdeed }));
    }

    const WELL: Answer = Answer { result: Ok(Vec::new()), late_ms: 0 };

    #[test]
    fn without_a_fault_all_is_stored() {
        let mut disk = disk();
        assert_eq!(write(&mut disk, 3, 7), WELL);
        let read = disk.carry_out(&request(Command::Read, 3, 4096, 0));
        assert_eq!(read.result, Ok(vec![7; 4096]));
        assert_eq!(disk.carry_out(&request(Command::WriteZeroes, 3, 512, 0)), WELL);
        assert_eq!(disk.medium[3 * 4096 + 511..3 * 4096 + 513], [0, 7]);
        assert_eq!(disk.carry_out(&request(Command::Flush, 0, 0, 0)), WELL);
        assert!(!disk.has_struck());
    }

    #[test]
    fn what_is_not_there_is_refused() {
        let mut disk = disk();
        let past = request(Command::Read, 16, 1, 0);
        assert_eq!(disk.carry_out(&past).result, Err(EINVAL));
        let wraps = Request { offset: u64::MAX, ..past };
        assert_eq!(disk.carry_out(&wraps).result, Err(EINVAL));
        let unknown = request(Command::Other(77), 0, 0, 0);
        assert_eq!(disk.carry_out(&unknown).result, Err(EINVAL));
    }

    #[test]
    fn a_fault_strikes_the_request_that_is_its_own_and_no_other() {
        let mut disk = disk();
        arm(&mut disk, Kind::Write, 1, Misdeed::Lost);
        // Outside of the volume, half outside, of another kind, and one too early.
        write(&mut disk, 0, 1);
        disk.carry_out(&request(Command::Write, 11, 8192, 1));
        disk.carry_out(&request(Command::Read, 3, 4096, 0));
        write(&mut disk, 3, 1);
        assert!(!disk.has_struck());
        assert_eq!(write(&mut disk, 4, 1), WELL);
        assert!(disk.has_struck());
        write(&mut disk, 5, 1);
        let stored: Vec<u8> = [0, 3, 4, 5, 11, 12].map(|block| disk.medium[block * 4096]).into();
        assert_eq!(stored, [1, 1, 0, 1, 1, 1]);
        disk.arm(None);
        assert!(!disk.has_struck());
    }

    #[test]
    fn an_error_and_a_late_answer_are_told() {
        let mut disk = disk();
        arm(&mut disk, Kind::Read, 0, Misdeed::Error);
        assert_eq!(disk.carry_out(&request(Command::Read, 2, 4096, 0)).result, Err(EIO));
        arm(&mut disk, Kind::Write, 0, Misdeed::Error);
        assert_eq!(write(&mut disk, 2, 9).result, Err(EIO));
        assert_eq!(disk.medium[2 * 4096], 0);
        arm(&mut disk, Kind::Write, 0, Misdeed::Late { ms: 5 });
        assert_eq!(write(&mut disk, 2, 9), Answer { late_ms: 5, ..WELL });
        assert_eq!(disk.medium[2 * 4096], 9);
    }

    #[test]
    fn a_torn_write_keeps_its_first_sectors_and_the_old_ones_behind() {
        for fraction in [0, 1, 0x8000, u16::MAX] {
            let mut disk = disk();
            write(&mut disk, 2, 1);
            arm(&mut disk, Kind::Write, 0, Misdeed::Torn { fraction });
            assert_eq!(write(&mut disk, 2, 2), WELL);
            let block = &disk.medium[2 * 4096..3 * 4096];
            let kept = block.iter().take_while(|byte| **byte == 2).count();
            assert_eq!(kept % SECTOR, 0);
            assert!((SECTOR..4096).contains(&kept), "{kept} bytes");
            assert!(block[kept..].iter().all(|byte| *byte == 1));
        }
        assert_eq!((torn(4096, 0), torn(4096, u16::MAX), torn(512, 9)), (512, 7 * 512, 0));
    }

    #[test]
    fn a_corrupt_write_differs_in_one_word() {
        let mut disk = disk();
        arm(&mut disk, Kind::Write, 0, Misdeed::Corrupt { fraction: u16::MAX, mask: 0x100 });
        assert_eq!(write(&mut disk, 2, 2), WELL);
        let mut expected = vec![2; 4096];
        expected[4089] ^= 1;
        assert_eq!(disk.medium[2 * 4096..3 * 4096], expected);
    }

    #[test]
    fn a_misdirected_write_is_elsewhere_in_the_volume_and_not_in_its_place() {
        let mut seen = std::collections::BTreeSet::new();
        for fraction in (0..32).map(|i| i << 27).chain([u32::MAX]) {
            let mut disk = disk();
            arm(&mut disk, Kind::Write, 0, Misdeed::Misdirected { fraction });
            assert_eq!(disk.carry_out(&request(Command::Write, 5, 8192, 3)), WELL);
            let written: Vec<usize> = (0..16).filter(|b| disk.medium[b * 4096] == 3).collect();
            let [first, second] = written[..] else { panic!("{written:?}") };
            assert!(second == first + 1 && !written.contains(&5) && !written.contains(&6));
            assert!((1..11).contains(&first));
            seen.insert(first);
        }
        assert_eq!(seen.into_iter().collect::<Vec<_>>(), [1, 2, 3, 7, 8, 9, 10]);
        assert_eq!(elsewhere(&(0..4096), 0, 4096, 0), None);
    }
}
