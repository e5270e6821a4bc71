//! Ids of requests: random ids, and ids from W3C trace contexts.

use std::hash::BuildHasher;

use axum::http::{HeaderMap, HeaderName};

/// The header with the id of a request.
pub(crate) const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// 64 random bits. Unpredictable enough for names and seeds, not for secrets.
pub(crate) fn random() -> u64 {
    // The standard library seeds each hash map differently, and the first map of a thread from the
    // system's randomness.
    std::hash::RandomState::new().hash_one(0u8)
}

/// `prefix` and 32 random hexadecimal digits, as `chatcmpl-…`.
pub(crate) fn random_id(prefix: &str) -> String {
    format!("{prefix}{:016x}{:016x}", random(), random())
}

/// The id under which a request is logged: the client's `x-request-id` if it is printable, else a
/// random one.
pub(crate) fn request_id(headers: &HeaderMap) -> String {
    let given = headers
        .get("x-request-id")
        .and_then(|value| value.to_str().ok());
    let is_printable =
        |id: &&str| (1..=128).contains(&id.len()) && id.bytes().all(|byte| byte.is_ascii_graphic());
    given
        .filter(is_printable)
        .map_or_else(|| random_id("req-"), str::to_owned)
}

/// The trace that a request belongs to, and the span it came from
/// (<https://www.w3.org/TR/trace-context/>).
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct TraceParent {
    /// 32 hexadecimal digits.
    pub(crate) trace_id: String,
    /// 16 hexadecimal digits.
    pub(crate) span_id: String,
    pub(crate) is_sampled: bool,
}

impl TraceParent {
    /// `None` where the header is missing or not valid, as the standard demands.
    pub(crate) fn from_headers(headers: &HeaderMap) -> Option<Self> {
        let text = headers.get("traceparent")?.to_str().ok()?;
        let mut parts = text.split('-');
        let (version, trace_id, span_id, flags) =
            (parts.next()?, parts.next()?, parts.next()?, parts.next()?);
        let is_hex = |part: &str, len| {
            part.len() == len
                && part
                    .bytes()
                    .all(|byte| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte))
        };
        let is_zero = |part: &str| part.bytes().all(|byte| byte == b'0');
        let is_valid = is_hex(version, 2)
            && version != "ff"
            // Later versions may have more parts.
            && (version != "00" || parts.next().is_none())
            && is_hex(trace_id, 32)
            && !is_zero(trace_id)
            && is_hex(span_id, 16)
            && !is_zero(span_id)
            && is_hex(flags, 2);
        let is_sampled = u8::from_str_radix(flags, 16).is_ok_and(|flags| flags & 1 == 1);
        is_valid.then(|| Self {
            trace_id: trace_id.to_owned(),
            span_id: span_id.to_owned(),
            is_sampled,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(name: &'static str, value: &str) -> HeaderMap {
        HeaderMap::from_iter([(
            axum::http::HeaderName::from_static(name),
            value.parse().expect("a header's value"),
        )])
    }

    #[test]
    fn traces_are_read_as_the_standard_says() {
        let read = |value: &str| TraceParent::from_headers(&headers("traceparent", value));
        let (trace_id, span_id) = ("4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7");
        let expected = |is_sampled| {
            Some(TraceParent {
                trace_id: trace_id.to_owned(),
                span_id: span_id.to_owned(),
                is_sampled,
            })
        };
        assert_eq!(read(&format!("00-{trace_id}-{span_id}-01")), expected(true));
        assert_eq!(
            read(&format!("00-{trace_id}-{span_id}-00")),
            expected(false)
        );
        assert_eq!(
            read(&format!("cc-{trace_id}-{span_id}-01-more")),
            expected(true)
        );
        let zeros = "0".repeat(32);
        for wrong in [
            format!("00-{trace_id}-{span_id}-01-more"),
            format!("ff-{trace_id}-{span_id}-01"),
            format!("00-{zeros}-{span_id}-01"),
            format!("00-{trace_id}-{}-01", &zeros[..16]),
            format!("00-{}-{span_id}-01", trace_id.to_uppercase()),
            format!("00-{trace_id}-{span_id}"),
            String::new(),
        ] {
            assert_eq!(read(&wrong), None, "{wrong}");
        }
    }

    #[test]
    fn a_request_keeps_a_printable_id() {
        assert_eq!(request_id(&headers("x-request-id", "abc-1")), "abc-1");
        for other in ["with space", "", &"x".repeat(129)] {
            assert!(
                request_id(&headers("x-request-id", other)).starts_with("req-"),
                "{other}"
            );
        }
        assert_ne!(request_id(&HeaderMap::new()), request_id(&HeaderMap::new()));
    }
}
