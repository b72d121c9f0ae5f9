//! What the boot loader handed over, and the boot-time frame allocator.
//!
//! Frames come from the RAM that the loader reported usable, less the first
//! MiB, the hypervisor's image and the bundle. The allocator serves the boot
//! only: [`seal`] closes it.
#![allow(unsafe_code)]
#![expect(
    clippy::arithmetic_side_effects,
    clippy::cast_possible_truncation,
    clippy::expect_used,
    clippy::panic,
    reason = "boot only: numbers of the firmware or our own, and who cannot go on says so"
)]

use heapless::Vec;
use spin::{Mutex, Once};

use crate::{acpi::table::Table, phys::Identity};

/// Most entries of the memory map, and most free ranges.
pub const MAX_REGIONS: usize = 64;
/// Most bytes of the command line.
pub const MAX_CMDLINE: usize = 512;

const MAGIC: u32 = 0x336e_c578;
const PAGE: u64 = ring_proto::PAGE_SIZE as u64;
const LOW_END: u64 = 0x10_0000;
/// What the early page tables reach.
const EARLY_END: u64 = 1 << 32;

/// Machine addresses `start..end`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Range {
    /// First byte.
    pub start: u64,
    /// Byte after the last.
    pub end: u64,
}

impl Range {
    /// Bytes.
    pub const fn len(self) -> u64 {
        self.end.saturating_sub(self.start)
    }

    /// Whether there is no byte in it.
    pub const fn is_empty(self) -> bool {
        self.len() == 0
    }

    /// All pages that a byte of it is in.
    pub const fn whole_pages(self) -> Self {
        Self { start: self.start & !(PAGE - 1), end: round_up(self.end) }
    }

    /// Whether a byte is in both.
    pub const fn overlaps(self, other: Range) -> bool {
        self.start < other.end && other.start < self.end
    }
}

/// What an entry of the memory map is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// RAM for any use.
    Usable,
    /// RAM with ACPI tables, or kept by ACPI.
    Acpi,
    /// Anything else.
    Reserved,
}

/// What the boot loader handed over, copied and checked.
pub struct Boot {
    /// The memory map, ascending.
    pub regions: Vec<(Range, Kind), MAX_REGIONS>,
    /// The bundle, empty if there is none.
    pub bundle: Range,
    /// The ACPI root pointer's address; 0 = not told.
    pub rsdp: u64,
    /// The command line.
    pub cmdline: heapless::String<MAX_CMDLINE>,
    /// RAM that the loader reported usable, bytes.
    pub usable: u64,
}

impl Boot {
    /// The bundle's bytes. Nothing writes there: it is mapped read-only and
    /// its frames belong to no allocator.
    pub fn bundle(&self) -> &'static [u8] {
        if self.bundle.is_empty() {
            return &[];
        }
        // SAFETY: checked in `init` to be RAM below 4 GiB and kept out of the
        // free ranges, so it stays mapped and unchanged.
        unsafe {
            core::slice::from_raw_parts(self.bundle.start as *const u8, self.bundle.len() as usize)
        }
    }

    /// All RAM, whatever it is used for.
    pub fn ram(&self) -> impl Iterator<Item = Range> {
        self.regions.iter().filter(|r| r.1 != Kind::Reserved).map(|r| r.0)
    }

    /// Value of the word `key=value` on the command line.
    pub fn option(&self, key: &str) -> Option<&str> {
        self.cmdline
            .split_ascii_whitespace()
            .find_map(|word| word.strip_prefix(key)?.strip_prefix('='))
    }
}

struct Free {
    ranges: Vec<Range, MAX_REGIONS>,
    sealed: bool,
}

static BOOT: Once<Boot> = Once::new();
static FREE: Mutex<Free> = Mutex::new(Free { ranges: Vec::new(), sealed: false });

// From the linker script.
unsafe extern "C" {
    static __image_start: u8;
    static __text_start: u8;
    static __text_end: u8;
    static __rodata_start: u8;
    static __rodata_end: u8;
    static __image_end: u8;
}

/// The hypervisor's own image in memory.
pub fn image() -> Range {
    Range { start: (&raw const __image_start) as u64, end: (&raw const __image_end) as u64 }
}

/// The code of the image.
pub fn text() -> Range {
    Range { start: (&raw const __text_start) as u64, end: (&raw const __text_end) as u64 }
}

/// The constants of the image.
pub fn constants() -> Range {
    Range { start: (&raw const __rodata_start) as u64, end: (&raw const __rodata_end) as u64 }
}

/// What the boot loader handed over.
///
/// # Panics
/// Before [`init`].
pub fn boot() -> &'static Boot {
    BOOT.get().expect("memmap::init was not called")
}

/// A structure of the loader's, which may well lie in page 0, mapped by the
/// early tables only.
///
/// # Panics
/// Where the early map does not reach.
fn structure(address: u64, len: u64) -> Table<'static, Identity> {
    // SAFETY: only the loader's structures below 4 GiB are read, on the early
    // map; nobody writes there meanwhile.
    static EARLY: Identity = unsafe { Identity::new() };
    match Table::raw(&EARLY, *b"PVH ", address, len) {
        Ok(table) => table,
        Err(_) => panic!("the loader's structure at {address:#x} is out of reach"),
    }
}

/// Reads the PVH start information. To be called once, on the early map.
///
/// # Panics
/// Where the information is not what PVH promises.
pub fn init(start_info: u64) -> &'static Boot {
    let info = structure(start_info, 56);
    let (word, address) = (|at| info.get(at).unwrap_or(0_u32), |at| info.get(at).unwrap_or(0));
    assert_eq!(word(0), MAGIC, "not started through PVH");
    assert!(word(4) >= 1, "PVH start information has no memory map");
    let regions = read_map(address(40), word(48));
    let bundle = if word(12) > 0 { read_module(address(16)) } else { Range { start: 0, end: 0 } };
    let ram = || regions.iter().filter(|r| r.1 == Kind::Usable).map(|r| r.0);
    let usable = ram().map(Range::len).sum();
    assert!(usable > 0, "the memory map has no usable RAM");

    let mut free = FREE.lock();
    for Range { start, end } in ram() {
        let range = Range { start: round_up(start).max(LOW_END), end: end & !(PAGE - 1) };
        if !range.is_empty() {
            free.ranges.push(range).expect("as many ranges as regions fit");
        }
    }
    // What is reserved or overlaps another entry is not free, and neither is
    // what the hypervisor itself keeps.
    for (range, _) in regions.iter().filter(|r| r.1 != Kind::Usable) {
        free.remove(*range);
    }
    free.remove(image());
    free.remove(bundle);
    drop(free);

    BOOT.call_once(|| Boot {
        regions,
        bundle,
        rsdp: address(32),
        cmdline: read_cmdline(address(24)),
        usable,
    })
}

const fn round_up(address: u64) -> u64 {
    address.saturating_add(PAGE - 1) & !(PAGE - 1)
}

fn read_map(address: u64, count: u32) -> Vec<(Range, Kind), MAX_REGIONS> {
    let mut regions = Vec::new();
    for i in 0..u64::from(count) {
        let entry = structure(address + i * 24, 24);
        let range = range_of(&entry);
        let kind = match entry.get(16) {
            Ok(1_u32) => Kind::Usable,
            Ok(3 | 4) => Kind::Acpi,
            _ => Kind::Reserved,
        };
        if !range.is_empty() {
            regions.push((range, kind)).expect("too many memory map entries");
        }
    }
    regions.sort_unstable_by_key(|r: &(Range, _)| r.0.start);
    regions
}

/// The address and length that `entry` begins with.
fn range_of(entry: &Table<'_, Identity>) -> Range {
    let [start, len] = entry.get(0).unwrap_or([0, 0_u64]);
    Range { start, end: start.saturating_add(len) }
}

fn read_module(list: u64) -> Range {
    let range = range_of(&structure(list, 32));
    let sound = range.start >= LOW_END && range.end <= EARLY_END && !range.overlaps(image());
    assert!(sound || range.is_empty(), "the bundle lies where it cannot be used: {range:x?}");
    range
}

fn read_cmdline(address: u64) -> heapless::String<MAX_CMDLINE> {
    let mut text = heapless::String::new();
    let bytes = structure(address.max(1), MAX_CMDLINE as u64);
    for byte in (0..bytes.size()).map_while(|i| bytes.get(i).ok()) {
        if address == 0 || !matches!(byte, b' '..=b'~') || text.push(byte.into()).is_err() {
            break;
        }
    }
    text
}

impl Free {
    /// Takes `hole` out of the free ranges.
    fn remove(&mut self, hole: Range) {
        if hole.is_empty() {
            return;
        }
        let Range { start, end } = hole.whole_pages();
        for range in core::mem::take(&mut self.ranges) {
            let below = Range { end: range.end.min(start), ..range };
            let above = Range { start: range.start.max(end), ..range };
            // Without room the rest is lost, not given out twice.
            for rest in [below, above].into_iter().filter(|rest| !rest.is_empty()) {
                let _ = self.ranges.push(rest);
            }
        }
    }

    /// The lowest `len` bytes with the wanted alignment.
    fn take(&mut self, len: u64, align: u64) -> Option<u64> {
        let start = self.ranges.iter().find_map(|range| {
            let start = range.start.checked_add(align - 1)? & !(align - 1);
            (start.checked_add(len)? <= range.end).then_some(start)
        })?;
        self.remove(Range { start, end: start + len });
        Some(start)
    }
}

/// `count` consecutive zeroed frames at a multiple of `align` bytes (a power
/// of two, at least a page), or `None` if there are none. Before
/// [`crate::paging::init`] only frames that the early map reaches.
///
/// # Panics
/// After [`seal`].
pub fn alloc_frames(count: usize, align: u64) -> Option<u64> {
    let start = alloc_frames_dirty(count, align)?;
    let len = count as u64 * PAGE;
    assert!(start + len <= EARLY_END || crate::paging::ready(), "early frames ran out");
    // SAFETY: free RAM, identity mapped, that from now on is the caller's alone.
    unsafe { core::ptr::write_bytes(start as *mut u8, 0, len as usize) };
    Some(start)
}

/// Like [`alloc_frames`], with whatever was in the frames.
///
/// # Panics
/// After [`seal`].
pub fn alloc_frames_dirty(count: usize, align: u64) -> Option<u64> {
    debug_assert!(align.is_power_of_two());
    let len = (count as u64).checked_mul(PAGE)?;
    let mut free = FREE.lock();
    assert!(!free.sealed, "frames are handed over: no boot-time allocation any more");
    free.take(len, align.max(PAGE))
}

/// A usable page below 640 KiB, for the application processors' first code.
/// The page is never in the free ranges.
pub fn low_page() -> Option<u64> {
    let regions = &boot().regions;
    (1..0xa0).rev().map(|n| n * PAGE).find(|&page| {
        let range = Range { start: page, end: page + PAGE };
        let inside = |r: Range| r.start <= range.start && range.end <= r.end;
        regions.iter().any(|&(r, kind)| kind == Kind::Usable && inside(r))
            && !regions.iter().any(|&(r, kind)| kind != Kind::Usable && r.overlaps(range))
    })
}

/// Bytes that are free now.
pub fn free_bytes() -> u64 {
    FREE.lock().ranges.iter().map(|r| r.len()).sum()
}

/// Ends the boot: from now on every allocation, of frames or of the heap, is a
/// panic.
pub fn seal() {
    crate::heap::seal();
    FREE.lock().sealed = true;
}
