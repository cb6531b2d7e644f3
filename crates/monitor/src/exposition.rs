//! A snapshot as Prometheus reads it: text 0.0.4, `OpenMetrics` 1.0, and protobuf with native histograms.
//!
//! Sources: <https://prometheus.io/docs/instrumenting/exposition_formats/>,
//! <https://prometheus.io/docs/specs/om/open_metrics_spec/>,
//! <https://prometheus.io/docs/specs/native_histograms/>.
//!
//! A series has one name and one set of labels in every format, so that a server which begins to ask for
//! another format goes on with the same series. Three decisions follow from that:
//!
//! - A counter whose name does not end in `_total` is of type `unknown` in `OpenMetrics`, which would
//!   otherwise ask for another name.
//! - The bounds of classic buckets are written as `OpenMetrics` writes them, `le="1.0"`, in the plain text
//!   too; from protobuf Prometheus makes the same texts.
//! - No `_created` samples are written: Prometheus before version 3 stores them as series of their own.
//!
//! A counter without `_total`, and a name that ends as those of histograms do (`request_count`), has the type
//! `untyped` in the plain text, because `promtool check metrics` complains about such names otherwise.
//!
//! Two things are not exact, because a histogram keeps counts of intervals and not the values:
//!
//! - A classic bucket counts an interval of the histogram as a whole by the mean of its values. An interval
//!   is at most 1/32 wide, so a bucket `le="0.01"` counts what a bound between 0.0097 and 0.0103 would.
//!   The quantile that a server makes of classic buckets lies somewhere between two bounds, so it is off
//!   by up to the ratio of the bounds (2.5 for seconds).
//! - A native bucket is one of 32 to each power of two (schema 5, 2.2 % wide), chosen in the same way. A
//!   quantile made of native buckets is within 5.5 % of the true one, and usually within 2 %.

mod classic;
#[cfg(any(feature = "otlp", feature = "protobuf", test))]
pub(crate) mod exponential;
#[cfg(feature = "protobuf")]
mod protobuf;
#[cfg(test)]
mod tests;
mod text;

use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;

use crate::registry::Snapshot;

/// A format in which a snapshot can be told to Prometheus.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Format {
    /// The text format 0.0.4, which everything reads.
    Text,
    /// `OpenMetrics` 1.0: units, exemplars, and an end that shows whether a text is whole.
    OpenMetrics,
    /// Delimited protobuf messages, the only format with native histograms.
    #[cfg(feature = "protobuf")]
    Protobuf,
}

/// How many formats there are.
const FORMATS: usize = 2 + cfg!(feature = "protobuf") as usize;

impl Format {
    /// Returns the value of the header `Content-Type` that goes with the format.
    #[must_use]
    pub const fn content_type(self) -> &'static str {
        match self {
            Self::Text => "text/plain; version=0.0.4; charset=utf-8",
            Self::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
            #[cfg(feature = "protobuf")]
            Self::Protobuf => {
                "application/vnd.google.protobuf; proto=io.prometheus.client.MetricFamily; encoding=delimited"
            }
        }
    }

    const fn index(self) -> usize {
        match self {
            Self::Text => 0,
            Self::OpenMetrics => 1,
            #[cfg(feature = "protobuf")]
            Self::Protobuf => 2,
        }
    }

    /// Whether a media range of an `Accept` header names this format.
    fn is_named(self, range: &str, parameters: &[(&str, &str)]) -> bool {
        let has = |name: &str, value: &str| {
            let mut values =
                parameters.iter().filter(|(other, _)| other.eq_ignore_ascii_case(name));
            values.next().is_none_or(|(_, given)| given.eq_ignore_ascii_case(value))
        };
        match self {
            Self::Text => {
                (range.eq_ignore_ascii_case("text/plain") && has("version", "0.0.4"))
                    || ["text/*", "*/*"].contains(&range)
            }
            Self::OpenMetrics => {
                range.eq_ignore_ascii_case("application/openmetrics-text")
                    && has("version", "1.0.0")
            }
            #[cfg(feature = "protobuf")]
            Self::Protobuf => {
                range.eq_ignore_ascii_case("application/vnd.google.protobuf")
                    && has("proto", "io.prometheus.client.MetricFamily")
                    && has("encoding", "delimited")
            }
        }
    }
}

/// Returns the format that a scraper likes best, from its `Accept` header (RFC 9110, section 12.5.1).
///
/// The text format, if there is no header or it names nothing that we have. Of two formats with the same
/// weight protobuf comes before `OpenMetrics`, and that before text. A version that we do not write, such
/// as `OpenMetrics` 0.0.1, is passed over.
#[must_use]
pub fn negotiate(accept: Option<&str>) -> Format {
    let mut best = (Format::Text, 0.0);
    for range in accept.unwrap_or_default().split(',') {
        let mut parts = range.split(';').map(str::trim);
        let name = parts.next().unwrap_or_default();
        let parameters: Vec<(&str, &str)> = parts
            .filter_map(|parameter| parameter.split_once('='))
            .map(|(name, value)| (name.trim(), value.trim().trim_matches('"')))
            .collect();
        let weight = parameters.iter().find(|(name, _)| name.eq_ignore_ascii_case("q"));
        let weight = weight.map_or(1.0, |(_, value)| value.parse().unwrap_or(0.0));
        for format in [
            #[cfg(feature = "protobuf")]
            Format::Protobuf,
            Format::OpenMetrics,
            Format::Text,
        ] {
            let rank = (weight, format.index());
            if weight > 0.0 && format.is_named(name, &parameters) && rank > (best.1, best.0.index())
            {
                best = (format, weight);
            }
        }
    }
    best.0
}

/// Appends a snapshot in a format.
///
/// # Cost
///
/// About a microsecond for a counter or a gauge, about five for a histogram. [`Renderer`] keeps the result.
pub fn render(snapshot: &Snapshot, format: Format, out: &mut Vec<u8>) {
    match format {
        Format::Text => text::render(snapshot, text::Dialect::Plain, out),
        Format::OpenMetrics => text::render(snapshot, text::Dialect::OpenMetrics, out),
        #[cfg(feature = "protobuf")]
        Format::Protobuf => protobuf::render(snapshot, out),
    }
}

/// How long a rendered snapshot is served, unless told.
const EVERY: Duration = Duration::from_secs(1);

/// Renders snapshots at most once a second for each format, and serves the copy in between.
///
/// However many scrape, and however often, the cost stays that of one rendering a second.
#[derive(Debug)]
pub struct Renderer {
    every: Duration,
    formats: [Mutex<Rendered>; FORMATS],
}

/// What was rendered last in one format.
#[derive(Debug, Default)]
struct Rendered {
    /// The monotonic time of the snapshot.
    at: Option<Duration>,
    bytes: Arc<[u8]>,
    /// Written to and copied from, so that its memory is used again.
    buffer: Vec<u8>,
}

impl Renderer {
    /// Makes a renderer that renders at most once a second.
    #[must_use]
    pub fn new() -> Self {
        Self::every(EVERY)
    }

    /// Makes a renderer that serves a copy until a snapshot is younger than it by `every`.
    #[must_use]
    pub fn every(every: Duration) -> Self {
        Self { every, formats: Default::default() }
    }

    /// Returns a snapshot in a format, or the copy of one that is not yet old enough.
    ///
    /// # Cost
    ///
    /// A lock and a clone of an `Arc` for a copy; others wait while the first one renders, some
    /// milliseconds for 1,000 series.
    #[must_use]
    pub fn render(&self, snapshot: &Snapshot, format: Format) -> Arc<[u8]> {
        let mut rendered = self.formats[format.index()].lock();
        let rendered = &mut *rendered;
        let now = snapshot.at.monotonic;
        let is_fresh = rendered.at.is_some_and(|at| now.saturating_sub(at) < self.every);
        if !is_fresh {
            rendered.buffer.clear();
            render(snapshot, format, &mut rendered.buffer);
            rendered.bytes = rendered.buffer.as_slice().into();
            rendered.at = Some(now);
        }
        Arc::clone(&rendered.bytes)
    }
}

impl Default for Renderer {
    fn default() -> Self {
        Self::new()
    }
}
