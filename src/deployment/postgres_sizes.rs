//! The sizes with which a new cluster of PostgreSQL begins. `initdb` writes them into the cluster's `postgresql.conf`, where
//! the operator finds and changes them; an existing cluster keeps its own.

/// The first major version whose `initdb` takes settings.
const TAKES_SETTINGS: u32 = 16;
const MIB: u64 = 1 << 20;

/// The settings for a host with so many bytes of memory, of which the gateway may take four fifths.
fn sizes(memory: u64) -> Vec<(&'static str, String)> {
    let part = |divisor: u64, least: u64, most: u64| {
        format!("{}MB", (memory / divisor / MIB).clamp(least, most))
    };
    vec![
        ("shared_buffers", part(16, 128, 8192)),
        ("effective_cache_size", part(4, 512, 65536)),
        // Parallel operations have a multiple of these in `ShmSize=` of the unit.
        ("maintenance_work_mem", part(64, 64, 512)),
        ("work_mem", part(1024, 4, 32)),
        // Twice PostgreSQL's own: for a handover between two gateways of 9 workers with 10 connections each. It does not
        // follow the number of workers.
        ("max_connections", "200".into()),
    ]
}

/// Those of this host, for a new cluster of that major version; none if it is too old for them.
#[must_use]
pub(crate) fn of_this_host(major: u32) -> Vec<(&'static str, String)> {
    std::fs::read_to_string("/proc/meminfo")
        .ok()
        .and_then(|text| total_memory(&text))
        .filter(|_| major >= TAKES_SETTINGS)
        .map(sizes)
        .unwrap_or_default()
}

/// `POSTGRES_INITDB_ARGS` of the official images; `None` without sizes.
#[must_use]
pub(crate) fn initdb_arguments(sizes: &[(&str, String)]) -> Option<String> {
    let words = sizes
        .iter()
        .map(|(name, value)| format!("--set {name}={value}"));
    Some(words.collect::<Vec<_>>().join(" ")).filter(|text| !text.is_empty())
}

/// `MemTotal` of `/proc/meminfo`, in bytes.
fn total_memory(text: &str) -> Option<u64> {
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix("MemTotal:"))?;
    let kilobytes: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kilobytes * 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_follow_the_memory() {
        let text = |gigabytes: u64| initdb_arguments(&sizes(gigabytes << 30)).unwrap();
        assert_eq!(
            text(2),
            "--set shared_buffers=128MB --set effective_cache_size=512MB --set maintenance_work_mem=64MB --set work_mem=4MB --set max_connections=200"
        );
        assert_eq!(
            text(16),
            "--set shared_buffers=1024MB --set effective_cache_size=4096MB --set maintenance_work_mem=256MB --set work_mem=16MB --set max_connections=200"
        );
        assert_eq!(
            text(1024),
            "--set shared_buffers=8192MB --set effective_cache_size=65536MB --set maintenance_work_mem=512MB --set work_mem=32MB --set max_connections=200"
        );
        assert_eq!(initdb_arguments(&[]), None);
        assert_eq!(of_this_host(15), []);
        assert_eq!(of_this_host(16).len(), 5);
    }

    #[test]
    fn memory_of_the_host() {
        let text = "MemTotal:       24592784 kB\nMemFree:         6461104 kB\n";
        assert_eq!(total_memory(text), Some(24_592_784 * 1024));
        assert_eq!(total_memory("MemFree: 1 kB\n"), None);
    }
}
