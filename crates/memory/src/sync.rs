//! The atomics, cells and locks of the concurrent modules: the real ones, or loom's when built with
//! `--cfg loom`.
//!
//! Loom's cell hands out its pointer inside a closure, to see when an access begins and ends; the real
//! one is given the same shape here. Loom's lock gives a `Result`; it never is an `Err`, because a
//! model ends with the first panic.

pub(crate) use std::sync::atomic::Ordering::{Acquire, Relaxed, Release};

#[cfg(loom)]
pub(crate) use loom::{
    cell::UnsafeCell,
    sync::MutexGuard,
    sync::atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicU64, AtomicUsize, fence},
    thread::yield_now,
};
#[cfg(not(loom))]
pub(crate) use std::{
    sync::atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicU64, AtomicUsize, fence},
    thread::yield_now,
};

#[cfg(not(loom))]
pub(crate) use parking_lot::{Mutex, MutexGuard};

/// A cell whose accesses loom can watch.
#[cfg(not(loom))]
#[derive(Debug, Default)]
#[repr(transparent)]
pub(crate) struct UnsafeCell<T>(std::cell::UnsafeCell<T>);

#[cfg(not(loom))]
impl<T> UnsafeCell<T> {
    #[inline]
    pub(crate) const fn new(value: T) -> Self {
        Self(std::cell::UnsafeCell::new(value))
    }

    #[inline]
    pub(crate) fn with_mut<R>(&self, write: impl FnOnce(*mut T) -> R) -> R {
        write(self.0.get())
    }
}

/// Loom's lock with the signatures of `parking_lot`'s.
#[cfg(loom)]
#[derive(Debug)]
pub(crate) struct Mutex<T>(loom::sync::Mutex<T>);

#[cfg(loom)]
impl<T> Mutex<T> {
    pub(crate) fn new(value: T) -> Self {
        Self(loom::sync::Mutex::new(value))
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, T> {
        self.0.lock().expect("a model ends with the first panic")
    }

    pub(crate) fn try_lock(&self) -> Option<MutexGuard<'_, T>> {
        self.0.try_lock().ok()
    }
}
