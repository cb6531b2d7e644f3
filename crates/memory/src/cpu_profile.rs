//! Which code takes the time: a sampling profiler, in the format of pprof.
//!
//! A timer of the system (`SIGPROF`, `setitimer(2)`) interrupts whichever thread is running, in
//! proportion to the processor time that is used, and its stack is noted. While nobody profiles there
//! is no timer and no cost. The crate `pprof` does the work; the format is gzipped protobuf, the
//! same that [`heap_profile`](crate::heap_profile) gives, which `go tool pprof`, speedscope and Pyroscope
//! open.

use std::io::Write as _;
use std::thread;
use std::time::Duration;

use flate2::Compression;
use flate2::write::GzEncoder;
use parking_lot::Mutex;
use pprof::ProfilerGuardBuilder;
use pprof::protos::Message as _;

/// The longest profile: the table of stacks grows with their variety, not with the time, but who asks
/// for hours has mistaken the unit.
const LONGEST: Duration = Duration::from_secs(600);
/// Samples a second beyond which the handler itself is what is measured.
const HERTZ_MAX: u32 = 1_000;

/// There is one timer, and so one profile at a time.
static ONE: Mutex<()> = Mutex::new(());

/// No profile could be had.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CpuProfileError {
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
/// Frames are named where the program has symbols.
///
/// # Errors
///
/// See [`CpuProfileError`].
///
/// # Cost
///
/// Blocks the calling thread for the duration. Each sample walks a stack, some 10 us of the thread that
/// is interrupted; naming the frames at the end takes up to a second the first time.
///
/// # Examples
///
/// ```no_run
/// let profile = memory::cpu_profile(std::time::Duration::from_secs(10), 99)?;
/// std::fs::write("cpu.pb.gz", profile)?;
/// # Ok::<_, Box<dyn std::error::Error>>(())
/// ```
pub fn cpu_profile(duration: Duration, hertz: u32) -> Result<Vec<u8>, CpuProfileError> {
    let rate = i32::try_from(hertz).ok().filter(|_| (1..=HERTZ_MAX).contains(&hertz));
    let Some(rate) = rate.filter(|_| duration <= LONGEST) else {
        return Err(CpuProfileError::Invalid { duration, hertz });
    };
    let failed = |error: &dyn std::fmt::Display| CpuProfileError::Failed(error.to_string());
    let _one = ONE.try_lock().ok_or(CpuProfileError::Busy)?;
    // A sample that interrupts one of these could wait for a lock that its own thread holds.
    let profiler = ProfilerGuardBuilder::default()
        .frequency(rate)
        .blocklist(&["libc", "libgcc", "pthread", "vdso"])
        .build()
        .map_err(|error| failed(&error))?;
    thread::sleep(duration);
    let report = profiler.report().build().map_err(|error| failed(&error))?;
    drop(profiler);
    let profile = report.pprof().map_err(|error| failed(&error))?;
    let mut zipped = GzEncoder::new(Vec::new(), Compression::fast());
    zipped.write_all(&profile.encode_to_vec()).map_err(|error| failed(&error))?;
    zipped.finish().map_err(|error| failed(&error))
}

#[cfg(all(test, not(loom)))]
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

    #[test]
    fn what_runs_is_named() {
        let stop = AtomicBool::new(false);
        let zipped = thread::scope(|scope| {
            scope.spawn(|| a_function_that_takes_its_time(&stop));
            let zipped = cpu_profile(Duration::from_millis(600), 499);
            stop.store(true, Ordering::Relaxed);
            zipped
        });
        let mut bytes = Vec::new();
        let zipped = zipped.expect("a profile");
        flate2::read::GzDecoder::new(&*zipped).read_to_end(&mut bytes).expect("gzip");
        let profile = Profile::decode(&*bytes).expect("pprof");
        let named = profile.string_table.iter().any(|it| it.contains("takes_its_time"));
        assert!(named && !profile.sample.is_empty(), "{:?}", profile.string_table);
    }

    #[test]
    fn a_second_profile_at_a_time_is_refused() {
        let _one = ONE.lock();
        let second = cpu_profile(Duration::from_millis(1), 99);
        assert!(matches!(second, Err(CpuProfileError::Busy)), "{second:?}");
    }

    #[test]
    fn what_cannot_be_asked_for_is_said() {
        for (seconds, hertz) in [(1, 0), (1, 1_001), (601, 99)] {
            let error = cpu_profile(Duration::from_secs(seconds), hertz).expect_err("too much");
            assert!(matches!(error, CpuProfileError::Invalid { .. }), "{error}");
        }
    }
}
