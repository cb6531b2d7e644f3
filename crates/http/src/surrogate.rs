//! Surrogate keys: the tags that an origin gives its answers, to invalidate many of them at once.
//!
//! `Surrogate-Key` (Fastly, Varnish) separates its tags by white space, `Cache-Tag` (Cloudflare, Akamai)
//! by commas; an answer may have both. They go on to the client, where another cache may want them.

use http::HeaderMap;
use ultra_perf::cache_tiered::Tag;

const SURROGATE_KEY: &str = "surrogate-key";
const CACHE_TAG: &str = "cache-tag";

/// Returns the tags of an answer. Case matters.
pub(crate) fn tags(headers: &HeaderMap) -> Vec<Tag> {
    let keys =
        fields(headers, SURROGATE_KEY).flat_map(|field| field.split(u8::is_ascii_whitespace));
    let tags = fields(headers, CACHE_TAG).flat_map(|field| field.split(|byte| *byte == b','));
    let names = keys.chain(tags).map(<[u8]>::trim_ascii).filter(|name| !name.is_empty());
    names.map(Tag::new).collect()
}

fn fields<'a>(headers: &'a HeaderMap, name: &str) -> impl Iterator<Item = &'a [u8]> + use<'a> {
    headers.get_all(name).iter().map(http::HeaderValue::as_bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_fields_are_read_with_their_own_separators() {
        let mut headers = HeaderMap::new();
        for (name, value) in [
            ("surrogate-key", "a  b,c\td"),
            ("surrogate-key", "e"),
            ("cache-tag", " f , g h,, "),
            ("etag", "x"),
        ] {
            headers.append(name, value.parse().unwrap());
        }
        let expected = ["a", "b,c", "d", "e", "f", "g h"].map(Tag::new);
        assert_eq!(tags(&headers), expected);
        assert_eq!(tags(&HeaderMap::new()), []);
    }
}
