//! What the response cache keeps: keys, stored responses, and their bytes in the lower tiers.
//!
//! A target whose answers do not vary has one entry, under its URI. One that varies has a marker
//! there, which names the request fields that select a variant, and an entry for each variant under
//! the URI, the marker's salt and the values of those fields. Removing the marker therefore removes
//! all variants at once: the next marker has another salt, and nobody asks for the old ones again.

use std::sync::Arc;

use arc_swap::ArcSwap;
use bytes::Bytes;
use ultra_perf::cache_tiered::{Codec, CodecError, Equivalent};

use crate::rules::{Freshness, Policy, StoredHead, Vary};

/// Names an entry: a target URI, and which of its variants.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct ResponseKey {
    target: Arc<str>,
    /// Empty for the target itself.
    variant: Arc<[u8]>,
}

impl ResponseKey {
    pub(crate) fn target(target: &str) -> Self {
        Self { target: target.into(), variant: Arc::default() }
    }

    /// One of this target's variants; the target itself for the empty one.
    pub(crate) fn variant(&self, variant: &[u8]) -> Self {
        Self { target: Arc::clone(&self.target), variant: variant.into() }
    }

    /// Whether this is the target itself and not one of its variants.
    pub(crate) fn is_target(&self) -> bool {
        self.variant.is_empty()
    }

    pub(crate) fn target_str(&self) -> &str {
        &self.target
    }
}

/// A key that is looked up without being built; hashes as a [`ResponseKey`] does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct ResponseKeyRef<'a> {
    pub(crate) target: &'a str,
    pub(crate) variant: &'a [u8],
}

impl Equivalent<ResponseKey> for ResponseKeyRef<'_> {
    fn equivalent(&self, key: &ResponseKey) -> bool {
        self.target == &*key.target && self.variant == &*key.variant
    }
}

/// What stands under a key; a clone copies neither head nor body.
#[derive(Debug, Clone)]
pub(crate) enum Stored {
    Response(Arc<StoredResponse>),
    Varies(Arc<Varies>),
}

/// A whole response, ready to be served.
#[derive(Debug)]
pub(crate) struct StoredResponse {
    pub(crate) head: StoredHead,
    pub(crate) freshness: Freshness,
    pub(crate) body: Bytes,
}

impl StoredResponse {
    /// Takes a response that is to be kept; `body` is in memory of its own.
    ///
    /// The fields of a head that has just arrived are slices of a read buffer, which would stay in
    /// memory for as long as the response does; they are copied into memory of their own.
    pub(crate) fn new(head: StoredHead, freshness: Freshness, body: Bytes) -> Self {
        let mut bytes = Vec::new();
        head.encode(&mut bytes);
        Self { head: StoredHead::decode(&bytes).unwrap_or(head), freshness, body }
    }
}

/// Says which request fields select a target's variants.
#[derive(Debug)]
pub(crate) struct Varies {
    pub(crate) vary: Vary,
    /// Distinguishes this generation of variants from those of an earlier marker.
    pub(crate) salt: u64,
}

impl Varies {
    /// Writes the variant of a request.
    pub(crate) fn write_variant(&self, request: &http::HeaderMap, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.salt.to_le_bytes());
        self.vary.write_key(request, out);
    }
}

/// The weight of an entry: its bytes, with an allowance for what holds them together.
pub(crate) fn weigh(key: &ResponseKey, stored: &Stored) -> u64 {
    const ENTRY: usize = 400;
    const FIELD: usize = 112;
    let key = key.target.len() + key.variant.len();
    let value = match stored {
        Stored::Response(response) => {
            let fields = &response.head.headers;
            let head: usize = fields.values().map(|value| value.len() + FIELD).sum();
            head + response.body.len()
        }
        Stored::Varies(varies) => varies.vary.fields().len() * FIELD,
    };
    (ENTRY + key + value) as u64
}

const RESPONSE: u8 = 0;
const VARIES: u8 = 1;

/// Writes entries for the lower tiers: a kind, then a head with its length and the body, or a salt
/// and the varying fields.
#[derive(Debug, Clone)]
pub(crate) struct StoredCodec {
    pub(crate) policy: Arc<ArcSwap<Policy>>,
}

impl Codec<ResponseKey, Stored> for StoredCodec {
    fn id(&self) -> u8 {
        128
    }

    fn encode_key(&self, key: &ResponseKey, out: &mut Vec<u8>) -> Result<(), CodecError> {
        // No URI holds a line feed, so the two parts cannot run into each other.
        out.extend_from_slice(key.target.as_bytes());
        if !key.variant.is_empty() {
            out.push(b'\n');
            out.extend_from_slice(&key.variant);
        }
        Ok(())
    }

    fn decode_key(&self, bytes: &[u8]) -> Result<ResponseKey, CodecError> {
        let end = bytes.iter().position(|byte| *byte == b'\n');
        let (target, variant) = match end {
            Some(end) if end + 1 == bytes.len() => return Err("a variant without a name".into()),
            Some(end) => (&bytes[..end], &bytes[end + 1..]),
            None => (bytes, &[][..]),
        };
        Ok(ResponseKey::target(std::str::from_utf8(target)?).variant(variant))
    }

    fn encode(&self, stored: &Stored, out: &mut Vec<u8>) -> Result<(), CodecError> {
        match stored {
            Stored::Response(response) => {
                out.push(RESPONSE);
                let length_at = out.len();
                out.extend_from_slice(&[0; 4]);
                response.head.encode(out);
                let length = u32::try_from(out.len() - length_at - 4)?;
                out[length_at..length_at + 4].copy_from_slice(&length.to_le_bytes());
                out.extend_from_slice(&response.body);
            }
            Stored::Varies(varies) => {
                out.push(VARIES);
                out.extend_from_slice(&varies.salt.to_le_bytes());
                out.extend_from_slice(varies.vary.to_string().as_bytes());
            }
        }
        Ok(())
    }

    fn decode(&self, bytes: &[u8]) -> Result<Stored, CodecError> {
        self.read(bytes).ok_or_else(|| "not a stored response".into())
    }
}

impl StoredCodec {
    fn read(&self, bytes: &[u8]) -> Option<Stored> {
        let (&kind, rest) = bytes.split_first()?;
        match kind {
            RESPONSE => {
                let (length, rest) = rest.split_first_chunk::<4>()?;
                let length = usize::try_from(u32::from_le_bytes(*length)).ok()?;
                let (head, body) = rest.split_at_checked(length)?;
                let head = StoredHead::decode(head)?;
                let freshness = head.freshness(&self.policy.load());
                let body = Bytes::copy_from_slice(body);
                Some(Stored::Response(Arc::new(StoredResponse { head, freshness, body })))
            }
            VARIES => {
                let (salt, fields) = rest.split_first_chunk::<8>()?;
                let vary = Vary::parse([fields])?;
                let salt = u64::from_le_bytes(*salt);
                Some(Stored::Varies(Arc::new(Varies { vary, salt })))
            }
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::hash::{BuildHasher, RandomState};

    use http::{HeaderMap, HeaderValue, StatusCode, header};
    use proptest::prelude::*;

    use super::*;
    use crate::rules::Times;

    fn codec() -> StoredCodec {
        StoredCodec { policy: Arc::default() }
    }

    fn response() -> Stored {
        let mut headers = HeaderMap::new();
        headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("max-age=60"));
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain"));
        let times = Times { request_ms: 1_000, response_ms: 2_000 };
        let head = StoredHead { status: StatusCode::OK, headers, times };
        let freshness = head.freshness(&Policy::default());
        let body = Bytes::from_static(b"the body");
        Stored::Response(Arc::new(StoredResponse { head, freshness, body }))
    }

    fn varies() -> Stored {
        let vary = Vary::parse([&b"Accept-Encoding, Accept"[..]]).unwrap();
        Stored::Varies(Arc::new(Varies { vary, salt: 77 }))
    }

    #[test]
    fn what_is_written_is_read_back() {
        for stored in [response(), varies()] {
            let mut bytes = Vec::new();
            codec().encode(&stored, &mut bytes).unwrap();
            let read = codec().decode(&bytes).unwrap();
            assert_eq!(format!("{stored:?}"), format!("{read:?}"));
        }
    }

    #[test]
    fn a_key_that_is_written_is_read_back() {
        let target = ResponseKey::target("http://host/path");
        for key in [target.variant(b"gzip\n\xff"), target] {
            let mut bytes = Vec::new();
            codec().encode_key(&key, &mut bytes).unwrap();
            assert_eq!(codec().decode_key(&bytes).unwrap(), key);
        }
        for bytes in [&b"http://host/path\n"[..], b"\xff"] {
            assert!(codec().decode_key(bytes).is_err());
        }
    }

    #[test]
    fn a_response_that_is_kept_holds_no_read_buffer() {
        let buffer = Bytes::from(vec![b'x'; 8_192]);
        let value = HeaderValue::from_maybe_shared(buffer.slice(100..103)).unwrap();
        let headers = HeaderMap::from_iter([(header::ETAG, value)]);
        let times = Times { request_ms: 1_000, response_ms: 2_000 };
        let head = StoredHead { status: StatusCode::OK, headers, times };
        let freshness = head.freshness(&Policy::default());
        let kept = StoredResponse::new(head.clone(), freshness, Bytes::new());
        assert_eq!(kept.head, head);
        assert!(
            !buffer.as_ptr_range().contains(&kept.head.headers[header::ETAG].as_bytes().as_ptr())
        );
    }

    #[test]
    fn a_borrowed_key_finds_what_an_owned_one_stored() {
        let hasher = RandomState::new();
        let primary = ResponseKey::target("http://host/path");
        for (owned, variant) in [(primary.clone(), &b""[..]), (primary.variant(b"gzip"), b"gzip")] {
            let borrowed = ResponseKeyRef { target: "http://host/path", variant };
            assert_eq!(hasher.hash_one(&owned), hasher.hash_one(borrowed));
            assert!(borrowed.equivalent(&owned));
        }
    }

    proptest! {
        #[test]
        fn broken_bytes_are_an_error_and_never_a_panic(
            which in any::<bool>(),
            at in any::<prop::sample::Index>(),
            byte: u8,
            cut in any::<prop::sample::Index>(),
        ) {
            let mut bytes = Vec::new();
            codec().encode(&if which { response() } else { varies() }, &mut bytes).unwrap();
            let (at, cut) = (at.index(bytes.len()), cut.index(bytes.len()));
            bytes[at] = byte;
            let _ = codec().decode(&bytes);
            let _ = codec().decode(&bytes[..cut]);
        }
    }
}
