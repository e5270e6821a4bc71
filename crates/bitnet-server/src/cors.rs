//! [`CorsOrigins`]: the sites whose pages may use the server from a browser; none by default.

use axum::http::header::{
    ACCESS_CONTROL_ALLOW_HEADERS, ACCESS_CONTROL_ALLOW_METHODS, ACCESS_CONTROL_ALLOW_ORIGIN,
    ACCESS_CONTROL_EXPOSE_HEADERS, ACCESS_CONTROL_MAX_AGE, ACCESS_CONTROL_REQUEST_HEADERS,
    ACCESS_CONTROL_REQUEST_METHOD, ORIGIN, VARY,
};
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, Request};

use crate::error::{Error, Result};

const REQUEST_PRIVATE_NETWORK: HeaderName =
    HeaderName::from_static("access-control-request-private-network");
const ALLOW_PRIVATE_NETWORK: HeaderName =
    HeaderName::from_static("access-control-allow-private-network");

/// The sites.
#[derive(Clone, Debug, Default)]
pub struct CorsOrigins {
    origins: Vec<HeaderValue>,
    is_any: bool,
}

impl CorsOrigins {
    /// The origins, such as `https://example.org`, or `*` for all.
    ///
    /// # Errors
    /// If one is not an origin as browsers send it.
    pub fn new(origins: &[String]) -> Result<Self> {
        let is_any = origins.iter().any(|origin| origin == "*");
        let named = origins.iter().filter(|origin| *origin != "*");
        let origins = named.map(|origin| {
            parse(origin).ok_or_else(|| Error::Origin {
                origin: origin.clone(),
            })
        });
        Ok(Self {
            origins: origins.collect::<Result<_>>()?,
            is_any,
        })
    }

    /// Whether a request is a preflight: a browser asks for permission to send a request.
    pub(crate) fn is_preflight<B>(request: &Request<B>) -> bool {
        let headers = request.headers();
        request.method() == Method::OPTIONS
            && headers.contains_key(ORIGIN)
            && headers.contains_key(ACCESS_CONTROL_REQUEST_METHOD)
    }

    /// The headers that let the page that sent a request read its answer.
    pub(crate) fn headers(&self, request: &HeaderMap) -> HeaderMap {
        let mut headers = HeaderMap::new();
        if self.origins.is_empty() && !self.is_any {
            return headers;
        }
        headers.insert(VARY, HeaderValue::from_name(ORIGIN));
        if let Some(origin) = request
            .get(ORIGIN)
            .filter(|origin| self.is_any || self.origins.contains(origin))
        {
            headers.insert(ACCESS_CONTROL_ALLOW_ORIGIN, origin.clone());
            headers.insert(
                ACCESS_CONTROL_EXPOSE_HEADERS,
                HeaderValue::from_static("x-request-id, retry-after, traceparent"),
            );
        }
        headers
    }

    /// The headers of the answer to a preflight.
    pub(crate) fn preflight_headers(&self, request: &HeaderMap) -> HeaderMap {
        let mut headers = self.headers(request);
        if headers.contains_key(ACCESS_CONTROL_ALLOW_ORIGIN) {
            headers.insert(
                ACCESS_CONTROL_ALLOW_METHODS,
                HeaderValue::from_static("GET, POST, DELETE"),
            );
            headers.insert(ACCESS_CONTROL_MAX_AGE, HeaderValue::from_static("600"));
            if let Some(wanted) = request.get(ACCESS_CONTROL_REQUEST_HEADERS) {
                // Clients send a dozen custom headers, so all are allowed. Origin and key decide
                // about access.
                headers.insert(ACCESS_CONTROL_ALLOW_HEADERS, wanted.clone());
            }
            // A page of the public network asks whether it may use a server of a private one.
            if request
                .get(REQUEST_PRIVATE_NETWORK)
                .is_some_and(|value| value == "true")
            {
                headers.insert(ALLOW_PRIVATE_NETWORK, HeaderValue::from_static("true"));
            }
        }
        headers
    }
}

/// `scheme://host[:port]`, and nothing after it.
fn parse(origin: &str) -> Option<HeaderValue> {
    let (scheme, host) = origin.split_once("://")?;
    let is_plain = |part: &str, others: &[char]| {
        !part.is_empty()
            && part
                .chars()
                .all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || others.contains(&c))
    };
    (is_plain(scheme, &['+', '-', '.']) && is_plain(host, &['-', '.', ':', '[', ']']))
        .then(|| HeaderValue::from_str(origin).ok())
        .flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn allowed(origins: &[&str], origin: &str) -> Option<String> {
        let origins: Vec<String> = origins.iter().map(|&origin| origin.to_owned()).collect();
        let request = HeaderMap::from_iter([(ORIGIN, origin.parse().expect("a header's value"))]);
        let headers = CorsOrigins::new(&origins)
            .expect("origins")
            .headers(&request);
        headers
            .get(ACCESS_CONTROL_ALLOW_ORIGIN)
            .map(|value| value.to_str().expect("ASCII").to_owned())
    }

    #[test]
    fn only_pages_of_listed_sites_get_access() {
        let page = "http://localhost:3000";
        assert_eq!(allowed(&[], page), None);
        assert_eq!(allowed(&["https://example.org"], page), None);
        assert_eq!(
            allowed(&["https://example.org", page], page).as_deref(),
            Some(page)
        );
        assert_eq!(allowed(&["*"], page).as_deref(), Some(page));
    }

    #[test]
    fn a_page_of_a_listed_site_may_use_a_server_of_a_private_network() {
        let page = "https://example.org";
        let allowed = |origins: &[&str], asks: bool| {
            let origins: Vec<String> = origins.iter().map(|&origin| origin.to_owned()).collect();
            let mut request =
                HeaderMap::from_iter([(ORIGIN, page.parse().expect("a header's value"))]);
            if asks {
                request.insert(REQUEST_PRIVATE_NETWORK, HeaderValue::from_static("true"));
            }
            let origins = CorsOrigins::new(&origins).expect("origins");
            origins
                .preflight_headers(&request)
                .remove(ALLOW_PRIVATE_NETWORK)
        };
        assert_eq!(
            allowed(&[page], true),
            Some(HeaderValue::from_static("true"))
        );
        assert_eq!(allowed(&[page], false), None);
        assert_eq!(allowed(&["https://example.com"], true), None);
        assert_eq!(allowed(&[], true), None);
    }

    #[test]
    fn an_invalid_origin_is_refused() {
        for wrong in [
            "example.org",
            "https://example.org/",
            "https://",
            "://x",
            "https://Example.org",
            "a b://c",
            "",
        ] {
            assert!(CorsOrigins::new(&[wrong.to_owned()]).is_err(), "{wrong}");
        }
    }
}
