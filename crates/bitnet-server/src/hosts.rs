//! [`AllowedHosts`]: the host names under which the server answers.
//!
//! A web page can resolve its own host name to 127.0.0.1 (DNS rebinding). Browsers then take the
//! server for a part of that page's site, so that neither CORS nor the content type stops the page.
//! The header `Host` reveals the page's name.

use std::net::IpAddr;

use axum::http::header::HOST;
use axum::http::{HeaderMap, Version};

use crate::error::{Error, Result};

/// The names, or all.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AllowedHosts {
    /// `None` allows every name.
    names: Option<Vec<String>>,
}

/// A problem with the header `Host` of a request.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum HostProblem {
    /// HTTP/1.1 demands exactly one.
    NotOne,
    NotAllowed,
}

impl AllowedHosts {
    /// Every name is allowed.
    pub fn any() -> Self {
        Self { names: None }
    }

    /// Allows `localhost`, names below it, IP addresses (DNS cannot redirect them), and `names`;
    /// every name if `*` is among these.
    ///
    /// # Errors
    /// If a name has a port, a path or invalid characters.
    pub fn new(names: &[String]) -> Result<Self> {
        if names.iter().any(|name| name == "*") {
            return Ok(Self::any());
        }
        let check = |name: &String| match is_name(name) {
            true => Ok(name.to_ascii_lowercase()),
            false => Err(Error::Host { host: name.clone() }),
        };
        let names = names.iter().map(check).collect::<Result<_>>()?;
        Ok(Self { names: Some(names) })
    }

    /// Checks the header `Host` of a request.
    pub(crate) fn check(
        &self,
        headers: &HeaderMap,
        version: Version,
    ) -> std::result::Result<(), HostProblem> {
        let mut hosts = headers.get_all(HOST).iter();
        let host = match (hosts.next(), hosts.next()) {
            (Some(host), None) => host,
            // HTTP/1.0 has no Host header.
            (None, _) if version < Version::HTTP_11 => return Ok(()),
            _ => return Err(HostProblem::NotOne),
        };
        let Some(names) = &self.names else {
            return Ok(());
        };
        let name = host.to_str().ok().and_then(without_port);
        let is_allowed = name.is_some_and(|name| {
            let name = name.trim_end_matches('.').to_ascii_lowercase();
            name == "localhost"
                || name.ends_with(".localhost")
                || is_address(&name)
                || names.contains(&name)
        });
        match is_allowed {
            true => Ok(()),
            false => Err(HostProblem::NotAllowed),
        }
    }
}

/// The host of `host[:port]`; `None` if the port is not a number.
fn without_port(host: &str) -> Option<&str> {
    let end_of_address = host.find(']').map_or(0, |end| end + 1);
    match host[end_of_address..].rfind(':') {
        None => Some(host),
        Some(colon) => {
            let (host, port) = host.split_at(end_of_address + colon);
            port[1..]
                .bytes()
                .all(|b| b.is_ascii_digit())
                .then_some(host)
        }
    }
}

fn is_address(host: &str) -> bool {
    let inside = host
        .strip_prefix('[')
        .and_then(|host| host.strip_suffix(']'));
    inside.unwrap_or(host).parse::<IpAddr>().is_ok()
}

fn is_name(name: &str) -> bool {
    !name.is_empty()
        && name
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_'))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(names: &[&str], hosts: &[&str], version: Version) -> Option<HostProblem> {
        let names: Vec<_> = names.iter().map(|&name| name.to_owned()).collect();
        let mut headers = HeaderMap::new();
        for host in hosts {
            headers.append(HOST, host.parse().expect("a header's value"));
        }
        let allowed = AllowedHosts::new(&names).expect("names");
        allowed.check(&headers, version).err()
    }

    #[test]
    fn foreign_names_that_may_resolve_to_this_server_are_refused() {
        for host in [
            "localhost",
            "LocalHost:8080",
            "a.localhost",
            "127.0.0.1",
            "127.0.0.1:8080",
            "[::1]",
            "[::1]:8080",
            "192.168.1.7:80",
            "gpu.lan:8080",
            "gpu.lan.",
        ] {
            assert_eq!(
                check(&["GPU.lan"], &[host], Version::HTTP_11),
                None,
                "{host}"
            );
        }
        for host in [
            "evil.example",
            "evil.example:8080",
            "localhost.evil.example",
            "127.0.0.1.evil.example",
            "lan",
            "localhost:x",
            "",
        ] {
            let problem = check(&["gpu.lan"], &[host], Version::HTTP_11);
            assert_eq!(problem, Some(HostProblem::NotAllowed), "{host}");
        }
        assert_eq!(check(&["*"], &["evil.example"], Version::HTTP_11), None);
    }

    #[test]
    fn http_1_1_has_exactly_one_host() {
        assert_eq!(
            check(&["*"], &[], Version::HTTP_11),
            Some(HostProblem::NotOne)
        );
        assert_eq!(
            check(&["*"], &["a", "b"], Version::HTTP_11),
            Some(HostProblem::NotOne)
        );
        assert_eq!(check(&["*"], &[], Version::HTTP_10), None);
    }

    #[test]
    fn an_allowed_host_with_a_port_or_a_path_is_invalid() {
        for wrong in ["a:80", "http://a", "a/b", "", "a b"] {
            assert!(AllowedHosts::new(&[wrong.to_owned()]).is_err(), "{wrong}");
        }
    }
}
