//! What this machine has for gateways.

use std::num::NonZero;

/// Memory and processors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Capacity {
    /// How many threads run at once.
    pub processors: usize,
    /// Bytes of memory.
    pub memory: u64,
}

impl Capacity {
    /// That of this machine; what can't be read counts as the least.
    #[must_use]
    pub fn read() -> Self {
        let memory = std::fs::read_to_string("/proc/meminfo")
            .ok()
            .and_then(|text| meminfo(&text, "MemTotal"));
        Self {
            processors: std::thread::available_parallelism().map_or(1, NonZero::get),
            memory: memory.unwrap_or(0),
        }
    }
}

/// The memory that programs can get now, in bytes.
pub(crate) fn available_memory() -> Option<u64> {
    meminfo(
        &std::fs::read_to_string("/proc/meminfo").ok()?,
        "MemAvailable",
    )
}

/// A line of `/proc/meminfo`, in bytes.
fn meminfo(text: &str, name: &str) -> Option<u64> {
    let kilobytes = text
        .lines()
        .find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?
        .trim()
        .strip_suffix(" kB")?;
    Some(kilobytes.parse::<u64>().ok()? * 1024)
}

#[cfg(test)]
mod tests {
    use super::meminfo;

    #[test]
    fn memory_of_the_kernel() {
        let text = "MemTotal:       24592784 kB\nMemFree:         6461104 kB\nMemAvailable:   23095012 kB\n";
        assert_eq!(meminfo(text, "MemAvailable"), Some(23_095_012 * 1024));
        assert_eq!(meminfo(text, "MemTotal"), Some(24_592_784 * 1024));
        assert_eq!(meminfo("MemTotal: 1 kB\n", "MemAvailable"), None);
    }
}
