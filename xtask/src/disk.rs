//! Disk images: a GPT with one partition for each volume of the manifest.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions, TryLockError};
use std::ops::Range;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow, bail};
use gpt::disk::LogicalBlockSize;
use gpt::mbr::ProtectiveMBR;
use gpt::{GptConfig, partition_types};

use crate::manifest::Volume;
use crate::size::{self, MIB};
use crate::workspace;

const SECTOR: u64 = 512;
/// Partitions begin at multiples of this many sectors.
const ALIGNMENT: u64 = MIB / SECTOR;

/// A disk image that nobody else uses while this lives.
#[derive(Debug)]
pub struct Disk {
    path: PathBuf,
    /// Keeps the lock that other xtasks see. (QEMU has a lock of its own.)
    lock: File,
}

impl Disk {
    /// The image file.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Opens the image in `path`, which is made if it is missing, and checks that it has the
    /// volumes. Says whether it was made.
    ///
    /// # Errors
    ///
    /// It can't be made or read, is in use, or lacks a volume.
    pub fn open(path: &Path, volumes: &[Volume]) -> Result<(Self, bool)> {
        let made = !path.exists();
        if made {
            create(path, volumes)?;
        }
        let shown = workspace::show(path);
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .open(path)
            .with_context(|| format!("can't open the disk image {shown}"))?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => bail!("{}", in_use(path)),
            Err(TryLockError::Error(error)) => {
                return Err(error).with_context(|| format!("can't lock the disk image {shown}"));
            }
        }
        check(path, volumes)?;
        Ok((Self { path: path.to_owned(), lock: file }, made))
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        // Closing is not enough: a child that another thread just forked holds a copy of the
        // descriptor until it executes its program. Should this fail, closing does it later.
        let _ = self.lock.unlock();
    }
}

/// A line that says that the image is in use, and by whom if that can be seen.
#[must_use]
pub fn in_use(path: &Path) -> String {
    let shown = workspace::show(path);
    match user_of(path) {
        Some(user) => format!(
            "the disk image {shown} is in use by {user}; stop that or choose another with --disk"
        ),
        None => format!(
            "the disk image {shown} is in use by another process; choose another with --disk"
        ),
    }
}

/// The first other process that has the file open.
fn user_of(path: &Path) -> Option<String> {
    let path = path.canonicalize().ok()?;
    let own = std::process::id().to_string();
    for process in std::fs::read_dir("/proc").ok()?.flatten() {
        let pid = process.file_name();
        let Some(pid) = pid.to_str().filter(|pid| pid.parse::<u32>().is_ok() && *pid != own) else {
            continue;
        };
        let Ok(open) = std::fs::read_dir(process.path().join("fd")) else {
            continue;
        };
        let mut open = open.flatten();
        if open.any(|fd| std::fs::read_link(fd.path()).is_ok_and(|file| file == path)) {
            let name = std::fs::read_to_string(process.path().join("comm")).unwrap_or_default();
            return Some(format!("{} (process {pid})", name.trim()));
        }
    }
    None
}

/// Makes an image that takes up only the space that is written.
///
/// # Errors
///
/// It can't be written.
pub fn create(path: &Path, volumes: &[Volume]) -> Result<()> {
    let shown = workspace::show(path);
    let failed = || format!("can't create the disk image {shown}");
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder).with_context(failed)?;
    }
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(format!(".{}", std::process::id()));
    let temporary = path.with_file_name(name);
    let made = fill(&temporary, volumes).and_then(|()| {
        // Two runs may make the same image; the second must not replace the first one's.
        std::fs::hard_link(&temporary, path).or_else(|error| match error.kind() {
            std::io::ErrorKind::AlreadyExists => Ok(()),
            _ => Err(error.into()),
        })
    });
    // If it is not there, there is nothing to remove.
    let _ = std::fs::remove_file(&temporary);
    made.with_context(failed)
}

fn fill(path: &Path, volumes: &[Volume]) -> Result<()> {
    // Room for both GPTs before the first and after the last partition.
    let aligned = |volume: &Volume| volume.size.next_multiple_of(MIB);
    let total = 2 * MIB + volumes.iter().map(aligned).sum::<u64>();
    let mut file =
        OpenOptions::new().read(true).write(true).create(true).truncate(true).open(path)?;
    file.set_len(total)?;
    let sectors = u32::try_from(total / SECTOR - 1).unwrap_or(u32::MAX);
    ProtectiveMBR::with_lb_size(sectors).overwrite_lba0(&mut file)?;
    let config = GptConfig::new().writable(true).logical_block_size(LogicalBlockSize::Lb512);
    let mut disk = config.create_from_device(file, None)?;
    for volume in volumes {
        let kind = partition_types::LINUX_FS;
        disk.add_partition(&volume.label, aligned(volume), kind, 0, Some(ALIGNMENT))?;
    }
    disk.write()?.sync_all()?;
    Ok(())
}

/// Labels of an image's volumes and their bytes.
///
/// # Errors
///
/// It can't be read or has no GPT.
pub fn volumes(path: &Path) -> Result<BTreeMap<String, u64>> {
    let places = places(path)?.into_iter();
    Ok(places.map(|(label, place)| (label, place.end.saturating_sub(place.start))).collect())
}

/// Where the volume `label` is in an image, bytes.
///
/// # Errors
///
/// The image can't be read, or has no such volume.
pub fn place(path: &Path, label: &str) -> Result<Range<u64>> {
    let place = places(path)?.remove(label);
    place.ok_or_else(|| anyhow!("{} has no volume `{label}`", workspace::show(path)))
}

fn places(path: &Path) -> Result<BTreeMap<String, Range<u64>>> {
    let config = GptConfig::new().logical_block_size(LogicalBlockSize::Lb512);
    let disk = config.open(path).map_err(|why| {
        anyhow!("the disk image {} has no valid GPT: {why}", workspace::show(path))
    })?;
    let partitions = disk.partitions().values();
    let byte = |sector: u64| sector.saturating_mul(SECTOR);
    let place = |first, last: u64| byte(first)..byte(last.saturating_add(1));
    Ok(partitions.map(|p| (p.name.clone(), place(p.first_lba, p.last_lba))).collect())
}

fn check(path: &Path, wanted: &[Volume]) -> Result<()> {
    let there = volumes(path)?;
    for Volume { label, size } in wanted {
        let Some(bytes) = there.get(label) else {
            let labels: Vec<&str> = there.keys().map(String::as_str).collect();
            bail!(
                "the disk image {} has no volume `{label}` (it has {}); choose another with --disk, or delete it to have a new one made",
                workspace::show(path),
                if labels.is_empty() { "none".to_owned() } else { labels.join(", ") }
            );
        };
        if bytes < size {
            bail!(
                "the volume `{label}` of the disk image {} has {}, and the manifest wants {}",
                workspace::show(path),
                size::show(*bytes),
                size::show(*size)
            );
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use super::*;

    fn volume(label: &str, size: u64) -> Volume {
        Volume { label: label.to_owned(), size }
    }

    #[test]
    fn an_image_has_its_volumes_and_is_sparse() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("sub/disk.img");
        let wanted = [volume("kv-data", 64 * MIB), volume("scratch", 4096)];
        let (disk, made) = Disk::open(&path, &wanted).unwrap();
        assert!(made);
        let there = volumes(disk.path()).unwrap();
        assert_eq!(there.get("kv-data"), Some(&(64 * MIB)));
        assert_eq!(there.get("scratch"), Some(&MIB));
        assert_eq!(place(disk.path(), "scratch").unwrap(), 65 * MIB..66 * MIB);
        assert!(place(disk.path(), "nothing").is_err());
        let metadata = path.metadata().unwrap();
        assert_eq!(metadata.len(), 67 * MIB);
        assert!(metadata.blocks() * 512 < MIB, "{} bytes in use", metadata.blocks() * 512);
        assert_eq!(std::fs::read_dir(dir.path().join("sub")).unwrap().count(), 1);
    }

    #[test]
    fn an_image_is_kept_and_checked() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("disk.img");
        drop(Disk::open(&path, &[volume("a", MIB)]).unwrap());
        let (_, made) = Disk::open(&path, &[volume("a", MIB)]).unwrap();
        assert!(!made);
        let error = Disk::open(&path, &[volume("b", MIB)]).unwrap_err().to_string();
        assert!(error.contains("has no volume `b` (it has a)"), "{error}");
        let error = Disk::open(&path, &[volume("a", 2 * MIB)]).unwrap_err().to_string();
        assert!(error.contains("has 1MiB, and the manifest wants 2MiB"), "{error}");
        std::fs::write(&path, [0; 100_000]).unwrap();
        let error = Disk::open(&path, &[]).unwrap_err().to_string();
        assert!(error.contains("has no valid GPT"), "{error}");
    }

    #[test]
    fn an_image_has_one_user() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("disk.img");
        let first = Disk::open(&path, &[]).unwrap();
        let error = Disk::open(&path, &[]).unwrap_err().to_string();
        assert!(error.contains("disk.img is in use by"), "{error}");
        drop(first);
        Disk::open(&path, &[]).unwrap();
    }
}
