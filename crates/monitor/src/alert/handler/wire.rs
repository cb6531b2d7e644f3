//! Events in the words of Alertmanager: annotations and times.

use std::collections::BTreeMap;

use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use crate::alert::event::{AlertEvent, EventKind};

/// What Alertmanager writes for a time that is not known.
pub(super) const NEVER: &str = "0001-01-01T00:00:00Z";

/// What people read, by the names that Prometheus' own rules use.
pub(super) fn annotations(event: &AlertEvent) -> BTreeMap<&'static str, String> {
    let number = |number: Option<f64>| number.map(|number| number.to_string()).unwrap_or_default();
    let mut annotations = BTreeMap::from([
        ("summary", event.summary.clone()),
        ("description", event.description.clone()),
        ("runbook_url", event.runbook.clone()),
        ("value", number(event.value)),
        ("threshold", number(event.threshold)),
        ("event", event.kind.word().to_owned()),
    ]);
    annotations.retain(|_, text| !text.is_empty());
    annotations
}

/// Whether an event ends its alert.
pub(super) fn is_resolved(event: &AlertEvent) -> bool {
    event.kind == EventKind::Resolve
}

/// A time as RFC 3339 has it; a time outside of the years that it knows is 1970.
pub(super) fn rfc3339(unix_ms: i64) -> String {
    OffsetDateTime::from_unix_timestamp_nanos(i128::from(unix_ms) * 1_000_000)
        .ok()
        .and_then(|moment| moment.format(&Rfc3339).ok())
        .unwrap_or_else(|| "1970-01-01T00:00:00Z".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_written_with_their_milliseconds() {
        assert_eq!(rfc3339(0), "1970-01-01T00:00:00Z");
        assert_eq!(rfc3339(1_767_225_599_250), "2025-12-31T23:59:59.25Z");
        assert_eq!(rfc3339(i64::MAX), "1970-01-01T00:00:00Z");
    }
}
