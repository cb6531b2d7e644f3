//! A synchronous program that takes nothing but memory: pools, interned strings and the guard.
//!
//! It reads the lines of an access log and keeps each request, first with a fresh `String` for everything
//! and then with a pooled line and an interned route. A tracked allocator counts what each way asks for. At
//! the end large buffers lie idle in a pool, and the guard gets them back.
//!
//! ```text
//! cargo run -p ultra-perf --example memory_only --no-default-features --features memory
//! ```
//!
//! No async runtime is started and none is needed.

use std::alloc::System;
use std::error::Error;
use std::fmt::Write as _;

use ultra_perf::config::ConfigLoader;
use ultra_perf::memory::{
    BufferPool, CleanupRequest, IStr, Interner, Pool, Scope, ScopeReport, Track, Tracked, track,
};

#[global_allocator]
static ALLOCATOR: Tracked<System> = Tracked::new(System);

const LINES: u32 = 100_000;
const ROUTES: u32 = 500;
const BUFFERS: usize = 32;
const BUFFER_BYTES: usize = 1 << 20;

fn main() -> Result<(), Box<dyn Error>> {
    track(Track::Scopes)?;

    let (fresh, as_strings) = measured("fresh", fresh_strings);
    let interner = Interner::builder().strings_max(10_000).build()?;
    let lines = Pool::builder(String::new).reset(String::clear).idle_max(4).build()?;
    let (pooled, as_handles) = measured("pooled", || pooled_lines(&lines, &interner));
    let same = as_strings
        .iter()
        .zip(&as_handles)
        .all(|((route, status), (handle, code))| route == &**handle && status == code);

    println!("{LINES} lines of a log, each kept as a route and a status:");
    println!("  fresh strings        {:>8} allocations, {:>9} bytes", fresh.allocs, fresh.bytes);
    println!("  pooled and interned  {:>8} allocations, {:>9} bytes", pooled.allocs, pooled.bytes);
    let (of_pool, of_interner) = (lines.stats(), interner.stats());
    println!("  lines made {}, taken again {}", of_pool.misses, of_pool.hits);
    println!(
        "  routes kept {}, and {} bytes less than as many strings take",
        of_interner.strings,
        interner.usage().saved_bytes(),
    );

    let config = ConfigLoader::new().set("memory.limit", "1GiB", "the example").load()?;
    let guard = config.memory_guard_builder().ok_or("memory.enabled is false")?.start()?;
    let buffers = BufferPool::builder().idle_bytes_max(2 * BUFFERS * BUFFER_BYTES).build()?;
    let in_use: Vec<_> = (0..BUFFERS)
        .map(|_| {
            let mut buffer = buffers.take(BUFFER_BYTES);
            buffer.resize(BUFFER_BYTES, 1);
            buffer
        })
        .collect();
    drop(in_use);
    let idle = buffers.reclaimable_bytes();
    let registration = guard.register(buffers)?;
    let report = guard.cleanup(CleanupRequest::default().force().aggressive());
    println!(
        "the guard at level {:?} asked for {idle} idle bytes and got {}; resident {} -> {}",
        report.level, report.claimed_bytes, report.before_bytes, report.after_bytes,
    );
    drop(registration);

    if !same {
        return Err("the two ways kept different requests".into());
    }
    if pooled.allocs * 10 > fresh.allocs {
        return Err("pooling and interning did not save nine allocations in ten".into());
    }
    if report.claimed_bytes < (BUFFERS * BUFFER_BYTES) as u64 / 2 {
        return Err("the guard did not get the idle buffers back".into());
    }
    Ok(())
}

/// Runs a block in a scope of its own and tells what it allocated.
fn measured<R>(name: &str, block: impl FnOnce() -> R) -> (ScopeReport, R) {
    let scope = Scope::enter(name);
    let result = block();
    (scope.so_far(), result)
}

/// A string for each line and one for each route.
fn fresh_strings() -> Vec<(String, u16)> {
    let mut requests = Vec::with_capacity(LINES as usize);
    for at in 0..LINES {
        let mut line = String::new();
        write_line(&mut line, at);
        if let Some((route, status)) = parse(&line) {
            requests.push((route.to_owned(), status));
        }
    }
    requests
}

/// A line that goes back to its pool, and one handle for each route however often it comes.
fn pooled_lines(lines: &Pool<String>, interner: &Interner) -> Vec<(IStr, u16)> {
    let mut requests = Vec::with_capacity(LINES as usize);
    for at in 0..LINES {
        let mut line = lines.take();
        write_line(&mut line, at);
        if let Some((route, status)) = parse(&line) {
            requests.push((interner.intern(route), status));
        }
    }
    requests
}

/// Writes what a log would say.
fn write_line(line: &mut String, at: u32) {
    let route = at.wrapping_mul(2_654_435_761) % ROUTES;
    let status = if at.is_multiple_of(97) { 404 } else { 200 };
    write!(line, "10.0.{}.7 GET /shop/articles/of/group/{route} {status} {}", at % 256, at % 4_096)
        .expect("a string takes all that is written");
}

/// The route and the status of a line.
fn parse(line: &str) -> Option<(&str, u16)> {
    let mut words = line.split(' ').skip(2);
    Some((words.next()?, words.next()?.parse().ok()?))
}
