//! Taking a buffer, touching it and giving it back: pools, malloc, and `vec!` of zeros.
//!
//! All sides lend a `Vec<u8>` with capacity for the size of the row; one byte of each page is written, so
//! that memory is there and not only promised. `1T` and `2T` are one and two threads that do this on
//! their own; in a `hand-over` one thread takes and another gives back, in batches of 64.
//!
//! The rows of the first table have plain malloc as the peer and say what a pool costs or saves; those of
//! the second have other pools.

use std::hint::black_box;
use std::io::Write as _;
use std::sync::Barrier;
use std::sync::mpsc::sync_channel;
use std::thread;

use memory::{BufferPool, Pool, VecPool};
use rustix::buffer::spare_capacity;
use rustix::io::pread;
use rustix::thread::{CpuSet, sched_setaffinity};
use ultra_perf_bench::{Clock, Suite};

use crate::allocators;

/// How many buffers go from one thread to another at once, and how many such batches are under way.
const BATCH: usize = 64;
const BATCHES: usize = 4;
const PAGE: usize = 4 << 10;

/// A size with its name, and the operations that make a round of some milliseconds.
const SIZES: [(usize, &str, u64); 4] = [
    (64, "64 B", 400_000),
    (4 << 10, "4 KiB", 400_000),
    (64 << 10, "64 KiB", 20_000),
    (1 << 20, "1 MiB", 2_000),
];

/// What lends buffers.
pub(crate) trait Lender: Sync {
    /// Takes and gives back `operations` times, on this thread.
    fn turns(&self, operations: u64);

    /// Takes on one thread and gives back on another.
    fn hand_over(&self, operations: u64);
}

/// Makes a [`Lender`] of an expression that takes one buffer from it.
macro_rules! lender {
    ($(#[$attribute:meta])* $name:ty, |$self:ident| $take:expr) => {
        $(#[$attribute])*
        impl Lender for $name {
            fn turns(&self, operations: u64) {
                let $self = self;
                for _ in 0..operations {
                    let mut taken = $take;
                    touch(&mut taken);
                    drop(black_box(taken));
                }
            }

            fn hand_over(&self, operations: u64) {
                let $self = self;
                over(operations, || {
                    let mut taken = $take;
                    touch(&mut taken);
                    taken
                });
            }
        }
    };
}
#[cfg(feature = "peers")]
pub(crate) use lender;

/// Writes a byte of each page, whatever the length.
pub(crate) fn touch(buffer: &mut Vec<u8>) {
    for page in buffer.spare_capacity_mut().chunks_mut(PAGE) {
        page[0].write(1);
    }
    black_box(buffer);
}

/// Takes on this thread and drops on another.
pub(crate) fn over<G: Send>(operations: u64, take: impl Fn() -> G + Send) {
    let (send, receive) = sync_channel::<Vec<G>>(BATCHES);
    // The vectors of a batch come back, so that they are not what is measured.
    let (send_back, receive_back) = sync_channel::<Vec<G>>(BATCHES + 2);
    thread::scope(|scope| {
        scope.spawn(move || {
            on_core(1);
            for mut batch in receive {
                batch.clear();
                if send_back.send(batch).is_err() {
                    return;
                }
            }
        });
        scope.spawn(move || {
            on_core(0);
            for _ in 0..operations / BATCH as u64 {
                let mut batch =
                    receive_back.try_recv().unwrap_or_else(|_| Vec::with_capacity(BATCH));
                batch.extend((0..BATCH).map(|_| take()));
                send.send(batch).expect("the other thread reads to the end");
            }
        });
    });
}

struct Malloc(usize);
lender!(Malloc, |malloc| Vec::<u8>::with_capacity(malloc.0));

pub(crate) struct Ours(Pool<Vec<u8>>);
lender!(Ours, |ours| ours.0.take());

struct OursOwned(Pool<Vec<u8>>);
lender!(OursOwned, |ours| ours.0.take_owned());

impl Ours {
    /// The pool as the peers have theirs: objects of one size, and nothing to be done between two uses.
    pub(crate) fn new(size: usize) -> Self {
        Self(plain(size))
    }
}

fn plain(size: usize) -> Pool<Vec<u8>> {
    let builder = Pool::builder(move || Vec::with_capacity(size)).idle_bytes_max(1 << 30);
    builder.build().expect("a valid configuration")
}

/// With the reset and the weights that a pool in use has.
struct OursCleared(VecPool<u8>, usize);
lender!(OursCleared, |ours| {
    let mut taken = ours.0.take();
    taken.reserve(ours.1);
    taken
});

/// Initialised buffers, which is what `vec![0; n]` gives.
struct Zeroed(usize);

impl Zeroed {
    fn turns(&self, operations: u64) {
        for _ in 0..operations {
            let mut buffer = vec![0_u8; self.0];
            fill(&mut buffer);
            drop(black_box(buffer));
        }
    }

    fn hand_over(&self, operations: u64) {
        over(operations, || {
            let mut buffer = vec![0_u8; self.0];
            fill(&mut buffer);
            buffer
        });
    }
}

struct Buffers(BufferPool, usize);

impl Buffers {
    fn new(size: usize) -> Self {
        let builder = BufferPool::builder().idle_bytes_max(512 << 20);
        Self(builder.build().expect("a valid configuration"), size)
    }

    fn turns(&self, operations: u64) {
        for _ in 0..operations {
            let mut buffer = self.0.take(self.1);
            fill(buffer.spare_mut(self.1));
            drop(black_box(buffer));
        }
    }

    fn hand_over(&self, operations: u64) {
        over(operations, || {
            let mut buffer = self.0.take(self.1);
            fill(buffer.spare_mut(self.1));
            buffer
        });
    }

    fn frozen(&self, operations: u64) {
        for _ in 0..operations {
            let mut buffer = self.0.take(self.1);
            fill(buffer.spare_mut(self.1));
            buffer.advance(self.1);
            drop(black_box(buffer.freeze()));
        }
    }
}

fn fill(buffer: &mut [u8]) {
    for page in buffer.chunks_mut(PAGE) {
        page[0] = 1;
    }
    black_box(buffer);
}

/// Does the work on two cores at once.
///
/// Each thread is kept on a core of its own and they begin together: otherwise the kernel often leaves
/// both on one core for the few milliseconds of a round, where nobody competes with anybody.
pub(crate) fn in_two_threads(work: impl Fn() + Sync) {
    let begin = Barrier::new(2);
    let part = |core| {
        on_core(core);
        begin.wait();
        work();
    };
    thread::scope(|scope| {
        scope.spawn(|| part(0));
        scope.spawn(|| part(1));
    });
}

/// Keeps this thread on a core, if the system allows it.
fn on_core(core: usize) {
    let mut set = CpuSet::new();
    set.set(core);
    let _ = sched_setaffinity(None, &set);
}

/// One of the three ways to use a lender.
#[derive(Clone, Copy)]
pub(crate) enum Way {
    One,
    Two,
    Over,
}

impl Way {
    pub(crate) const ALL: [Self; 3] = [Self::One, Self::Two, Self::Over];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::One => "1T",
            Self::Two => "2T",
            Self::Over => "hand-over",
        }
    }

    fn factor(self) -> u64 {
        if matches!(self, Self::Two) { 2 } else { 1 }
    }

    fn run(self, lender: &dyn Lender, operations: u64) {
        match self {
            Self::One => lender.turns(operations),
            Self::Two => in_two_threads(|| lender.turns(operations)),
            Self::Over => lender.hand_over(operations),
        }
    }
}

pub(crate) fn rows(suite: &mut Suite) {
    against_malloc(suite);
    against_zeroed(suite);
    reads(suite);
    against_pools(suite);
}

fn against_malloc(suite: &mut Suite) {
    let allocator = allocators::name();
    for (size, size_name, operations) in SIZES {
        let malloc = Malloc(size);
        for way in Way::ALL {
            let case = format!("pool, {size_name} {}, {allocator}", way.name());
            let ours = Ours::new(size);
            let row = suite.time(&case, Clock::Cpu, operations * way.factor());
            let row = match (size, way, allocator) {
                (64, Way::One, _) => row.at_most(1.2),
                (4_096 | 65_536, Way::Over, "malloc") => row.at_most(1.0),
                (4_096 | 65_536, Way::Over, "jemalloc") => row.at_most(0.25),
                _ => row,
            };
            let plain = || way.run(&malloc, operations);
            row.compare(allocator, || way.run(&ours, operations), plain);
        }
        if size <= PAGE {
            let owned = OursOwned(plain(size));
            let cleared =
                OursCleared(VecPool::vectors().build().expect("a valid configuration"), size);
            let more: [(&str, &dyn Lender); 2] =
                [("take_owned", &owned), ("cleared and weighed", &cleared)];
            for (name, ours) in more {
                let case = format!("pool, {name}, {size_name} 1T, {allocator}");
                let row = suite.time(&case, Clock::Cpu, operations);
                row.compare(allocator, || ours.turns(operations), || malloc.turns(operations));
            }
        }
    }
}

fn against_zeroed(suite: &mut Suite) {
    let allocator = allocators::name();
    for (size, size_name, operations) in SIZES.into_iter().skip(1) {
        let (ours, zeroed) = (Buffers::new(size), Zeroed(size));
        let case = |way: &str| format!("initialised buffer, {size_name} {way}, {allocator}");
        let row = suite.time(&case("1T"), Clock::Cpu, operations);
        let row = if size >= 64 << 10 { row.at_most(1.0 / 15.0) } else { row };
        row.compare("vec![0; n]", || ours.turns(operations), || zeroed.turns(operations));
        suite.time(&case("2T"), Clock::Cpu, 2 * operations).compare(
            "vec![0; n]",
            || in_two_threads(|| ours.turns(operations)),
            || in_two_threads(|| zeroed.turns(operations)),
        );
        suite.time(&case("hand-over"), Clock::Cpu, operations).compare(
            "vec![0; n]",
            || ours.hand_over(operations),
            || zeroed.hand_over(operations),
        );
        suite.time(&case("1T, frozen"), Clock::Cpu, operations).compare(
            "vec![0; n]",
            || ours.frozen(operations),
            || zeroed.turns(operations),
        );
    }
}

/// What a pool would bring to reading values from a file, as a disk tier does: one that the kernel has in
/// memory, into a buffer that is dropped after a look.
fn reads(suite: &mut Suite) {
    let allocator = allocators::name();
    let mut file = tempfile::tempfile().expect("a temporary file");
    file.write_all(&vec![7; 1 << 20]).expect("a file of 1 MiB");
    for (size, size_name, operations) in SIZES.into_iter().skip(1) {
        let operations = operations / 20;
        let pool = BufferPool::builder().build().expect("a valid configuration");
        let pooled = || {
            for _ in 0..operations {
                let mut buffer = pool.take(size);
                let read = pread(&file, buffer.spare_mut(size), 0).expect("a readable file");
                buffer.advance(read);
                drop(black_box(buffer));
            }
        };
        let zeroed = || {
            for _ in 0..operations {
                let mut buffer = vec![0_u8; size];
                pread(&file, &mut buffer, 0).expect("a readable file");
                drop(black_box(buffer));
            }
        };
        let fresh = || {
            for _ in 0..operations {
                let mut buffer = Vec::with_capacity(size);
                pread(&file, spare_capacity(&mut buffer), 0).expect("a readable file");
                drop(black_box(buffer));
            }
        };
        let case = format!("read of a file, {size_name} 1T, {allocator}");
        suite.time(&case, Clock::Cpu, operations).compare("vec![0; n]", pooled, zeroed);
        suite.time(&case, Clock::Cpu, operations).compare("Vec::with_capacity", pooled, fresh);
    }
}

#[cfg(not(feature = "peers"))]
fn against_pools(suite: &mut Suite) {
    let reason = "built without peers: cargo xtask bench memory --peers";
    suite.time("pool", Clock::Cpu, 1).skip("object-pool and others", reason);
}

#[cfg(feature = "peers")]
fn against_pools(suite: &mut Suite) {
    use crate::peers::{HAND_MADE, PEERS};

    let allocator = allocators::name();
    let mut two_threads = Vec::new();
    for (size, size_name, operations) in SIZES {
        for way in Way::ALL {
            let ours = Ours::new(size);
            let case = format!("pool, {size_name} {}, {allocator}", way.name());
            let first = suite.rows().len();
            for (name, make) in PEERS {
                let peer = make(size);
                suite.time(&case, Clock::Cpu, operations * way.factor()).compare(
                    name,
                    || way.run(&ours, operations),
                    || way.run(&*peer, operations),
                );
            }
            let published = suite.rows()[first..]
                .iter()
                .filter(|row| !HAND_MADE.iter().any(|name| row.case.ends_with(name)));
            let best = published.filter_map(|row| row.ratio).fold(0.0, f64::max);
            if best == 0.0 {
                continue;
            }
            let row =
                suite.reported(&format!("{case}, times faster than the best published pool"), "x");
            match (size, way) {
                (64 | 4_096, Way::One) => row.at_least(2.5).observed(1.0 / best),
                (64 | 4_096, Way::Two) => {
                    two_threads.push(1.0 / best);
                    row.at_least(3.0).observed(1.0 / best);
                }
                _ => row.observed(1.0 / best),
            }
        }
    }
    if let [a, b] = two_threads[..] {
        let case = format!("pool, up to 4 KiB 2T, {allocator}, geometric mean over the best pools");
        suite.reported(&case, "x").at_least(5.0).observed((a * b).sqrt());
    }
}
