//! The sizes with which a new cluster of PostgreSQL begins. `initdb` writes them into the cluster's `postgresql.conf`, where
//! the operator finds and changes them; an existing cluster keeps its own.

use crate::image::ImageReference;

/// The first major version whose `initdb` takes settings.
const TAKES_SETTINGS: u32 = 16;
const MIB: u64 = 1 << 20;

/// The settings for a host with so many bytes of memory, of which the gateway may take four fifths.
#[must_use]
pub(crate) fn sizes(memory: u64) -> Vec<(&'static str, String)> {
    let part = |divisor: u64, least: u64, most: u64| {
        format!("{}MB", (memory / divisor / MIB).clamp(least, most))
    };
    vec![
        ("shared_buffers", part(16, 128, 8192)),
        ("effective_cache_size", part(4, 512, 65536)),
        ("maintenance_work_mem", part(64, 64, 1024)),
        ("work_mem", part(1024, 4, 64)),
        // Two gateways during a handover, each with its workers, and the operator.
        ("max_connections", "200".into()),
    ]
}

/// `POSTGRES_INITDB_ARGS` of the official images; `None` if the image is too old for it, or unknown.
#[must_use]
pub(crate) fn initdb_arguments(image: &ImageReference, memory: u64) -> Option<String> {
    image
        .postgres_major()
        .filter(|major| *major >= TAKES_SETTINGS)?;
    let words = sizes(memory)
        .into_iter()
        .map(|(name, value)| format!("--set {name}={value}"));
    Some(words.collect::<Vec<_>>().join(" "))
}

/// `MemTotal` of `/proc/meminfo`, in bytes.
#[must_use]
pub(crate) fn total_memory(text: &str) -> Option<u64> {
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
        let image = |tag: &str| {
            ImageReference::parse(&format!("docker.io/library/postgres:{tag}")).unwrap()
        };
        let text = |gigabytes: u64| initdb_arguments(&image("17.7"), gigabytes << 30).unwrap();
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
            "--set shared_buffers=8192MB --set effective_cache_size=65536MB --set maintenance_work_mem=1024MB --set work_mem=64MB --set max_connections=200"
        );
        assert_eq!(initdb_arguments(&image("15.10"), 1 << 34), None);
    }

    #[test]
    fn memory_of_the_host() {
        let text = "MemTotal:       24592784 kB\nMemFree:         6461104 kB\n";
        assert_eq!(total_memory(text), Some(24_592_784 * 1024));
        assert_eq!(total_memory("MemFree: 1 kB\n"), None);
    }
}
