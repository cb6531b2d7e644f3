//! Trace ids from the spans of `tracing`: whoever gives a span a field `trace_id` has exemplars.
//!
//! The layer reads the field when a span begins or gets it later, and keeps the id beside the span. A timer
//! that records looks at the span that is entered on its thread, and at those around it. OpenTelemetry is
//! not needed; where it is used, its ids can be recorded into the field, or read by a function that is given
//! to [`set_trace_id_source`].

use std::fmt;

use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::{Subscriber, dispatcher};
use tracing_subscriber::layer::{Context, Layer};
use tracing_subscriber::registry::{LookupSpan, Registry};

use crate::exemplar::{TraceId, set_trace_id_source};

/// The field of a span that holds its trace.
const FIELD: &str = "trace_id";

/// Keeps the trace ids of spans, so that timers and requests inside of them have exemplars.
///
/// A field `trace_id` of 32 hexadecimal digits counts, as text or by its display. The subscriber must be one
/// that is built on `tracing_subscriber::registry()`.
///
/// # Examples
///
/// ```
/// use tracing_subscriber::layer::SubscriberExt as _;
///
/// let subscriber = tracing_subscriber::registry().with(monitor::TraceIdLayer::new());
/// # let _ = subscriber;
/// ```
#[derive(Debug, Clone, Copy)]
#[non_exhaustive]
pub struct TraceIdLayer;

impl TraceIdLayer {
    /// Makes the layer, and spans the source of trace ids, unless [`set_trace_id_source`] has named one.
    #[must_use]
    #[expect(clippy::new_without_default, reason = "it changes something for the whole process")]
    pub fn new() -> Self {
        // One that was named before stays.
        let _ = set_trace_id_source(current);
        Self
    }
}

/// The trace of the span that is entered on this thread, or of one around it.
fn current() -> Option<TraceId> {
    dispatcher::get_default(|dispatch| {
        let registry = dispatch.downcast_ref::<Registry>()?;
        let current = registry.current_span();
        let span = registry.span(current.id()?)?;
        span.scope().find_map(|span| span.extensions().get::<TraceId>().copied())
    })
}

/// The trace id among the fields of a span.
#[derive(Default)]
struct Found(Option<TraceId>);

impl Visit for Found {
    fn record_str(&mut self, field: &Field, value: &str) {
        if field.name() == FIELD {
            self.0 = TraceId::parse(value);
        }
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        if field.name() == FIELD {
            self.0 = TraceId::parse(&format!("{value:?}"));
        }
    }
}

impl<S> Layer<S> for TraceIdLayer
where
    S: Subscriber + for<'a> LookupSpan<'a>,
{
    fn on_new_span(&self, attributes: &Attributes<'_>, id: &Id, context: Context<'_, S>) {
        let mut found = Found::default();
        attributes.record(&mut found);
        keep(found, id, &context);
    }

    fn on_record(&self, id: &Id, values: &Record<'_>, context: Context<'_, S>) {
        let mut found = Found::default();
        values.record(&mut found);
        keep(found, id, &context);
    }
}

fn keep<S>(found: Found, id: &Id, context: &Context<'_, S>)
where
    S: Subscriber + for<'a> LookupSpan<'a>,
{
    if let (Some(trace_id), Some(span)) = (found.0, context.span(id)) {
        span.extensions_mut().replace(trace_id);
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tracing::{field, info_span, subscriber};
    use tracing_subscriber::layer::SubscriberExt as _;

    use super::*;
    use crate::clock::Moment;

    const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";

    /// The trace ids of the exemplars that there are after some work in the middle of spans.
    fn traces(work: impl FnOnce(&crate::Timer)) -> Vec<String> {
        let registry = crate::Registry::default();
        let subscriber = tracing_subscriber::registry().with(TraceIdLayer::new());
        subscriber::with_default(subscriber, || work(&registry.stage("work")));
        let read = registry.read(Moment { monotonic: Duration::ZERO, unix_ms: 0 });
        let exemplars = read.series().flat_map(|(_, series)| &series.exemplars);
        exemplars.map(|exemplar| exemplar.trace_id.to_string()).collect()
    }

    #[test]
    fn the_trace_of_a_span_or_of_one_around_it_becomes_the_exemplar() {
        let outer = |timer: &crate::Timer| {
            let _outer = info_span!("request", trace_id = TRACE).entered();
            let _inner = info_span!("query").entered();
            timer.time(|| ());
        };
        assert_eq!(traces(outer), [TRACE]);
        let later = |timer: &crate::Timer| {
            let span = info_span!("request", trace_id = field::Empty);
            span.record("trace_id", field::display(TRACE));
            span.in_scope(|| timer.record(Duration::from_millis(3)));
        };
        assert_eq!(traces(later), [TRACE]);
    }

    #[test]
    fn without_a_trace_there_is_no_exemplar() {
        let none = |timer: &crate::Timer| {
            timer.time(|| ());
            info_span!("request", trace_id = "seven").in_scope(|| timer.time(|| ()));
            let span = info_span!("request", trace_id = TRACE);
            drop(span.entered());
            timer.time(|| ());
        };
        assert!(traces(none).is_empty());
    }
}
