//! What QEMU saw on the wire: its `filter-dump` writes a pcap file.

use std::{fs, path::PathBuf, time::Duration};

use anyhow::{Context, Result, ensure};
use xtask::qemu::NodeConfig;

use crate::bench::Bench;

const FILE_HEADER: usize = 24;
const RECORD_HEADER: usize = 16;

/// A frame.
#[derive(Clone, Debug)]
pub struct Frame {
    /// QEMU's clock.
    pub at: Duration,
    /// From the destination's address on.
    pub bytes: Vec<u8>,
}

impl Frame {
    /// Whether `mark` occurs in it.
    pub fn has(&self, mark: &[u8]) -> bool {
        self.bytes.windows(mark.len()).any(|part| part == mark)
    }

    /// The source's address.
    pub fn source(&self) -> &[u8] {
        self.bytes.get(6..12).unwrap_or_default()
    }
}

fn path(bench: &Bench) -> PathBuf {
    bench.dir().join("wire.pcap")
}

/// Has QEMU write down what passes the wire, in both directions.
pub fn start(bench: &Bench, config: &mut NodeConfig) {
    let file = path(bench).display().to_string();
    let object = format!("filter-dump,id=capture,netdev=wire,file={file}");
    config.extra_args.extend(["-object".into(), object.into()]);
}

/// The frames so far.
///
/// # Errors
///
/// There is no capture.
pub fn frames(bench: &Bench) -> Result<Vec<Frame>> {
    let capture = fs::read(path(bench)).context("the capture of the wire")?;
    ensure!(capture.starts_with(&[0xd4, 0xc3, 0xb2, 0xa1]), "not a capture");
    let mut frames = Vec::new();
    let mut rest = capture.get(FILE_HEADER..).unwrap_or_default();
    while let Some((header, body)) = rest.split_first_chunk::<RECORD_HEADER>() {
        let [s0, s1, s2, s3, u0, u1, u2, u3, l0, l1, l2, l3, ..] = *header;
        let seconds = u32::from_le_bytes([s0, s1, s2, s3]);
        let micros = u32::from_le_bytes([u0, u1, u2, u3]);
        let len = u32::from_le_bytes([l0, l1, l2, l3]) as usize;
        // The last record may be cut off: QEMU still writes it.
        let Some((frame, next)) = body.split_at_checked(len) else { break };
        let at = Duration::from_secs(seconds.into()) + Duration::from_micros(micros.into());
        frames.push(Frame { at, bytes: frame.to_vec() });
        rest = next;
    }
    Ok(frames)
}
