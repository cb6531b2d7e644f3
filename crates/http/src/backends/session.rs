//! Sessions: a signed cookie that keeps a client on its backend.
//!
//! The cookie names a backend by a hash of its id and carries a signature of that, both by
//! HMAC-SHA256 (RFC 2104, FIPS 180-4) under a key that only servers know. So it tells nobody where a
//! backend is, and nobody can make one for a backend of his choice. There is one such cookie for each
//! backend, made at the start; a request's is compared with them in a time that does not depend on
//! how much of it is right.

use std::fmt::Write as _;

use hmac::{Hmac, KeyInit as _, Mac as _};
use http::header::COOKIE;
use http::{HeaderMap, HeaderValue};
use sha2::Sha256;
use ultra_perf::config::Secret;

/// Bytes of the hash and of the signature in a cookie.
const HASH_BYTES: usize = 8;
const SIGNATURE_BYTES: usize = 16;

/// How clients are kept on their backends.
#[derive(Debug)]
pub(crate) struct Sessions {
    name: String,
    /// The value of each backend's cookie, and the field that sets it.
    backends: Box<[(String, HeaderValue)]>,
}

impl Sessions {
    /// Makes the cookies of backends; without a `key`, with one that is drawn now.
    pub(super) fn new<'a>(
        name: &str,
        key: Option<&Secret>,
        ids: impl Iterator<Item = &'a str>,
    ) -> Result<Self, getrandom::Error> {
        let key = match key {
            Some(key) => *key.expose(),
            None => {
                tracing::info!(
                    "the key of balancer.sticky_cookie is drawn at random, so sessions end with this \
                     process; balancer.sticky_key sets one"
                );
                random_key()?
            }
        };
        let backends = ids.map(|id| {
            let value = value_of(&key, id);
            let field = format!("{name}={value}; Path=/; HttpOnly; SameSite=Lax");
            let field = HeaderValue::from_str(&field)
                .expect("the name of a cookie was checked, and hexadecimal digits are ascii");
            (value, field)
        });
        Ok(Self { name: name.to_owned(), backends: backends.collect() })
    }

    /// Takes our cookie out of a request; returns the number of the backend that it names.
    ///
    /// It is between the client and this server: no backend sees it, and no answer varies by it.
    pub(crate) fn take(&self, headers: &mut HeaderMap) -> Option<usize> {
        // As bytes: what other cookies hold is none of our business, and need not be text.
        let pairs =
            headers.get_all(COOKIE).iter().flat_map(|line| line.as_bytes().split(|it| *it == b';'));
        let (mut ours, mut others) = (None, Vec::new());
        for pair in pairs.map(<[u8]>::trim_ascii).filter(|pair| !pair.is_empty()) {
            match self.value_in(pair) {
                Some(value) => ours = ours.or(Some(value)),
                None => others.push(pair),
            }
        }
        let ours = ours?;
        let at = self.backends.iter().position(|(known, _)| is_same(known.as_bytes(), ours));
        let others = HeaderValue::from_bytes(&others.join(&b"; "[..]));
        headers.remove(COOKIE);
        if let Ok(others) = others
            && !others.is_empty()
        {
            headers.insert(COOKIE, others);
        }
        at
    }

    /// The value of a cookie if it is ours.
    fn value_in<'a>(&self, pair: &'a [u8]) -> Option<&'a [u8]> {
        let rest = pair.strip_prefix(self.name.as_bytes())?.trim_ascii_start();
        Some(rest.strip_prefix(b"=")?.trim_ascii())
    }

    /// Returns the `Set-Cookie` that keeps a client on a backend.
    pub(super) fn cookie(&self, at: usize) -> HeaderValue {
        self.backends[at].1.clone()
    }
}

fn random_key() -> Result<[u8; 32], getrandom::Error> {
    let mut key = [0; 32];
    getrandom::fill(&mut key)?;
    Ok(key)
}

fn value_of(key: &[u8; 32], id: &str) -> String {
    let hash = mac(key, "backend", id.as_bytes());
    let hash = hex(&hash[..HASH_BYTES]);
    let signature = mac(key, "signature", hash.as_bytes());
    format!("{hash}.{}", hex(&signature[..SIGNATURE_BYTES]))
}

fn mac(key: &[u8; 32], what: &str, message: &[u8]) -> [u8; 32] {
    let mut mac = Hmac::<Sha256>::new_from_slice(key).expect("a key of any length will do");
    mac.update(what.as_bytes());
    mac.update(&[0]);
    mac.update(message);
    mac.finalize().into_bytes().into()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// Compares in a time that depends on the lengths alone.
fn is_same(known: &[u8], value: &[u8]) -> bool {
    known.len() == value.len()
        && known.iter().zip(value).fold(0, |differ, (a, b)| differ | (a ^ b)) == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    const IDS: [&str; 2] = ["http://a", "http://b"];

    fn sessions(name: &str) -> Sessions {
        Sessions::new(name, None, IDS.into_iter()).expect("random bytes")
    }

    fn request(lines: &[&str]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for line in lines {
            headers.append(COOKIE, HeaderValue::from_str(line).expect("a line"));
        }
        headers
    }

    #[test]
    fn a_cookie_names_its_backend_and_goes_no_further() {
        let sessions = sessions("s");
        for at in 0..2 {
            let field = sessions.cookie(at);
            let field = field.to_str().expect("ascii");
            let pair = field.strip_suffix("; Path=/; HttpOnly; SameSite=Lax").expect("attributes");
            assert!(!pair.contains("http"), "{pair}");
            for (line, left) in [
                (pair.to_owned(), None),
                (format!("a=1; {pair}; b=2"), Some("a=1; b=2")),
                (format!("a=1;{pair}"), Some("a=1")),
            ] {
                let mut headers = request(&[&line]);
                assert_eq!(sessions.take(&mut headers), Some(at), "{line}");
                let kept = headers.get(COOKIE).map(|it| it.to_str().expect("ascii"));
                assert_eq!(kept, left, "{line}");
            }
        }
    }

    #[test]
    fn other_cookies_go_on_byte_for_byte() {
        let sessions = sessions("s");
        let ours = sessions.cookie(0);
        let pair = ours.as_bytes().split(|it| *it == b';').next().expect("a pair");
        let line = [&b"a=caf\xe9; s2=x; "[..], pair].concat();
        let mut headers = HeaderMap::new();
        headers.append(COOKIE, HeaderValue::from_bytes(&line).expect("a line"));
        headers.append(COOKIE, HeaderValue::from_static("b=2"));
        assert_eq!(sessions.take(&mut headers), Some(0));
        let left: Vec<_> = headers.get_all(COOKIE).iter().map(HeaderValue::as_bytes).collect();
        assert_eq!(left, [b"a=caf\xe9; s2=x; b=2"]);
    }

    #[test]
    fn what_was_not_signed_here_names_nobody() {
        let (ours, others) = (sessions("s"), sessions("s"));
        let pair = |sessions: &Sessions, at| {
            let field = sessions.cookie(at).to_str().expect("ascii").to_owned();
            field.split(';').next().expect("a pair").to_owned()
        };
        let [first, second] = [pair(&ours, 0), pair(&ours, 1)];
        let crossed =
            format!("{}.{}", first.split('.').next().unwrap(), second.split('.').nth(1).unwrap());
        for wrong in
            [pair(&others, 0), crossed, "s=".to_owned(), "s=x".to_owned(), format!("{first}0")]
        {
            assert_eq!(ours.take(&mut request(&[&wrong])), None, "{wrong}");
        }
        let mut untouched = request(&["a=1", "b=2"]);
        assert_eq!(ours.take(&mut untouched), None);
        assert_eq!(untouched.get_all(COOKIE).iter().count(), 2);
    }

    #[test]
    fn servers_with_the_same_key_agree() {
        let (a, b) = (value_of(&[7; 32], "http://a"), value_of(&[7; 32], "http://a"));
        assert_eq!((a.len(), a == b), (16 + 1 + 32, true));
        assert_ne!(a, value_of(&[8; 32], "http://a"));
    }
}
