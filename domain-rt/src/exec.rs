#![allow(unsafe_code)]
//! An async executor on `wait`.
//!
//! `embassy-executor` does the polling: its tasks live in statics, it is small,
//! and `embassy-net` and `embassy-time` sit on it. What is added here is sleep
//! and the sources of wakeups: event ports and the clock.

use alloc::{boxed::Box, vec::Vec};
use core::{
    future::poll_fn,
    sync::atomic::{AtomicBool, Ordering},
    task::{Poll, Waker},
};

use embassy_executor::{SpawnError, SpawnToken, Spawner, raw::Executor};
use ring_proto::Port;

use crate::{
    events,
    panic::give_up,
    single::Single,
    time::{NEVER, now_ns},
};

/// A task became runnable.
static PENDED: AtomicBool = AtomicBool::new(false);
static PORTS: Single<Vec<(Port, Waker)>> = Single::new(Vec::new());
static TIMERS: Single<Vec<(u64, Waker)>> = Single::new(Vec::new());
static IDLE: Single<Vec<Box<dyn FnMut()>>> = Single::new(Vec::new());

#[unsafe(export_name = "__pender")]
fn pend(_context: *mut ()) {
    PENDED.store(true, Ordering::Relaxed);
}

struct SingleThread;
critical_section::set_impl!(SingleThread);

// SAFETY: a domain has one vCPU and takes no interrupts, so all of its code is
// one critical section. (Exception handlers never return.)
unsafe impl critical_section::Impl for SingleThread {
    unsafe fn acquire() {}
    unsafe fn release(_: ()) {}
}

/// Runs tasks for ever, beginning with `first`, which spawns the others.
pub fn run<S>(first: impl FnOnce(Spawner) -> Result<SpawnToken<S>, SpawnError>) -> ! {
    let executor: &'static Executor = Box::leak(Box::new(Executor::new(core::ptr::null_mut())));
    let spawner = executor.spawner();
    match first(spawner) {
        Ok(token) => spawner.spawn(token),
        Err(_) => give_up(format_args!("no room for the first task")),
    }
    loop {
        wake_ports();
        wake_timers();
        if PENDED.swap(false, Ordering::Relaxed) {
            // SAFETY: called here only, so never from within itself.
            unsafe { executor.poll() };
            events::breathe();
            continue;
        }
        run_idle_hooks();
        // A hook may have moved events out of the page, so look again. What
        // comes from here on is in the page and keeps `sleep` from sleeping.
        wake_ports();
        let next = wake_timers();
        if !PENDED.load(Ordering::Relaxed) {
            events::sleep(next);
        }
    }
}

/// Wakes who waits for a pending port; the event stays for them to take.
fn wake_ports() {
    let pending = events::peek();
    if pending.is_empty() {
        return;
    }
    let ready: Vec<Waker> = PORTS.with(|ports| {
        ports.extract_if(.., |(port, _)| pending.has(*port)).map(|(_, waker)| waker).collect()
    });
    ready.into_iter().for_each(Waker::wake);
}

/// Wakes whose time has come; returns the next deadline.
fn wake_timers() -> u64 {
    let now = now_ns();
    let (ready, next) = TIMERS.with(|timers| {
        let ready: Vec<Waker> =
            timers.extract_if(.., |(at, _)| *at <= now).map(|(_, waker)| waker).collect();
        let next = timers.iter().map(|(at, _)| *at).min().unwrap_or(NEVER);
        (ready, next)
    });
    ready.into_iter().for_each(Waker::wake);
    next
}

fn run_idle_hooks() {
    // Taken out while they run, so that a hook may register another.
    let mut hooks = IDLE.with(core::mem::take);
    hooks.iter_mut().for_each(|hook| hook());
    IDLE.with(|idle| {
        hooks.append(idle);
        *idle = hooks;
    });
}

/// Has `hook` called each time before the domain sleeps.
pub fn on_idle(hook: impl FnMut() + 'static) {
    IDLE.with(|idle| idle.push(Box::new(hook)));
}

/// Waits for an event of `port` and takes it.
pub async fn wait_event(port: Port) {
    poll_fn(|context| poll_event(port, context.waker())).await;
}

/// Takes an event of `port`, or has `waker` woken when there is one.
pub fn poll_event(port: Port, waker: &Waker) -> Poll<()> {
    if events::take(port) {
        return Poll::Ready(());
    }
    PORTS.with(|ports| {
        if !ports.iter().any(|(p, w)| *p == port && w.will_wake(waker)) {
            ports.push((port, waker.clone()));
        }
    });
    Poll::Pending
}

/// Waits until the node's clock reaches `deadline_ns`.
pub async fn sleep_until(deadline_ns: u64) {
    poll_fn(|context| {
        if now_ns() >= deadline_ns {
            Poll::Ready(())
        } else {
            wake_at(deadline_ns, context.waker());
            Poll::Pending
        }
    })
    .await;
}

/// Wakes `waker` once the clock reaches `deadline_ns`. A waker is kept once,
/// with the earliest of its deadlines: who is woken early asks again.
pub fn wake_at(deadline_ns: u64, waker: &Waker) {
    TIMERS.with(|timers| match timers.iter_mut().find(|(_, w)| w.will_wake(waker)) {
        Some((at, _)) => *at = deadline_ns.min(*at),
        None => timers.push((deadline_ns, waker.clone())),
    });
}

#[cfg(feature = "embassy-time")]
mod embassy {
    use core::task::Waker;

    struct Clock;

    /// Nanoseconds of one tick.
    const TICK: u64 = 1_000_000_000 / embassy_time_driver::TICK_HZ;

    impl embassy_time_driver::Driver for Clock {
        fn now(&self) -> u64 {
            crate::time::now_ns() / TICK
        }

        fn schedule_wake(&self, at: u64, waker: &Waker) {
            super::wake_at(at.saturating_mul(TICK), waker);
        }
    }

    embassy_time_driver::time_driver_impl!(static CLOCK: Clock = Clock);
}
