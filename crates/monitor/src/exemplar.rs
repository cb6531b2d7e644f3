//! Exemplars: for some values of a histogram the trace in which they were measured.
//!
//! A histogram keeps at most one exemplar for each factor of 16, so at most 15, and replaces each at most
//! once a second. Slow values, which people look for, so have a place that fast ones do not take. A
//! histogram that never gets one pays a pointer.
//!
//! Where trace ids come from is said once for the process, see [`set_trace_id_source`]; with the feature
//! `trace-ids` a layer of `tracing-subscriber` finds them in spans. The request layer also takes them from `traceparent` headers (<https://www.w3.org/TR/trace-context/>).

use std::fmt;
use std::sync::{LazyLock, OnceLock};

use parking_lot::Mutex;

use crate::clock::{Clock as _, SystemClock};

/// The id of a trace: 16 bytes that are not all zero.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TraceId(u128);

impl TraceId {
    /// Takes an id; zero is none.
    #[must_use]
    pub const fn new(id: u128) -> Option<Self> {
        if id == 0 { None } else { Some(Self(id)) }
    }

    /// Returns the 16 bytes.
    #[must_use]
    pub const fn to_bytes(self) -> [u8; 16] {
        self.0.to_be_bytes()
    }

    /// Reads 32 hexadecimal digits.
    #[must_use]
    pub fn parse(digits: &str) -> Option<Self> {
        let is_hex = digits.len() == 32 && digits.bytes().all(|digit| digit.is_ascii_hexdigit());
        Self::new(is_hex.then(|| u128::from_str_radix(digits, 16).ok())??)
    }

    /// Reads the trace id of a `traceparent` header of any version.
    #[must_use]
    pub fn from_traceparent(header: &str) -> Option<Self> {
        let mut parts = header.trim().split('-');
        let version = parts.next()?;
        let is_version =
            version.len() == 2 && version.bytes().all(|digit| digit.is_ascii_hexdigit());
        let (trace, _parent, _flags) = (parts.next()?, parts.next()?, parts.next()?);
        Self::parse(trace).filter(|_| is_version && version != "ff")
    }
}

impl fmt::Display for TraceId {
    /// Writes 32 hexadecimal digits.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

impl fmt::Debug for TraceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A value and the trace in which it was measured.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Exemplar {
    /// The value, in the unit of the metric.
    pub value: f64,
    /// The trace.
    pub trace_id: TraceId,
    /// When, in milliseconds since 1970.
    pub unix_ms: i64,
}

type TraceIdSource = fn() -> Option<TraceId>;

static SOURCE: OnceLock<TraceIdSource> = OnceLock::new();
static CLOCK: LazyLock<SystemClock> = LazyLock::new(SystemClock::new);

/// Says, once for the process, how to find the trace that is active on this thread.
///
/// Timers and request guards ask it whenever they record; it should take nanoseconds, such as a look at a
/// thread-local variable. Without a source they have no exemplars, except from `traceparent` headers.
///
/// # Errors
///
/// The source is given back if there is one already.
pub fn set_trace_id_source(source: TraceIdSource) -> Result<(), TraceIdSource> {
    SOURCE.set(source)
}

/// The trace that is active on this thread.
pub(crate) fn current_trace_id() -> Option<TraceId> {
    SOURCE.get().and_then(|source| source())
}

/// The time of an exemplar that is taken now.
pub(crate) fn unix_ms() -> i64 {
    CLOCK.now().unix_ms
}

/// Exemplars for each factor of 16.
const SLOTS: usize = 15;
/// An exemplar stays at least this long.
const EVERY_MS: i64 = 1_000;

/// The exemplars of a histogram.
#[derive(Debug, Default)]
pub(crate) struct Exemplars(Mutex<[Option<Exemplar>; SLOTS]>);

impl Exemplars {
    /// Keeps an exemplar of a value that has so many bits in ticks, unless there is a young one.
    pub(crate) fn offer(&self, bits: u32, exemplar: Exemplar) {
        // Who finds the slots taken goes on without: another one is being written.
        if let Some(mut slots) = self.0.try_lock() {
            let slot = &mut slots[(bits as usize).div_ceil(4).clamp(1, SLOTS) - 1];
            // A clock that stepped back must not keep an old one for long.
            let is_young = |kept: &Exemplar| {
                (0..EVERY_MS).contains(&exemplar.unix_ms.saturating_sub(kept.unix_ms))
            };
            if !slot.as_ref().is_some_and(is_young) {
                *slot = Some(exemplar);
            }
        }
    }

    /// Returns those that are kept, by value.
    pub(crate) fn read(&self) -> Vec<Exemplar> {
        self.0.lock().iter().flatten().copied().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn exemplar(value: f64, id: u128, unix_ms: i64) -> Exemplar {
        Exemplar { value, trace_id: TraceId::new(id).expect("not zero"), unix_ms }
    }

    #[test]
    fn a_traceparent_names_its_trace() {
        let parse = TraceId::from_traceparent;
        let id = parse("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01").expect("valid");
        assert_eq!(id.to_string(), "4bf92f3577b34da6a3ce929d0e0e4736");
        assert!(
            parse("cc-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-what-comes").is_some()
        );
        for bad in [
            "",
            "00",
            "00-4bf92f3577b34da6a3ce929d0e0e473-00f067aa0ba902b7-01",
            "00-+bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
            "00-00000000000000000000000000000000-00f067aa0ba902b7-01",
            "ff-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736",
        ] {
            assert_eq!(parse(bad), None, "{bad}");
        }
    }

    #[test]
    fn an_exemplar_stays_for_a_second_and_slow_values_have_a_place_of_their_own() {
        let exemplars = Exemplars::default();
        exemplars.offer(10, exemplar(1.0, 1, 5_000));
        exemplars.offer(10, exemplar(1.1, 2, 5_999)); // too early
        exemplars.offer(30, exemplar(9.0, 3, 5_999)); // elsewhere
        assert_eq!(exemplars.read(), [exemplar(1.0, 1, 5_000), exemplar(9.0, 3, 5_999)]);
        exemplars.offer(10, exemplar(1.2, 4, 6_000));
        exemplars.offer(30, exemplar(8.0, 5, 1_000)); // the clock was set back
        assert_eq!(exemplars.read(), [exemplar(1.2, 4, 6_000), exemplar(8.0, 5, 1_000)]);
        for bits in [0, 64] {
            exemplars.offer(bits, exemplar(0.0, 6, 0));
        }
        assert_eq!(exemplars.read().len(), 4);
    }
}
