//! One program under several allocators: which one is chosen before the first allocation.
//!
//! The variable `BENCH_MEMORY_ALLOCATOR` names it. It is read at the first allocation, by `getenv`, which
//! does not allocate; from then on each call costs one load and a branch that is always predicted, the
//! same for ours and for the peer. Memory of one allocator is never given to another, because the choice
//! cannot change any more.

use std::alloc::{GlobalAlloc, Layout, System};
use std::ffi::CStr;
use std::process::Command;
use std::sync::atomic::{AtomicU8, Ordering};

use memory::Tracked;
use ultra_perf_bench::Suite;

const VARIABLE: &CStr = c"BENCH_MEMORY_ALLOCATOR";

/// The allocators of this build beside the system's: their names and numbers.
#[cfg(feature = "peers")]
const OTHERS: [(&str, u8); 3] =
    [("jemalloc", JEMALLOC), ("mimalloc", MIMALLOC), ("tracked", TRACKED)];
#[cfg(not(feature = "peers"))]
const OTHERS: [(&str, u8); 1] = [("tracked", TRACKED)];

const UNDECIDED: u8 = 0;
const SYSTEM: u8 = 1;
#[cfg(feature = "peers")]
const JEMALLOC: u8 = 2;
#[cfg(feature = "peers")]
const MIMALLOC: u8 = 3;
/// The system's allocator under the wrapper that counts by scope.
const TRACKED: u8 = 4;

static CHOICE: AtomicU8 = AtomicU8::new(UNDECIDED);

#[global_allocator]
static SWITCH: Switch = Switch;

/// Passes each call to the allocator that was chosen.
struct Switch;

/// Returns the name of the allocator that this process runs under.
pub(crate) fn name() -> &'static str {
    let choice = choice();
    OTHERS.iter().find(|(_, number)| *number == choice).map_or("malloc", |(name, _)| name)
}

/// Returns the names of all allocators of this build.
pub(crate) fn names() -> impl Iterator<Item = &'static str> {
    ["malloc"].into_iter().chain(OTHERS.map(|(name, _)| name)).filter(|name| *name != "tracked")
}

/// Returns the variable that chooses one of them for a child.
pub(crate) fn variable() -> &'static str {
    VARIABLE.to_str().expect("ASCII")
}

/// Runs this program under each other allocator and adds the rows, unless it is such a child itself.
pub(crate) fn children(suite: &mut Suite) {
    if name() != "malloc" {
        return;
    }
    for (name, _) in OTHERS {
        let mut command = Command::new(std::env::current_exe().expect("this program has a path"));
        suite.adopt(command.env(variable(), name));
    }
}

#[inline]
fn choice() -> u8 {
    match CHOICE.load(Ordering::Relaxed) {
        UNDECIDED => decide(),
        choice => choice,
    }
}

#[cold]
fn decide() -> u8 {
    // SAFETY: the name ends in a NUL; nothing in this program writes the environment, so what `getenv`
    // points at stays as it is.
    let wanted = unsafe {
        let value = libc::getenv(VARIABLE.as_ptr());
        (!value.is_null()).then(|| CStr::from_ptr(value).to_bytes())
    };
    let choice = OTHERS
        .iter()
        .find(|(name, _)| Some(name.as_bytes()) == wanted)
        .map_or(SYSTEM, |(_, number)| *number);
    // Before main there is one thread, and every thread would decide the same.
    CHOICE.store(choice, Ordering::Relaxed);
    choice
}

macro_rules! pass {
    ($allocator:ident => $call:expr) => {
        match choice() {
            #[cfg(feature = "peers")]
            JEMALLOC => {
                let $allocator = tikv_jemallocator::Jemalloc;
                // SAFETY: the caller's promises are those that the chosen allocator asks for, and the
                // choice is the same for all calls of this process.
                unsafe { $call }
            }
            #[cfg(feature = "peers")]
            MIMALLOC => {
                let $allocator = mimalloc::MiMalloc;
                // SAFETY: as above.
                unsafe { $call }
            }
            TRACKED => {
                let $allocator = Tracked::new(System);
                // SAFETY: as above.
                unsafe { $call }
            }
            _ => {
                let $allocator = System;
                // SAFETY: as above.
                unsafe { $call }
            }
        }
    };
}

// SAFETY: every call goes, unchanged, to one and the same allocator.
unsafe impl GlobalAlloc for Switch {
    #[inline]
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        pass!(chosen => chosen.alloc(layout))
    }

    #[inline]
    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        pass!(chosen => chosen.alloc_zeroed(layout))
    }

    #[inline]
    unsafe fn dealloc(&self, ptr: *mut u8, layout: Layout) {
        pass!(chosen => chosen.dealloc(ptr, layout));
    }

    #[inline]
    unsafe fn realloc(&self, ptr: *mut u8, layout: Layout, new_size: usize) -> *mut u8 {
        pass!(chosen => chosen.realloc(ptr, layout, new_size))
    }
}
