//! Who listens at an address of this host: from the kernel's tables (`proc_pid_net(5)`), or by the owner of the socket.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

/// The state of a listening socket in these tables.
const LISTEN: &str = "0A";

/// A listening TCP socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Listener {
    /// May be an IPv4 address in the form of IPv6.
    pub address: IpAddr,
    /// Of the process that made it.
    pub uid: u32,
    pub inode: u64,
}

/// Those at `port`, of both tables; none that the kernel does not show.
pub(crate) fn listening(port: u16) -> Vec<Listener> {
    ["/proc/net/tcp", "/proc/net/tcp6"]
        .iter()
        .filter_map(|table| std::fs::read_to_string(table).ok())
        .flat_map(|table| listeners(&table, port))
        .collect()
}

/// The user whose process, or whose systemd, has the socket that a connection to `address` reaches. None if nobody
/// listens, or the kernel does not tell.
pub(crate) fn owner(address: SocketAddr) -> Option<u32> {
    owner_in(&listening(address.port()), address.ip())
}

/// Whether this host has the address now. A socket at it proves nothing: systemd keeps it open (`FreeBind=`).
pub(crate) fn is_here(ip: IpAddr) -> bool {
    UdpSocket::bind((ip, 0)).is_ok()
}

/// The user who made the Unix socket at `path`.
pub(crate) fn owner_of(path: &Path) -> Option<u32> {
    Some(std::fs::symlink_metadata(path).ok()?.uid())
}

/// A socket at the address itself comes before those at all addresses.
fn owner_in(listeners: &[Listener], address: IpAddr) -> Option<u32> {
    let everywhere = Ipv6Addr::UNSPECIFIED.into();
    let wanted = match address {
        IpAddr::V4(ip) => vec![
            address,
            ip.to_ipv6_mapped().into(),
            Ipv4Addr::UNSPECIFIED.into(),
            everywhere,
        ],
        IpAddr::V6(_) => vec![address, everywhere],
    };
    let at = |ip| { listeners.iter() }.find(|listener| listener.address == ip);
    Some(wanted.into_iter().find_map(at)?.uid)
}

/// `table` has the form of `/proc/net/tcp`.
fn listeners(table: &str, port: u16) -> Vec<Listener> {
    let listener = |line: &str| {
        let fields: Vec<&str> = line.split_ascii_whitespace().collect();
        let (address, its_port) = fields.get(1)?.split_once(':')?;
        if *fields.get(3)? != LISTEN || u16::from_str_radix(its_port, 16).ok()? != port {
            return None;
        }
        Some(Listener {
            address: address_of(address)?,
            uid: fields.get(7)?.parse().ok()?,
            inode: fields.get(9)?.parse().ok()?,
        })
    };
    table.lines().skip(1).filter_map(listener).collect()
}

/// The kernel prints each 32 bits of an address as a number in the machine's byte order.
fn address_of(hexadecimal: &str) -> Option<IpAddr> {
    let mut bytes = Vec::new();
    for start in (0..hexadecimal.len()).step_by(8) {
        let word = u32::from_str_radix(hexadecimal.get(start..start + 8)?, 16).ok()?;
        bytes.extend(word.to_ne_bytes());
    }
    let v6 = || <[u8; 16]>::try_from(&*bytes).map(IpAddr::from);
    { <[u8; 4]>::try_from(&*bytes).map(IpAddr::from) }
        .or_else(|_| v6())
        .ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEAD: &str = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n";

    #[test]
    #[cfg(target_endian = "little")]
    fn tables_of_the_kernel() {
        let line = |local: &str, state: &str, uid: u32| {
            format!(
                "   0: {local} 00000000:0000 {state} 00000000:00000000 00:00000000 00000000 {uid:5}        0 1151 1 ffff888102ddd340 100 0 0 10 0\n"
            )
        };
        let owner_in = |tcp: &str, tcp6: &str, address: SocketAddr| {
            let port = address.port();
            let found = [listeners(tcp, port), listeners(tcp6, port)].concat();
            owner_in(&found, address.ip())
        };
        let ours = line("0100007F:5E5D", "0A", 1000);
        let client = line("0100007F:5E5D", "01", 7);
        let other_port = line("0100007F:5E5E", "0A", 8);
        let everywhere = line("00000000:5E5D", "0A", 1001);
        let tcp = format!("{HEAD}{other_port}{client}{everywhere}{ours}");
        let here = SocketAddr::from(([127, 0, 0, 1], 24157));
        assert_eq!(owner_in(&tcp, HEAD, here), Some(1000));
        let tcp = format!("{HEAD}{client}{everywhere}");
        assert_eq!(owner_in(&tcp, HEAD, here), Some(1001));
        let tcp6 = HEAD.to_owned() + &line("00000000000000000000000000000000:5E5D", "0A", 1002);
        assert_eq!(owner_in(HEAD, &tcp6, here), Some(1002));
        let mapped = HEAD.to_owned() + &line("0000000000000000FFFF00000100007F:5E5D", "0A", 1003);
        assert_eq!(owner_in(&tcp, &mapped, here), Some(1003));
        assert_eq!(owner_in(HEAD, "", here), None);
        let here = SocketAddr::from((Ipv6Addr::LOCALHOST, 24157));
        assert_eq!(owner_in(&tcp, &tcp6, here), Some(1002));
        let own = line("00000000000000000000000001000000:5E5D", "0A", 1004);
        assert_eq!(owner_in(&tcp, &format!("{tcp6}{own}"), here), Some(1004));
        assert_eq!(owner_in(&tcp, &mapped, here), None);
        assert_eq!(address_of("0100"), None);
        let found = Listener {
            address: Ipv6Addr::LOCALHOST.into(),
            uid: 1004,
            inode: 1151,
        };
        assert_eq!(listeners(&(HEAD.to_owned() + &own), 24157), [found]);
    }

    #[test]
    fn a_socket_of_this_process() {
        let socket = std::net::TcpListener::bind(("127.0.0.1", 0)).unwrap();
        let address = socket.local_addr().unwrap();
        let user = Some(nix::unistd::geteuid().as_raw());
        assert_eq!(owner(address), user);
        drop(socket);
        assert_eq!(owner(address), None);
        assert!(is_here(address.ip()));
        // Of TEST-NET-1, which no host has (RFC 5737).
        assert!(!is_here(IpAddr::from([192, 0, 2, 1])));
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("socket");
        assert_eq!(owner_of(&path), None);
        let _socket = std::os::unix::net::UnixListener::bind(&path).unwrap();
        assert_eq!(owner_of(&path), user);
    }
}
