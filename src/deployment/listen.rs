//! Where the gateway listens: `LISTEN` in `.env`, and the socket unit that was made of it.

use std::collections::HashSet;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::{Component, Path, PathBuf};

use crate::host::paths::Paths;

/// The unit that holds the addresses.
pub const SOCKET: &str = "litellm.socket";
/// The port of the default address, and of each gateway inside its own container.
pub const GATEWAY_PORT: u16 = 24157;
/// The most bytes of the path of a Unix socket: `sun_path` without the NUL at its end.
const PATH_LIMIT: usize = 107;

/// One address of the gateway.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum ListenAddress {
    /// An IP address and a port.
    Tcp(SocketAddr),
    /// The path of a Unix socket.
    Unix(PathBuf),
}

impl ListenAddress {
    /// Reads one word of `LISTEN`.
    ///
    /// # Errors
    /// What is wrong with it, as the end of a sentence.
    pub fn parse(word: &str) -> Result<Self, &'static str> {
        if word.starts_with('/') {
            let path = Path::new(word);
            let is_plain = path
                .components()
                .skip(1)
                .all(|part| matches!(part, Component::Normal(_)));
            if word.len() > PATH_LIMIT {
                return Err(
                    "which is longer than the 107 bytes that the path of a socket may have",
                );
            }
            if !is_plain || word.ends_with('/') || word.contains(|c: char| c.is_control()) {
                return Err("which is not the path of a socket");
            }
            return Ok(Self::Unix(path.into()));
        }
        match word.parse::<SocketAddr>() {
            Ok(address) if address.port() == 0 => Err("which has no port"),
            Ok(SocketAddr::V6(address)) if address.scope_id() != 0 => {
                Err("whose zone systemd does not know")
            }
            Ok(SocketAddr::V6(address)) if address.ip().to_ipv4_mapped().is_some() => {
                Err("which is an IPv4-mapped IPv6 address")
            }
            Ok(address) => Ok(Self::Tcp(address)),
            Err(_) => Err("which is not an IP address with a port, nor the path of a socket"),
        }
    }

    /// Whether only this host reaches it.
    #[must_use]
    pub fn is_local(&self) -> bool {
        match self {
            Self::Tcp(address) => address.ip().is_loopback(),
            Self::Unix(_) => true,
        }
    }

    /// The address for a connection from this host: all addresses of a host are reached by its loopback address.
    #[must_use]
    pub fn from_here(&self) -> Self {
        match self {
            Self::Tcp(address) if address.ip().is_unspecified() => {
                let ip = match address.ip() {
                    IpAddr::V4(_) => IpAddr::from(Ipv4Addr::LOCALHOST),
                    IpAddr::V6(_) => IpAddr::from(Ipv6Addr::LOCALHOST),
                };
                Self::Tcp(SocketAddr::new(ip, address.port()))
            }
            other => other.clone(),
        }
    }

    /// Its URL, or for a Unix socket `unix:` and the path.
    #[must_use]
    pub fn url(&self) -> String {
        match self {
            Self::Tcp(address) => format!("http://{address}"),
            Self::Unix(path) => format!("unix:{}", path.display()),
        }
    }

    /// `port 24157`, or the path of a Unix socket.
    #[must_use]
    pub fn place(&self) -> String {
        match self {
            Self::Tcp(address) => format!("port {}", address.port()),
            Self::Unix(path) => path.display().to_string(),
        }
    }
}

impl fmt::Display for ListenAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => address.fmt(f),
            Self::Unix(path) => path.display().fmt(f),
        }
    }
}

/// All addresses of the gateway.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listen {
    /// At least one, none twice.
    pub addresses: Vec<ListenAddress>,
    /// The group that may connect to the Unix sockets, beside their owner.
    pub group: Option<String>,
}

impl Default for Listen {
    fn default() -> Self {
        Self {
            addresses: vec![ListenAddress::Tcp(SocketAddr::from((
                [127, 0, 0, 1],
                GATEWAY_PORT,
            )))],
            group: None,
        }
    }
}

impl Listen {
    /// The addresses that the installed socket unit has. It is written only together with its addresses, so they are
    /// those at which the gateway is reached now.
    #[must_use]
    pub fn installed(paths: &Paths) -> Option<Self> {
        Self::of_installed(paths, SOCKET)
    }

    /// The addresses that the installed socket unit of this name has.
    #[must_use]
    pub fn of_installed(paths: &Paths, socket: &str) -> Option<Self> {
        let text = std::fs::read_to_string(paths.units.join(socket)).ok()?;
        Self::of_unit(&text)
    }

    /// The addresses in the text of a socket unit.
    #[must_use]
    pub fn of_unit(text: &str) -> Option<Self> {
        let values = |key: &'static str| {
            text.lines()
                .filter_map(move |line| line.strip_prefix(key)?.strip_prefix('='))
                .map(|value| value.replace("%%", "%"))
        };
        let addresses: Vec<_> = values("ListenStream")
            .filter_map(|value| ListenAddress::parse(&value).ok())
            .collect();
        (!addresses.is_empty()).then(|| Self {
            addresses,
            group: values("SocketGroup").next(),
        })
    }

    /// The address for this program's own requests: the first one on the loopback interface, else the first Unix
    /// socket, else the first one. Another TCP address can move to another host, which would get the requests.
    #[must_use]
    pub fn own(&self) -> ListenAddress {
        let is_tcp = |address: &&ListenAddress| matches!(address, ListenAddress::Tcp(_));
        let here: Vec<_> = self
            .addresses
            .iter()
            .map(ListenAddress::from_here)
            .collect();
        here.iter()
            .find(|address| is_tcp(address) && address.is_local())
            .or_else(|| here.iter().find(|address| address.is_local()))
            .or_else(|| here.first())
            .cloned()
            .unwrap_or_else(|| Self::default().own())
    }

    /// Whether one of them is a Unix socket.
    #[must_use]
    pub fn has_unix(&self) -> bool {
        self.addresses
            .iter()
            .any(|address| matches!(address, ListenAddress::Unix(_)))
    }

    /// The first address that is named twice.
    #[must_use]
    pub fn repeated(&self) -> Option<&ListenAddress> {
        let mut seen = HashSet::new();
        self.addresses.iter().find(|address| !seen.insert(*address))
    }
}

impl fmt::Display for Listen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, address) in self.addresses.iter().enumerate() {
            let separator = if index == 0 { "" } else { " " };
            write!(f, "{separator}{address}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn listen(words: &str) -> Listen {
        Listen {
            addresses: words
                .split_whitespace()
                .map(|word| ListenAddress::parse(word).unwrap())
                .collect(),
            group: None,
        }
    }

    #[test]
    fn words() {
        for word in [
            "127.0.0.1:4000",
            "[::1]:24157",
            "0.0.0.0:80",
            "/run/a b/%h.sock",
        ] {
            assert_eq!(ListenAddress::parse(word).unwrap().to_string(), word);
        }
        for word in [
            "4000",
            ":4000",
            "localhost:4000",
            "::1:4000",
            "127.0.0.1",
            "127.0.0.1:0",
            "[fe80::1%2]:80",
            "[::ffff:127.0.0.1]:80",
            "/",
            "/run/",
            "/run/../a",
            "/run/a\u{7}",
            "run/a",
            "",
        ] {
            assert!(ListenAddress::parse(word).is_err(), "{word}");
        }
        let long = format!("/{}", "a".repeat(PATH_LIMIT));
        assert!(ListenAddress::parse(&long).is_err());
        assert!(ListenAddress::parse(&long[..PATH_LIMIT]).is_ok());
    }

    #[test]
    fn who_reaches_them() {
        for (word, local) in [
            ("127.0.0.2:80", true),
            ("[::1]:80", true),
            ("/run/a.sock", true),
            ("0.0.0.0:80", false),
            ("[::]:80", false),
            ("10.0.0.7:80", false),
        ] {
            assert_eq!(
                ListenAddress::parse(word).unwrap().is_local(),
                local,
                "{word}"
            );
        }
    }

    #[test]
    fn the_address_of_our_own_requests() {
        for (words, own) in [
            ("/run/a.sock 10.0.0.7:80 [::]:81", "http://[::1]:81"),
            // 10.0.0.7 may be an address of another host by now.
            ("10.0.0.7:80 /run/a.sock", "unix:/run/a.sock"),
            ("10.0.0.7:80 10.0.0.8:80", "http://10.0.0.7:80"),
            ("0.0.0.0:4000 127.0.0.1:24157", "http://127.0.0.1:4000"),
            ("/run/a.sock", "unix:/run/a.sock"),
        ] {
            assert_eq!(listen(words).own().url(), own);
        }
        assert_eq!(Listen::default().own().url(), "http://127.0.0.1:24157");
    }

    #[test]
    fn of_a_unit() {
        let text =
            "[Socket]\nListenStream=[::1]:80\nListenStream=/run/100%%.sock\nSocketGroup=www-data\n";
        let found = Listen::of_unit(text).unwrap();
        assert_eq!(found.to_string(), "[::1]:80 /run/100%.sock");
        assert_eq!(found.group.as_deref(), Some("www-data"));
        assert_eq!(Listen::of_unit("[Socket]\n"), None);
        assert_eq!(
            listen("[::1]:80 /a [::1]:80").repeated(),
            ListenAddress::parse("[::1]:80").ok().as_ref()
        );
    }
}
