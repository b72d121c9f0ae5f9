//! What the hypervisor must answer a domain that has no capability and no
//! connection, no grant of anybody, and no page of its window mapped.

use domain_rt::boot;
use ring_proto::{
    PAGE_SIZE,
    hypercall::{MAX_CONSOLE_WRITE, MAX_COPY_BATCH, MAX_GRANT_BATCH, Nr},
    layout,
};

use crate::access::image;

const PAGE: u64 = PAGE_SIZE as u64;

/// What must come of a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expected {
    /// An error.
    Error,
    /// Success: the call is allowed and changes nothing of others.
    Success,
    /// Either: it depends on what the linker made of the image.
    Either,
    /// It must not be made: it would end the domain, or put it to sleep.
    Ends,
}

/// Who owns a range as far as this program can tell.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Owner {
    This,
    Image,
    Nobody,
}

/// Regions beside the image; each call's memory must lie in one of them.
fn regions() -> [(u64, u64); 6] {
    let boot = boot();
    let table = (u64::from(boot.grant_entries) * 8).next_multiple_of(PAGE);
    [
        (layout::BOOT_INFO, PAGE),
        (layout::EVENT_PAGE, PAGE),
        (layout::PAGE_TABLES, 2 * PAGE),
        (layout::GRANT_TABLE, table),
        (layout::HEAP, boot.heap_len),
        (layout::DMA_POOL, boot.dma_len),
    ]
}

fn owner(address: u64, len: u64) -> Owner {
    let within = |&(start, size): &(u64, u64)| {
        address.checked_sub(start).is_some_and(|offset| offset < size && len <= size - offset)
    };
    let image = (layout::IMAGE_BASE, image::stack().end - layout::IMAGE_BASE);
    match () {
        () if regions().iter().any(within) => Owner::This,
        () if within(&image) => Owner::Image,
        () => Owner::Nobody,
    }
}

/// What must come of call `nr`.
pub fn expected(nr: u64, arguments: [u64; 5]) -> Expected {
    let [a, b, ..] = arguments;
    let of_owner = |owner| match owner {
        Owner::This => Expected::Success,
        Owner::Image => Expected::Either,
        Owner::Nobody => Expected::Error,
    };
    let when = |good: bool| if good { Expected::Success } else { Expected::Error };
    let boot = boot();
    match Nr::from_raw(nr) {
        Some(Nr::ConsoleWrite) if b > MAX_CONSOLE_WRITE => Expected::Error,
        Some(Nr::ConsoleWrite) => of_owner(owner(a, b)),
        Some(Nr::Wait) if a > PAST => Expected::Ends,
        Some(Nr::Wait | Nr::Yield) => Expected::Success,
        Some(Nr::GrantUnmap) => when(
            a >= layout::GRANT_WINDOW
                && a % PAGE == 0
                && (1..=MAX_GRANT_BATCH).contains(&b)
                && (a - layout::GRANT_WINDOW) / PAGE + b <= u64::from(boot.grant_window_pages),
        ),
        Some(Nr::GrantRevoke) => when(
            b <= MAX_GRANT_BATCH
                && a.checked_add(b).is_some_and(|end| end <= u64::from(boot.grant_entries)),
        ),
        Some(Nr::GrantCopy) => when(b == 0 && b <= MAX_COPY_BATCH),
        Some(Nr::Exit | Nr::Crash) => Expected::Ends,
        // Configuration space of a device is another attack's.
        Some(Nr::PciConfig | Nr::IrqBind | Nr::IrqUnmask | Nr::DeviceEnable)
            if boot.device_count > 0 =>
        {
            Expected::Either
        }
        _ => Expected::Error,
    }
}

/// Deadlines up to here, ns since boot, are over.
pub const PAST: u64 = 1_000_000;

/// Whether a call would print more than `most` bytes of what is not for people.
pub fn prints(nr: u64, arguments: [u64; 5], most: u64) -> bool {
    let [address, len, ..] = arguments;
    nr == Nr::ConsoleWrite as u64
        && len > most
        && len <= MAX_CONSOLE_WRITE
        && owner(address, len) != Owner::Nobody
}

/// Values at which something changes, or once did in some hypervisor.
pub const BOUNDARIES: [u64; 44] = [
    0,
    1,
    2,
    3,
    7,
    8,
    15,
    16,
    17,
    31,
    32,
    33,
    63,
    64,
    127,
    128,
    511,
    512,
    513,
    1023,
    1024,
    1025,
    2047,
    2048,
    4095,
    4096,
    0x7fff,
    0xffff,
    0x1_0000,
    0x7fff_ffff,
    0xffff_ffff,
    0x1_0000_0000,
    0x1_0000_0001,
    1 << 39,
    1 << 40,
    0x000f_ffff_ffff_f000,
    i64::MAX as u64,
    1 << 63,
    (1 << 63) + 1,
    u64::MAX - 4096,
    u64::MAX - 4095,
    u64::MAX - 7,
    u64::MAX - 1,
    u64::MAX,
];

/// Addresses at which something changes.
pub fn addresses() -> [u64; 29] {
    let boot = boot();
    let stack = image::stack();
    let window = layout::GRANT_WINDOW + u64::from(boot.grant_window_pages) * PAGE;
    [
        0xf_f000,
        layout::BOOT_INFO - 1,
        layout::BOOT_INFO,
        layout::BOOT_INFO + PAGE - 1,
        layout::EVENT_PAGE,
        layout::PAGE_TABLES,
        layout::PAGE_TABLES + 2 * PAGE - 8,
        layout::PAGE_TABLES + 2 * PAGE,
        layout::CONNECTIONS,
        layout::GRANT_TABLE,
        layout::GRANT_TABLE + PAGE - 1,
        layout::IMAGE_BASE - 1,
        layout::IMAGE_BASE,
        stack.start - 1,
        stack.end - 1,
        stack.end,
        layout::HEAP - 1,
        layout::HEAP,
        layout::HEAP + boot.heap_len - 1024,
        layout::HEAP + boot.heap_len - 1,
        layout::HEAP + boot.heap_len,
        layout::DMA_POOL,
        layout::BARS,
        layout::GRANT_WINDOW - PAGE,
        layout::GRANT_WINDOW,
        layout::GRANT_WINDOW + 1,
        window - PAGE,
        window,
        layout::ADDRESS_SPACE,
    ]
}
