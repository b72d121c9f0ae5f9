//! Work that belongs to the store and not to one caller.
//!
//! Commits are written for several callers at once, and the writes of an
//! aborted put must end before their blocks are used again. If such work were
//! a part of some caller's future, it would die with it. So it is kept here as
//! *jobs*, and every future of the store that waits for something polls the
//! jobs too. When such a future goes away, the others are woken, so that one
//! of them takes over; without any, the jobs rest until the next call.

use alloc::boxed::Box;
use alloc::vec::Vec;
use core::cell::{Cell, RefCell};
use core::future::{Future, poll_fn};
use core::pin::{Pin, pin};
use core::task::{Context, Poll, Waker};

pub(crate) type Job = Pin<Box<dyn Future<Output = ()>>>;

#[derive(Default)]
pub(crate) struct Background {
    jobs: RefCell<Vec<Job>>,
    /// The tasks that wait in [`Background::drive`].
    seats: RefCell<Vec<(u64, Waker)>>,
    next_seat: Cell<u64>,
}

impl Background {
    /// Adds a job. It runs while somebody is in [`Background::drive`].
    pub fn add(&self, job: Job) {
        self.jobs.borrow_mut().push(job);
        self.wake_all();
    }

    /// Awaits `future` and polls the jobs meanwhile.
    pub async fn drive<F: Future>(&self, future: F) -> F::Output {
        let mut future = pin!(future);
        let seat = Seat { background: self, id: self.next_seat.replace(self.next_seat.get() + 1) };
        poll_fn(|cx| {
            seat.take(cx.waker());
            self.poll_jobs(cx);
            future.as_mut().poll(cx)
        })
        .await
    }

    /// Wakes every task in [`Background::drive`].
    pub fn wake_all(&self) {
        for (_, waker) in self.seats.borrow().iter() {
            waker.wake_by_ref();
        }
    }

    /// Drops all jobs, unfinished.
    pub fn clear(&self) {
        let jobs = self.jobs.take();
        drop(jobs);
    }

    fn poll_jobs(&self, cx: &mut Context<'_>) {
        // Jobs may add jobs and must not see the list borrowed.
        let mut jobs = self.jobs.take();
        jobs.retain_mut(|job| job.as_mut().poll(cx).is_pending());
        self.jobs.borrow_mut().append(&mut jobs);
    }
}

/// A device operation that owns its buffers. It can be begun before its result
/// is wanted, and handed on if the one who began it goes away.
pub(crate) enum Transfer<T> {
    Running(Pin<Box<dyn Future<Output = T>>>),
    Done(Option<T>),
}

impl<T> Unpin for Transfer<T> {}

impl<T> Transfer<T> {
    pub fn new(future: impl Future<Output = T> + 'static) -> Self {
        Self::Running(Box::pin(future))
    }

    /// Polls it once, so that the device has the operation now.
    pub async fn start(&mut self) {
        poll_fn(|cx| {
            self.advance(cx);
            Poll::Ready(())
        })
        .await;
    }

    /// Moves it forward and keeps the result.
    pub fn advance(&mut self, cx: &mut Context<'_>) {
        if let Self::Running(future) = self
            && let Poll::Ready(result) = future.as_mut().poll(cx)
        {
            *self = Self::Done(Some(result));
        }
    }
}

impl<T> Future for Transfer<T> {
    type Output = T;

    /// Pending for ever if the result was taken before.
    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<T> {
        self.advance(cx);
        match &mut *self {
            Self::Done(result) => result.take().map_or(Poll::Pending, Poll::Ready),
            Self::Running(_) => Poll::Pending,
        }
    }
}

struct Seat<'a> {
    background: &'a Background,
    id: u64,
}

impl Seat<'_> {
    fn take(&self, waker: &Waker) {
        let mut seats = self.background.seats.borrow_mut();
        match seats.iter_mut().find(|(id, _)| *id == self.id) {
            Some((_, known)) => known.clone_from(waker),
            None => seats.push((self.id, waker.clone())),
        }
    }
}

impl Drop for Seat<'_> {
    fn drop(&mut self) {
        self.background.seats.borrow_mut().retain(|(id, _)| *id != self.id);
        if !self.background.jobs.borrow().is_empty() {
            self.background.wake_all();
        }
    }
}
