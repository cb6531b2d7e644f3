//! Compression of answers for clients that accept it.
//!
//! A request's `Accept-Encoding` is reduced to the one coding that its answer will have, or removed,
//! before anything looks at the request: the cache then knows as many variants of an answer as there
//! are codings, and not as many as there are ways to write the field. An answer is packed where it comes
//! from its origin, so what is stored is compressed once.
//!
//! What is left as it is: an answer that is encoded already, part of one, small or of a type that has
//! been compressed in itself, one that says `no-transform`, and one with a digest, which is of the bytes
//! as they are. A packed answer is another representation: its strong entity tag becomes a weak one. An
//! answer to HEAD says what the one to GET would.

use std::convert::Infallible;
use std::future::ready;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::{Bytes, BytesMut};
use futures_util::FutureExt as _;
use http::header::{
    ACCEPT_ENCODING, ACCEPT_RANGES, CACHE_CONTROL, CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_RANGE,
    CONTENT_TYPE, ETAG, HeaderMap, HeaderName, HeaderValue, IF_NONE_MATCH, VARY,
};
use http::{Extensions, Method, Request, Response, StatusCode, Version, response};
use http_body::{Body, Frame, SizeHint};
use tower::{Service as _, service_fn};
use tower_http::compression::{Compression as Compressor, CompressionBody};

use crate::origin::BoxError;

/// An answer shorter than this fits into one packet as it is.
const LEAST_BYTES: u64 = 1_024;

/// A coding of answers, from the least to the most wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Coding {
    Deflate,
    Gzip,
    Brotli,
    Zstd,
}

impl Coding {
    const ALL: [Self; 4] = [Self::Deflate, Self::Gzip, Self::Brotli, Self::Zstd];

    fn as_str(self) -> &'static str {
        match self {
            Self::Deflate => "deflate",
            Self::Gzip => "gzip",
            Self::Brotli => "br",
            Self::Zstd => "zstd",
        }
    }

    /// The coding that a request prefers, if it prefers one to none.
    ///
    /// Of equal weights the coding decides that packs better for the time it takes.
    fn preferred(headers: &HeaderMap) -> Option<Self> {
        let mut weights: [Option<u16>; 4] = [None; 4];
        let (mut others, mut identity) = (None, None);
        let lines = headers.get_all(ACCEPT_ENCODING).iter();
        for member in lines.flat_map(|line| line.as_bytes().split(|byte| *byte == b',')) {
            let mut parts = member.split(|byte| *byte == b';').map(<[u8]>::trim_ascii);
            let name = parts.next().unwrap_or_default();
            let Some(weight) = parts.next().map_or(Some(1_000), weight) else { continue };
            let known = Self::ALL.iter().position(|it| is(name, it.as_str()));
            match known {
                Some(at) => weights[at] = Some(weight),
                None if is(name, "x-gzip") => weights[Self::Gzip as usize] = Some(weight),
                None if name == b"*" => others = Some(weight),
                None if is(name, "identity") => identity = Some(weight),
                None => {}
            }
        }
        let weight = |coding: Self| weights[coding as usize].or(others).unwrap_or(0);
        let best = Self::ALL.into_iter().max_by_key(|coding| (weight(*coding), *coding))?;
        (weight(best) > 0 && weight(best) >= identity.unwrap_or(0)).then_some(best)
    }
}

fn is(name: &[u8], known: &str) -> bool {
    name.eq_ignore_ascii_case(known.as_bytes())
}

/// Reads `q=0.5` as thousandths; `None` for what is no weight.
fn weight(parameter: &[u8]) -> Option<u16> {
    let [b'q' | b'Q', b'=', digits @ ..] = parameter else { return None };
    let value: f32 = std::str::from_utf8(digits).ok()?.parse().ok()?;
    (0.0..=1.0).contains(&value).then_some((value * 1_000.0) as u16)
}

/// Reduces `Accept-Encoding` to the coding that the answer will have; returns it.
///
/// A client that takes none of ours, though it names some, gets the answer as it is: without the field
/// its origin might choose any coding (RFC 9110 section 12.5.3).
pub(crate) fn settle(headers: &mut HeaderMap) -> Option<Coding> {
    let coding = Coding::preferred(headers);
    if headers.contains_key(ACCEPT_ENCODING) {
        let settled = coding.map_or("identity", Coding::as_str);
        headers.insert(ACCEPT_ENCODING, HeaderValue::from_static(settled));
    }
    coding
}

/// What the answer to a request may become.
#[derive(Debug)]
pub(crate) struct Wanted {
    is_head: bool,
    coding: Option<Coding>,
    /// The versions that the client has.
    known: Vec<HeaderValue>,
}

impl Wanted {
    /// Reads a request that has been [settled](settle).
    pub(crate) fn of(method: &Method, headers: &HeaderMap) -> Self {
        let coding = headers
            .get(ACCEPT_ENCODING)
            .and_then(|value| Coding::ALL.into_iter().find(|coding| value == coding.as_str()));
        let known = headers.get_all(IF_NONE_MATCH).iter().cloned().collect();
        Self { is_head: method == Method::HEAD, coding, known }
    }

    /// Packs the answer where that is of use.
    pub(crate) fn pack<B>(&self, mut head: response::Parts, body: B) -> (response::Parts, Packed<B>)
    where
        B: Body<Data = Bytes, Error: Into<BoxError>>,
    {
        if head.status == StatusCode::NOT_MODIFIED {
            self.weaken_matched(&mut head.headers);
            // It takes the place of the field that is stored, here and at others, with a packed answer.
            if head.headers.contains_key(VARY) {
                vary(&mut head.headers);
            }
            return (head, Packed::Plain(body));
        }
        let length = self.length(&head.headers, &body);
        if !is_worth_it(&head, length) {
            return (head, Packed::Plain(body));
        }
        vary(&mut head.headers);
        let Some(coding) = self.coding else { return (head, Packed::Plain(body)) };
        if self.is_head {
            if length.is_some() {
                describe_packed(&mut head.headers, coding);
            }
            return (head, Packed::Unsized(body));
        }
        let mut asked = Request::new(());
        asked.headers_mut().insert(ACCEPT_ENCODING, HeaderValue::from_static(coding.as_str()));
        let mut answer = Some(Response::from_parts(head, body));
        let mut compressor = Compressor::new(service_fn(|_: Request<()>| {
            ready(Ok::<_, Infallible>(answer.take().expect("the service is called once")))
        }))
        .compress_when(|_: StatusCode, _: Version, _: &HeaderMap, _: &Extensions| true);
        let packed = compressor.call(asked).now_or_never();
        let packed = packed.expect("an answer that is there needs no waiting");
        let (mut head, body) = packed.unwrap_or_else(|never| match never {}).into_parts();
        weaken(&mut head.headers);
        (head, Packed::Compressed(Box::pin(body)))
    }

    /// How long the answer to GET is, where that is known. A service may answer HEAD with the body of GET,
    /// which is removed later; without one only the field tells.
    fn length<B: Body>(&self, headers: &HeaderMap, body: &B) -> Option<u64> {
        let announced = || headers.get(CONTENT_LENGTH)?.to_str().ok()?.parse().ok();
        let exact = body.size_hint().exact();
        match self.is_head {
            true => announced().or(exact.filter(|length| *length > 0)),
            false => exact.or_else(announced),
        }
    }

    /// A 304 to a request with the tag of a packed answer is about that one: its tag is the weak one.
    fn weaken_matched(&self, headers: &mut HeaderMap) {
        let Some(tag) = headers.get(ETAG).filter(|tag| !is_weak(tag)) else { return };
        let asked =
            |tag: &HeaderValue| self.known.iter().any(|line| has_member(line, tag.as_bytes()));
        let weak = weak(tag);
        if asked(&weak) && !asked(tag) {
            headers.insert(ETAG, weak);
        }
    }
}

/// Makes the head of an answer to HEAD that of a packed one.
fn describe_packed(headers: &mut HeaderMap, coding: Coding) {
    headers.remove(CONTENT_LENGTH);
    headers.remove(ACCEPT_RANGES);
    headers.insert(CONTENT_ENCODING, HeaderValue::from_static(coding.as_str()));
    weaken(headers);
}

/// Makes a strong entity tag a weak one.
fn weaken(headers: &mut HeaderMap) {
    if let Some(tag) = headers.get(ETAG).filter(|tag| !is_weak(tag)) {
        let weak = weak(tag);
        headers.insert(ETAG, weak);
    }
}

fn is_weak(tag: &HeaderValue) -> bool {
    tag.as_bytes().starts_with(b"W/")
}

fn has_member(line: &HeaderValue, member: &[u8]) -> bool {
    line.as_bytes().split(|byte| *byte == b',').any(|it| it.trim_ascii() == member)
}

/// Digests of the bytes of an answer.
const DIGESTS: [HeaderName; 4] = [
    HeaderName::from_static("content-digest"),
    HeaderName::from_static("repr-digest"),
    HeaderName::from_static("digest"),
    HeaderName::from_static("content-md5"),
];

/// Whether an answer of this length should go out compressed to those who accept it.
fn is_worth_it(head: &response::Parts, length: Option<u64>) -> bool {
    let headers = &head.headers;
    !matches!(head.status, StatusCode::NO_CONTENT | StatusCode::PARTIAL_CONTENT)
        && !head.status.is_informational()
        && length.is_none_or(|length| length >= LEAST_BYTES)
        && !headers.contains_key(CONTENT_ENCODING)
        && !headers.contains_key(CONTENT_RANGE)
        && headers.get(CONTENT_TYPE).is_some_and(|kind| is_compressible(kind.as_bytes()))
        && !headers.get_all(CACHE_CONTROL).iter().any(|line| has_token(line, "no-transform"))
        && !DIGESTS.iter().any(|name| headers.contains_key(name))
}

/// Whether a media type is text of a kind. A stream of events is, but has to go out as it comes.
fn is_compressible(kind: &[u8]) -> bool {
    const TYPES: [&str; 10] = [
        "application/graphql",
        "application/javascript",
        "application/json",
        "application/manifest",
        "application/vnd.ms-fontobject",
        "application/wasm",
        "application/xml",
        "font/otf",
        "font/ttf",
        "image/svg",
    ];
    let kind = kind.split(|byte| *byte == b';').next().unwrap_or_default().trim_ascii();
    let starts = |start: &str| kind.get(..start.len()).is_some_and(|it| is(it, start));
    let ends = |end: &str| kind.len() >= end.len() && is(&kind[kind.len() - end.len()..], end);
    (starts("text/") && !is(kind, "text/event-stream"))
        || TYPES.iter().any(|it| starts(it))
        || ends("+json")
        || ends("+xml")
        || ends("ndjson")
}

fn has_token(line: &HeaderValue, token: &str) -> bool {
    line.as_bytes().split(|byte| *byte == b',').any(|it| is(it.trim_ascii(), token))
}

/// Says that the answer depends on `Accept-Encoding`.
fn vary(headers: &mut HeaderMap) {
    let known = headers
        .get_all(VARY)
        .iter()
        .any(|line| has_token(line, "accept-encoding") || has_token(line, "*"));
    if !known {
        headers.append(VARY, HeaderValue::from_static("accept-encoding"));
    }
}

fn weak(tag: &HeaderValue) -> HeaderValue {
    let mut weak = BytesMut::with_capacity(2 + tag.len());
    weak.extend_from_slice(b"W/");
    weak.extend_from_slice(tag.as_bytes());
    HeaderValue::from_maybe_shared(weak.freeze()).unwrap_or_else(|_| tag.clone())
}

/// The body of an answer of an origin, as it came or compressed.
pub(crate) enum Packed<B: Body> {
    Plain(B),
    /// To HEAD: what there is of a body says nothing about the length of the answer to GET.
    Unsized(B),
    Compressed(Pin<Box<CompressionBody<B>>>),
}

impl<B: Body> std::fmt::Debug for Packed<B> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Plain(_) => "Plain(..)",
            Self::Unsized(_) => "Unsized(..)",
            Self::Compressed(_) => "Compressed(..)",
        })
    }
}

impl<B> Body for Packed<B>
where
    B: Body<Data = Bytes, Error: Into<BoxError>> + Unpin,
{
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        match self.get_mut() {
            Self::Plain(body) | Self::Unsized(body) => {
                Pin::new(body).poll_frame(cx).map_err(<B::Error as Into<BoxError>>::into)
            }
            Self::Compressed(body) => body.as_mut().poll_frame(cx).map_err(Into::into),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Plain(body) | Self::Unsized(body) => body.is_end_stream(),
            Self::Compressed(body) => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Plain(body) => body.size_hint(),
            Self::Unsized(_) => SizeHint::default(),
            Self::Compressed(body) => body.size_hint(),
        }
    }
}

#[cfg(test)]
mod tests;
