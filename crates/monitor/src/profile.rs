//! Which code takes the time: a sampling profiler, as pprof or as a flame graph.
//!
//! A timer of the system (`SIGPROF`, `setitimer(2)`) interrupts whichever thread is running, in
//! proportion to the processor time that is used, and its stack is noted. While nobody profiles there is
//! no timer and no cost. The crate `pprof` does the work.
//!
//! Stacks are walked along the frame pointers, because walking them by the tables for exceptions is not
//! safe inside a signal handler (tikv/pprof-rs#36, neondatabase/neon#10225). A program whose profiles
//! should show callers is therefore compiled with `-C force-frame-pointers=yes`; without it the stacks
//! are cut short, and nothing worse happens. The walk begins at the return address of the function that
//! was interrupted, so time spent in a function is shown at the line of its caller. Time inside of the C
//! library is not counted.

mod flame;

use std::io::Write as _;
use std::thread;
use std::time::Duration;

use flate2::Compression;
use flate2::write::GzEncoder;
use parking_lot::Mutex;
use pprof::protos::Message as _;
use pprof::{ProfilerGuardBuilder, Report};

/// The longest profile: the table of stacks grows with their variety, not with the time, but who asks
/// for hours has mistaken the unit.
pub const PROFILE_LONGEST: Duration = Duration::from_secs(600);
/// Samples a second beyond which the handler itself is what is measured.
const HERTZ_MAX: u32 = 1_000;

/// There is one timer, and so one profile at a time.
static ONE: Mutex<()> = Mutex::new(());

/// No profile could be had.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ProfileError {
    /// The time or the rate cannot be used.
    #[error(
        "a profile of {duration:?} at {hertz} Hz cannot be taken: it must last at most 10 minutes and \
         sample 1 to 1000 times a second"
    )]
    Invalid {
        /// How long was asked for.
        duration: Duration,
        /// How many samples a second.
        hertz: u32,
    },
    /// Another thread is taking a profile now.
    #[error("another CPU profile is being taken; try again when it is done")]
    Busy,
    /// The system or the profiler refused.
    #[error("the CPU profile could not be taken: {0}")]
    Failed(String),
}

/// Samples the stacks of all threads that run, for `duration`, and returns gzipped pprof.
///
/// `hertz` is in samples per second of processor time; 99 does not beat with timers of the program.
/// Frames are named where the program has symbols, and callers are there where it has frame pointers
/// (`-C force-frame-pointers=yes`). `go tool pprof`, speedscope and Pyroscope open the result.
///
/// # Errors
///
/// See [`ProfileError`].
///
/// # Cost
///
/// Blocks the calling thread for the duration. Each sample walks a stack, some 10 us of the thread that
/// is interrupted; naming the frames at the end takes up to a second the first time.
///
/// # Examples
///
/// ```no_run
/// let profile = monitor::cpu_profile(std::time::Duration::from_secs(10), 99)?;
/// std::fs::write("cpu.pb.gz", profile)?;
/// # Ok::<_, Box<dyn std::error::Error>>(())
/// ```
pub fn cpu_profile(duration: Duration, hertz: u32) -> Result<Vec<u8>, ProfileError> {
    let profile = sampled(duration, hertz, |report| report.pprof().map_err(failed))?;
    let mut zipped = GzEncoder::new(Vec::new(), Compression::fast());
    zipped.write_all(&profile.encode_to_vec()).map_err(failed)?;
    zipped.finish().map_err(failed)
}

/// Samples as [`cpu_profile`] does and returns a flame graph as SVG.
///
/// The widths are shares of the samples and the callers are below; a pointer that rests on a box is told
/// its name and share. There is no script in it, so it can be shown where scripts are forbidden.
///
/// # Errors
///
/// See [`ProfileError`].
///
/// # Cost
///
/// As [`cpu_profile`].
pub fn flame_graph(duration: Duration, hertz: u32) -> Result<String, ProfileError> {
    sampled(duration, hertz, |report| Ok(flame::svg(&stacks(report), hertz)))
}

/// Takes the one profile that there may be at a time, and makes of its report what is asked for.
fn sampled<T>(
    duration: Duration,
    hertz: u32,
    made: impl FnOnce(&Report) -> Result<T, ProfileError>,
) -> Result<T, ProfileError> {
    let rate = i32::try_from(hertz).ok().filter(|_| (1..=HERTZ_MAX).contains(&hertz));
    let Some(rate) = rate.filter(|_| duration <= PROFILE_LONGEST) else {
        return Err(ProfileError::Invalid { duration, hertz });
    };
    let _one = ONE.try_lock().ok_or(ProfileError::Busy)?;
    // A sample that interrupts one of these could wait for a lock that its own thread holds, and they
    // have no frame pointers.
    let profiler = ProfilerGuardBuilder::default()
        .frequency(rate)
        .blocklist(&["libc", "libgcc", "pthread", "vdso"])
        .build()
        .map_err(failed)?;
    thread::sleep(duration);
    let report = profiler.report().build().map_err(failed)?;
    drop(profiler);
    made(&report)
}

fn failed(error: impl std::fmt::Display) -> ProfileError {
    ProfileError::Failed(error.to_string())
}

/// The stacks of a report, each with the name of its thread first and the callers before the called.
fn stacks(report: &Report) -> Vec<(Vec<String>, u64)> {
    let stack = |frames: &pprof::Frames| {
        let called = frames.frames.iter().rev().flat_map(|inlined| inlined.iter().rev());
        let names = called.map(pprof::Symbol::name);
        std::iter::once(frames.thread_name_or_id()).chain(names).collect()
    };
    let counted = report
        .data
        .iter()
        .filter_map(|(frames, &count)| Some((stack(frames), u64::try_from(count).ok()?)));
    counted.collect()
}

#[cfg(test)]
mod tests {
    use std::hint::black_box;
    use std::io::Read as _;
    use std::sync::atomic::{AtomicBool, Ordering};

    use pprof::protos::Profile;

    use super::*;

    #[inline(never)]
    fn a_function_that_takes_its_time(stop: &AtomicBool) {
        let mut sum = 0_u64;
        while !stop.load(Ordering::Relaxed) {
            sum = black_box(sum.wrapping_mul(31).wrapping_add(1));
        }
    }

    /// Keeps a thread of a name busy while a profile is taken.
    fn while_busy<T>(profile: impl FnOnce() -> T) -> T {
        let stop = AtomicBool::new(false);
        thread::scope(|scope| {
            let busy = thread::Builder::new().name("takes-its-time".to_owned());
            busy.spawn_scoped(scope, || a_function_that_takes_its_time(&stop)).expect("a thread");
            let profile = profile();
            stop.store(true, Ordering::Relaxed);
            profile
        })
    }

    /// One test, because there is one profile at a time.
    #[test]
    fn what_runs_is_in_the_profile_and_a_second_at_a_time_is_refused() {
        let zipped = while_busy(|| cpu_profile(Duration::from_millis(400), 499));
        let mut bytes = Vec::new();
        let zipped = zipped.expect("a profile");
        flate2::read::GzDecoder::new(&*zipped).read_to_end(&mut bytes).expect("gzip");
        let profile = Profile::decode(&*bytes).expect("pprof");
        let thread = profile.string_table.iter().position(|it| it.contains("takes-its-time"));
        let thread = thread.and_then(|at| i64::try_from(at).ok()).expect("the thread is named");
        let its = |sample: &&pprof::protos::Sample| sample.label.iter().any(|it| it.str == thread);
        let samples: i64 = profile.sample.iter().filter(its).map(|it| it.value[0]).sum();
        assert!(samples > 0, "{:?}", profile.string_table);

        let svg = while_busy(|| flame_graph(Duration::from_millis(400), 499)).expect("a picture");
        assert!(svg.starts_with("<svg") && svg.trim_end().ends_with("</svg>"), "{svg}");
        assert!(svg.contains("takes-its-time"), "{svg}");

        let _one = ONE.lock();
        let second = cpu_profile(Duration::from_millis(1), 99);
        assert!(matches!(second, Err(ProfileError::Busy)), "{second:?}");
    }

    #[test]
    fn what_cannot_be_asked_for_is_said() {
        for (seconds, hertz) in [(1, 0), (1, 1_001), (601, 99)] {
            let error = cpu_profile(Duration::from_secs(seconds), hertz).expect_err("too much");
            assert!(matches!(error, ProfileError::Invalid { .. }), "{error}");
        }
    }
}
