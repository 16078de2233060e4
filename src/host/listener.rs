//! Who listens at an address of this host: from the kernel's tables (`proc_pid_net(5)`), or by the owner of the socket.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

/// The state of a listening socket in these tables.
const LISTEN: &str = "0A";

/// The user whose process, or whose systemd, has the socket that a connection to `address` reaches. None if nobody
/// listens, or the kernel does not tell.
pub(crate) fn owner(address: SocketAddr) -> Option<u32> {
    let table = |name| std::fs::read_to_string(name).unwrap_or_default();
    owner_in(&table("/proc/net/tcp"), &table("/proc/net/tcp6"), address)
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
fn owner_in(tcp: &str, tcp6: &str, address: SocketAddr) -> Option<u32> {
    let at = |table, ip| listener(table, ip, address.port());
    let everywhere = || at(tcp6, Ipv6Addr::UNSPECIFIED.into());
    match address.ip() {
        IpAddr::V4(ip) => at(tcp, ip.into())
            .or_else(|| at(tcp6, ip.to_ipv6_mapped().into()))
            .or_else(|| at(tcp, Ipv4Addr::UNSPECIFIED.into()))
            .or_else(everywhere),
        IpAddr::V6(ip) => at(tcp6, ip.into()).or_else(everywhere),
    }
}

fn listener(table: &str, address: IpAddr, port: u16) -> Option<u32> {
    let wanted = format!("{}:{port:04X}", hexadecimal(address));
    table.lines().find_map(|line| {
        let mut fields = line.split_ascii_whitespace().skip(1);
        let (local, state, uid) = (fields.next()?, fields.nth(1)?, fields.nth(3)?);
        (local == wanted && state == LISTEN)
            .then(|| uid.parse().ok())
            .flatten()
    })
}

/// An address as the kernel prints it: words of 32 bits in the order of this processor.
fn hexadecimal(address: IpAddr) -> String {
    let octets = match address {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    };
    octets
        .as_chunks::<4>()
        .0
        .iter()
        .map(|word| format!("{:08X}", u32::from_ne_bytes(*word)))
        .collect()
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
        let ours = line("0100007F:5E5D", "0A", 1000);
        let client = line("0100007F:5E5D", "01", 7);
        let other_port = line("0100007F:5E5E", "0A", 8);
        let everywhere = line("00000000:5E5D", "0A", 1001);
        let tcp = format!("{HEAD}{other_port}{client}{everywhere}{ours}");
        let here = SocketAddr::from(([127, 0, 0, 1], 24157));
        assert_eq!(owner_in(&tcp, HEAD, here), Some(1000));
        let tcp = format!("{HEAD}{client}{everywhere}");
        assert_eq!(owner_in(&tcp, HEAD, here), Some(1001));
        let tcp6 = line("00000000000000000000000000000000:5E5D", "0A", 1002);
        assert_eq!(owner_in(HEAD, &tcp6, here), Some(1002));
        let mapped = line("0000000000000000FFFF00000100007F:5E5D", "0A", 1003);
        assert_eq!(owner_in(&tcp, &mapped, here), Some(1003));
        assert_eq!(owner_in(HEAD, "", here), None);
        let here = SocketAddr::from((Ipv6Addr::LOCALHOST, 24157));
        assert_eq!(owner_in(&tcp, &tcp6, here), Some(1002));
        let own = line("00000000000000000000000001000000:5E5D", "0A", 1004);
        assert_eq!(owner_in(&tcp, &format!("{tcp6}{own}"), here), Some(1004));
        assert_eq!(owner_in(&tcp, &mapped, here), None);
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
