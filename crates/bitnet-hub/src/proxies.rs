//! [`Proxies`]: chooses the proxy of each request.

use std::net::IpAddr;

use ureq::Proxy;
use ureq::http::Uri;

use crate::error::{Error, Result, shown};

/// The proxies of a program, as `http_proxy`, `https_proxy` and `no_proxy` name them.
#[derive(Clone, Debug, Default)]
pub struct Proxies {
    http: Option<Proxy>,
    https: Option<Proxy>,
    direct: Vec<Direct>,
}

/// Hosts that requests reach without a proxy.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Direct {
    All,
    /// A host and its subdomains.
    Host {
        name: String,
        port: Option<u16>,
    },
    /// Addresses with these first bits.
    Network {
        address: IpAddr,
        bits: u32,
    },
}

impl Proxies {
    /// http, https: the proxies for addresses of these schemes; direct: a list with commas of hosts
    /// (those below them included), addresses and networks such as `10.0.0.0/8`, or `*`.
    ///
    /// # Errors
    /// If a proxy is not a valid address.
    pub fn new(http: Option<&str>, https: Option<&str>, direct: &str) -> Result<Self> {
        let proxy = |text: Option<&str>| {
            let proxy = |text: &str| {
                Proxy::new(text).map_err(|error| Error::Proxy {
                    proxy: shown(text.rsplit('@').next().unwrap_or_default()),
                    problem: error.to_string(),
                })
            };
            text.map(proxy).transpose()
        };
        let entries = direct.split([',', ' ']).map(str::trim);
        Ok(Self {
            http: proxy(http)?,
            https: proxy(https)?,
            direct: entries.filter_map(Direct::parse).collect(),
        })
    }

    /// The proxy for an address.
    pub(crate) fn of(&self, url: &str) -> Option<Proxy> {
        let uri: Uri = url.parse().ok()?;
        let is_https = uri.scheme_str() == Some("https");
        let proxy = if is_https { &self.https } else { &self.http };
        let port = uri.port_u16().unwrap_or(if is_https { 443 } else { 80 });
        let host = uri.host()?.trim_matches(['[', ']']).to_ascii_lowercase();
        let is_direct = self.direct.iter().any(|rule| rule.has(&host, port));
        proxy.clone().filter(|_| !is_direct)
    }
}

impl Direct {
    fn parse(entry: &str) -> Option<Self> {
        let entry = entry.to_ascii_lowercase();
        if entry == "*" {
            return Some(Self::All);
        }
        let (address, bits) = match entry.split_once('/') {
            Some((address, bits)) => (address, Some(bits.parse().ok()?)),
            None => (&*entry, None),
        };
        if let Ok(address) = address.trim_matches(['[', ']']).parse::<IpAddr>() {
            let all = if address.is_ipv4() { 32 } else { 128 };
            let bits = bits.unwrap_or(all);
            return (bits <= all).then_some(Self::Network { address, bits });
        }
        let (name, port) = match entry.rsplit_once(':') {
            Some((name, port)) => (name, Some(port.parse().ok()?)),
            None => (&*entry, None),
        };
        let name = name
            .trim_start_matches('*')
            .trim_start_matches('.')
            .to_owned();
        (!name.is_empty()).then_some(Self::Host { name, port })
    }

    fn has(&self, host: &str, port: u16) -> bool {
        match self {
            Self::All => true,
            Self::Host { name, port: only } => {
                let is_below = host.strip_suffix(&**name);
                let is_host = is_below.is_some_and(|rest| rest.is_empty() || rest.ends_with('.'));
                is_host && only.is_none_or(|only| only == port)
            }
            Self::Network { address, bits } => host
                .parse()
                .is_ok_and(|host| common_bits(*address, host) >= *bits),
        }
    }
}

/// The number of equal first bits of two addresses; 0 if they are of different kinds.
fn common_bits(a: IpAddr, b: IpAddr) -> u32 {
    match (a, b) {
        (IpAddr::V4(a), IpAddr::V4(b)) => (a.to_bits() ^ b.to_bits()).leading_zeros(),
        (IpAddr::V6(a), IpAddr::V6(b)) => (a.to_bits() ^ b.to_bits()).leading_zeros(),
        _ => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn proxy_of(url: &str, direct: &str) -> Option<String> {
        let proxies = Proxies::new(Some("http://plain:1"), Some("http://secure:2"), direct);
        let proxy = proxies.expect("proxies").of(url)?;
        Some(proxy.host().to_owned())
    }

    #[test]
    fn the_scheme_of_the_url_chooses_the_proxy() {
        assert_eq!(proxy_of("https://a/b", "").as_deref(), Some("secure"));
        assert_eq!(proxy_of("http://a/b", "").as_deref(), Some("plain"));
        let only_https = Proxies::new(None, Some("http://secure:2"), "").expect("proxies");
        assert!(only_https.of("http://mirror/x").is_none());
        assert!(Proxies::new(Some("no proxy"), None, "").is_err());
    }

    #[test]
    fn listed_hosts_addresses_and_networks_need_no_proxy() {
        for (direct, host, is_direct) in [
            ("*", "a.example", true),
            ("example.com", "example.com", true),
            ("example.com", "hub.Example.com", true),
            (".example.com", "hub.example.com", true),
            ("*.example.com", "hub.example.com", true),
            ("example.com", "notexample.com", false),
            ("example.com:80", "example.com", true),
            ("example.com:8080", "example.com", false),
            ("a, b ,c", "b", true),
            ("127.0.0.1", "127.0.0.1", true),
            ("127.0.0.0/8", "127.1.2.3", true),
            ("127.0.0.0/8", "128.0.0.1", false),
            ("10.0.0.0/9", "10.127.0.1", true),
            ("10.0.0.0/9", "10.128.0.1", false),
            ("0.0.0.0/0", "1.2.3.4", true),
            ("::1", "[::1]", true),
            ("fd00::/8", "[fdab::1]", true),
            ("fd00::/8", "[fe80::1]", false),
            ("10.0.0.0/33", "10.0.0.0", false),
            ("10.0.0.0/8", "ten.example", false),
        ] {
            let proxy = proxy_of(&format!("http://{host}/x"), direct);
            assert_eq!(proxy.is_none(), is_direct, "{direct} {host}");
        }
    }
}
