//! Finds itself only with the help of coverage and of traced comparisons.

pub fn run(data: &[u8]) {
    let Some((head, rest)) = data.split_first_chunk::<4>() else { return };
    if u32::from_le_bytes(*head) != 0xb1_4e_ad_07 {
        return;
    }
    let Some((middle, rest)) = rest.split_first_chunk::<8>() else { return };
    if u64::from_le_bytes(*middle) != 0x0b0e_57ac_1e5e_7c0d {
        return;
    }
    let Some((last, _)) = rest.split_first_chunk::<2>() else { return };
    if u16::from_le_bytes(*last) == 0x1de4 {
        panic!("the planted value was found, as it must be");
    }
}
