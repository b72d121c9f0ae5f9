//! Memory copy, fill and compare.
//!
//! Nothing here may compile into a call of the function that it implements:
//! short lengths are fixed-size loads and stores, long ones are one `rep`
//! instruction.
#![allow(unsafe_code)]
#![cfg_attr(
    not(test),
    expect(
        clippy::arithmetic_side_effects,
        clippy::cast_possible_truncation,
        reason = "offsets into the caller's `n` bytes, each below a branch that says how large n is"
    )
)]

use core::arch::asm;

/// Loads a `T` at any alignment.
///
/// # Safety
/// `p` points to `size_of::<T>()` readable bytes.
#[inline(always)]
unsafe fn load<T: Copy>(p: *const u8) -> T {
    // SAFETY: the caller's promise.
    unsafe { p.cast::<T>().read_unaligned() }
}

/// Stores a `T` at any alignment.
///
/// # Safety
/// `p` points to `size_of::<T>()` writable bytes.
#[inline(always)]
unsafe fn store<T: Copy>(p: *mut u8, value: T) {
    // SAFETY: the caller's promise.
    unsafe { p.cast::<T>().write_unaligned(value) }
}

/// Copies at most 32 bytes, overlapping or not: everything is loaded before
/// anything is stored.
///
/// # Safety
/// `n ≤ 32`, and both pointers cover `n` bytes.
#[inline(always)]
unsafe fn copy_short(dst: *mut u8, src: *const u8, n: usize) {
    // SAFETY: every access lies within the first `n` bytes; two accesses of a
    // size that is at least half of `n` cover all of it.
    unsafe {
        if n >= 16 {
            let (a, b): (u64, u64) = (load(src), load(src.add(8)));
            let (c, d): (u64, u64) = (load(src.add(n - 16)), load(src.add(n - 8)));
            store(dst, a);
            store(dst.add(8), b);
            store(dst.add(n - 16), c);
            store(dst.add(n - 8), d);
        } else if n >= 8 {
            let (a, b): (u64, u64) = (load(src), load(src.add(n - 8)));
            store(dst, a);
            store(dst.add(n - 8), b);
        } else if n >= 4 {
            let (a, b): (u32, u32) = (load(src), load(src.add(n - 4)));
            store(dst, a);
            store(dst.add(n - 4), b);
        } else if n >= 2 {
            let (a, b): (u16, u16) = (load(src), load(src.add(n - 2)));
            store(dst, a);
            store(dst.add(n - 2), b);
        } else if n == 1 {
            store::<u8>(dst, load(src));
        }
    }
}

/// Copies `n` bytes upwards. Right for separate ranges, and for overlapping
/// ones where `dst` is below `src`.
///
/// # Safety
/// `src` covers `n` readable and `dst` `n` writable bytes.
#[inline]
pub unsafe fn copy_up(dst: *mut u8, src: *const u8, n: usize) {
    // SAFETY: the caller's promise; `rep movsq` touches the first `n / 8 * 8`
    // bytes. The last eight bytes are loaded first, while they are unchanged,
    // and stored last, which covers the tail that is no multiple of eight.
    unsafe {
        if n <= 32 {
            return copy_short(dst, src, n);
        }
        let tail: u64 = load(src.add(n - 8));
        asm!(
            "rep movsq",
            inout("rcx") n / 8 => _,
            inout("rdi") dst => _,
            inout("rsi") src => _,
            options(nostack, preserves_flags)
        );
        store(dst.add(n - 8), tail);
    }
}

/// Copies `n` bytes downwards. Right for overlapping ranges where `dst` is
/// above `src`.
///
/// # Safety
/// `src` covers `n` readable and `dst` `n` writable bytes.
#[inline]
pub unsafe fn copy_down(dst: *mut u8, src: *const u8, n: usize) {
    // SAFETY: the caller's promise; as in `copy_up`, with the first eight
    // bytes held back. The direction flag is cleared again, as the ABI wants.
    unsafe {
        if n <= 32 {
            return copy_short(dst, src, n);
        }
        let head: u64 = load(src);
        asm!(
            "std",
            "rep movsq",
            "cld",
            inout("rcx") n / 8 => _,
            inout("rdi") dst.add(n - 8) => _,
            inout("rsi") src.add(n - 8) => _,
            options(nostack)
        );
        store(dst, head);
    }
}

/// Copies `n` bytes between ranges that may overlap.
///
/// # Safety
/// `src` covers `n` readable and `dst` `n` writable bytes.
#[inline]
pub unsafe fn copy(dst: *mut u8, src: *const u8, n: usize) {
    // `dst` inside `src..src + n` is the one case in which going up overwrites
    // what is still to be read.
    let above = (dst as usize).wrapping_sub(src as usize) < n;
    // SAFETY: the caller's promise.
    unsafe { if above { copy_down(dst, src, n) } else { copy_up(dst, src, n) } }
}

/// Sets `n` bytes to `byte`.
///
/// # Safety
/// `dst` covers `n` writable bytes.
#[inline]
pub unsafe fn fill(dst: *mut u8, byte: u8, n: usize) {
    let word = u64::from(byte) * 0x0101_0101_0101_0101;
    // SAFETY: the caller's promise; the cases cover `n` as in `copy_short`,
    // and the last store covers the tail that `rep stosq` leaves.
    unsafe {
        if n >= 8 {
            if n > 16 {
                asm!(
                    "rep stosq",
                    inout("rcx") n / 8 => _,
                    inout("rdi") dst => _,
                    in("rax") word,
                    options(nostack, preserves_flags)
                );
            } else {
                store(dst, word);
            }
            store(dst.add(n - 8), word);
        } else if n >= 4 {
            store(dst, word as u32);
            store(dst.add(n - 4), word as u32);
        } else if n >= 2 {
            store(dst, word as u16);
            store(dst.add(n - 2), word as u16);
        } else if n == 1 {
            store(dst, byte);
        }
    }
}

/// Compares `n` bytes as unsigned numbers: negative, zero or positive.
///
/// # Safety
/// Both pointers cover `n` readable bytes.
#[inline]
pub unsafe fn compare(a: *const u8, b: *const u8, n: usize) -> i32 {
    let mut i = 0;
    // SAFETY: every access ends at or before byte `n`.
    unsafe {
        while n - i >= 8 {
            let (x, y): (u64, u64) = (load(a.add(i)), load(b.add(i)));
            if x != y {
                // The first byte in memory decides: it is the lowest one here.
                return if x.swap_bytes() < y.swap_bytes() { -1 } else { 1 };
            }
            i += 8;
        }
        while i < n {
            let (x, y): (u8, u8) = (load(a.add(i)), load(b.add(i)));
            if x != y {
                return i32::from(x) - i32::from(y);
            }
            i += 1;
        }
    }
    0
}

#[cfg(test)]
mod tests {
    use std::vec::Vec;

    use super::*;

    fn pattern(n: usize) -> Vec<u8> {
        (0..n).map(|i| (i * 7 + i / 251) as u8).collect()
    }

    #[test]
    fn copies_every_length_and_overlap() {
        for n in 0..100 {
            for from in 0..48 {
                for to in 0..48 {
                    let mut real = pattern(160);
                    let mut model = real.clone();
                    model.copy_within(from..from + n, to);
                    let base = real.as_mut_ptr();
                    // SAFETY: 48 + 100 < 160.
                    unsafe { copy(base.add(to), base.add(from), n) };
                    assert_eq!(real, model, "n {n} from {from} to {to}");
                }
            }
        }
    }

    #[test]
    fn copies_long_overlaps() {
        for n in [4095, 4096, 4097, 10_000] {
            for (from, to) in [(0, 1), (1, 0), (0, 9), (9, 0), (0, 4000), (4000, 0)] {
                let mut real = pattern(20_000);
                let mut model = real.clone();
                model.copy_within(from..from + n, to);
                let base = real.as_mut_ptr();
                // SAFETY: 10 000 + 4 000 < 20 000.
                unsafe { copy(base.add(to), base.add(from), n) };
                assert!(real == model, "n {n} from {from} to {to}");
            }
        }
    }

    #[test]
    fn fills_exactly() {
        for n in 0..100 {
            for at in 0..16 {
                let mut real = pattern(128);
                let mut model = real.clone();
                model[at..at + n].fill(0xa5);
                // SAFETY: 16 + 100 < 128.
                unsafe { fill(real.as_mut_ptr().add(at), 0xa5, n) };
                assert_eq!(real, model, "n {n} at {at}");
            }
        }
    }

    #[test]
    fn compares_like_slices() {
        for n in 0..40 {
            let a = pattern(n);
            for i in 0..n {
                for change in [1u8, 0x80, 0xff] {
                    let mut b = a.clone();
                    b[i] = b[i].wrapping_add(change);
                    // SAFETY: both have `n` bytes.
                    let got = unsafe { compare(a.as_ptr(), b.as_ptr(), n) };
                    assert_eq!(got.cmp(&0), a.cmp(&b), "n {n} i {i}");
                }
            }
            // SAFETY: `n` bytes.
            assert_eq!(unsafe { compare(a.as_ptr(), a.as_ptr(), n) }, 0);
        }
    }
}
