//! [`Hub`]: a client for the requests that downloads send to the Hub.

use std::io::Read;
use std::time::Duration;

use serde::Deserialize;
use ureq::http::Response;
use ureq::tls::{PemItem, RootCerts, TlsConfig, parse_pem};
use ureq::{Agent, Body};

use crate::error::{Error, Result, shown};
use crate::name::{ModelName, is_commit, is_lower_hex, is_safe_path};
use crate::proxies::Proxies;

/// Timeout for a connection, and for the start of a response.
const CONNECT_SECONDS: u64 = 10;
const RESPONSE_SECONDS: u64 = 30;
/// Maximum time to read one body before the client requests the rest again: this detects dead
/// connections.
const BODY_SECONDS: u64 = 60;
/// Maximum number of redirections to follow.
const REDIRECTS_MAX: usize = 8;
/// Maximum size of a repository's description, in bytes.
const JSON_BYTES_MAX: u64 = 16 << 20;

/// A server with models.
pub struct Hub {
    /// Without a slash at the end.
    endpoint: String,
    token: Option<String>,
    proxies: Proxies,
    agent: Agent,
}

/// A file of a repository, as the server describes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct RemoteFile {
    /// Its name.
    pub path: String,
    /// Its address.
    pub url: String,
    /// Bytes.
    pub size: u64,
    /// The hash of its bytes.
    pub hash: Hash,
}

/// The hash of a file's bytes, in hex.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Hash {
    /// Of the bytes: large files.
    Sha256(String),
    /// Of `blob LENGTH\0` and the bytes: git's name for small files.
    GitSha1(String),
}

impl Hash {
    /// The name of the blob in the cache.
    pub(crate) fn hex(&self) -> &str {
        match self {
            Self::Sha256(hex) | Self::GitSha1(hex) => hex,
        }
    }

    /// From an entity tag: `"…"`, perhaps weak.
    fn from_etag(etag: &str) -> Option<Self> {
        let hex = etag.strip_prefix("W/").unwrap_or(etag).trim_matches('"');
        match hex.len() {
            64 if is_lower_hex(hex) => Some(Self::Sha256(hex.to_owned())),
            40 if is_lower_hex(hex) => Some(Self::GitSha1(hex.to_owned())),
            _ => None,
        }
    }
}

/// The files of a repository at a commit.
pub(crate) struct Snapshot {
    pub commit: String,
    pub files: Vec<String>,
}

#[derive(Deserialize)]
struct RepoJson {
    sha: String,
    #[serde(default)]
    siblings: Vec<SiblingJson>,
}

#[derive(Deserialize)]
struct SiblingJson {
    rfilename: String,
}

impl Hub {
    /// endpoint: `https://huggingface.co` or a mirror; certificates: PEM, which replace the
    /// built-in ones.
    ///
    /// # Errors
    /// If the endpoint or the certificates are invalid.
    pub fn new(
        endpoint: &str,
        token: Option<String>,
        certificates: Option<&[u8]>,
        proxies: Proxies,
    ) -> Result<Self> {
        let endpoint = endpoint.trim_end_matches('/').to_owned();
        let wrong = |problem: &str| Error::Answer {
            url: shown(&endpoint),
            problem: problem.to_owned(),
        };
        if scheme_and_host(&endpoint).is_none() {
            return Err(wrong(
                "the endpoint must begin with https:// or http:// and have a host",
            ));
        }
        let roots = match certificates {
            None => RootCerts::WebPki,
            Some(pem) => {
                let items: std::result::Result<Vec<_>, _> = parse_pem(pem).collect();
                let items = items
                    .map_err(|error| wrong(&format!("the certificates cannot be read: {error}")))?;
                let certificates = items.into_iter().filter_map(|item| match item {
                    PemItem::Certificate(certificate) => Some(certificate),
                    _ => None,
                });
                let certificates: Vec<_> = certificates.collect();
                if certificates.is_empty() {
                    return Err(wrong("the named file has no certificates"));
                }
                RootCerts::new_with_certs(&certificates)
            }
        };
        let seconds = |seconds| Some(Duration::from_secs(seconds));
        let config = Agent::config_builder()
            .http_status_as_error(false)
            .proxy(None)
            .max_redirects(0)
            .max_redirects_will_error(false)
            .timeout_connect(seconds(CONNECT_SECONDS))
            .timeout_recv_response(seconds(RESPONSE_SECONDS))
            .timeout_recv_body(seconds(BODY_SECONDS))
            .user_agent(concat!("bitnet/", env!("CARGO_PKG_VERSION")))
            .tls_config(TlsConfig::builder().root_certs(roots).build())
            .build();
        Ok(Self {
            endpoint,
            token,
            proxies,
            agent: config.into(),
        })
    }

    /// The commit that a name refers to, and its files.
    pub(crate) fn snapshot(&self, name: &ModelName) -> Result<Snapshot> {
        let url = format!(
            "{}/api/models/{}/revision/{}",
            self.endpoint,
            name.repo,
            escaped(&name.revision, false)
        );
        let mut response = self.get(&url, None)?;
        let answer = |problem: String| Error::Answer {
            url: url.clone(),
            problem,
        };
        let mut text = Vec::new();
        let read = response
            .body_mut()
            .as_reader()
            .take(JSON_BYTES_MAX)
            .read_to_end(&mut text);
        read.map_err(|error| Error::Network {
            url: url.clone(),
            problem: error.to_string(),
        })?;
        let json: RepoJson = serde_json::from_slice(&text)
            .map_err(|error| answer(format!("not understood: {error}")))?;
        if !is_commit(&json.sha) {
            return Err(answer(format!("{:?} is not a commit", shown(&json.sha))));
        }
        let files: Vec<String> = json
            .siblings
            .into_iter()
            .map(|sibling| sibling.rfilename)
            .collect();
        match files.iter().find(|file| !is_safe_path(file)) {
            Some(file) => Err(Error::UnsafePath {
                what: "the file",
                name: shown(file),
            }),
            None => Ok(Snapshot {
                commit: json.sha,
                files,
            }),
        }
    }

    /// Size and hash of a file.
    pub(crate) fn file(&self, repo: &str, commit: &str, path: &str) -> Result<RemoteFile> {
        let url = format!(
            "{}/{repo}/resolve/{commit}/{}",
            self.endpoint,
            escaped(path, true)
        );
        let mut at = url.clone();
        for _ in 0..REDIRECTS_MAX {
            let response = self.request(&at, true, None)?;
            let header = |name: &str| {
                response
                    .headers()
                    .get(name)
                    .and_then(|value| value.to_str().ok())
            };
            let answer = |problem: String| Error::Answer {
                url: url.clone(),
                problem,
            };
            let linked = header("x-linked-etag");
            let status = response.status().as_u16();
            match (status, header("location")) {
                // The bytes may be stored elsewhere, but size and hash come from the Hub itself.
                (300..=399, Some(_)) if linked.is_some() => {}
                // The file has another address on the Hub, for example because its repository was
                // renamed.
                (300..=399, Some(location)) => {
                    let next = resolved(&at, location)
                        .filter(|next| scheme_and_host(next) == scheme_and_host(&at));
                    at = next
                        .ok_or_else(|| answer(format!("a redirection to {:?}", shown(location))))?;
                    continue;
                }
                _ => check_status(&url, status)?,
            }
            let etag = linked.or_else(|| header("etag"));
            let Some(hash) = etag.and_then(Hash::from_etag) else {
                return Err(answer(
                    "no hash (ETag), so the downloaded bytes could not be verified".to_owned(),
                ));
            };
            let size = header("x-linked-size")
                .or_else(|| header("content-length"))
                .and_then(|size| size.parse().ok());
            let Some(size) = size else {
                return Err(answer("no size".to_owned()));
            };
            return Ok(RemoteFile {
                path: path.to_owned(),
                url: at,
                size,
                hash,
            });
        }
        Err(Error::Answer {
            url,
            problem: format!("more than {REDIRECTS_MAX} redirections"),
        })
    }

    /// A file's bytes from `start` on, and their actual start: a server may restart at 0.
    pub(crate) fn bytes(&self, file: &RemoteFile, start: u64) -> Result<(u64, Response<Body>)> {
        let range = (start > 0).then(|| format!("bytes={start}-"));
        let response = self.get(&file.url, range.as_deref())?;
        let first = match response.status().as_u16() {
            206 => {
                let range = response
                    .headers()
                    .get("content-range")
                    .and_then(|value| value.to_str().ok());
                let first = range.and_then(|range| {
                    range
                        .strip_prefix("bytes ")?
                        .split('-')
                        .next()?
                        .parse()
                        .ok()
                });
                first.ok_or_else(|| Error::Answer {
                    url: file.url.clone(),
                    problem: "a part without its place".into(),
                })?
            }
            _ => 0,
        };
        Ok((first, response))
    }

    /// The answer to a GET after all redirections; 200 or 206.
    fn get(&self, url: &str, range: Option<&str>) -> Result<Response<Body>> {
        let mut at = url.to_owned();
        for _ in 0..REDIRECTS_MAX {
            let response = self.request(&at, false, range)?;
            let location = response
                .headers()
                .get("location")
                .and_then(|value| value.to_str().ok());
            if let (300..=399, Some(location)) = (response.status().as_u16(), location) {
                let problem = || format!("a redirection to {:?}", shown(location));
                at = resolved(&at, location).ok_or_else(|| Error::Answer {
                    url: url.to_owned(),
                    problem: problem(),
                })?;
                continue;
            }
            check_status(url, response.status().as_u16())?;
            return Ok(response);
        }
        Err(Error::Answer {
            url: url.to_owned(),
            problem: format!("more than {REDIRECTS_MAX} redirections"),
        })
    }

    fn request(&self, url: &str, head: bool, range: Option<&str>) -> Result<Response<Body>> {
        let mut request = if head {
            self.agent.head(url)
        } else {
            self.agent.get(url)
        };
        // Compressed bytes have neither the right size nor the right positions.
        request = request.header("accept-encoding", "identity");
        if let Some(range) = range {
            request = request.header("range", range);
        }
        // Only the Hub gets the token, not the storage that it points to.
        if let Some(token) = &self.token
            && scheme_and_host(url) == scheme_and_host(&self.endpoint)
        {
            request = request.header("authorization", format!("Bearer {token}"));
        }
        let request = request.config().proxy(self.proxies.of(url)).build();
        request.call().map_err(|error| Error::Network {
            url: without_parameters(url),
            problem: error.to_string(),
        })
    }
}

fn check_status(url: &str, status: u16) -> Result<()> {
    let hint = match status {
        200..=299 => return Ok(()),
        401 => "; it may not exist, or need a token (HF_TOKEN)",
        403 => "; request access on its page, and set a token (HF_TOKEN)",
        404 => "; there is no such repository, revision or file",
        429 => "; too many requests, try again later",
        _ => "",
    };
    Err(Error::Status {
        url: without_parameters(url),
        status,
        hint,
    })
}

/// Signed addresses have secrets after the question mark.
fn without_parameters(url: &str) -> String {
    shown(url.split('?').next().unwrap_or_default())
}

/// `https://host:port` of an address.
fn scheme_and_host(url: &str) -> Option<&str> {
    let scheme = ["https://", "http://"]
        .into_iter()
        .find(|scheme| url.starts_with(scheme))?;
    let host_len = url[scheme.len()..]
        .find(['/', '?', '#'])
        .unwrap_or(url.len() - scheme.len());
    (host_len > 0).then_some(&url[..scheme.len() + host_len])
}

/// The target of a redirection; never from https to http.
fn resolved(from: &str, location: &str) -> Option<String> {
    if location.starts_with('/') && !location.starts_with("//") {
        return Some(format!("{}{location}", scheme_and_host(from)?));
    }
    scheme_and_host(location)?;
    let is_downgrade = from.starts_with("https://") && !location.starts_with("https://");
    (!is_downgrade).then(|| location.to_owned())
}

/// A path with all characters escaped that are special in an address; slashes too, unless they are
/// kept.
fn escaped(path: &str, keep_slashes: bool) -> String {
    let mut out = String::new();
    for byte in path.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' => {
                out.push(char::from(byte))
            }
            b'/' if keep_slashes => out.push('/'),
            byte => out.push_str(&format!("%{byte:02X}")),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_are_split_and_resolved() {
        assert_eq!(scheme_and_host("http://a:1/b?c"), Some("http://a:1"));
        assert_eq!(scheme_and_host("https://a"), Some("https://a"));
        assert!(
            ["ftp://a", "https://", "/a", ""]
                .iter()
                .all(|url| scheme_and_host(url).is_none())
        );
        assert_eq!(
            resolved("https://a/b", "/c?d").as_deref(),
            Some("https://a/c?d")
        );
        assert_eq!(
            resolved("http://a/b", "https://c/d").as_deref(),
            Some("https://c/d")
        );
        assert_eq!(resolved("https://a/b", "http://a/b"), None);
        assert!(
            ["//evil", "c", "file:///etc"]
                .iter()
                .all(|location| resolved("https://a/b", location).is_none())
        );
        assert_eq!(escaped("a b/ü#?", true), "a%20b/%C3%BC%23%3F");
        assert_eq!(escaped("refs/pr/1", false), "refs%2Fpr%2F1");
    }

    #[test]
    fn only_valid_hashes_are_accepted() {
        let sha256 = "ab".repeat(32);
        assert_eq!(
            Hash::from_etag(&format!("W/\"{sha256}\"")),
            Some(Hash::Sha256(sha256))
        );
        let sha1 = "0".repeat(40);
        assert_eq!(Hash::from_etag(&sha1), Some(Hash::GitSha1(sha1)));
        for wrong in [
            "",
            "\"\"",
            "../../../etc/passwd",
            &"AB".repeat(32),
            &"a".repeat(32),
        ] {
            assert_eq!(Hash::from_etag(wrong), None, "{wrong}");
        }
    }
}
