#![allow(unsafe_code)]
//! A child process that does not outlive us.

use std::io;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command};
use std::sync::mpsc::{Sender, channel};
use std::sync::{Mutex, OnceLock, PoisonError};

use rustix::process::{Signal, getppid, set_parent_process_death_signal};

type Job = (Command, Sender<io::Result<Child>>);

/// Starts the command in a process group of its own (so that Ctrl-C reaches us
/// alone and we end it in order), to be killed by the kernel should we die first.
///
/// # Errors
///
/// It can't be started.
pub fn spawn(command: Command) -> io::Result<Child> {
    // The kernel sends the signal when the *thread* that forked ends, and test
    // threads end early; so one thread that stays does all the forking.
    static SPAWNER: OnceLock<Mutex<Sender<Job>>> = OnceLock::new();
    let spawner = SPAWNER.get_or_init(|| {
        let (sender, jobs) = channel::<Job>();
        std::thread::spawn(move || {
            for (command, answer) in jobs {
                // Nobody waits any more: the child is dropped, and Drop leaves it running,
                // but `recv` below can't have ended before this.
                let _ = answer.send(spawn_here(command));
            }
        });
        Mutex::new(sender)
    });
    let gone = || io::Error::other("the thread that starts processes is gone");
    let (answer, child) = channel();
    spawner
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .send((command, answer))
        .map_err(|_| gone())?;
    child.recv().map_err(|_| gone())?
}

fn spawn_here(mut command: Command) -> io::Result<Child> {
    let parent = rustix::process::getpid();
    command.process_group(0);
    let bind = move || {
        set_parent_process_death_signal(Some(Signal::KILL))?;
        // We may have died before that call; then it came too late.
        if getppid() != Some(parent) {
            return Err(io::Error::other("the parent is gone"));
        }
        Ok(())
    };
    // SAFETY: between fork and exec the closure makes two system calls and, on
    // the failure path only, one small allocation; it takes no lock of ours.
    unsafe { command.pre_exec(bind) };
    command.spawn()
}
