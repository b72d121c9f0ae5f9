//! Framing of control messages: COBS, a CRC, and a receiver that survives
//! whatever the line brings.

use heapless::Vec;

use super::{FRAME_MAX, Message, VERSION};
use crate::bundle::crc32;

const CRC_LEN: usize = 4;
/// COBS adds one byte for every begun 254 bytes; then comes the zero.
const COBS_OVERHEAD: usize = FRAME_MAX / 254 + 1;
/// Most bytes of a frame before COBS.
const CONTENT_MAX: usize = FRAME_MAX - COBS_OVERHEAD - 1;
/// Where a body ends at the latest.
const BODY_END: usize = CONTENT_MAX - CRC_LEN;

/// Why a message could not be sent: its encoding exceeds [`FRAME_MAX`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EncodeError;

/// Why a frame was thrown away.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FrameError {
    /// More than [`FRAME_MAX`] bytes without a zero.
    TooLong,
    /// Not COBS, or the CRC does not fit.
    Damaged,
    /// Sound, but of this other version.
    Version(u8),
    /// Sound, of this version, but not a message of the expected kind.
    Malformed,
}

/// The frame of `message`, closed by its zero.
pub fn encode<T: Message>(message: &T) -> Result<Vec<u8, FRAME_MAX>, EncodeError> {
    let mut content = [0u8; CONTENT_MAX];
    content[0] = VERSION;
    let body = content.get_mut(1..BODY_END).ok_or(EncodeError)?;
    let body_len = postcard::to_slice(message, body).map_err(|_| EncodeError)?.len();
    let (checked, rest) =
        content.split_at_mut_checked(body_len.saturating_add(1)).ok_or(EncodeError)?;
    let crc = crc32(checked);
    *rest.first_chunk_mut().ok_or(EncodeError)? = crc.to_le_bytes();
    let len = checked.len().saturating_add(CRC_LEN);
    let content = content.get(..len).ok_or(EncodeError)?;

    let mut frame = Vec::new();
    frame.resize(FRAME_MAX - 1, 0).map_err(|_| EncodeError)?;
    let len = cobs::try_encode(content, &mut frame).map_err(|_| EncodeError)?;
    frame.truncate(len);
    frame.push(0).map_err(|_| EncodeError)?;
    Ok(frame)
}

/// Finds frames in a stream of bytes. Memory is fixed, nothing panics, and
/// any junk costs at most the frame that it hit.
#[derive(Debug, Default)]
pub struct Decoder {
    pending: Vec<u8, FRAME_MAX>,
    /// Too much came without a zero: drop everything up to the next one.
    overrun: bool,
}

impl Decoder {
    /// Waits for a first frame.
    pub const fn new() -> Self {
        Self { pending: Vec::new(), overrun: false }
    }

    /// Takes bytes from the front of `bytes` up to the end of a frame and
    /// says what it holds; `None` once all bytes are taken.
    ///
    /// Call it until it returns `None`. Empty frames are skipped.
    pub fn feed<T: Message>(&mut self, bytes: &mut &[u8]) -> Option<Result<T, FrameError>> {
        loop {
            let input = *bytes;
            let zero = input.iter().position(|&b| b == 0);
            let part = input.get(..zero.unwrap_or(input.len())).unwrap_or_default();
            if self.pending.extend_from_slice(part).is_err() {
                self.overrun = true;
                self.pending.clear();
            }
            let Some(zero) = zero else {
                *bytes = &[];
                return None;
            };
            *bytes = input.get(zero.saturating_add(1)..).unwrap_or_default();
            if core::mem::take(&mut self.overrun) {
                self.pending.clear();
                return Some(Err(FrameError::TooLong));
            }
            if !self.pending.is_empty() {
                let result = open(&mut self.pending);
                self.pending.clear();
                return Some(result);
            }
        }
    }
}

/// The message in a COBS-encoded frame without its zero; overwrites `frame`.
fn open<T: Message>(frame: &mut [u8]) -> Result<T, FrameError> {
    let len = cobs::decode_in_place(frame).map_err(|_| FrameError::Damaged)?;
    let content = frame.get(..len).ok_or(FrameError::Damaged)?;
    let (checked, crc) = content.split_last_chunk::<CRC_LEN>().ok_or(FrameError::Damaged)?;
    if crc32(checked) != u32::from_le_bytes(*crc) {
        return Err(FrameError::Damaged);
    }
    let (&version, body) = checked.split_first().ok_or(FrameError::Damaged)?;
    if version != VERSION {
        return Err(FrameError::Version(version));
    }
    match postcard::take_from_bytes(body) {
        Ok((message, [])) => Ok(message),
        _ => Err(FrameError::Malformed),
    }
}
