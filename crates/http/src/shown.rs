//! What answers show of how they came about: the time that they took and the memory in use.

use std::io::Write as _;
use std::time::Duration;

use bytes::{BufMut as _, BytesMut};
use http::header::{HeaderName, HeaderValue};

pub(crate) const X_RESPONSE_TIME: HeaderName = HeaderName::from_static("x-response-time");
pub(crate) const X_MEMORY_USAGE: HeaderName = HeaderName::from_static("x-memory-usage");

/// `0.234s`, to the microsecond where it is short.
pub(crate) fn seconds(time: Duration, scratch: &mut BytesMut) -> HeaderValue {
    let seconds = time.as_secs_f64();
    let digits = if seconds < 0.01 { 6 } else { 3 };
    write!(scratch.writer(), "{seconds:.digits$}s").expect("writing to memory cannot fail");
    HeaderValue::from_maybe_shared(scratch.split().freeze()).expect("digits are valid in a header")
}

/// `67.8%`.
pub(crate) fn percent(percent: f64, scratch: &mut BytesMut) -> HeaderValue {
    write!(scratch.writer(), "{percent:.1}%").expect("writing to memory cannot fail");
    HeaderValue::from_maybe_shared(scratch.split().freeze()).expect("digits are valid in a header")
}
