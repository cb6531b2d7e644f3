//! What an HTTP response means: its status, and when it asks to come back.

use std::time::{Duration, SystemTime};

use http::header::{HeaderMap, RETRY_AFTER};

use crate::Outcome;

impl Outcome {
    /// Says what an HTTP response means by its status and its `Retry-After`.
    ///
    /// See [`of_status`](Self::of_status) for the codes.
    ///
    /// # Examples
    ///
    /// ```
    /// use std::time::{Duration, SystemTime};
    /// use resilience::Outcome;
    ///
    /// let response = http::Response::builder().status(429).header("retry-after", "30").body(())?;
    /// let outcome = Outcome::of_response(&response, SystemTime::now());
    /// assert_eq!(outcome, Outcome::Overload { retry_after: Some(Duration::from_secs(30)) });
    /// # Ok::<_, http::Error>(())
    /// ```
    pub fn of_response<B>(response: &http::Response<B>, now: SystemTime) -> Self {
        Self::of_status(response.status().as_u16(), retry_after(response.headers(), now))
    }
}

/// Reads `Retry-After`: seconds or a date (RFC 9110, section 10.2.3); a date in the past is zero.
fn retry_after(headers: &HeaderMap, now: SystemTime) -> Option<Duration> {
    let text = headers.get(RETRY_AFTER)?.to_str().ok()?.trim();
    if !text.is_empty() && text.bytes().all(|it| it.is_ascii_digit()) {
        return Some(Duration::from_secs(text.parse().unwrap_or(u64::MAX)));
    }
    let date = httpdate::parse_http_date(text).ok()?;
    Some(date.duration_since(now).unwrap_or(Duration::ZERO))
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn a_hint_is_seconds_or_a_date() {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(784_111_777);
        for (text, expected) in [
            ("120", Some(120)),
            (" 0 ", Some(0)),
            ("99999999999999999999999", Some(u64::MAX)),
            ("Sun, 06 Nov 1994 08:49:47 GMT", Some(10)),
            ("Sun, 06 Nov 1994 08:40:00 GMT", Some(0)),
            ("soon", None),
            ("-1", None),
            ("1.5", None),
            ("", None),
        ] {
            let response = http::Response::builder().status(503).header("retry-after", text);
            let response = response.body(()).expect("valid");
            let retry_after = expected.map(Duration::from_secs);
            assert_eq!(
                Outcome::of_response(&response, now),
                Outcome::Overload { retry_after },
                "{text}"
            );
        }
    }
}
