//! The sizes with which a new cluster of PostgreSQL begins, and its level of the write-ahead log. `initdb` writes them into
//! the cluster's `postgresql.conf`, where the operator finds and changes them; an existing cluster keeps its own.

use crate::host::capacity::Capacity;

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
        // Another version of PostgreSQL is then copied while the gateway serves.
        ("wal_level", "logical".into()),
    ]
}

/// Those of this host, for a new cluster of that major version; none if it is too old for them.
pub(crate) fn of_this_host(major: u32) -> Vec<(&'static str, String)> {
    // Without a known amount, PostgreSQL's own sizes are right.
    Some(Capacity::read().memory)
        .filter(|memory| *memory > 0 && major >= TAKES_SETTINGS)
        .map(sizes)
        .unwrap_or_default()
}

/// `POSTGRES_INITDB_ARGS` of the official images; `None` without sizes.
pub(crate) fn initdb_arguments(sizes: &[(&str, String)]) -> Option<String> {
    let words = sizes
        .iter()
        .map(|(name, value)| format!("--set {name}={value}"));
    Some(words.collect::<Vec<_>>().join(" ")).filter(|text| !text.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_follow_the_memory() {
        let text = |gigabytes: u64| initdb_arguments(&sizes(gigabytes << 30)).unwrap();
        assert_eq!(
            text(2),
            "--set shared_buffers=128MB --set effective_cache_size=512MB --set maintenance_work_mem=64MB --set work_mem=4MB --set max_connections=200 --set wal_level=logical"
        );
        assert_eq!(
            text(16),
            "--set shared_buffers=1024MB --set effective_cache_size=4096MB --set maintenance_work_mem=256MB --set work_mem=16MB --set max_connections=200 --set wal_level=logical"
        );
        assert_eq!(
            text(1024),
            "--set shared_buffers=8192MB --set effective_cache_size=65536MB --set maintenance_work_mem=512MB --set work_mem=32MB --set max_connections=200 --set wal_level=logical"
        );
        assert_eq!(initdb_arguments(&[]), None);
        assert_eq!(of_this_host(15), []);
        assert_eq!(of_this_host(16).len(), 6);
    }
}
