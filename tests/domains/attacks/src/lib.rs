//! What attack programs share: how they begin, count, report and end.
//!
//! Each file of `src/bin` is a program `attack-NAME` that tries one kind of way
//! out of its domain; the manifest's image name is the program's. The chapter
//! "Attacks" of the book has the table: what each tries, which defence stops
//! it, which system test runs it, and which patch of `tests/defences` takes the
//! defence away.
//!
//! An attack says on its console
//!
//! - `attack: NAME: begins` once, in each generation ([`begin`]),
//! - `attack: NAME: BREACH: …` for whatever it saw that must not be ([`breach!`]),
//! - `attack: NAME: done: tried=3 refused=3 …` when it is through ([`done!`]).
//!
//! What it says of itself is one witness. The test also asks the hypervisor,
//! the neighbours, QEMU and the wire.
#![no_std]

extern crate alloc;

pub mod access;
pub mod calls;
pub mod grants;
pub mod hypercall;
pub mod random;
pub mod rings;
pub mod sweep;
pub mod targets;
pub mod vif;

use domain_rt::{events, hypercall as rt, start::text};
use ring_proto::boot::BootInfo;

pub use domain_rt::set_ready;

/// Says that the attack begins. To the supervisor the domain serves from here on.
pub fn begin(name: &str) -> &'static BootInfo {
    let boot = domain_rt::boot();
    log::info!("attack: {name}: begins, generation {}", boot.generation);
    set_ready();
    // The hypervisor notes it in the next `wait`.
    rt::wait(0);
    boot
}

/// Ends the attack: the domain sleeps for good.
pub fn rest() -> ! {
    loop {
        let _ = events::take_all();
        events::wait(u64::MAX);
    }
}

/// Reports something that must not be: `breach!("name", "format {}", …)`.
#[macro_export]
macro_rules! breach {
    ($name:expr, $($text:tt)+) => {
        log::error!("attack: {}: BREACH: {}", $name, format_args!($($text)+))
    };
}

/// Reports the end of an attack with its counts, and rests.
#[macro_export]
macro_rules! done {
    ($name:expr, $($text:tt)+) => {{
        log::info!("attack: {}: done: {}", $name, format_args!($($text)+));
        $crate::rest()
    }};
}

/// The value of `key=value` among the words of the manifest's `args`.
pub fn argument<'a>(boot: &'a BootInfo, key: &str) -> Option<&'a str> {
    let mut words = text(&boot.args).split_ascii_whitespace();
    words.find_map(|word| word.strip_prefix(key)?.strip_prefix('='))
}

/// The same for a number.
///
/// # Panics
///
/// If it is none: the test's manifest is wrong.
pub fn number(boot: &BootInfo, key: &str, default: u64) -> u64 {
    argument(boot, key).map_or(default, |word| match word.parse() {
        Ok(value) => value,
        Err(_) => panic!("{key}={word} is not a number"),
    })
}
