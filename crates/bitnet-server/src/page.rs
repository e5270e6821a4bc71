//! The chat page at `/`, and its files below `/page/`.
//!
//! The files are in the program. Browsers keep them and ask each time whether they have changed, so
//! that a newer server never works with the files of an older one.

use std::sync::LazyLock;

use axum::extract::Path;
use axum::extract::rejection::PathRejection;
use axum::http::header::{
    CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, ETAG, IF_NONE_MATCH, REFERRER_POLICY,
    X_CONTENT_TYPE_OPTIONS,
};
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode};
use axum::response::{IntoResponse, Response};
use sha2::{Digest, Sha256};

use crate::api::ApiError;

/// The page loads only its own files and connects only to this server. It cannot turn text into
/// HTML or scripts, and no other page may embed it in a frame.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; \
                      base-uri 'none'; form-action 'none'; frame-ancestors 'none'; \
                      require-trusted-types-for 'script'; trusted-types 'none'";

/// A file of the page.
struct File {
    name: &'static str,
    content_type: &'static str,
    text: &'static str,
    /// The hash of the text, as the header `ETag` has it.
    tag: HeaderValue,
}

/// The name of the page itself.
const INDEX: &str = "index.html";

static FILES: LazyLock<[File; 13]> = LazyLock::new(|| {
    [
        html(INDEX, include_str!("page/index.html")),
        css("style.css", include_str!("page/style.css")),
        svg("icon.svg", include_str!("page/icon.svg")),
        js("theme.js", include_str!("page/theme.js")),
        js("chat.js", include_str!("page/chat.js")),
        js("api.js", include_str!("page/api.js")),
        js("conversation.js", include_str!("page/conversation.js")),
        js("markdown.js", include_str!("page/markdown.js")),
        js("message.js", include_str!("page/message.js")),
        js("options.js", include_str!("page/options.js")),
        js("render.js", include_str!("page/render.js")),
        js("sidebar.js", include_str!("page/sidebar.js")),
        js("store.js", include_str!("page/store.js")),
    ]
});

fn html(name: &'static str, text: &'static str) -> File {
    File::new(name, "text/html; charset=utf-8", text)
}

fn css(name: &'static str, text: &'static str) -> File {
    File::new(name, "text/css; charset=utf-8", text)
}

fn js(name: &'static str, text: &'static str) -> File {
    File::new(name, "text/javascript; charset=utf-8", text)
}

fn svg(name: &'static str, text: &'static str) -> File {
    File::new(name, "image/svg+xml", text)
}

impl File {
    fn new(name: &'static str, content_type: &'static str, text: &'static str) -> Self {
        let hash = Sha256::digest(text.as_bytes());
        let digits: String = hash[..16]
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect();
        let tag = HeaderValue::try_from(format!("\"{digits}\""))
            .unwrap_or_else(|_| unreachable!("hexadecimal digits in quotes are a valid header"));
        Self {
            name,
            content_type,
            text,
            tag,
        }
    }

    fn named(name: &str) -> Option<&'static Self> {
        FILES.iter().find(|file| file.name == name)
    }

    /// The file, or 304 if the client has it.
    fn respond(&self, request: &HeaderMap) -> Response {
        let headers = [
            (CONTENT_SECURITY_POLICY, HeaderValue::from_static(POLICY)),
            (X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff")),
            (REFERRER_POLICY, HeaderValue::from_static("no-referrer")),
            (CACHE_CONTROL, HeaderValue::from_static("no-cache")),
            (ETAG, self.tag.clone()),
        ];
        if self.is_known(request) {
            return (StatusCode::NOT_MODIFIED, headers).into_response();
        }
        (headers, [(CONTENT_TYPE, self.content_type)], self.text).into_response()
    }

    /// Whether the client names this version of the file in `If-None-Match`.
    fn is_known(&self, request: &HeaderMap) -> bool {
        let values = request.get_all(IF_NONE_MATCH).iter();
        let mut tags = values.flat_map(|value| value.as_bytes().split(|byte| *byte == b','));
        tags.any(|tag| {
            let tag = tag.trim_ascii();
            // A proxy that compresses the file makes the tag a weak one.
            tag.strip_prefix(b"W/").unwrap_or(tag) == self.tag.as_bytes() || tag == b"*"
        })
    }
}

/// The chat page.
#[utoipa::path(
    get,
    path = "/",
    operation_id = "page",
    tag = "server",
    responses(
        (status = 200, description = "The page.", body = String, content_type = "text/html"),
        (status = 304, description = "The client has this version."),
    )
)]
pub(crate) async fn serve(headers: HeaderMap) -> Response {
    file(Ok(Path(INDEX.to_owned())), headers).await
}

/// A file of the chat page.
#[utoipa::path(
    get,
    path = "/page/{file}",
    operation_id = "pageFile",
    tag = "server",
    params(("file" = String, Path, description = "Its name.")),
    responses(
        (status = 200, description = "The file."),
        (status = 304, description = "The client has this version."),
    )
)]
pub(crate) async fn file(
    name: Result<Path<String>, PathRejection>,
    headers: HeaderMap,
) -> Response {
    // A name that is not UTF-8 is no name of a file.
    let name = name.map_or_else(|_| String::new(), |Path(name)| name);
    match File::named(&name) {
        Some(file) => file.respond(&headers),
        None => ApiError::unknown_path(&Method::GET, &format!("/page/{name}")).into_response(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The quoted names of files in a text, after each `before`.
    fn names<'a>(text: &'a str, before: &'a str) -> impl Iterator<Item = &'a str> {
        let parts = text.split(before).skip(1);
        parts.map(|part| part.split(['"', '\'']).next().expect("a name"))
    }

    #[test]
    fn every_file_that_the_page_names_is_served() {
        let mut num_names = 0;
        for file in FILES.iter() {
            for name in names(file.text, "\"page/").chain(names(file.text, " from './")) {
                assert!(File::named(name).is_some(), "{} names {name}", file.name);
                num_names += 1;
            }
        }
        assert!(num_names > 10);
    }

    #[test]
    fn every_file_in_the_folder_is_served_as_it_is() {
        let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("src/page");
        let mut num_files = 0;
        for entry in std::fs::read_dir(folder).expect("the folder") {
            let path = entry.expect("an entry").path();
            let name = path.file_name().expect("a name").to_str().expect("UTF-8");
            let file = File::named(name).unwrap_or_else(|| panic!("{name} is not served"));
            assert_eq!(
                file.text,
                std::fs::read_to_string(&path).expect("a file"),
                "{name}"
            );
            let expected = match path.extension().and_then(|extension| extension.to_str()) {
                Some("html") => "text/html; charset=utf-8",
                Some("css") => "text/css; charset=utf-8",
                Some("js") => "text/javascript; charset=utf-8",
                Some("svg") => "image/svg+xml",
                other => panic!("{other:?}"),
            };
            assert_eq!(file.content_type, expected, "{name}");
            num_files += 1;
        }
        assert_eq!(num_files, FILES.len());
    }

    #[test]
    fn nothing_in_the_page_is_inline_or_makes_html_of_text() {
        assert!(!POLICY.contains("unsafe"));
        for file in FILES.iter() {
            for forbidden in [
                "innerHTML",
                "outerHTML",
                "insertAdjacentHTML",
                "document.write",
                "eval(",
                "new Function",
                "<style",
                "<script>",
                " style=\"",
                " onclick=\"",
            ] {
                assert!(!file.text.contains(forbidden), "{}: {forbidden}", file.name);
            }
        }
    }

    #[test]
    fn a_client_that_has_a_file_does_not_get_it_again() {
        let file = File::named("style.css").expect("the style");
        let response = |tag: &str| {
            let value = HeaderValue::from_str(tag).expect("a header");
            file.respond(&HeaderMap::from_iter([(IF_NONE_MATCH, value)]))
        };
        let tag = file.tag.to_str().expect("ASCII");
        for known in [tag, "*", &format!("W/{tag}"), &format!("\"other\", {tag}")] {
            let response = response(known);
            assert_eq!(response.status(), StatusCode::NOT_MODIFIED, "{known}");
            assert_eq!(response.headers()[ETAG], file.tag);
        }
        let fresh = response("\"other\"");
        assert_eq!(fresh.status(), StatusCode::OK);
        assert_eq!(fresh.headers()[CONTENT_TYPE], file.content_type);
    }

    #[test]
    fn a_tag_is_the_hash_of_its_file() {
        // sha256("abc") begins with these digits (FIPS 180-2).
        let file = js("a.js", "abc");
        assert_eq!(file.tag, "\"ba7816bf8f01cfea414140de5dae2223\"");
    }
}
