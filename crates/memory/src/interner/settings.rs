//! The settings of an interner, and the check that finds every problem in them at once.

use std::fmt;
use std::time::{Duration, Instant};

use super::{Interner, Settings};

/// The most slots a front cache can have.
const FRONT_CACHE_MAX: usize = 1 << 20;

/// Collects the settings of an [`Interner`]; every one has a default.
#[derive(Clone, Debug)]
#[must_use = "a builder does nothing until `build`"]
pub struct InternerBuilder {
    settings: Settings,
}

impl InternerBuilder {
    pub(super) fn new() -> Self {
        Self {
            settings: Settings {
                strings_max: 1_000_000,
                bytes_max: 256 << 20,
                text_bytes_max: 64 << 10,
                front_cache: 4_096,
                idle: Duration::from_secs(60),
                sweep_step: 16_384,
            },
        }
    }

    /// Sets how many strings are kept at most; 1,000,000 unless told.
    ///
    /// Threads that insert at once can each exceed it by one.
    pub fn strings_max(mut self, strings: u64) -> Self {
        self.settings.strings_max = strings;
        self
    }

    /// Sets how many bytes the kept strings take at most, headers included; 256 MiB unless told.
    pub fn bytes_max(mut self, bytes: u64) -> Self {
        self.settings.bytes_max = bytes;
        self
    }

    /// Sets the length beyond which a text is not kept, in bytes; 64 KiB unless told.
    pub fn text_bytes_max(mut self, bytes: usize) -> Self {
        self.settings.text_bytes_max = bytes;
        self
    }

    /// Sets the slots of each thread's front cache: a power of two up to 1,048,576, or 0 for none;
    /// 4,096 unless told.
    ///
    /// A slot takes 16 bytes, in every thread that interns.
    pub fn front_cache(mut self, slots: usize) -> Self {
        self.settings.front_cache = slots;
        self
    }

    /// Sets how long a string without handles is kept, in whole seconds; 60 s unless told.
    pub fn idle(mut self, time: Duration) -> Self {
        self.settings.idle = time;
        self
    }

    /// Sets how many buckets one call of `sweep` looks at; 16,384 unless told.
    ///
    /// A shard holds its strings in a power of two of buckets, one to two for each string.
    pub fn sweep_step(mut self, buckets: usize) -> Self {
        self.settings.sweep_step = buckets;
        self
    }

    /// Checks the settings and makes an empty interner.
    ///
    /// # Errors
    ///
    /// [`InternerError`] with every problem in the settings.
    pub fn build(self) -> Result<Interner, InternerError> {
        self.build_at(Instant::now())
    }

    /// Checks the settings and makes an empty interner whose times count from `now`.
    ///
    /// # Errors
    ///
    /// As [`build`](Self::build).
    pub fn build_at(self, now: Instant) -> Result<Interner, InternerError> {
        let settings = self.settings;
        let mut problems = Vec::new();
        let mut check = |holds: bool, setting, value: u64, expected| {
            if !holds {
                problems.push(InternerProblem { setting, value, expected });
            }
        };
        check(settings.strings_max > 0, "strings_max", settings.strings_max, "at least 1");
        check(settings.bytes_max > 0, "bytes_max", settings.bytes_max, "at least 1");
        check(
            settings.text_bytes_max > 0,
            "text_bytes_max",
            settings.text_bytes_max as u64,
            "at least 1",
        );
        check(
            settings.front_cache == 0
                || (settings.front_cache.is_power_of_two()
                    && settings.front_cache <= FRONT_CACHE_MAX),
            "front_cache",
            settings.front_cache as u64,
            "0 or a power of two up to 1048576",
        );
        check(settings.sweep_step > 0, "sweep_step", settings.sweep_step as u64, "at least 1");
        if problems.is_empty() {
            Ok(Interner::new(settings, now))
        } else {
            Err(InternerError::Invalid { problems })
        }
    }
}

/// Why an interner cannot be made.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum InternerError {
    /// Some settings are outside of what they can be.
    #[error("invalid interner: {}", list(problems))]
    Invalid {
        /// All of them.
        problems: Vec<InternerProblem>,
    },
}

fn list(problems: &[InternerProblem]) -> String {
    problems.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")
}

/// A setting that is outside of what it can be.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct InternerProblem {
    /// The name of its method in the builder.
    pub setting: &'static str,
    /// What it was set to.
    pub value: u64,
    /// What would be right.
    pub expected: &'static str,
}

impl fmt::Display for InternerProblem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} = {}: must be {}", self.setting, self.value, self.expected)
    }
}
