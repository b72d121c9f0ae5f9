//! The Internet checksum (RFC 1071).
//!
//! A guest may leave it to the NIC. A frame that goes to another guest meets
//! no NIC, so it is computed here.

/// Stores the checksum of everything from `start` on at `start + offset`,
/// where the sender left the pseudo-header's sum. `false` if that is not
/// within the frame.
#[must_use]
pub fn fill(frame: &mut [u8], start: u16, offset: u16) -> bool {
    let start = usize::from(start);
    let field = start.saturating_add(offset.into());
    let Some(covered) = frame.get(start..) else { return false };
    let sum = !fold(sum(covered));
    match frame.get_mut(field..).and_then(|rest| rest.first_chunk_mut()) {
        Some(place) => {
            *place = sum.to_be_bytes();
            true
        }
        None => false,
    }
}

fn sum(bytes: &[u8]) -> u64 {
    bytes
        .chunks(2)
        .map(|pair| match *pair {
            [high, low] => u64::from(u16::from_be_bytes([high, low])),
            [high] => u64::from(high) << 8,
            _ => 0,
        })
        // Far from an overflow: a frame has fewer than 2^48 words.
        .fold(0, u64::saturating_add)
}

fn fold(mut sum: u64) -> u16 {
    loop {
        match u16::try_from(sum) {
            Ok(sum) => return sum,
            Err(_) => sum = (sum & 0xffff).saturating_add(sum >> 16),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_filled_frame_sums_to_zero() {
        for len in [20, 21, 60, 1501] {
            let mut frame: std::vec::Vec<u8> = (0..len).map(|i| (i * 31 + 7) as u8).collect();
            frame[12..14].fill(0);
            assert!(fill(&mut frame, 6, 6));
            assert_eq!(fold(sum(&frame[6..])), 0xffff);
        }
    }

    #[test]
    fn places_out_of_the_frame_are_refused() {
        let mut frame = [0; 20];
        for (start, offset) in [(21, 0), (19, 0), (10, 9), (u16::MAX, u16::MAX)] {
            assert!(!fill(&mut frame, start, offset));
        }
        assert!(fill(&mut frame, 18, 0));
    }
}
