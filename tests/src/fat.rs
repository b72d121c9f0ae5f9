//! A FAT volume on a node's disk: formatted before the node runs, judged after.
//!
//! The guest that works on it uses another implementation (`embedded-sdmmc`), so
//! neither side's mistakes hide the other's. Like a memory card, the volume has a
//! partition table of its own with one partition.

use std::{
    collections::BTreeMap,
    fs::{File, OpenOptions},
    io::{Read, Seek, SeekFrom, Write},
    ops::Range,
    path::Path,
};

use anyhow::{Context, Result, bail, ensure};
use fatfs::{FatType, FileSystem, FormatVolumeOptions, FsOptions};
use fscommon::{BufStream, StreamSlice};
use test_content::{
    Crc32,
    file::{RECORD, Record, file_at},
};
use xtask::disk;

/// Sectors before the partition.
const BEFORE: u32 = 2048;
/// Bytes of a sector.
const SECTOR: u64 = 512;
/// Bytes of a cluster: small, so that files have many, and FAT32 needs no large volume.
const CLUSTER: u32 = 2048;
/// Type of the partition: FAT32, addressed by sectors.
const FAT32: u8 = 0x0c;

/// What a file is: its length and the CRC-32 of its bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sum {
    /// Bytes.
    pub len: u64,
    /// CRC-32.
    pub crc: u32,
}

/// What was found on a volume.
#[derive(Debug, PartialEq, Eq)]
pub struct Found {
    /// Paths of all files, and what they are.
    pub files: BTreeMap<String, Sum>,
    /// Clusters that are in use and belong to nothing.
    pub lost: u64,
}

/// Writes an empty file system to the volume `label` of the disk `image`.
///
/// # Errors
///
/// The image can't be written.
pub fn format(image: &Path, label: &str) -> Result<()> {
    let volume = disk::place(image, label)?;
    let sectors = u32::try_from((volume.end - volume.start) / SECTOR)? - BEFORE;
    let mut table = [0; SECTOR as usize];
    table[446 + 4] = FAT32;
    table[446 + 8..][..4].copy_from_slice(&BEFORE.to_le_bytes());
    table[446 + 12..][..4].copy_from_slice(&sectors.to_le_bytes());
    table[510..].copy_from_slice(&[0x55, 0xaa]);
    let mut file = open(image)?;
    file.seek(SeekFrom::Start(volume.start))?;
    file.write_all(&table)?;
    let options = FormatVolumeOptions::new().bytes_per_cluster(CLUSTER).fat_type(FatType::Fat32);
    let mut partition = BufStream::new(partition(file, &volume)?);
    fatfs::format_volume(&mut partition, options).context("can't format the volume")?;
    Ok(partition.flush()?)
}

/// Looks at the volume `label` of the disk `image`: the copies of the FAT are the same, every file is
/// one of [`test_content::file`] with nothing but right records, in their order, and no cluster
/// is missing.
///
/// # Errors
///
/// Something is not as it must be.
pub fn check(image: &Path, label: &str) -> Result<Found> {
    let volume = disk::place(image, label)?;
    let used = clusters_in_use(&mut partition(open(image)?, &volume)?)?;
    let partition = BufStream::new(partition(open(image)?, &volume)?);
    let system = FileSystem::new(partition, FsOptions::new()).context("no file system")?;
    ensure!(system.fat_type() == FatType::Fat32, "the file system is {:?}", system.fat_type());
    ensure!(system.cluster_size() == CLUSTER, "clusters of {} bytes", system.cluster_size());
    let mut files = BTreeMap::new();
    // The root's own; no directory here has more entries than fit into one.
    let mut owned = 1;
    for entry in system.root_dir().iter() {
        let entry = entry.context("the root")?;
        let directory = entry.file_name();
        ensure!(entry.is_dir(), "there is a file {directory} in the root");
        owned += 1;
        for entry in entry.to_dir().iter() {
            let entry = entry.with_context(|| format!("directory {directory}"))?;
            let name = entry.file_name();
            if name == "." || name == ".." {
                continue;
            }
            let path = format!("{directory}/{name}");
            let number = file_at(&directory, &name).with_context(|| format!("what is {path}?"))?;
            ensure!(entry.is_file() && entry.len() > 0, "{path} is no file, or empty");
            owned += entry.len().div_ceil(CLUSTER.into());
            let mut bytes = Vec::new();
            entry.to_file().read_to_end(&mut bytes).with_context(|| path.clone())?;
            ensure!(bytes.len() as u64 == entry.len(), "{path} ends after {} bytes", bytes.len());
            check_records(number, &bytes).with_context(|| path.clone())?;
            let mut crc = Crc32::new();
            crc.update(&bytes);
            files.insert(path, Sum { len: entry.len(), crc: crc.finalize() });
        }
    }
    let Some(lost) = used.checked_sub(owned) else {
        bail!("files and directories have {owned} clusters, and {used} are in use");
    };
    Ok(Found { files, lost })
}

fn check_records(file: u16, bytes: &[u8]) -> Result<()> {
    for (index, bytes) in (0..).zip(bytes.chunks(RECORD)) {
        let record = Record::decode(bytes).with_context(|| format!("record {index}"))?;
        let here = record.file == file && record.index == index;
        ensure!(here, "instead of record {index} of file {file} there is {record:?}");
    }
    Ok(())
}

/// Counts the entries of the FAT that are not free, after a comparison of its copies.
fn clusters_in_use(partition: &mut StreamSlice<File>) -> Result<u64> {
    let mut boot = [0; SECTOR as usize];
    partition.read_exact(&mut boot)?;
    let word = |at: usize| u16::from_le_bytes([boot[at], boot[at + 1]]);
    let long = |at: usize| u32::from(word(at)) | u32::from(word(at + 2)) << 16;
    let (reserved, copies, sectors) = (word(14), boot[16], long(36));
    ensure!(u64::from(word(11)) == SECTOR && copies == 2, "not the file system that was made");
    let total = (long(32) - u32::from(reserved) - 2 * sectors) / u32::from(boot[13]);
    partition.seek(SeekFrom::Start(u64::from(reserved) * SECTOR))?;
    let mut fats = [(); 2].map(|()| vec![0; sectors as usize * SECTOR as usize]);
    for fat in &mut fats {
        partition.read_exact(fat)?;
    }
    let [first, second] = &fats;
    if let Some(at) = first.iter().zip(second).position(|(a, b)| a != b) {
        bail!("the copies of the FAT differ at entry {}", at / 4);
    }
    // Two entries stand for no cluster. Four bits of an entry mean nothing.
    let entries = first.chunks_exact(4).skip(2).take(total as usize);
    Ok(entries.filter(|entry| !matches!(entry, [0, 0, 0, top] if top & 0x0f == 0)).count() as u64)
}

fn open(image: &Path) -> Result<File> {
    let file = OpenOptions::new().read(true).write(true).open(image);
    file.with_context(|| format!("can't open {}", image.display()))
}

fn partition(image: File, volume: &Range<u64>) -> Result<StreamSlice<File>> {
    let start = volume.start + u64::from(BEFORE) * SECTOR;
    Ok(StreamSlice::new(image, start, volume.end)?)
}

#[cfg(test)]
mod tests {
    use test_content::file::{directory, directory_of, file_name};
    use xtask::manifest::Volume;

    use super::*;

    const LABEL: &str = "files";

    /// A volume with one file of three records; gives where the file's bytes are in the image.
    fn volume(dir: &Path) -> (std::path::PathBuf, usize) {
        let image = dir.join("disk.img");
        let volumes = [("other", 1), (LABEL, 160)];
        let volumes = volumes.map(|(label, mib)| Volume { label: label.into(), size: mib << 20 });
        disk::create(&image, &volumes).unwrap();
        format(&image, LABEL).unwrap();
        assert_eq!(check(&image, LABEL).unwrap(), Found { files: BTreeMap::new(), lost: 0 });
        let place = disk::place(&image, LABEL).unwrap();
        let records = [0, 1, 2].map(|index| Record { file: 6, index, version: 9 }.encode());
        {
            let partition = partition(open(&image).unwrap(), &place).unwrap();
            let system = FileSystem::new(partition, FsOptions::new()).unwrap();
            let dir = system.root_dir().create_dir(&directory(directory_of(6))).unwrap();
            let mut file = dir.create_file(&file_name(6)).unwrap();
            file.write_all(&records.concat()).unwrap();
        }
        let bytes = std::fs::read(&image).unwrap();
        let at = bytes.windows(RECORD).position(|window| window == records[0]).unwrap();
        (image, at)
    }

    fn poke(image: &Path, at: usize, bytes: &[u8]) {
        let mut file = open(image).unwrap();
        file.seek(SeekFrom::Start(at as u64)).unwrap();
        file.write_all(bytes).unwrap();
    }

    #[test]
    fn damage_is_found() {
        let dir = tempfile::tempdir().unwrap();
        let (image, at) = volume(dir.path());
        let found = check(&image, LABEL).unwrap();
        assert_eq!(found.lost, 0);
        assert_eq!(found.files.len(), 1);
        assert_eq!(found.files["DIR2/FILE06.DAT"].len, 3 * RECORD as u64);

        let error = |what: &str| {
            let error = format!("{:#}", check(&image, LABEL).unwrap_err());
            assert!(error.contains(what), "{error}");
        };
        let record = |index, version| Record { file: 6, index, version }.encode();
        poke(&image, at + RECORD + 99, &[0]);
        error("DIR2/FILE06.DAT: record 1: a wrong checksum");
        poke(&image, at + RECORD, &record(2, 9));
        error("instead of record 1 of file 6 there is Record { file: 6, index: 2");
        poke(&image, at + RECORD, &record(1, 8));
        assert_ne!(check(&image, LABEL).unwrap().files, found.files, "an older version");
        poke(&image, at + RECORD, &record(1, 9));
        assert_eq!(check(&image, LABEL).unwrap(), found);

        // The first entries of both copies of the FAT, which begin alike.
        let head = [0xf8, 0xff, 0xff, 0x0f];
        let bytes = std::fs::read(&image).unwrap();
        let mut fats = bytes.windows(4).enumerate().filter(|(_, window)| *window == head);
        let [first, second] = [(); 2].map(|()| fats.next().unwrap().0);
        poke(&image, second + 4 * 50, &[1]);
        error("the copies of the FAT differ at entry 50");
        poke(&image, first + 4 * 50, &[1]);
        assert_eq!(check(&image, LABEL).unwrap(), Found { lost: 1, ..found });
    }
}
