//! Where a look may go. Tenants choose the names of images, and so whom we connect to: without this they could have us
//! knock on the cluster's own services, on the node, and on the cloud's metadata.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use super::reference::is_authority;
use super::secrets::is_like;

/// Not of the public internet, by IANA's IPv4 Special-Purpose Address Registry, and multicast.
const SPECIAL_V4: &[(Ipv4Addr, u8)] = &[
    (Ipv4Addr::UNSPECIFIED, 8),
    (Ipv4Addr::new(10, 0, 0, 0), 8),
    (Ipv4Addr::new(100, 64, 0, 0), 10),
    (Ipv4Addr::new(127, 0, 0, 0), 8),
    (Ipv4Addr::new(169, 254, 0, 0), 16),
    (Ipv4Addr::new(172, 16, 0, 0), 12),
    (Ipv4Addr::new(192, 0, 0, 0), 24),
    (Ipv4Addr::new(192, 0, 2, 0), 24),
    (Ipv4Addr::new(192, 88, 99, 0), 24),
    (Ipv4Addr::new(192, 168, 0, 0), 16),
    (Ipv4Addr::new(198, 18, 0, 0), 15),
    (Ipv4Addr::new(198, 51, 100, 0), 24),
    (Ipv4Addr::new(203, 0, 113, 0), 24),
    (Ipv4Addr::new(224, 0, 0, 0), 3),
];

/// The part of IPv6 that is handed out for the public internet.
const GLOBAL_V6: (Ipv6Addr, u8) = (Ipv6Addr::new(0x2000, 0, 0, 0, 0, 0, 0, 0), 3);

/// What of that part is special, by IANA's IPv6 Special-Purpose Address Registry: protocols (Teredo among them),
/// documentation, 6to4 (an IPv4 address inside, long out of use).
const SPECIAL_V6: &[(Ipv6Addr, u8)] = &[
    (Ipv6Addr::new(0x2001, 0, 0, 0, 0, 0, 0, 0), 23),
    (Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 0), 32),
    (Ipv6Addr::new(0x2002, 0, 0, 0, 0, 0, 0, 0), 16),
    (Ipv6Addr::new(0x3fff, 0, 0, 0, 0, 0, 0, 0), 20),
];

/// NAT64: the last 32 bits are an IPv4 address (RFC 6052). Names of the public internet have these in an IPv6-only cluster.
const NAT64: (Ipv6Addr, u8) = (Ipv6Addr::new(0x64, 0xff9b, 0, 0, 0, 0, 0, 0), 96);

/// Where clouds hand out a node's own credentials; only a setting that names exactly this address allows it.
const METADATA: &[IpAddr] = &[
    IpAddr::V4(Ipv4Addr::new(169, 254, 169, 254)),
    // Amazon: containers' and pods' credentials.
    IpAddr::V4(Ipv4Addr::new(169, 254, 170, 2)),
    IpAddr::V4(Ipv4Addr::new(169, 254, 170, 23)),
    IpAddr::V6(Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254)),
    IpAddr::V6(Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x23)),
    // Google.
    IpAddr::V6(Ipv6Addr::new(0xfd20, 0xce, 0, 0, 0, 0, 0, 0x254)),
    // Azure; this one looks public.
    IpAddr::V4(Ipv4Addr::new(168, 63, 129, 16)),
    // Alibaba, Oracle.
    IpAddr::V4(Ipv4Addr::new(100, 100, 100, 200)),
    IpAddr::V4(Ipv4Addr::new(192, 0, 0, 192)),
];

/// Something that is not public and may be connected to all the same.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Network {
    /// Addresses, such as `10.0.0.0/8`.
    Addresses(IpNet),
    /// Whatever a host's name means, such as `registry.registry.svc`.
    Host(String),
}

impl FromStr for Network {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if let Ok(network) = text.parse() {
            return Ok(Self::Addresses(network));
        }
        if let Ok(address) = text.parse::<IpAddr>() {
            return Ok(Self::Addresses(address.into()));
        }
        // Numbers that are no address are no host either.
        let is_number = text.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.');
        if text.contains([':', '/']) || is_number || !is_authority(text) {
            return Err(format!("{text:?} is no network: expected a CIDR, an address or a host's name without a port"));
        }
        Ok(Self::Host(text.to_ascii_lowercase()))
    }
}

/// Whether a connection to that address, which is one that the host's name means, may be opened.
pub(super) fn is_allowed(host: &str, address: IpAddr, networks: &[Network]) -> bool {
    let inner = embedded(address);
    let addresses = [address.to_canonical(), inner];
    if METADATA.iter().any(|metadata| addresses.contains(metadata)) {
        let names_it = |network: &Network| {
            matches!(network, Network::Addresses(network)
                if network.prefix_len() == network.max_prefix_len() && addresses.contains(&network.addr()))
        };
        return networks.iter().any(names_it);
    }
    let allowed = |network: &Network| match network {
        Network::Addresses(network) => addresses.iter().any(|address| network.contains(address)),
        Network::Host(name) => name.eq_ignore_ascii_case(host),
    };
    is_public(address) || networks.iter().any(allowed)
}

/// The IPv4 address inside of an IPv6 one, where that is what really is connected to.
fn embedded(address: IpAddr) -> IpAddr {
    let canonical = address.to_canonical();
    match canonical {
        IpAddr::V6(address) if contains_v6(NAT64, address) => {
            let [.., one, two, three, four] = address.octets();
            IpAddr::V4(Ipv4Addr::new(one, two, three, four))
        }
        other => other,
    }
}

/// Whether an address is one of the public internet.
pub(super) fn is_public(address: IpAddr) -> bool {
    match embedded(address) {
        IpAddr::V4(address) => !SPECIAL_V4.iter().any(|network| contains_v4(*network, address)),
        IpAddr::V6(address) => {
            contains_v6(GLOBAL_V6, address) && !SPECIAL_V6.iter().any(|network| contains_v6(*network, address))
        }
    }
}

fn contains_v4((network, length): (Ipv4Addr, u8), address: Ipv4Addr) -> bool {
    Ipv4Net::new(network, length).is_ok_and(|network| network.contains(&address))
}

fn contains_v6((network, length): (Ipv6Addr, u8), address: Ipv6Addr) -> bool {
    Ipv6Net::new(network, length).is_ok_and(|network| network.contains(&address))
}

/// What a host without a port is asked at.
const HTTPS_PORT: &str = "443";

/// A registry by name, as in `--registry-allow`: `ghcr.io`, `*.example.org`, `registry.example.org:5000`. Without a port
/// every port is meant; `*` stands for any number of labels.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RegistryPattern {
    host: String,
    port: Option<String>,
}

impl RegistryPattern {
    pub(super) fn is_for(&self, authority: &str) -> bool {
        let (host, port) = host_and_port(authority);
        // A dot at the end changes the name and not the host.
        let host = host.trim_end_matches('.').to_ascii_lowercase();
        let port = port.unwrap_or(HTTPS_PORT);
        is_like(&self.host, &host) && self.port.as_deref().is_none_or(|own| own == port)
    }
}

impl FromStr for RegistryPattern {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let lower = text.to_ascii_lowercase();
        if !is_authority(&lower.replace('*', "x")) {
            return Err(format!(
                "{text:?} is no registry: expected HOST or HOST:PORT, with * for any part of the host"
            ));
        }
        let (host, port) = host_and_port(&lower);
        Ok(Self { host: host.to_owned(), port: port.map(str::to_owned) })
    }
}

fn host_and_port(authority: &str) -> (&str, Option<&str>) {
    match authority.rsplit_once(':') {
        Some((host, port)) if !port.ends_with(']') => (host, Some(port)),
        _ => (authority, None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn allowed(address: &str, networks: &[&str]) -> bool {
        let networks: Vec<Network> = networks.iter().map(|network| network.parse().unwrap()).collect();
        is_allowed("registry.example.org", address.parse().unwrap(), &networks)
    }

    #[test]
    fn only_the_public_internet_is_asked() {
        for public in ["1.1.1.1", "9.255.255.255", "172.15.0.1", "172.32.0.1", "223.255.255.255", "2606:4700::1"] {
            assert!(allowed(public, &[]), "{public}");
        }
        for other in [
            "0.0.0.0",
            "10.96.0.1",
            "100.64.0.1",
            "127.0.0.1",
            "127.255.255.254",
            "169.254.169.254",
            "172.16.0.1",
            "172.31.255.255",
            "192.168.1.1",
            "198.19.0.1",
            "224.0.0.1",
            "240.0.0.1",
            "255.255.255.255",
            "168.63.129.16",
            "::",
            "::1",
            "::127.0.0.1",
            "::ffff:127.0.0.1",
            "::ffff:10.0.0.1",
            "::ffff:169.254.169.254",
            "64:ff9b::7f00:1",
            "64:ff9b::a9fe:a9fe",
            "64:ff9b:1::1",
            "fc00::1",
            "fd00:ec2::254",
            "fe80::1",
            "fec0::1",
            "ff02::1",
            "2001::1",
            "2001:db8::1",
            "2002:7f00:1::",
            "3fff::1",
            "5f00::1",
        ] {
            assert!(!allowed(other, &[]), "{other}");
        }
        assert!(allowed("64:ff9b::101:101", &[]), "a public name in an IPv6-only cluster");
        assert!(allowed("::ffff:1.1.1.1", &[]));
    }

    #[test]
    fn a_setting_allows_networks_and_hosts() {
        assert!(allowed("10.96.0.1", &["10.96.0.0/12"]));
        assert!(allowed("::ffff:10.96.0.1", &["10.96.0.0/12"]));
        assert!(!allowed("10.112.0.1", &["10.96.0.0/12"]));
        assert!(allowed("127.0.0.1", &["127.0.0.1"]));
        assert!(allowed("fd00::1", &["fd00::/8"]));
        assert!(allowed("10.96.0.1", &["Registry.example.org"]));
        assert!(!allowed("10.96.0.1", &["other.example.org"]));
        for wrong in ["", "10.0.0.0/33", "10.0.0", "registry.example.org:5000", "a b", "300.1.1.1", "*"] {
            assert!(wrong.parse::<Network>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn metadata_is_no_part_of_a_network() {
        for (metadata, wide) in [
            ("169.254.169.254", "0.0.0.0/0"),
            ("169.254.169.254", "registry.example.org"),
            ("::ffff:169.254.169.254", "169.254.0.0/16"),
            ("64:ff9b::a9fe:a9fe", "64:ff9b::/96"),
            ("fd00:ec2::254", "fd00::/8"),
            ("168.63.129.16", "168.63.129.0/24"),
        ] {
            assert!(!allowed(metadata, &[wide]), "{metadata} by {wide}");
        }
        assert!(allowed("169.254.169.254", &["169.254.169.254/32"]));
    }

    #[test]
    fn registries_are_meant_by_host_and_port() {
        for (pattern, registry, is_for) in [
            ("ghcr.io", "ghcr.io", true),
            ("ghcr.io", "ghcr.io:443", true),
            ("GHCR.io", "ghcr.io", true),
            ("ghcr.io:443", "ghcr.io", true),
            ("ghcr.io:444", "ghcr.io", false),
            ("ghcr.io", "ghcr.io.", true),
            ("ghcr.io", "ghcr.io.:443", true),
            ("ghcr.io", "evil-ghcr.io", false),
            ("ghcr.io", "ghcr.io.evil.example", false),
            ("*.example.org", "a.b.example.org:5000", true),
            ("*.example.org", "example.org", false),
            ("*.example.org", "example.org.evil.example", false),
            ("*", "anything.example", true),
            ("[::1]:5000", "[::1]:5000", true),
        ] {
            assert_eq!(pattern.parse::<RegistryPattern>().unwrap().is_for(registry), is_for, "{pattern} {registry}");
        }
        for wrong in ["", "https://ghcr.io", "ghcr.io/kubeflow", "a b"] {
            assert!(wrong.parse::<RegistryPattern>().is_err(), "{wrong}");
        }
    }
}
