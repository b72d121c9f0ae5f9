//! A guest that works with files: creates, appends, overwrites, truncates and
//! deletes, and reads older ones back at random. It knows what each must hold,
//! and whatever is not as it must be ends it.
//!
//! What it tells the host are lines of JSON on its console:
//!
//! | record | says |
//! |---|---|
//! | `{"done":N,"connects":C,"replayed":R}` | so many rounds of changes are over; it saw so many drivers come, and sent so many requests again |
//! | `{"file":"DIR1/FILE01.DAT","len":L,"crc":C}` | a file at the end |
//! | `{"tree":N,"deleted":D}` | these were all; so many were deleted on the way |
//! | `{"failed":"…"}` | why it ended |
//!
//! It works until the supervisor asks it to finish its work. The generation
//! after that only reads, and tells of the files once more.
#![no_std]
#![no_main]

extern crate alloc;

mod disk;
mod tree;

use alloc::{format, string::String};
use core::convert::Infallible;

use domain_rt::{
    events, hypercall, set_ready,
    time::{MS, NEVER, now_ns},
};
use ring_ends::Counters;
use ring_proto::boot::BootInfo;
use test_content::file::{FILES, RECORD, directory, directory_of, file_name};

use crate::{
    disk::Disk,
    tree::{Outcome, Tree},
};

/// Pause between two rounds, for the other domains' sake, ns.
const PAUSE: u64 = 2 * MS;
/// Time between two lines about the progress, ns.
const TELL: u64 = 25 * MS;

domain_rt::entry!(main);

fn main(boot: &'static BootInfo) -> ! {
    let Err(why) = work(boot.generation);
    say(&format!("{{\"failed\":\"{}\"}}", why.escape_default()));
    hypercall::exit(1)
}

fn work(generation: u32) -> Outcome<Infallible> {
    let disk = Disk::open().map_err(|error| format!("{error}"))?;
    let mut tree = Tree::mount(disk, generation.into())?;
    if generation > 1 {
        tell_all(&mut tree)?;
    }
    set_ready();
    let mut told = 0;
    loop {
        if let Some(check) = events::check() {
            if check.drain {
                tell_all(&mut tree)?;
            }
            events::answer(check, true);
            if check.drain {
                tree.idle(NEVER)?;
            }
        }
        if generation > 1 {
            tree.idle(now_ns().saturating_add(PAUSE))?;
            continue;
        }
        tree.step()?;
        if now_ns().saturating_sub(told) >= TELL {
            told = now_ns();
            let (done, Counters { connects, replayed, .. }) = (tree.rounds(), tree.counters());
            say(&format!("{{\"done\":{done},\"connects\":{connects},\"replayed\":{replayed}}}"));
        }
        tree.idle(now_ns().saturating_add(PAUSE))?;
    }
}

/// Has all changes made durable, reads all files once more and tells of them.
fn tell_all(tree: &mut Tree) -> Outcome<()> {
    tree.sync()?;
    let mut files = 0;
    for file in 0..FILES {
        let Some(found) = tree.check(file)? else { continue };
        files += 1;
        say(&format!(
            "{{\"file\":\"{}/{}\",\"len\":{},\"crc\":{}}}",
            directory(directory_of(file)),
            file_name(file),
            found.versions.len() * RECORD,
            found.crc
        ));
    }
    say(&format!("{{\"tree\":{files},\"deleted\":{}}}", tree.deleted()));
    Ok(())
}

/// In one piece, so that no other domain's text comes between.
fn say(json: &str) {
    let mut text = String::from("record ");
    text.push_str(json);
    text.push('\n');
    hypercall::console_write(text.as_bytes());
}
