#![allow(unsafe_code)]
//! State of a program with one thread.

use core::cell::RefCell;

/// A `RefCell` that may be a static.
///
/// A domain has one vCPU and takes no interrupts, so no two pieces of its code
/// run at the same time; what remains is reentrancy, which the cell detects.
pub struct Single<T>(RefCell<T>);

// SAFETY: a domain is a single thread and is never interrupted. The exception
// handlers, which do run on top of other code, never return and touch no Single.
unsafe impl<T> Sync for Single<T> {}

impl<T> Single<T> {
    /// Holds `value`.
    pub const fn new(value: T) -> Self {
        Self(RefCell::new(value))
    }

    /// Runs `f` on the value. Panics when called from within itself.
    pub fn with<R>(&self, f: impl FnOnce(&mut T) -> R) -> R {
        f(&mut self.0.borrow_mut())
    }
}
