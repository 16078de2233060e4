//! Who listens at a port of this host, from the kernel's tables (`proc_pid_net(5)`).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// The state of a listening socket in these tables.
const LISTEN: &str = "0A";

/// The user whose process, or whose systemd, has the socket that a connection to `port` of 127.0.0.1 reaches. None if
/// nobody listens, or the kernel does not tell.
pub(crate) fn owner(port: u16) -> Option<u32> {
    let table = |name| std::fs::read_to_string(name).unwrap_or_default();
    owner_in(&table("/proc/net/tcp"), &table("/proc/net/tcp6"), port)
}

/// A socket at the address itself comes before those at all addresses.
fn owner_in(tcp: &str, tcp6: &str, port: u16) -> Option<u32> {
    let at = |table, address| listener(table, address, port);
    at(tcp, Ipv4Addr::LOCALHOST.into())
        .or_else(|| at(tcp6, Ipv4Addr::LOCALHOST.to_ipv6_mapped().into()))
        .or_else(|| at(tcp, Ipv4Addr::UNSPECIFIED.into()))
        .or_else(|| at(tcp6, Ipv6Addr::UNSPECIFIED.into()))
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
        assert_eq!(owner_in(&tcp, HEAD, 24157), Some(1000));
        let tcp = format!("{HEAD}{client}{everywhere}");
        assert_eq!(owner_in(&tcp, HEAD, 24157), Some(1001));
        let tcp6 = line("00000000000000000000000000000000:5E5D", "0A", 1002);
        assert_eq!(owner_in(HEAD, &tcp6, 24157), Some(1002));
        let mapped = line("0000000000000000FFFF00000100007F:5E5D", "0A", 1003);
        assert_eq!(owner_in(&tcp, &mapped, 24157), Some(1003));
        assert_eq!(owner_in(HEAD, "", 24157), None);
    }

    #[test]
    fn a_socket_of_this_process() {
        let socket = std::net::TcpListener::bind(("127.0.0.1", 0)).unwrap();
        let port = socket.local_addr().unwrap().port();
        assert_eq!(owner(port), Some(nix::unistd::geteuid().as_raw()));
        drop(socket);
        assert_eq!(owner(port), None);
    }
}
