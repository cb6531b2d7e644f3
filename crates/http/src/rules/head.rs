//! The head of a stored response, and its form in bytes.
//!
//! ```text
//!   version u8 = 1 | status u16 | request time u64 | response time u64 | fields u16
//!   then per field:  name length u16 | value length u32 | name | value
//! ```
//!
//! All numbers are little-endian. Whoever stores the bytes guards them with a checksum; the decoder
//! only promises that no input makes it panic or reserve more than a small multiple of its length,
//! and that what it returns holds valid names and values.

use bytes::Bytes;
use http::header::{HeaderName, HeaderValue};
use http::{HeaderMap, StatusCode};

use super::{Freshness, Policy};

const VERSION: u8 = 1;

/// Bytes that a field takes beside its name and value.
const FIELD_OVERHEAD: usize = 6;

/// When a response was asked for and when its head arrived, in Unix milliseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Times {
    /// When the request went to the origin.
    pub request_ms: u64,
    /// When the response's head had arrived.
    pub response_ms: u64,
}

/// Holds what a cache keeps of a response beside its body.
///
/// Connection-bound fields are gone, `Date` is present and valid. `Age` is the origin's: a hit
/// replaces it by the current one. Only answers to GET are stored; a HEAD is answered from one.
#[derive(Clone, Debug, PartialEq)]
pub struct StoredHead {
    /// The status.
    pub status: StatusCode,
    /// The header fields to answer with.
    pub headers: HeaderMap,
    /// When the answer was fetched, or last validated.
    pub times: Times,
}

impl StoredHead {
    /// Reads the stored directives into their precomputed form; do it once per stored head.
    pub fn freshness(&self, policy: &Policy) -> Freshness {
        Freshness::of(policy, self)
    }

    /// Appends the head's bytes.
    ///
    /// More than 65,535 fields, a name over 64 KiB or a value over 4 GiB cannot be written; such
    /// a field is left out. No HTTP parser accepts any of them.
    pub fn encode(&self, out: &mut Vec<u8>) {
        let fields = || {
            self.headers
                .iter()
                .filter_map(|(name, value)| {
                    let name_len = u16::try_from(name.as_str().len()).ok()?;
                    let value_len = u32::try_from(value.len()).ok()?;
                    Some((name_len, value_len, name, value))
                })
                .take(usize::from(u16::MAX))
        };
        let count = u16::try_from(fields().count()).expect("`take` ends at 65,535");
        out.reserve(21 + self.headers.len() * 48);
        out.push(VERSION);
        out.extend_from_slice(&self.status.as_u16().to_le_bytes());
        out.extend_from_slice(&self.times.request_ms.to_le_bytes());
        out.extend_from_slice(&self.times.response_ms.to_le_bytes());
        out.extend_from_slice(&count.to_le_bytes());
        for (name_len, value_len, name, value) in fields() {
            out.extend_from_slice(&name_len.to_le_bytes());
            out.extend_from_slice(&value_len.to_le_bytes());
            out.extend_from_slice(name.as_str().as_bytes());
            out.extend_from_slice(value.as_bytes());
        }
    }

    /// Reads back what [`encode`](Self::encode) wrote; `None` for any other bytes or version.
    ///
    /// # Cost
    ///
    /// One allocation for all values together, one for the map, and one per non-standard name.
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        // Values are slices of this one copy.
        let mut reader = Reader { rest: Bytes::copy_from_slice(bytes) };
        if reader.array::<1>()? != [VERSION] {
            return None;
        }
        let status = StatusCode::from_u16(u16::from_le_bytes(reader.array()?)).ok()?;
        let request_ms = u64::from_le_bytes(reader.array()?);
        let response_ms = u64::from_le_bytes(reader.array()?);
        let count = usize::from(u16::from_le_bytes(reader.array()?));
        if count > reader.rest.len() / FIELD_OVERHEAD {
            return None;
        }
        let mut headers = HeaderMap::try_with_capacity(count).ok()?;
        for _ in 0..count {
            let name_len = usize::from(u16::from_le_bytes(reader.array()?));
            let value_len = usize::try_from(u32::from_le_bytes(reader.array()?)).ok()?;
            let name = HeaderName::from_bytes(&reader.take(name_len)?).ok()?;
            let value = HeaderValue::from_maybe_shared(reader.take(value_len)?).ok()?;
            headers.try_append(name, value).ok()?;
        }
        let times = Times { request_ms, response_ms };
        reader.rest.is_empty().then_some(Self { status, headers, times })
    }
}

struct Reader {
    rest: Bytes,
}

impl Reader {
    fn take(&mut self, len: usize) -> Option<Bytes> {
        (len <= self.rest.len()).then(|| self.rest.split_to(len))
    }

    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        let array = self.rest.first_chunk::<N>().copied()?;
        let _read = self.rest.split_to(N);
        Some(array)
    }
}

#[cfg(test)]
mod tests;
