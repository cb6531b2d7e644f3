//! A burst, and what is left of it: resident memory with the guard and without, under each allocator.
//!
//! A child process allocates 1.2 GiB on two threads, half of it as small objects and half as buffers of
//! 64 KiB. A third thread frees all but every thousandth; the two stay alive and idle, as the threads of
//! a pool do. Then nobody does anything. With the guard there is one call at the start of the program.

use std::fmt::Write as _;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};
use std::{fs, io};

use memory::MemoryGuard;
use ultra_perf_bench::Suite;

use crate::allocators;
use crate::plot::{Curve, svg};

/// What a child is told: `alone` or `guarded`.
const VARIABLE: &str = "BENCH_MEMORY_GIVE_BACK";
const GUARDED: &str = "guarded";
const ALONE: &str = "alone";
/// As guarded, and the two threads wake up once to collect what only they can.
const OWNERS: &str = "owners";

const MIB: f64 = (1 << 20) as f64;
/// Small objects and buffers of each of the two threads.
const OBJECTS: usize = 1 << 20;
const BUFFERS: usize = 4 << 10;
const BUFFER_BYTES: usize = 64 << 10;
/// One in so many is kept.
const KEPT: usize = 1_000;
/// How long the burst is held before it is freed, and how long the program idles then.
const HELD: Duration = Duration::from_secs(1);
const IDLE: Duration = Duration::from_secs(9);
const EVERY: Duration = Duration::from_millis(50);
/// When the guard must be done, after the last free.
const DONE_SECONDS: f64 = 5.0;

/// What a child saw: seconds and MiB, and when the last object was freed.
struct Seen {
    name: String,
    points: Vec<(f64, f64)>,
    freed_at: f64,
    live: f64,
}

impl Seen {
    fn at(&self, seconds: f64) -> f64 {
        let at = self.points.iter().find(|(when, _)| *when >= self.freed_at + seconds);
        at.or(self.points.last()).map_or(0.0, |(_, mib)| *mib)
    }
}

/// Runs as the child if this process is one.
pub(crate) fn ran_as_child() -> bool {
    let Ok(how) = std::env::var(VARIABLE) else { return false };
    child(how != ALONE, how == OWNERS);
    true
}

/// Starts the guard with the allocator of this process.
fn guard() -> MemoryGuard {
    let builder = MemoryGuard::builder();
    let builder = match allocators::name() {
        #[cfg(feature = "peers")]
        "jemalloc" => builder.allocator(memory::Jemalloc),
        #[cfg(feature = "peers")]
        "mimalloc" => builder.allocator(memory::Mimalloc),
        _ => builder.allocator(memory::Glibc),
    };
    builder.start().expect("the guard starts")
}

/// Collects what belongs to this thread.
fn collect() {
    #[cfg(feature = "peers")]
    if allocators::name() == "mimalloc" {
        memory::AllocatorControl::give_back(&memory::Mimalloc);
    }
}

fn resident_mib() -> f64 {
    let text = fs::read_to_string("/proc/self/statm").unwrap_or_default();
    let pages: f64 = text.split(' ').nth(1).and_then(|it| it.parse().ok()).unwrap_or(0.0);
    pages * 4096.0 / MIB
}

fn child(guarded: bool, owners_collect: bool) {
    let started = Instant::now();
    let guard = guarded.then(guard);
    let watch = thread::spawn(move || {
        // Room for all points first, so that watching allocates nothing.
        let mut points = Vec::with_capacity(4_000);
        let until = started + Duration::from_secs(60);
        while Instant::now() < until && !FINISHED.load(std::sync::atomic::Ordering::Relaxed) {
            points.push((started.elapsed().as_secs_f64(), resident_mib()));
            thread::sleep(EVERY);
        }
        points
    });
    let before = resident_mib();
    let (sender, blocks) = mpsc::sync_channel(2);
    let (stay, staying) = mpsc::sync_channel::<()>(0);
    let staying = std::sync::Arc::new(std::sync::Mutex::new(staying));
    let makers: Vec<_> = (0..2)
        .map(|_| {
            let (sender, staying) = (sender.clone(), std::sync::Arc::clone(&staying));
            thread::spawn(move || {
                sender.send(burst()).expect("the third thread waits for it");
                // Alive and idle until the program ends.
                let _ = staying.lock().map(|staying| staying.recv());
                if owners_collect {
                    collect();
                    thread::sleep(IDLE);
                }
            })
        })
        .collect();
    drop(sender);
    let third = thread::spawn(move || {
        let all: Vec<_> = blocks.iter().take(2).collect();
        thread::sleep(HELD);
        let kept: Vec<_> = all
            .into_iter()
            .flatten()
            .enumerate()
            .filter_map(|(number, block)| (number % KEPT == 0).then_some(block))
            .collect();
        (kept, started.elapsed().as_secs_f64())
    });
    let (kept, freed_at) = third.join().expect("it does not panic");
    let mut stay = Some(stay);
    if owners_collect {
        drop(stay.take());
    }
    let live = before + kept.iter().map(Vec::len).sum::<usize>() as f64 / MIB;
    thread::sleep(IDLE);
    FINISHED.store(true, std::sync::atomic::Ordering::Relaxed);
    let points = watch.join().expect("it does not panic");
    drop(stay);
    makers.into_iter().for_each(|it| it.join().expect("it does not panic"));
    let stats = guard.as_ref().map(MemoryGuard::stats).unwrap_or_default();
    println!("freed {freed_at} live {live} give_backs {}", stats.give_backs);
    for (seconds, mib) in points {
        println!("{seconds:.3} {mib:.1}");
    }
    drop(kept);
}

static FINISHED: std::sync::atomic::AtomicBool = std::sync::atomic::AtomicBool::new(false);

/// Half of the burst: written to, so that it is resident.
fn burst() -> Vec<Vec<u8>> {
    let mut blocks = Vec::with_capacity(OBJECTS + BUFFERS);
    for number in 0..OBJECTS {
        // 64 to 559 bytes, by a multiplicative hash.
        blocks.push(vec![1u8; 64 + number.wrapping_mul(2_654_435_761) % 496]);
        if number % (OBJECTS / BUFFERS) == 0 {
            blocks.push(vec![1u8; BUFFER_BYTES]);
        }
    }
    blocks
}

/// Runs a child and reads what it saw.
fn observe(allocator: &str, how: &str) -> io::Result<Seen> {
    let mut command = Command::new(std::env::current_exe()?);
    command.env(VARIABLE, how).env(allocators::variable(), allocator);
    let output = command.stderr(Stdio::inherit()).output()?;
    let text = String::from_utf8_lossy(&output.stdout);
    let broken = || io::Error::other(format!("the child under {allocator} said: {text:.200}"));
    let mut lines = text.lines();
    let head: Vec<_> = lines.next().ok_or_else(broken)?.split(' ').collect();
    let number = |at: usize| head.get(at).and_then(|it| it.parse::<f64>().ok()).ok_or_else(broken);
    let (freed_at, live) = (number(1)?, number(3)?);
    let point = |line: &str| {
        let (seconds, mib) = line.split_once(' ')?;
        Some((seconds.parse().ok()?, mib.parse().ok()?))
    };
    let points = lines.map(point).collect::<Option<Vec<_>>>().ok_or_else(broken)?;
    let allocator = if allocator == "malloc" { "glibc" } else { allocator };
    let name = match how {
        GUARDED => format!("{allocator}, with the guard"),
        OWNERS => format!("{allocator}, owners too"),
        _ => format!("{allocator} alone"),
    };
    Ok(Seen { name, points, freed_at, live })
}

/// Adds a row for each allocator, and draws the picture into `docs` if that is given.
pub(crate) fn rows(suite: &mut Suite, docs: Option<&Path>, provenance: &str) -> io::Result<()> {
    if allocators::name() != "malloc" {
        return Ok(());
    }
    let mut all = Vec::new();
    for allocator in allocators::names() {
        let case = format!("RSS 5 s after a burst of 1.2 GiB, {allocator}");
        if !suite.wants(&case) {
            continue;
        }
        // What mimalloc can only collect on the thread that owns it comes on top.
        let extra = if allocator == "mimalloc" { 96.0 } else { 64.0 };
        let (guarded, alone) = (observe(allocator, GUARDED)?, observe(allocator, ALONE)?);
        let most = (1.1 * guarded.live + extra).round();
        eprintln!(
            "{allocator}: live {:.1} MiB, after 5 s {:.1} with the guard and {:.1} alone",
            guarded.live,
            guarded.at(DONE_SECONDS),
            alone.at(DONE_SECONDS)
        );
        suite.reported(&case, "MiB").at_most(most).observed(guarded.at(DONE_SECONDS));
        suite.reported(&(case.clone() + ", no guard"), "MiB").observed(alone.at(DONE_SECONDS));
        if allocator == "mimalloc" {
            let owners = observe(allocator, OWNERS)?;
            let case = case + ", owners collect too";
            suite.reported(&case, "MiB").observed(owners.at(DONE_SECONDS));
        }
        all.push((alone, guarded));
    }
    let Some(docs) = docs.filter(|_| !all.is_empty()) else { return Ok(()) };
    let folder = docs.join("memory");
    fs::create_dir_all(&folder)?;
    fs::write(folder.join("give-back.svg"), picture(&all))?;
    fs::write(folder.join("give-back.txt"), provenance.to_owned() + &table(&all))
}

/// Resident memory against time, the last free at zero.
fn picture(all: &[(Seen, Seen)]) -> String {
    let colours = ["#0072b2", "#d55e00", "#009e73"];
    let mut curves = Vec::new();
    for ((alone, guarded), colour) in all.iter().zip(colours) {
        for (seen, dashes) in [(alone, "5 4"), (guarded, "")] {
            let points = seen.points.iter().map(|(at, mib)| (at - seen.freed_at, *mib));
            let points: Vec<_> = points.filter(|(at, _)| (-4.0..=8.0).contains(at)).collect();
            curves.push(Curve { name: seen.name.clone(), colour, dashes, points });
        }
    }
    svg("Resident memory around a burst of 1.2 GiB", &curves)
}

/// What the page quotes.
fn table(all: &[(Seen, Seen)]) -> String {
    let mut out = String::from("MiB         live   peak  alone +5 s  guarded +5 s\n");
    for (alone, guarded) in all {
        let peak = guarded.points.iter().map(|(_, mib)| *mib).fold(0.0, f64::max);
        let name = guarded.name.split(',').next().unwrap_or_default();
        _ = writeln!(
            out,
            "{name:<10}{:>6.1}{peak:>7.0}{:>12.0}{:>14.1}",
            guarded.live,
            alone.at(DONE_SECONDS),
            guarded.at(DONE_SECONDS),
        );
    }
    out
}
