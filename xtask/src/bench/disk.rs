//! A disk with a partition table and no medium: reads and writes of the volume
//! end at QEMU's `null-co`, which answers at once.
//!
//! The table has to come from somewhere. So there are three layers: an image
//! with the first cluster of the disk, which holds the table; `null-co`; and
//! between them a qcow2 file, written here, that maps the first cluster to
//! nothing, which leads to the image below, and every other cluster to `null-co`
//! as its external data file.
//!
//! The image is a cloop file of one block. QEMU keeps the block that it read last
//! in memory, so that reading the table does not wait for the host either: a
//! driver that starts does that, and while it sleeps for a completion the
//! virtual clock jumps. For the same reason a flush ends at the qcow2 file.

use std::ffi::OsString;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

use anyhow::{Context, Result};

use crate::disk;
use crate::manifest::Volume;
use crate::qemu::with_path;
use crate::size::MIB;

/// Bytes of the volume, as the manifest says.
const VOLUME: u64 = 128 * MIB;
/// log2 of the cluster size: a volume begins at 1 MiB.
const CLUSTER_BITS: u32 = 20;
const CLUSTER: u64 = 1 << CLUSTER_BITS;

// Where the parts of the qcow2 file are, in clusters.
const REFCOUNT_TABLE: u64 = 1;
const REFCOUNTS: u64 = 2;
const L1_TABLE: u64 = 3;
const L2_TABLE: u64 = 4;
const CLUSTERS: u64 = 5;

/// Incompatible feature: data is in an external file.
const EXTERNAL_DATA: u64 = 1 << 2;
/// Of an L1 or L2 entry: nobody else uses the cluster.
const COPIED: u64 = 1 << 63;

/// Makes the files in `dir` and says how QEMU makes the drive `disk` of them.
pub(super) fn arguments(dir: &Path) -> Result<Vec<OsString>> {
    let image = dir.join("table.img");
    let table = dir.join("table.cloop");
    let map = dir.join("map.qcow2");
    let _ = std::fs::remove_file(&image);
    disk::create(&image, &[Volume { label: "bench".to_owned(), size: VOLUME }])?;
    let len = image.metadata().context("can't look at the image")?.len();
    write_table(&table, &image).with_context(|| format!("can't write {}", table.display()))?;
    write_map(&map, len).with_context(|| format!("can't write {}", map.display()))?;
    let arguments: [OsString; 8] = [
        "-blockdev".into(),
        with_path(
            "driver=cloop,node-name=table,read-only=on,file.driver=file,file.filename=",
            &table,
        ),
        "-blockdev".into(),
        format!("driver=null-co,node-name=nothing,size={len}").into(),
        "-blockdev".into(),
        with_path("driver=file,node-name=map,cache.no-flush=on,filename=", &map),
        "-blockdev".into(),
        "driver=qcow2,node-name=disk,file=map,data-file=nothing,backing=table".into(),
    ];
    Ok(arguments.into())
}

/// Writes the first cluster of the disk as a cloop file: a preamble that is not
/// looked at, the block size, the number of blocks, where each begins and the
/// last ends, and the blocks, compressed.
fn write_table(path: &Path, image: &Path) -> std::io::Result<()> {
    const PREAMBLE: usize = 128;
    const BEGIN: u64 = PREAMBLE as u64 + 2 * 4 + 2 * 8;
    let mut cluster = vec![0; CLUSTER as usize];
    File::open(image)?.read_exact_at(&mut cluster, 0)?;
    let block = miniz_oxide::deflate::compress_to_vec_zlib(&cluster, 1);
    let mut bytes = vec![0; PREAMBLE];
    bytes.extend((CLUSTER as u32).to_be_bytes());
    bytes.extend(1u32.to_be_bytes());
    bytes.extend(BEGIN.to_be_bytes());
    bytes.extend((BEGIN + block.len() as u64).to_be_bytes());
    bytes.extend(block);
    std::fs::write(path, bytes)
}

/// Writes the qcow2 file of a disk of `len` bytes.
fn write_map(path: &Path, len: u64) -> std::io::Result<()> {
    let file = File::create(path)?;
    file.set_len(CLUSTERS * CLUSTER)?;
    let mut header = Vec::new();
    let put32 = |header: &mut Vec<u8>, values: &[u32]| {
        values.iter().for_each(|value| header.extend(value.to_be_bytes()));
    };
    let put64 = |header: &mut Vec<u8>, values: &[u64]| {
        values.iter().for_each(|value| header.extend(value.to_be_bytes()));
    };
    // Magic, version 3; the backing file is named on the command line.
    put32(&mut header, &[0x5146_49fb, 3]);
    put64(&mut header, &[0]);
    put32(&mut header, &[0, CLUSTER_BITS]);
    put64(&mut header, &[len]);
    // No encryption; one L1 entry.
    put32(&mut header, &[0, 1]);
    put64(&mut header, &[L1_TABLE * CLUSTER, REFCOUNT_TABLE * CLUSTER]);
    // Clusters of the refcount table; no snapshots.
    put32(&mut header, &[1, 0]);
    put64(&mut header, &[0, EXTERNAL_DATA, 0, 0]);
    // Refcounts of 2^4 bits; length of this header.
    put32(&mut header, &[4, 104]);
    file.write_all_at(&header, 0)?;
    file.write_all_at(&(REFCOUNTS * CLUSTER).to_be_bytes(), REFCOUNT_TABLE * CLUSTER)?;
    let counts: Vec<u8> = (0..CLUSTERS).flat_map(|_| 1u16.to_be_bytes()).collect();
    file.write_all_at(&counts, REFCOUNTS * CLUSTER)?;
    file.write_all_at(&((L2_TABLE * CLUSTER) | COPIED).to_be_bytes(), L1_TABLE * CLUSTER)?;
    let last = (len - 1) / CLUSTER;
    let entries: Vec<u8> = (0..=last)
        .map(|cluster| if cluster == 0 { 0 } else { (cluster * CLUSTER) | COPIED })
        .flat_map(u64::to_be_bytes)
        .collect();
    file.write_all_at(&entries, L2_TABLE * CLUSTER)
}
