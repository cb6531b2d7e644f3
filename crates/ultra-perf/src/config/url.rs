//! The two kinds of URL that the configuration holds: the backend's and Redis's.
//!
//! Both are checked for form only; whether somebody answers is found out when it is needed. A
//! Redis URL may carry a password, so every way of printing one leaves it out.

use std::{
    fmt,
    net::{IpAddr, Ipv6Addr, SocketAddr},
    str::FromStr,
};

use serde::{Serialize, Serializer};

/// Names the backend: host, port and base path of an `http://` URL.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct BackendUrl {
    host: String,
    port: u16,
    base_path: String,
}

impl BackendUrl {
    /// Returns the host: a name or an address, IPv6 without brackets.
    #[must_use]
    pub fn host(&self) -> &str {
        &self.host
    }

    /// Returns the port, 80 unless the URL names one.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Returns what goes before each request's path: empty, or `/base` without a slash at its end.
    #[must_use]
    pub fn base_path(&self) -> &str {
        &self.base_path
    }

    /// Returns `host:port` as a `Host` field spells it: IPv6 in brackets, no port if it is 80.
    #[must_use]
    pub fn authority(&self) -> String {
        let host = match self.host.parse::<Ipv6Addr>() {
            Ok(address) => format!("[{address}]"),
            Err(_) => self.host.clone(),
        };
        match self.port {
            80 => host,
            port => format!("{host}:{port}"),
        }
    }

    /// Tells whether a request to this backend would arrive at a listener on `listen`.
    pub(super) fn reaches(&self, listen: SocketAddr) -> bool {
        if self.port != listen.port() {
            return false;
        }
        let same =
            |ip: IpAddr| ip == listen.ip() || (listen.ip().is_unspecified() && ip.is_loopback());
        match self.host.parse::<IpAddr>() {
            Ok(ip) => same(ip),
            Err(_) => {
                self.host == "localhost"
                    && (listen.ip().is_loopback() || listen.ip().is_unspecified())
            }
        }
    }
}

impl fmt::Display for BackendUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "http://{}{}", self.authority(), self.base_path)
    }
}

impl Serialize for BackendUrl {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl FromStr for BackendUrl {
    type Err = ParseUrlError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let rest = strip_scheme(text, "http").ok_or(ParseUrlError::Backend)?;
        if rest.contains(['?', '#']) {
            return Err(ParseUrlError::Query);
        }
        let (authority, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
        if authority.contains('@') {
            return Err(ParseUrlError::Credentials);
        }
        let (host, port) = split_port(authority).ok_or(ParseUrlError::Backend)?;
        let host = host.to_ascii_lowercase();
        let host = match host.strip_prefix('[').and_then(|h| h.strip_suffix(']')) {
            Some(inner) => {
                inner.parse::<Ipv6Addr>().map_err(|_| ParseUrlError::Backend)?.to_string()
            }
            None if is_host_name(&host) => host,
            None => return Err(ParseUrlError::Backend),
        };
        let base_path = path.trim_end_matches('/');
        let is_path_byte = |b: u8| b.is_ascii_alphanumeric() || b"/-._~%!$&'()*+,;=:@".contains(&b);
        if !base_path.bytes().all(is_path_byte)
            || base_path.split('/').any(|s| s == "." || s == "..")
        {
            return Err(ParseUrlError::Backend);
        }
        Ok(Self { host, port: port.unwrap_or(80), base_path: base_path.to_owned() })
    }
}

/// Holds the URL of a Redis server, cluster or sentinel, and never prints its passwords.
///
/// `Debug`, `Display` and `Serialize` show `***` instead; [`RedisUrl::expose`] gives all of it.
#[derive(Clone, PartialEq, Eq)]
pub struct RedisUrl(String);

/// With `s` for TLS; each also as `-cluster` and `-sentinel`.
const REDIS_SCHEMES: [&str; 4] = ["redis", "rediss", "valkey", "valkeys"];

impl RedisUrl {
    /// Returns the whole URL with its passwords, for the client that connects.
    #[must_use]
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl FromStr for RedisUrl {
    type Err = ParseUrlError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let malformed = ParseUrlError::Redis;
        let text = text.trim();
        let (scheme, rest) = text.split_once("://").ok_or(malformed)?;
        let scheme = scheme.to_ascii_lowercase();
        let base = scheme
            .strip_suffix("-cluster")
            .or_else(|| scheme.strip_suffix("-sentinel"))
            .unwrap_or(&scheme);
        if !REDIS_SCHEMES.contains(&base)
            || text.contains(|c: char| c.is_whitespace() || c.is_control())
        {
            return Err(malformed);
        }
        // A `/`, `?` or `#` in a password must be percent-encoded; otherwise its rest would pass for
        // a path here and for nothing sensible in the client.
        let (authority, tail) = rest.split_at(rest.find(['/', '?', '#']).unwrap_or(rest.len()));
        if tail.contains(['@', '#']) {
            return Err(ParseUrlError::RedisEncoding);
        }
        let host_and_port = authority.rsplit_once('@').map_or(authority, |(_, host)| host);
        let (host, port) = split_port(host_and_port).ok_or(malformed)?;
        let bracketed = host.strip_prefix('[').and_then(|h| h.strip_suffix(']'));
        let is_host = bracketed.map_or(is_host_name(host), |ip| ip.parse::<Ipv6Addr>().is_ok());
        if !is_host || port == Some(0) {
            return Err(malformed);
        }
        let path = tail[..tail.find(['?', '#']).unwrap_or(tail.len())].trim_start_matches('/');
        if !path.is_empty() && path.parse::<u16>().is_err() {
            return Err(ParseUrlError::RedisDatabase);
        }
        Ok(Self(text.to_owned()))
    }
}

impl fmt::Display for RedisUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (head, query) = self.0.split_once('?').unwrap_or((&self.0, ""));
        match head.rsplit_once('@') {
            Some((credentials, host)) => {
                let (scheme, user) = credentials.split_once("://").expect("checked when parsed");
                let user = user.split_once(':').map_or("", |(user, _)| user);
                write!(f, "{scheme}://{user}:***@{host}")?;
            }
            None => f.write_str(head)?,
        }
        let mut separator = '?';
        for pair in query.split('&').filter(|pair| !pair.is_empty()) {
            match pair.split_once('=') {
                // Only addresses and names are known to be harmless.
                Some((name @ ("node" | "sentinelServiceName" | "sentinelUsername"), value)) => {
                    write!(f, "{separator}{name}={value}")?;
                }
                Some((name, _)) => write!(f, "{separator}{name}=***")?,
                None => write!(f, "{separator}***")?,
            }
            separator = '&';
        }
        Ok(())
    }
}

impl fmt::Debug for RedisUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "RedisUrl({self})")
    }
}

impl Serialize for RedisUrl {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// Leaves of a text that may be a URL what can be shown even if it is malformed.
///
/// Without a well-formed URL there is no telling which part is the password, so only a scheme that
/// consists of letters stays.
pub(super) fn redact_malformed(text: &str) -> String {
    match text.split_once("://") {
        Some((scheme, _)) if scheme.bytes().all(|b| b.is_ascii_lowercase() || b == b'-') => {
            format!("{scheme}://***")
        }
        _ => "***".to_owned(),
    }
}

/// Says why a text is no URL of the wanted kind, in the words of what would be right.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ParseUrlError {
    /// The text is no `http://` URL.
    #[error("must be an http:// URL such as \"http://127.0.0.1:8000\"")]
    Backend,
    /// The backend's URL has a query or a fragment.
    #[error("must be a URL without a query or fragment")]
    Query,
    /// The backend's URL has a user name or a password.
    #[error("must be a URL without a user name or password")]
    Credentials,
    /// The text is no Redis URL.
    #[error(
        "must be a URL such as \"redis://127.0.0.1:6379\", with rediss:// for TLS and redis-cluster:// for a cluster"
    )]
    Redis,
    /// The Redis URL has an `@` behind its host.
    #[error("must be a URL with the characters / ? # @ of its password percent-encoded")]
    RedisEncoding,
    /// The path of the Redis URL is no number.
    #[error("must be a URL whose path, if any, is the number of a database")]
    RedisDatabase,
}

fn strip_scheme<'a>(text: &'a str, scheme: &str) -> Option<&'a str> {
    let (found, rest) = text.trim().split_once("://")?;
    found.eq_ignore_ascii_case(scheme).then_some(rest)
}

/// Splits `host:port`; `None` if the port is no number from 0 to 65535.
fn split_port(authority: &str) -> Option<(&str, Option<u16>)> {
    match authority.rsplit_once(':') {
        Some((host, port)) if !port.ends_with(']') => {
            let digits = !port.is_empty() && port.bytes().all(|b| b.is_ascii_digit());
            digits.then_some(())?;
            Some((host, Some(port.parse().ok()?)))
        }
        _ => Some((authority, None)),
    }
}

fn is_host_name(host: &str) -> bool {
    let is_label = |label: &str| {
        (1..=63).contains(&label.len())
            && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
    };
    host.len() <= 253 && host.strip_suffix('.').unwrap_or(host).split('.').all(is_label)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn backend(text: &str) -> Result<(String, u16, String, String), ParseUrlError> {
        let url = text.parse::<BackendUrl>()?;
        assert_eq!(url.to_string().parse(), Ok(url.clone()), "printed form of {text}");
        Ok((url.host().to_owned(), url.port(), url.base_path().to_owned(), url.authority()))
    }

    #[test]
    fn a_backend_url_is_taken_apart() {
        for (text, host, port, path, authority) in [
            ("http://127.0.0.1:8000", "127.0.0.1", 8000, "", "127.0.0.1:8000"),
            ("HTTP://Shop.Example/", "shop.example", 80, "", "shop.example"),
            ("http://[::1]:9/api/v1//", "::1", 9, "/api/v1", "[::1]:9"),
            ("http://[::1]", "::1", 80, "", "[::1]"),
            ("http://my_service:81/a%20b", "my_service", 81, "/a%20b", "my_service:81"),
        ] {
            let expected = (host.to_owned(), port, path.to_owned(), authority.to_owned());
            assert_eq!(backend(text), Ok(expected), "{text}");
        }
    }

    #[test]
    fn what_is_no_backend_url_is_refused() {
        use ParseUrlError::{Backend, Credentials, Query};
        for (text, error) in [
            ("", Backend),
            ("127.0.0.1:8000", Backend),
            ("https://a", Backend),
            ("http://", Backend),
            ("http://a:", Backend),
            ("http://a:65536", Backend),
            ("http://a:+1", Backend),
            ("http://a b", Backend),
            ("http://[::1", Backend),
            ("http://a..b", Backend),
            ("http://a/../b", Backend),
            ("http://a/\r\nX: y", Backend),
            ("http://a/?q", Query),
            ("http://a#f", Query),
            ("http://user:pass@a", Credentials),
        ] {
            assert_eq!(backend(text), Err(error), "{text}");
        }
    }

    #[test]
    fn a_backend_that_is_the_listener_is_recognised() {
        for (url, listen, reaches) in [
            ("http://127.0.0.1:80", "127.0.0.1:80", true),
            ("http://localhost:80", "127.0.0.1:80", true),
            ("http://localhost:80", "0.0.0.0:80", true),
            ("http://[::1]:80", "[::]:80", true),
            ("http://127.0.0.1:81", "127.0.0.1:80", false),
            ("http://127.0.0.2:80", "127.0.0.1:80", false),
            ("http://elsewhere:80", "0.0.0.0:80", false),
        ] {
            let url: BackendUrl = url.parse().unwrap();
            assert_eq!(url.reaches(listen.parse().unwrap()), reaches, "{url} {listen}");
        }
    }

    #[test]
    fn a_redis_url_shows_no_password() {
        for (text, shown) in [
            ("redis://127.0.0.1:6379", "redis://127.0.0.1:6379"),
            ("redis://:hunter2@h:1/3", "redis://:***@h:1/3"),
            ("rediss://me:hunter2@h", "rediss://me:***@h"),
            ("redis://hunter2@h", "redis://:***@h"),
            ("redis://me:hunter2@hunter2@h", "redis://me:***@h"),
            (
                "valkey-cluster://:hunter2@[::1]:7?node=b:8&node=c:9",
                "valkey-cluster://:***@[::1]:7?node=b:8&node=c:9",
            ),
            (
                "redis-sentinel://h:1/0?sentinelServiceName=s&sentinelPassword=hunter2&hunter2",
                "redis-sentinel://h:1/0?sentinelServiceName=s&sentinelPassword=***&***",
            ),
        ] {
            let url: RedisUrl = text.parse().unwrap();
            assert_eq!(url.expose(), text);
            assert_eq!(url.to_string(), shown);
            assert_eq!(format!("{url:?}"), format!("RedisUrl({shown})"));
            assert_eq!(serde_json::to_value(&url).unwrap(), shown);
        }
    }

    #[test]
    fn what_is_no_redis_url_is_refused() {
        use ParseUrlError::{Redis, RedisDatabase, RedisEncoding};
        for (text, error) in [
            ("", Redis),
            ("127.0.0.1:6379", Redis),
            ("http://h", Redis),
            ("redis-other://h", Redis),
            ("redis://", Redis),
            ("redis://h:0", Redis),
            ("redis://h:port", Redis),
            ("redis://:hunter2", Redis),
            ("redis://h h", Redis),
            ("redis://:a/b@h", RedisEncoding),
            ("redis://h/name", RedisDatabase),
        ] {
            assert_eq!(text.parse::<RedisUrl>(), Err(error), "{text}");
        }
    }

    proptest! {
        #[test]
        fn a_password_never_comes_out(
            user in "[a-z]{0,5}",
            password in "[A-Z0-9%!:]{3,20}",
            host in "[a-z]{1,8}",
        ) {
            let text = format!("redis://{user}:{password}@{host}:6379/0");
            let url: RedisUrl = text.parse().unwrap();
            let shown = format!("{url} {url:?}");
            let leaked = format!("{password}@");
            prop_assert!(!shown.contains(&leaked));
            prop_assert_eq!(url.to_string(), format!("redis://{user}:***@{host}:6379/0"));
            prop_assert!(!redact_malformed(&text).contains(&password));
        }

        #[test]
        fn any_text_is_a_url_or_refused(text in "\\PC*|(redis|http)://[a-z@:/?\\[\\]#0-9]{0,20}") {
            let _ = text.parse::<BackendUrl>().map(|url| (url.authority(), url.to_string()));
            let _ = text.parse::<RedisUrl>().map(|url| url.to_string());
            let _ = redact_malformed(&text);
        }
    }
}
