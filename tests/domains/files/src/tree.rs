//! What the guest does with its files, and what it knows of them.

use alloc::{format, string::String, vec::Vec};

use embedded_sdmmc::{Error, Mode, RawDirectory, RawFile, TimeSource, Timestamp, VolumeIdx};
use ring_ends::Counters;
use test_content::{
    Crc32,
    file::{DIRECTORIES, FILES, RECORD, Record, directory, directory_of, file_name},
    random::Random,
};

use crate::disk::{Disk, DiskError};

/// Most records of a file.
const RECORDS: u16 = 100;
/// Most records of a new file, of an append and of an overwrite.
const NEW: u16 = 30;
const APPENDED: u16 = 12;
const OVERWRITTEN: u16 = 8;
/// Changes of a round.
const CHANGES: usize = 4;
/// Rounds from one flush to the next. A flush may take longer than all else, and
/// while it does there is nothing else in flight.
const FLUSH_EVERY: u64 = 8;
/// Files that are read back in each round.
const READ_BACK: usize = 2;

type Manager = embedded_sdmmc::VolumeManager<Disk, NoClock, 6, 1, 1>;

/// What fails is told in words, and ends this guest.
pub(crate) type Outcome<T> = Result<T, String>;

/// The files carry versions of their own.
struct NoClock;

impl TimeSource for NoClock {
    fn get_timestamp(&self) -> Timestamp {
        Timestamp::from_fat(0, 0)
    }
}

/// What [`Tree::read`] finds: a file's records and the CRC-32 of its bytes.
pub(crate) struct Found {
    pub(crate) versions: Vec<u64>,
    pub(crate) crc: u32,
}

/// The files of the volume.
pub(crate) struct Tree {
    manager: Manager,
    directories: Vec<RawDirectory>,
    /// Of each file, unless it does not exist, the versions of its records as
    /// they must be.
    files: Vec<Option<Vec<u64>>>,
    /// That of the last operation that wrote.
    version: u64,
    deleted: u64,
    /// Rounds of changes.
    rounds: u64,
    random: Random,
}

impl Tree {
    /// Opens the volume's file system, and reads what is there.
    pub(crate) fn mount(disk: Disk, seed: u64) -> Outcome<Self> {
        let manager = Manager::new_with_limits(disk, NoClock, 1);
        let failed = |error| format!("mounting: {error}");
        let volume = manager.open_raw_volume(VolumeIdx(0)).map_err(failed)?;
        let root = manager.open_root_dir(volume).map_err(failed)?;
        let mut directories = Vec::new();
        for number in 0..DIRECTORIES {
            let name = directory(number);
            let opened = match manager.open_dir(root, name.as_str()) {
                Err(Error::NotFound) => {
                    manager.make_dir_in_dir(root, name.as_str()).map_err(failed)?;
                    manager.open_dir(root, name.as_str())
                }
                opened => opened,
            };
            directories.push(opened.map_err(failed)?);
        }
        let mut tree = Self {
            manager,
            directories,
            files: Vec::new(),
            version: 0,
            deleted: 0,
            rounds: 0,
            random: Random::new(seed),
        };
        tree.sync()?;
        for file in 0..FILES {
            let found = tree.read(file)?.map(|found| found.versions);
            let newest = found.iter().flatten().max();
            tree.version = tree.version.max(newest.copied().unwrap_or(0));
            tree.files.push(found);
        }
        Ok(tree)
    }

    /// What the frontend counted.
    pub(crate) fn counters(&self) -> Counters {
        self.manager.device(|disk| disk.counters())
    }

    /// Rounds of changes so far.
    pub(crate) fn rounds(&self) -> u64 {
        self.rounds
    }

    /// Files that were deleted so far.
    pub(crate) fn deleted(&self) -> u64 {
        self.deleted
    }

    /// Changes nothing until the clock reaches `deadline`.
    pub(crate) fn idle(&self, deadline: u64) -> Outcome<()> {
        let idle = self.manager.device(|disk| disk.idle(deadline));
        idle.map_err(|error| format!("writing back: {error}"))
    }

    /// Changes some files and reads others back.
    pub(crate) fn step(&mut self) -> Outcome<()> {
        for _ in 0..CHANGES {
            self.change()?;
        }
        self.rounds += 1;
        if self.rounds.is_multiple_of(FLUSH_EVERY) {
            self.sync()?;
        } else {
            let begun = self.manager.device(|disk| disk.write_back());
            begun.map_err(|error| format!("writing back: {error}"))?;
        }
        for _ in 0..READ_BACK {
            let file = self.random.below(FILES);
            self.check(file)?;
        }
        self.no_failure()
    }

    fn change(&mut self) -> Outcome<()> {
        let file = self.random.below(FILES);
        self.version += 1;
        let len = self.known(file).map(|versions| versions.len() as u16);
        match (len, self.random.below(32)) {
            (None, _) => self.rewrite(file, Mode::ReadWriteCreate),
            (Some(_), 0) => self.delete(file),
            (Some(_), 1..8) => self.rewrite(file, Mode::ReadWriteTruncate),
            (Some(len), 8..20) if len < RECORDS => {
                let count = 1 + self.random.below(APPENDED.min(RECORDS - len));
                self.write(file, Mode::ReadWriteAppend, len, count)
            }
            (Some(len), _) => {
                let count = 1 + self.random.below(OVERWRITTEN.min(len));
                let first = self.random.below(len - count + 1);
                // This mode does not truncate, and `write` seeks.
                self.write(file, Mode::ReadWriteAppend, first, count)
            }
        }
    }

    /// Reads a file, which must be as it was written last.
    pub(crate) fn check(&mut self, file: u16) -> Outcome<Option<Found>> {
        let found = self.read(file)?;
        let versions = found.as_ref().map(|found| &found.versions);
        if versions == self.known(file) {
            return Ok(found);
        }
        let count = |versions: Option<&Vec<u64>>| versions.map_or(0, Vec::len);
        let (got, wanted) = (count(versions), count(self.known(file)));
        let both = versions.into_iter().flatten().zip(self.known(file).into_iter().flatten());
        Err(match both.enumerate().find(|(_, (got, wanted))| got != wanted) {
            Some((index, (got, wanted))) => {
                format!("file {file}: record {index} has version {got} instead of {wanted}")
            }
            None => format!("file {file}: {got} records instead of {wanted}"),
        })
    }

    fn known(&self, file: u16) -> Option<&Vec<u64>> {
        self.files.get(usize::from(file))?.as_ref()
    }

    fn rewrite(&mut self, file: u16, mode: Mode) -> Outcome<()> {
        let count = 1 + self.random.below(NEW);
        self.set(file, Some(Vec::new()));
        self.write(file, mode, 0, count)
    }

    /// Writes `count` records from number `first` on, and remembers them.
    fn write(&mut self, file: u16, mode: Mode, first: u16, count: u16) -> Outcome<()> {
        let failed = |error| format!("writing file {file}, {mode:?}: {error}");
        let handle = self.open(file, mode).map_err(failed)?;
        let offset = u32::from(first) * RECORD as u32;
        self.manager.file_seek_from_start(handle, offset).map_err(failed)?;
        let mut versions = self.known(file).cloned().unwrap_or_default();
        for index in first..first + count {
            let record = Record { file, index, version: self.version };
            self.manager.write(handle, &record.encode()).map_err(failed)?;
            match versions.get_mut(usize::from(index)) {
                Some(version) => *version = self.version,
                None => versions.push(self.version),
            }
        }
        self.manager.close_file(handle).map_err(failed)?;
        self.set(file, Some(versions));
        Ok(())
    }

    /// The library forgets a deleted file's clusters, so the file gives all but
    /// the first back before; the host counts the others.
    fn delete(&mut self, file: u16) -> Outcome<()> {
        let failed = |error| format!("deleting file {file}: {error}");
        let handle = self.open(file, Mode::ReadWriteTruncate).map_err(failed)?;
        self.manager.close_file(handle).map_err(failed)?;
        let directory = self.directory(file).map_err(failed)?;
        let name = file_name(file);
        self.manager.delete_entry_in_dir(directory, name.as_str()).map_err(failed)?;
        self.deleted += 1;
        self.set(file, None);
        Ok(())
    }

    fn set(&mut self, file: u16, versions: Option<Vec<u64>>) {
        if let Some(known) = self.files.get_mut(usize::from(file)) {
            *known = versions;
        }
    }

    /// Has all changes made durable.
    pub(crate) fn sync(&self) -> Outcome<()> {
        self.manager.device(|disk| disk.sync()).map_err(|error| format!("sync: {error}"))?;
        self.no_failure()
    }

    fn no_failure(&self) -> Outcome<()> {
        self.manager.device(|disk| disk.failure()).map_err(|error| format!("disk: {error}"))
    }

    /// Reads a file whole and looks at each record; `None` if there is no file.
    fn read(&self, file: u16) -> Outcome<Option<Found>> {
        let failed = |error| format!("reading file {file}: {error}");
        let handle = match self.open(file, Mode::ReadOnly) {
            Err(Error::NotFound) => return self.no_failure().map(|()| None),
            opened => opened.map_err(failed)?,
        };
        let mut found = Found { versions: Vec::new(), crc: 0 };
        let mut crc = Crc32::new();
        let mut bytes = [0; RECORD];
        for index in 0.. {
            let count = self.manager.read(handle, &mut bytes).map_err(failed)?;
            if count == 0 {
                break;
            }
            let read = bytes.get(..count).unwrap_or_default();
            crc.update(read);
            let record = Record::decode(read)
                .map_err(|damage| format!("file {file}: record {index} has {damage}"))?;
            if (record.file, record.index) != (file, index) {
                return Err(format!("file {file}: instead of record {index} there is {record:?}"));
            }
            found.versions.push(record.version);
        }
        self.manager.close_file(handle).map_err(failed)?;
        found.crc = crc.finalize();
        Ok(Some(found))
    }

    fn open(&self, file: u16, mode: Mode) -> Result<RawFile, Error<DiskError>> {
        self.manager.open_file_in_dir(self.directory(file)?, file_name(file).as_str(), mode)
    }

    fn directory(&self, file: u16) -> Result<RawDirectory, Error<DiskError>> {
        let number = usize::from(directory_of(file));
        self.directories.get(number).copied().ok_or(Error::BadHandle)
    }
}
