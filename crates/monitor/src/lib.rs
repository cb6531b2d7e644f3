//! Metrics, their history, alert rules, advice and a score for one process and its machine.
#![forbid(unsafe_code)]

pub mod advice;
pub mod alert;
pub mod anomaly;
mod clock;
pub mod collect;
mod exemplar;
mod exposition;
mod histogram;
pub mod history;
pub mod insight;
mod monitor;
#[cfg(feature = "otlp")]
mod otlp;
#[cfg(all(feature = "profiling", unix))]
mod profile;
#[cfg(feature = "metrics")]
mod recorder;
mod registry;
#[cfg(feature = "tower")]
mod request_layer;
mod requests;
pub mod score;
mod selector;
mod series;
mod source;
mod timing;
#[cfg(feature = "trace-ids")]
mod trace_layer;

pub use clock::{Clock, Moment, SystemClock};
pub use exemplar::{Exemplar, TraceId, set_trace_id_source};
pub use exposition::{Format, Renderer, negotiate, render};
pub use histogram::{Bucket, Distribution, Histogram, Part};
pub use history::{History, HistoryOptions};
pub use monitor::{Monitor, MonitorBuilder, StartError};
#[cfg(feature = "otlp")]
pub use otlp::{OtlpError, OtlpExporter, OtlpOptions, OtlpStats};
#[cfg(all(feature = "profiling", unix))]
pub use profile::{PROFILE_LONGEST, ProfileError, cpu_profile, flame_graph};
#[cfg(feature = "metrics")]
pub use recorder::{InstallError, Recorder};
pub use registry::{
    Counter, FamilySnapshot, Gauge, OTHER, Readings, Registry, RegistryOptions, SeriesSnapshot,
    Snapshot, Value, Watch,
};
#[cfg(feature = "tower")]
pub use request_layer::{Measured, MeasuredBody, MeasuredFuture, RequestLayer};
pub use requests::{RequestGuard, RequestMetrics, RequestOptions};
pub use selector::{Comparison, Matcher, Selector, SelectorError, is_label_name, is_metric_name};
pub use series::{Kind, Labels, SeriesId, SeriesKey, Unit};
pub use source::{Aggregate, Matched, Reading, Source, UnknownAggregate, Window};
pub use timing::{Timer, TimerGuard};
#[cfg(feature = "trace-ids")]
pub use trace_layer::TraceIdLayer;

/// The examples of the README, so that they compile.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
