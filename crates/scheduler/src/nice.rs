//! Nice values and threads kept for a level: how to get below the wait for a running task.
//!
//! Order decides who starts next; it cannot take a worker from the task that runs. The kernel can. A
//! thread that only takes tasks of a high level, beside workers whose threads are *nice*, runs within
//! microseconds of its task's arrival, because the kernel preempts a nice thread for it. On Linux a nice
//! value belongs to the thread (setpriority(2), "C library/kernel differences"), and raising one's own
//! needs no privilege; lowering it again does, so a thread that became nice stays nice. Other systems
//! know nice values of processes only, and there [`set_nice`] does nothing and says so.
//!
//! Nice values weigh threads of one process against each other. Against other processes they count only
//! inside one autogroup or cgroup.

/// The nice value of a thread that yields to everybody.
pub const NICE_MAX: i32 = 19;

/// The nice value could not be set.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum NiceError {
    /// Only 1 to 19: below that needs a privilege and above there is nothing.
    #[error("nice value {0}: must be from 1 to 19")]
    OutOfRange(i32),
    /// This system has no nice values of threads.
    #[error("nice values of single threads are a feature of Linux")]
    Unsupported,
    /// The kernel refused.
    #[error("the kernel did not set the nice value")]
    Refused(#[source] std::io::Error),
}

/// Makes the calling thread yield to others: 1 a little, 19 to everybody.
///
/// The thread cannot take it back without a privilege.
///
/// # Errors
///
/// [`NiceError`] if the value is out of range, the system has none, or the kernel refuses because the
/// thread is nicer already.
pub fn set_nice(nice: i32) -> Result<(), NiceError> {
    if !(1..=NICE_MAX).contains(&nice) {
        return Err(NiceError::OutOfRange(nice));
    }
    imp::set(nice)
}

/// Returns the nice value of the calling thread, where there is one.
pub fn nice() -> Option<i32> {
    imp::get()
}

/// Returns the CPU time that the calling thread has used, where the system tells.
///
/// # Cost
///
/// A system call: a few hundred nanoseconds.
pub fn thread_cpu_time() -> Option<std::time::Duration> {
    imp::cpu_time()
}

#[cfg(target_os = "linux")]
mod imp {
    use std::time::Duration;

    use rustix::process::{getpriority_process, setpriority_process};
    use rustix::time::{ClockId, clock_gettime};

    use super::NiceError;

    /// To the kernel "process 0" is the calling thread.
    pub(super) fn set(nice: i32) -> Result<(), NiceError> {
        setpriority_process(None, nice).map_err(|error| NiceError::Refused(error.into()))
    }

    pub(super) fn get() -> Option<i32> {
        getpriority_process(None).ok()
    }

    pub(super) fn cpu_time() -> Option<Duration> {
        let time = clock_gettime(ClockId::ThreadCPUTime);
        Some(Duration::new(time.tv_sec.try_into().ok()?, time.tv_nsec.try_into().ok()?))
    }
}

#[cfg(not(target_os = "linux"))]
mod imp {
    use super::NiceError;

    pub(super) fn set(_: i32) -> Result<(), NiceError> {
        Err(NiceError::Unsupported)
    }

    pub(super) fn get() -> Option<i32> {
        None
    }

    pub(super) fn cpu_time() -> Option<std::time::Duration> {
        None
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn a_value_out_of_range_is_named() {
        for nice in [i32::MIN, -1, 0, 20] {
            let error = set_nice(nice).expect_err("out of range");
            assert_eq!(error.to_string(), format!("nice value {nice}: must be from 1 to 19"));
        }
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn a_thread_that_is_made_nice_is_the_only_one() {
        let before = nice();
        let inside = std::thread::spawn(|| {
            set_nice(NICE_MAX).expect("raising needs no privilege");
            nice()
        });
        assert_eq!(inside.join().expect("does not panic"), Some(NICE_MAX));
        assert_eq!(nice(), before);
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn the_time_of_a_thread_that_computes_grows() {
        let start = thread_cpu_time().expect("Linux tells");
        let mut sum = 0_u64;
        while thread_cpu_time().expect("Linux tells") <= start {
            sum = std::hint::black_box(sum + 1);
        }
    }
}
