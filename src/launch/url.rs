//! Places in this pod that can be asked.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::str::FromStr;

/// A place in this pod. Nothing else can be named: who may set the environment of a container must not thereby be able to
/// send requests from it to elsewhere.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Url {
    host: Host,
    port: u16,
    target: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Host {
    Localhost,
    Address(IpAddr),
}

impl Url {
    /// Where to connect to, the first that answers. Names are not resolved: `localhost` is both loopback addresses.
    #[must_use]
    pub fn addresses(&self) -> Vec<SocketAddr> {
        let addresses = match self.host {
            Host::Localhost => vec![IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::LOCALHOST)],
            Host::Address(address) => vec![address],
        };
        addresses.into_iter().map(|address| SocketAddr::new(address, self.port)).collect()
    }

    /// Host and port, as in the `Host` header.
    #[must_use]
    pub fn authority(&self) -> String {
        match self.host {
            Host::Localhost => format!("localhost:{}", self.port),
            Host::Address(address) => SocketAddr::new(address, self.port).to_string(),
        }
    }

    /// Path and query.
    #[must_use]
    pub fn target(&self) -> &str {
        &self.target
    }
}

impl fmt::Display for Url {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "http://{}{}", self.authority(), self.target)
    }
}

impl FromStr for Url {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let rest = text.strip_prefix("http://").ok_or("expected http://")?;
        let (authority, target) = rest.find('/').map_or((rest, "/"), |index| rest.split_at(index));
        // What a request line can carry, so that a line break in a variable does not become a header.
        if !target.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err("expected a path of printable ASCII characters".to_owned());
        }
        let (host, port) = match authority.rsplit_once(':') {
            // The colons of an address in brackets are not the port's.
            Some((host, port)) if !port.ends_with(']') => {
                (host, port.parse().map_err(|_| "expected a port from 0 to 65535")?)
            }
            _ => (authority, 80),
        };
        let bracketed = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
        let address = match bracketed {
            Some(inner) => inner.parse::<Ipv6Addr>().ok().map(IpAddr::V6),
            None => host.parse::<Ipv4Addr>().ok().map(IpAddr::V4),
        };
        let host = match address {
            Some(address) if address.is_loopback() => Host::Address(address),
            None if host == "localhost" => Host::Localhost,
            _ => return Err("only this pod may be asked: expected localhost, 127.0.0.1 or [::1]".to_owned()),
        };
        Ok(Self { host, port, target: target.to_owned() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_url_leads_out_of_the_pod() {
        for (text, addresses) in [
            ("http://localhost:15021/healthz/ready", "127.0.0.1:15021 [::1]:15021"),
            ("http://127.0.0.1:15021/healthz/ready", "127.0.0.1:15021"),
            ("http://127.8.9.10/", "127.8.9.10:80"),
            ("http://[::1]:9/a?b=c", "[::1]:9"),
            ("http://localhost", "127.0.0.1:80 [::1]:80"),
        ] {
            let url: Url = text.parse().unwrap();
            assert_eq!(url.addresses().iter().map(ToString::to_string).collect::<Vec<_>>().join(" "), addresses);
            assert_eq!(url.to_string().parse(), Ok(url));
        }
        for text in [
            "http://169.254.169.254/latest/meta-data",
            "http://10.0.0.1:80/",
            "http://0.0.0.0:15021/",
            "http://[::]:80/",
            "http://[::ffff:127.0.0.1]:80/",
            "http://localhost.evil.example/",
            "http://evil.example:80/",
            "http://127.0.0.1@evil.example/",
            "http://evil.example#@127.0.0.1/",
            "http://127.0.0.1.evil.example/",
            "http://127.1/",
            "http://2130706433/",
            "http://LOCALHOST/",
            "http://localhost:99999/",
            "http://localhost:/",
            "http://[::1/",
            "http:///path",
            "http://",
            "https://localhost/",
            "file:///etc/passwd",
            "localhost:15021",
            "http://localhost/a b",
            "http://localhost/\r\nX-Header: 1",
            "http://localhost/\u{e9}",
            "http://localhost\r\n/",
        ] {
            assert!(text.parse::<Url>().is_err(), "{text:?} is taken");
        }
    }
}
