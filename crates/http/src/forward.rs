//! What happens to the heads of messages on their way through the proxy.
//!
//! [`normalize`] brings every request into one form before anything looks at it: exactly one valid
//! Host, the target in origin form, no field that speaks to this hop only. Two readings of the same
//! request - by the cache and by the origin, say - are what request smuggling and cache poisoning
//! live on. [`Forwarder::request`] then adds what the origin should know: who asked and by which
//! way. [`Forwarder::response`] prepares the answer for the client. [`problem`] makes the answers
//! of the proxy itself. All of it is pure: the caller passes in the randomness.

use std::{
    fmt::Write as _,
    net::{IpAddr, SocketAddr},
};

use bytes::Bytes;
use http::{
    HeaderMap, HeaderName, HeaderValue, Method, Response, StatusCode, Uri, Version,
    header::{
        CACHE_CONTROL, CONNECTION, CONTENT_TYPE, COOKIE, EXPECT, FORWARDED, HOST,
        TRANSFER_ENCODING, UPGRADE, VIA,
    },
    request, response,
    uri::{Authority, PathAndQuery},
};
use http_body_util::Full;

use crate::rules::remove_hop_by_hop;

const PROXY: HeaderName = HeaderName::from_static("proxy");
const X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const X_FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");
const X_FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
const X_REAL_IP: HeaderName = HeaderName::from_static("x-real-ip");

/// The field that identifies a request in everybody's logs.
pub const X_REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// How many fields a forwarder adds to a request at most.
const FIELDS_ADDED: usize = 7;

/// How long a client's own request id may be.
const REQUEST_ID_BYTES_MAX: usize = 128;

/// Says why the proxy does not handle a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Refusal {
    /// The Host field is missing, repeated, malformed, or contradicts the target.
    #[error("the host field is missing, repeated or malformed")]
    Host,
    /// The target is neither a path nor a URL of this server.
    #[error("the request target is malformed")]
    Target,
    /// The transfer coding is not plain `chunked`.
    #[error("the transfer coding is not supported")]
    TransferCoding,
    /// The method is not for a reverse proxy: CONNECT or TRACE.
    #[error("the method is not supported")]
    Method,
    /// The client expects something other than `100-continue`.
    #[error("the expectation is not supported")]
    Expectation,
    /// The request has been here before.
    #[error("the request loops")]
    Loop,
}

impl Refusal {
    /// Returns the status to answer with.
    pub fn status(self) -> StatusCode {
        match self {
            Self::Host | Self::Target => StatusCode::BAD_REQUEST,
            Self::TransferCoding | Self::Method => StatusCode::NOT_IMPLEMENTED,
            Self::Expectation => StatusCode::EXPECTATION_FAILED,
            Self::Loop => StatusCode::LOOP_DETECTED,
        }
    }

    /// Returns a sentence for the client.
    pub fn detail(self) -> &'static str {
        match self {
            Self::Host => "The Host field is missing, repeated or malformed.",
            Self::Target => "The request target is malformed.",
            Self::TransferCoding => "Only the chunked transfer coding is supported.",
            Self::Method => "The method is not supported.",
            Self::Expectation => "Only the expectation 100-continue is supported.",
            Self::Loop => "The request came back to a proxy that had forwarded it.",
        }
    }
}

/// Brings a request into the one form that the rest of the proxy works on.
///
/// Afterwards the target is in origin form (or `*`), there is exactly one Host field - none only
/// for an HTTP/1.0 client that sent none -, and fields for one hop are gone. What remains of an
/// upgrade is `Connection: upgrade` beside `Upgrade: websocket`, and only if the client could mean
/// it; see [`wants_upgrade`].
///
/// # Errors
///
/// [`Refusal`] if the request can be read in more than one way or is not for a reverse proxy.
///
/// # Cost
///
/// No allocation for an HTTP/1.1 request in origin form.
pub fn normalize(head: &mut request::Parts) -> Result<(), Refusal> {
    if head.method == Method::CONNECT || head.method == Method::TRACE {
        return Err(Refusal::Method);
    }
    check_transfer_coding(&head.headers)?;
    settle_host(head)?;
    if let Some(expectation) = head.headers.get(EXPECT) {
        // hyper has taken note of it and sends the interim answer when the body is first read.
        if !expectation.as_bytes().eq_ignore_ascii_case(b"100-continue") {
            return Err(Refusal::Expectation);
        }
        head.headers.remove(EXPECT);
    }
    if head.version >= Version::HTTP_2 {
        join_cookies(&mut head.headers);
    }
    let upgrade = asks_for_websocket(head);
    remove_hop_by_hop(&mut head.headers);
    if upgrade {
        head.headers.insert(CONNECTION, HeaderValue::from_static("upgrade"));
        head.headers.insert(UPGRADE, HeaderValue::from_static("websocket"));
    }
    Ok(())
}

/// Tells whether a normalized request asks for a tunnel.
pub fn wants_upgrade(headers: &HeaderMap) -> bool {
    headers.contains_key(UPGRADE)
}

/// Joins the cookies that HTTP/2 may send one by one (RFC 9113, section 8.2.3).
fn join_cookies(headers: &mut HeaderMap) {
    let mut lines = headers.get_all(COOKIE).iter();
    let (Some(first), Some(second)) = (lines.next(), lines.next()) else {
        return;
    };
    let mut joined = [first.as_bytes(), second.as_bytes()].join(&b"; "[..]);
    for line in lines {
        joined.extend_from_slice(b"; ");
        joined.extend_from_slice(line.as_bytes());
    }
    if let Ok(joined) = HeaderValue::from_maybe_shared(Bytes::from(joined)) {
        headers.insert(COOKIE, joined);
    }
}

fn check_transfer_coding(headers: &HeaderMap) -> Result<(), Refusal> {
    let mut codings = headers.get_all(TRANSFER_ENCODING).iter();
    match (codings.next(), codings.next()) {
        (None, _) => Ok(()),
        (Some(only), None) if only.as_bytes().eq_ignore_ascii_case(b"chunked") => Ok(()),
        _ => Err(Refusal::TransferCoding),
    }
}

/// Makes the Host field and the target agree on who is asked for what.
fn settle_host(head: &mut request::Parts) -> Result<(), Refusal> {
    let mut hosts = head.headers.get_all(HOST).iter();
    let host = hosts.next();
    if hosts.next().is_some() {
        return Err(Refusal::Host);
    }
    if let Some(host) = host
        && !is_authority(host.as_bytes())
    {
        return Err(Refusal::Host);
    }
    let Some(authority) = head.uri.authority() else {
        if host.is_none() && head.version != Version::HTTP_10 {
            return Err(Refusal::Host);
        }
        let path = head.uri.path();
        let origin_form = path.starts_with('/');
        return if origin_form || (path == "*" && head.method == Method::OPTIONS) {
            Ok(())
        } else {
            Err(Refusal::Target)
        };
    };
    if !matches!(head.uri.scheme_str(), Some("http" | "https"))
        || !is_authority(authority.as_str().as_bytes())
    {
        return Err(Refusal::Target);
    }
    // Over HTTP/1 the authority of an absolute target replaces the Host field (RFC 9112, 3.2.2);
    // over HTTP/2 the two must agree (RFC 9113, 8.3.1).
    if head.version >= Version::HTTP_2
        && let Some(host) = host
        && !host.as_bytes().eq_ignore_ascii_case(authority.as_str().as_bytes())
    {
        return Err(Refusal::Host);
    }
    let host = HeaderValue::from_str(authority.as_str()).map_err(|_| Refusal::Target)?;
    // A target that is an authority and a fragment has a path that reads as "/" and is written as
    // nothing, which would leave a hole in the request line.
    let path = head.uri.path_and_query().filter(|path| path.as_str() != "/").cloned();
    let path = path.unwrap_or_else(|| PathAndQuery::from_static("/"));
    head.uri = Uri::from(path);
    head.headers.insert(HOST, host);
    Ok(())
}

/// Tells whether `host` is `name[:port]`, `v4[:port]` or `[v6][:port]`, without user information.
pub(crate) fn is_authority(host: &[u8]) -> bool {
    let (name_is_valid, port) = if let Some(rest) = host.strip_prefix(b"[") {
        let Some(end) = rest.iter().position(|&byte| byte == b']') else {
            return false;
        };
        let address = std::str::from_utf8(&rest[..end])
            .ok()
            .and_then(|text| text.parse::<std::net::Ipv6Addr>().ok());
        (address.is_some(), &rest[end + 1..])
    } else {
        let end = host.iter().position(|&byte| byte == b':').unwrap_or(host.len());
        let name = &host[..end];
        let valid = !name.is_empty()
            && name
                .iter()
                .all(|&byte| byte.is_ascii_alphanumeric() || b"-._~%!$&'()*+,;=".contains(&byte));
        (valid, &host[end..])
    };
    name_is_valid
        && match port {
            [] => true,
            [b':', digits @ ..] => digits.len() <= 5 && digits.iter().all(u8::is_ascii_digit),
            _ => false,
        }
}

fn asks_for_websocket(head: &request::Parts) -> bool {
    // Other protocols are not switched to: `h2c` in particular would carry requests past the rules
    // of this proxy. A server may ignore an upgrade it does not like (RFC 9110, 7.8).
    head.version == Version::HTTP_11
        && head.method == Method::GET
        && head
            .headers
            .get(UPGRADE)
            .is_some_and(|value| value.as_bytes().eq_ignore_ascii_case(b"websocket"))
        && tokens(&head.headers, &CONNECTION).any(|token| token.eq_ignore_ascii_case("upgrade"))
}

/// Walks over the comma-separated members of all lines of `name`.
fn tokens<'a>(headers: &'a HeaderMap, name: &HeaderName) -> impl Iterator<Item = &'a str> {
    headers
        .get_all(name)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|line| line.split(','))
        .map(str::trim)
        .filter(|token| !token.is_empty())
}

/// The client at the other end of a connection, in the form in which origins are told of it.
#[derive(Debug, Clone)]
pub struct Peer {
    addr: SocketAddr,
    forwarded_for: HeaderValue,
    forwarded: HeaderValue,
}

impl Peer {
    /// Describes a client that came over plain HTTP from `addr`.
    ///
    /// # Cost
    ///
    /// Formats the fields once; made per connection, so that a request only clones them.
    pub fn new(addr: SocketAddr) -> Self {
        let ip = match addr.ip() {
            IpAddr::V6(v6) => v6.to_ipv4_mapped().map_or(IpAddr::V6(v6), IpAddr::V4),
            v4 => v4,
        };
        let node = match ip {
            IpAddr::V4(v4) => format!("for={v4};proto=http"),
            IpAddr::V6(v6) => format!("for=\"[{v6}]\";proto=http"),
        };
        Self { addr, forwarded_for: ascii(&ip.to_string()), forwarded: ascii(&node) }
    }

    /// Returns the address that the connection came from.
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }
}

fn ascii(text: &str) -> HeaderValue {
    HeaderValue::from_str(text).expect("addresses and hexadecimal digits are visible ascii")
}

/// Says which Host field the origin sees.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum HostPolicy {
    /// The one that the client sent.
    #[default]
    Preserve,
    /// The origin's own authority.
    Origin,
}

/// Rewrites heads between the clients and one origin.
#[derive(Debug, Clone)]
pub struct Forwarder {
    host: HostPolicy,
    authority: HeaderValue,
    base_path: String,
    pseudonym: String,
    via: [HeaderValue; 3],
}

impl Forwarder {
    /// Makes a forwarder to the origin `authority`, whose paths all start with `base_path`.
    ///
    /// `instance` distinguishes this process from others; a request that carries it has come back
    /// in a circle.
    pub fn new(authority: &Authority, base_path: &str, host: HostPolicy, instance: u64) -> Self {
        let pseudonym = format!("ultra-perf-{instance:016x}");
        let via = ["1.0", "1.1", "2"].map(|version| ascii(&format!("{version} {pseudonym}")));
        Self {
            host,
            authority: ascii(authority.as_str()),
            base_path: base_path.trim_end_matches('/').to_owned(),
            pseudonym,
            via,
        }
    }

    /// Turns a normalized request into the one for the origin and returns its request id.
    ///
    /// What the client claims in `Forwarded`, `X-Forwarded-*` and `X-Real-IP` is replaced by what
    /// the proxy knows. A sane `X-Request-ID` is kept; otherwise the id is made of `random`.
    ///
    /// # Errors
    ///
    /// [`Refusal::Loop`] if this forwarder stands in the Via field, and [`Refusal::Target`] if the
    /// target does not fit behind the base path.
    pub fn request(
        &self,
        head: &mut request::Parts,
        peer: &Peer,
        random: u64,
    ) -> Result<HeaderValue, Refusal> {
        if tokens(&head.headers, &VIA).any(|hop| hop.contains(&self.pseudonym)) {
            return Err(Refusal::Loop);
        }
        if !self.base_path.is_empty() {
            head.uri = self.rebase(&head.uri)?;
        }
        remove_claims(&mut head.headers);

        let headers = &mut head.headers;
        // hyper has made the map just as large as the request; grow it once.
        headers.reserve(FIELDS_ADDED);
        if let Some(host) = headers.get(HOST) {
            let host = host.clone();
            headers.insert(X_FORWARDED_HOST, host);
        }
        if self.host == HostPolicy::Origin || !headers.contains_key(HOST) {
            headers.insert(HOST, self.authority.clone());
        }
        headers.insert(X_FORWARDED_FOR, peer.forwarded_for.clone());
        headers.insert(X_FORWARDED_PROTO, HeaderValue::from_static("http"));
        headers.insert(FORWARDED, peer.forwarded.clone());
        let via = match head.version {
            Version::HTTP_10 => &self.via[0],
            Version::HTTP_11 => &self.via[1],
            _ => &self.via[2],
        };
        headers.append(VIA, via.clone());
        let id = match headers.get(X_REQUEST_ID) {
            Some(id) if is_sane_id(id.as_bytes()) => id.clone(),
            _ => {
                let id = request_id(random);
                headers.insert(X_REQUEST_ID, id.clone());
                id
            }
        };
        head.version = Version::HTTP_11;
        Ok(id)
    }

    /// Turns the origin's response into the one for the client.
    pub fn response(&self, head: &mut response::Parts) {
        let upgrade = (head.status == StatusCode::SWITCHING_PROTOCOLS)
            .then(|| head.headers.get(UPGRADE).cloned())
            .flatten();
        remove_hop_by_hop(&mut head.headers);
        if let Some(protocol) = upgrade {
            head.headers.insert(CONNECTION, HeaderValue::from_static("upgrade"));
            head.headers.insert(UPGRADE, protocol);
        }
        head.version = Version::HTTP_11;
    }

    fn rebase(&self, uri: &Uri) -> Result<Uri, Refusal> {
        let target = match uri.path_and_query() {
            Some(target) if target.path() != "*" => target.as_str(),
            Some(_) => return Ok(uri.clone()),
            None => "/",
        };
        let mut joined = String::with_capacity(self.base_path.len() + target.len());
        joined.push_str(&self.base_path);
        joined.push_str(target);
        PathAndQuery::try_from(joined).map(Uri::from).map_err(|_| Refusal::Target)
    }
}

/// Removes what only a proxy may say and a client could have made up.
fn remove_claims(headers: &mut HeaderMap) {
    let claims: Vec<HeaderName> =
        headers.keys().filter(|name| name.as_str().starts_with("x-forwarded-")).cloned().collect();
    for name in claims {
        headers.remove(name);
    }
    headers.remove(FORWARDED);
    headers.remove(X_REAL_IP);
    // Read as the variable HTTP_PROXY by programs behind CGI.
    headers.remove(PROXY);
}

/// Makes a request id of 16 hexadecimal digits.
pub fn request_id(random: u64) -> HeaderValue {
    let mut digits = [0; 16];
    for (place, digit) in digits.iter_mut().rev().enumerate() {
        *digit = b"0123456789abcdef"[(random >> (4 * place)) as usize & 0xf];
    }
    HeaderValue::from_bytes(&digits).expect("hexadecimal digits are visible ascii")
}

pub(crate) fn is_sane_id(id: &[u8]) -> bool {
    (1..=REQUEST_ID_BYTES_MAX).contains(&id.len())
        && id.iter().all(|&byte| byte.is_ascii_alphanumeric() || b"-_.:/+=@".contains(&byte))
}

/// Makes an answer of the proxy itself: a problem document (RFC 9457) that is never stored.
pub fn problem(status: StatusCode, detail: &str) -> Response<Full<Bytes>> {
    let title = status.canonical_reason().unwrap_or("Error");
    let mut body = String::with_capacity(96 + detail.len());
    let _ = write!(
        body,
        "{{\"type\":\"about:blank\",\"title\":\"{title}\",\"status\":{},\"detail\":\"",
        status.as_u16()
    );
    for c in detail.chars() {
        match c {
            '"' => body.push_str("\\\""),
            '\\' => body.push_str("\\\\"),
            c if c.is_control() => {
                let _ = write!(body, "\\u{:04x}", u32::from(c));
            }
            c => body.push(c),
        }
    }
    body.push_str("\"}\n");
    let mut response = Response::new(Full::new(Bytes::from(body)));
    *response.status_mut() = status;
    response
        .headers_mut()
        .insert(CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
    response.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

#[cfg(test)]
mod tests;
