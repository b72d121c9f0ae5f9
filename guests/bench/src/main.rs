//! Measures blk and net, over rings or *fused*: with the driver linked into
//! this guest, which then owns the device.
//!
//! Both ways run the same workload ([`blk`], [`net`]) over a small trait whose
//! two implementations are `ring` and `fused`. What comes out are raw counts,
//! one line of JSON for each case; `cargo xtask bench` makes figures of them.
//!
//! The words of `args`:
//!
//! | word | |
//! |---|---|
//! | `mode=ring`, `mode=fused` | how the devices are reached |
//! | `mode=recovery-blk`, `mode=recovery-net` | requests without end, and a line for each death of the driver |
//! | `mode=peer` | the other end of the wire, see [`net::peer`] |
//! | `only=A,B` | cases whose name contains one of these; all by default |
#![no_std]
#![no_main]

extern crate alloc;

mod args;
mod blk;
mod net;
mod outage;
mod record;

use domain_rt::{hypercall, ring_proto::boot::BootInfo};

use crate::args::{Args, Mode};

domain_rt::entry!(main);

fn main(boot: &'static BootInfo) -> ! {
    let args = match Args::parse(domain_rt::start::text(&boot.args)) {
        Ok(args) => args,
        Err(word) => give_up(&format_args!("`{word}` in args is not understood")),
    };
    let outcome = match args.mode {
        Mode::Peer => net::peer::serve(),
        Mode::RecoveryBlk => blk::recovery(),
        Mode::RecoveryNet => net::recovery(),
        Mode::Ring => blk::ring(&args).and_then(|()| net::ring(&args)),
        Mode::Fused => blk::fused(&args).and_then(|()| net::fused(&args)),
    };
    match outcome {
        Ok(()) => {
            record::end();
            // Without the capability there is nobody to ask.
            let _ = hypercall::shutdown(0);
            hypercall::exit(0)
        }
        Err(why) => give_up(&why),
    }
}

/// Nothing of this mends itself.
fn give_up(why: &dyn core::fmt::Display) -> ! {
    log::error!("cannot measure: {why}");
    record::failed(why);
    let _ = hypercall::shutdown(1);
    hypercall::exit(1)
}
