//! The signature of a webhook: an HMAC over a time stamp and the body.
//!
//! The header `X-Signature` is `t=<seconds since 1970>,v1=<HMAC-SHA256 of "t.body" in hexadecimal>`. The time
//! is under the signature, so that an old request cannot be sent again later as a new one.

use std::fmt::Write as _;
use std::time::Duration;

use hmac::{Hmac, KeyInit as _, Mac as _};
use sha2::Sha256;

/// The name of the header.
pub(super) const HEADER: &str = "x-signature";

fn mac(key: &[u8], seconds: &str, body: &[u8]) -> Hmac<Sha256> {
    let mut mac = Hmac::<Sha256>::new_from_slice(key).expect("HMAC takes keys of any length");
    mac.update(seconds.as_bytes());
    mac.update(b".");
    mac.update(body);
    mac
}

/// Makes the value of the header.
pub(super) fn sign(key: &[u8], unix_ms: i64, body: &[u8]) -> String {
    let seconds = unix_ms.div_euclid(1_000).to_string();
    let mut header = format!("t={seconds},v1=");
    for byte in mac(key, &seconds, body).finalize().into_bytes() {
        // A write to a string does not fail.
        let _ = write!(header, "{byte:02x}");
    }
    header
}

/// Checks the header `X-Signature` of a webhook, for receivers in Rust.
///
/// True if the signature was made with `key` over `body`, at most `tolerance` before or after `unix_ms`, the
/// time now in milliseconds since 1970. The comparison takes the same time wherever two signatures differ.
#[must_use]
pub fn verify_signature(
    key: &[u8],
    header: &str,
    body: &[u8],
    unix_ms: i64,
    tolerance: Duration,
) -> bool {
    let part = |name: &str| header.split(',').find_map(|it| it.trim().strip_prefix(name));
    let (Some(seconds), Some(signature)) = (part("t="), part("v1=")) else { return false };
    let Ok(signed_at) = seconds.parse::<i64>() else { return false };
    let away = signed_at.saturating_mul(1_000).abs_diff(unix_ms);
    let digits: Option<Vec<u32>> = signature.chars().map(|digit| digit.to_digit(16)).collect();
    let Some(digits) = digits.filter(|digits| digits.len() == 64) else { return false };
    let bytes: Vec<u8> = digits.chunks(2).map(|pair| (pair[0] * 16 + pair[1]) as u8).collect();
    u128::from(away) <= tolerance.as_millis().saturating_add(999)
        && mac(key, seconds, body).verify_slice(&bytes).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_signature_is_the_one_that_others_compute() {
        // printf '1700000000.{"a":1}' | openssl dgst -sha256 -hmac key
        let signed = sign(b"key", 1_700_000_000_999, b"{\"a\":1}");
        assert_eq!(signed, EXPECTED);
    }

    const EXPECTED: &str =
        "t=1700000000,v1=a438e398bfafc57e4396bb7fc2304422f0f768e965d073ca313cb52e22e6ad03";

    #[test]
    fn only_the_same_key_body_and_time_verify() {
        let signed = sign(b"key", 1_700_000_000_000, b"body");
        let check = |key: &[u8], header: &str, body: &[u8], late_ms: i64| {
            let now = 1_700_000_000_000 + late_ms;
            verify_signature(key, header, body, now, Duration::from_secs(300))
        };
        assert!(check(b"key", &signed, b"body", 0));
        assert!(
            check(b"key", &signed, b"body", 300_000) && check(b"key", &signed, b"body", -300_000)
        );
        assert!(!check(b"key", &signed, b"body", 302_000), "too late");
        assert!(!check(b"kez", &signed, b"body", 0) && !check(b"key", &signed, b"bodi", 0));
        assert!(!check(b"key", &signed.replace("t=17", "t=18"), b"body", 100_000_000_000));
        for broken in ["", "t=1700000000", "v1=00", "t=x,v1=00", "t=1700000000,v1=zz"] {
            assert!(!check(b"key", broken, b"body", 0), "{broken}");
        }
    }
}
