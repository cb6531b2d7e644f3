//! Target URIs as cache keys, and which of them a change invalidates (RFC 9111 section 4.4).
//!
//! A key is `scheme://host[:port]/path[?query]` with scheme and host in lower case and without the
//! default port. Path and query stay byte for byte: `%7E` and `~` mean the same to RFC 3986, as
//! does `/a/../b` to `/b`, but not to every origin. Two keys for one resource cost a miss; one key
//! for two resources would serve the wrong one.

use http::header::{CONTENT_LOCATION, HeaderName, LOCATION};
use http::{HeaderMap, Method, StatusCode};

/// Builds the cache key of a target URI; see [`write_target_key`].
pub fn target_key(scheme: &str, authority: &str, path_and_query: &str) -> String {
    let mut key = String::new();
    write_target_key(scheme, authority, path_and_query, &mut key);
    key
}

/// Appends the cache key of a target URI.
///
/// An empty path becomes `/`, and a fragment is cut off.
///
/// # Cost
///
/// At most one allocation, when `out` has no room.
pub fn write_target_key(scheme: &str, authority: &str, path_and_query: &str, out: &mut String) {
    out.reserve(scheme.len() + authority.len() + path_and_query.len() + 4);
    let start = out.len();
    out.push_str(scheme);
    out.push_str("://");
    out.push_str(without_default_port(scheme, authority));
    if let Some(origin) = out.get_mut(start..) {
        origin.make_ascii_lowercase();
    }
    let target = path_and_query.split('#').next().unwrap_or_default();
    if !target.starts_with('/') {
        out.push('/');
    }
    out.push_str(target);
}

fn without_default_port<'a>(scheme: &str, authority: &'a str) -> &'a str {
    let Some((host, port)) = authority.rsplit_once(':') else { return authority };
    let default = (scheme.eq_ignore_ascii_case("http") && port == "80")
        || (scheme.eq_ignore_ascii_case("https") && port == "443");
    if port.is_empty() || default { host } else { authority }
}

/// Tells whether a method may change something, so that its success invalidates.
///
/// Every method that is not known to be safe counts (RFC 9110 section 9.2.1).
pub fn is_unsafe(method: &Method) -> bool {
    ![Method::GET, Method::HEAD, Method::OPTIONS, Method::TRACE].contains(method)
}

/// Returns the keys that an answer invalidates: the target, `Location` and `Content-Location`.
///
/// `target` is the request's own key. The list is empty unless the method is unsafe and the answer
/// is 2xx or 3xx. References to other hosts or ports are left out, so that one site cannot empty
/// another's cache; `http` and `https` count as one, because whoever ends TLS in front of the
/// cache makes the origin name a scheme that the cache does not see.
pub fn invalidated(
    method: &Method,
    target: &str,
    status: StatusCode,
    response: &HeaderMap,
) -> Vec<String> {
    const NAMES: [HeaderName; 2] = [LOCATION, CONTENT_LOCATION];
    if !is_unsafe(method) || !(status.is_success() || status.is_redirection()) {
        return Vec::new();
    }
    let mut keys = vec![target.to_owned()];
    let references = NAMES.iter().filter_map(|name| response.get(name)?.to_str().ok());
    for key in references.filter_map(|reference| resolve(target, reference)) {
        if !keys.contains(&key) {
            keys.push(key);
        }
    }
    keys
}

/// Resolves a reference against a key (RFC 3986 section 5.2); `None` when it leads elsewhere.
fn resolve(base: &str, reference: &str) -> Option<String> {
    let (scheme, rest) = base.split_once("://")?;
    let path_at = rest.find('/')?;
    let (authority, base_target) = rest.split_at(path_at);
    let base_path = base_target.split('?').next().unwrap_or_default();

    let reference = reference.trim_matches([' ', '\t']).split('#').next().unwrap_or_default();
    let target = match split_origin(scheme, reference) {
        Some((their_scheme, their_authority, target)) => {
            let theirs = without_default_port(their_scheme, their_authority);
            if !theirs.eq_ignore_ascii_case(authority) {
                return None;
            }
            target
        }
        None if has_scheme(reference) => return None,
        None => reference,
    };
    let (path, query) = match target.split_once('?') {
        Some((path, query)) => (path, Some(query)),
        None => (target, None),
    };
    let absolute = target.len() < reference.len();
    let path = if path.starts_with('/') || (absolute && path.is_empty()) {
        remove_dot_segments(path)
    } else if path.is_empty() {
        if query.is_none() {
            return Some(base.to_owned());
        }
        base_path.to_owned()
    } else {
        let directory = &base_path[..=base_path.rfind('/')?];
        remove_dot_segments(&format!("{directory}{path}"))
    };
    let mut target = path;
    if let Some(query) = query {
        target.push('?');
        target.push_str(query);
    }
    Some(target_key(scheme, authority, &target))
}

/// Splits `http://host/path` and `//host/path` into scheme, authority and the rest.
fn split_origin<'a>(
    base_scheme: &'a str,
    reference: &'a str,
) -> Option<(&'a str, &'a str, &'a str)> {
    let (scheme, rest) = if let Some(rest) = reference.strip_prefix("//") {
        (base_scheme, rest)
    } else {
        let (scheme, rest) = reference.split_once("://")?;
        let web = ["http", "https"].iter().any(|known| known.eq_ignore_ascii_case(scheme));
        (web.then_some(scheme)?, rest)
    };
    let end = rest.find(['/', '?']).unwrap_or(rest.len());
    let (authority, target) = rest.split_at(end);
    Some((scheme, authority, target))
}

/// Whether a reference begins with a scheme, so that it is no path.
fn has_scheme(reference: &str) -> bool {
    let end = reference.find([':', '/', '?']).unwrap_or(reference.len());
    reference[end..].starts_with(':')
}

/// RFC 3986 section 5.2.4, for a path that is absolute or empty.
fn remove_dot_segments(path: &str) -> String {
    let mut kept: Vec<&str> = Vec::new();
    let segments = path.strip_prefix('/').unwrap_or(path);
    let mut ends_open = false;
    for segment in segments.split('/') {
        ends_open = matches!(segment, "." | "..");
        match segment {
            "." => {}
            ".." => {
                kept.pop();
            }
            _ => kept.push(segment),
        }
    }
    let mut clean = String::with_capacity(path.len() + 1);
    for segment in &kept {
        clean.push('/');
        clean.push_str(segment);
    }
    if ends_open || kept.is_empty() {
        clean.push('/');
    }
    clean
}

#[cfg(test)]
mod tests;
