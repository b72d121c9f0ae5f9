//! An executor that polls woken tasks in random order and nothing else, so a
//! wake-up that is forgotten shows as a deadlock.

use std::future::Future;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Wake, Waker};

use super::{Disk, Rng};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// All tasks ended.
    Finished,
    /// The disk lost its power.
    PowerCut,
}

struct Flag(AtomicBool);

impl Wake for Flag {
    fn wake(self: Arc<Self>) {
        self.0.store(true, Ordering::Relaxed);
    }
}

struct Task<'a> {
    future: Pin<Box<dyn Future<Output = ()> + 'a>>,
    flag: Arc<Flag>,
}

#[derive(Default)]
pub struct Exec<'a> {
    tasks: Vec<Task<'a>>,
}

impl<'a> Exec<'a> {
    pub fn spawn(&mut self, future: impl Future<Output = ()> + 'a) {
        let flag = Arc::new(Flag(AtomicBool::new(true)));
        self.tasks.push(Task { future: Box::pin(future), flag });
    }

    pub fn run(self, disk: &Disk, rng: &mut Rng) -> End {
        self.run_until(disk, rng, || false)
    }

    /// Runs until `cut` says that the power fails.
    pub fn run_until(mut self, disk: &Disk, rng: &mut Rng, cut: impl Fn() -> bool) -> End {
        while !self.tasks.is_empty() {
            if disk.is_dead() || cut() {
                return End::PowerCut;
            }
            let woken = |task: &Task<'_>| task.flag.0.load(Ordering::Relaxed);
            let ready: Vec<usize> =
                (0..self.tasks.len()).filter(|&n| woken(&self.tasks[n])).collect();
            let choices = ready.len() as u64 + u64::from(disk.has_pending());
            assert!(choices > 0, "deadlock: nobody is woken and the disk is idle");
            let choice = rng.below(choices) as usize;
            let Some(&n) = ready.get(choice) else {
                disk.step(rng);
                continue;
            };
            let task = &mut self.tasks[n];
            task.flag.0.store(false, Ordering::Relaxed);
            let waker = Waker::from(task.flag.clone());
            if task.future.as_mut().poll(&mut Context::from_waker(&waker)).is_ready() {
                self.tasks.swap_remove(n);
            }
        }
        End::Finished
    }
}

/// Runs one future to its end; `None` after a power cut.
pub fn run_one<T>(disk: &Disk, rng: &mut Rng, future: impl Future<Output = T>) -> Option<T> {
    let mut result = None;
    let mut exec = Exec::default();
    exec.spawn(async { result = Some(future.await) });
    exec.run(disk, rng);
    result
}

/// Polls `future` at most `polls` times and then drops it.
pub async fn give_up_after<T>(polls: u64, future: impl Future<Output = T>) -> Option<T> {
    let mut future = pin!(future);
    let mut left = polls;
    std::future::poll_fn(|cx| {
        if left == 0 {
            return Poll::Ready(None);
        }
        left -= 1;
        if left == 0 {
            // Nobody else would wake this task to give up.
            cx.waker().wake_by_ref();
        }
        future.as_mut().poll(cx).map(Some)
    })
    .await
}
