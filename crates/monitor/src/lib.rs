//! Metrics, their history, alert rules, advice and a score for one process and its machine.
#![forbid(unsafe_code)]

pub mod alert;
pub mod advice;
mod clock;
mod histogram;
#[cfg(all(feature = "profiling", unix))]
mod profile;
mod registry;
pub mod insight;
mod registry;
pub mod score;
mod selector;
mod series;
mod source;

pub use clock::{Clock, Moment, SystemClock};
pub use histogram::{Bucket, Distribution, Histogram, Part};
#[cfg(all(feature = "profiling", unix))]
pub use profile::{PROFILE_LONGEST, ProfileError, cpu_profile, flame_graph};
pub use registry::{
    Counter, FamilySnapshot, Gauge, OTHER, Readings, Registry, RegistryOptions, SeriesSnapshot,
    Snapshot, Value, Watch,
};
pub use selector::{Comparison, Matcher, Selector, SelectorError, is_label_name, is_metric_name};
pub use series::{Kind, Labels, SeriesId, SeriesKey, Unit};
pub use source::{Aggregate, Matched, Reading, Source, Window};
