//! Whether the host has a default route, according to the kernel's routing tables.

use std::time::Duration;

use tokio::time::Instant;
use zbus_systemd::systemd1::ManagerProxy;
use zbus_systemd::zbus::Connection;

use crate::output::Progress;

/// Timeout for the network, longer than network managers wait. Its end is no failure, since the
/// gateway can start without a network.
const TIMEOUT: Duration = Duration::from_secs(60);
/// Interval between two looks at the tables.
const LOOK_INTERVAL: Duration = Duration::from_millis(250);

/// The flag of a route that rejects packets (`RTF_REJECT` of the kernel).
const REJECT: u32 = 0x200;
/// The flag of an active route (`RTF_UP`).
const UP: u32 = 0x1;

/// Waits until there is a default route, or the host has finished booting without one.
///
/// A user's units can't wait for `network-online.target`, which is the system's. If pasta, which
/// carries the traffic of rootless containers, starts before there is a route, it never gets one
/// (containers/podman issue 22197).
pub(crate) async fn wait(progress: &Progress) {
    let deadline = Instant::now() + TIMEOUT;
    loop {
        if has_default_route() || has_booted().await {
            return;
        }
        if Instant::now() >= deadline {
            progress.warn(&format!(
                "no default route after {} s: continuing without one",
                TIMEOUT.as_secs()
            ));
            return;
        }
        tokio::time::sleep(LOOK_INTERVAL).await;
    }
}

fn has_default_route() -> bool {
    // Without IPv6 or IPv4 in the kernel, its file does not exist.
    let read = |path| std::fs::read_to_string(path).unwrap_or_default();
    is_default_in_v4(&read("/proc/net/route")) || is_default_in_v6(&read("/proc/net/ipv6_route"))
}

/// `/proc/net/route`: `Iface Destination Gateway Flags RefCnt Use Metric Mask …`.
fn is_default_in_v4(table: &str) -> bool {
    table.lines().skip(1).any(|line| {
        let words: Vec<&str> = line.split_whitespace().collect();
        match words[..] {
            [_, destination, _, flags, _, _, _, mask, ..] => {
                destination == "00000000" && mask == "00000000" && is_usable(flags)
            }
            _ => false,
        }
    })
}

/// `/proc/net/ipv6_route`: destination, its length, source, its length, gateway, metric,
/// references, use, flags, interface. The kernel's own table begins with a rejecting default.
fn is_default_in_v6(table: &str) -> bool {
    table.lines().any(|line| {
        let words: Vec<&str> = line.split_whitespace().collect();
        match words[..] {
            [destination, length, _, _, _, _, _, _, flags, interface] => {
                destination.bytes().all(|digit| digit == b'0')
                    && length == "00"
                    && interface != "lo"
                    && is_usable(flags)
            }
            _ => false,
        }
    })
}

fn is_usable(flags: &str) -> bool {
    u32::from_str_radix(flags, 16).is_ok_and(|flags| flags & UP != 0 && flags & REJECT == 0)
}

/// Whether PID 1 has nothing left to start; false if unknown.
async fn has_booted() -> bool {
    let ask = async {
        let connection = Connection::system().await.ok()?;
        let manager = ManagerProxy::new(&connection).await.ok()?;
        manager.system_state().await.ok()
    };
    let state = tokio::time::timeout(Duration::from_secs(2), ask).await;
    state
        .ok()
        .flatten()
        .is_some_and(|state| is_after_boot(&state))
}

fn is_after_boot(state: &str) -> bool {
    !matches!(state, "initializing" | "starting")
}

#[cfg(test)]
mod tests {
    use super::*;

    const V4: &str =
        "Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\t\tMTU\tWindow\tIRTT\n";

    #[test]
    fn default_routes_of_ipv4() {
        let with = |rest: &str| format!("{V4}{rest}");
        assert!(!is_default_in_v4(""));
        assert!(!is_default_in_v4(V4));
        assert!(is_default_in_v4(&with(
            "eth0\t0000000A\t00000000\t0001\t0\t0\t0\t000000FF\t0\t0\t0\n\
             eth0\t00000000\t0100000A\t0003\t0\t0\t100\t00000000\t0\t0\t0\n"
        )));
        // 0.0.0.0/1, and a default that rejects.
        assert!(!is_default_in_v4(&with(
            "tun0\t00000000\t0100000A\t0003\t0\t0\t0\t00000080\t0\t0\t0\n\
             *\t00000000\t00000000\t0201\t0\t0\t0\t00000000\t0\t0\t0\n"
        )));
    }

    #[test]
    fn default_routes_of_ipv6() {
        let zero = "0".repeat(32);
        let route = |destination: &str, length: &str, flags: &str, interface: &str| {
            format!(
                "{destination} {length} {zero} 00 {zero} ffffffff 00000001 00000000 {flags} {interface:>8}\n"
            )
        };
        let own = route(&zero, "00", "00200200", "lo");
        assert!(!is_default_in_v6(""));
        assert!(!is_default_in_v6(&own));
        assert!(!is_default_in_v6(&route("fe80", "40", "00000001", "eth0")));
        assert!(!is_default_in_v6(&route(&zero, "00", "00000200", "eth0")));
        assert!(is_default_in_v6(
            &(own.clone() + &route(&zero, "00", "00000003", "eth0"))
        ));
    }

    #[test]
    fn states_after_boot() {
        assert!(!is_after_boot("starting"));
        assert!(is_after_boot("running"));
        assert!(is_after_boot("degraded"));
    }
}
