//! Processors and memory of this machine.

/// Memory and processors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Capacity {
    /// Those of the machine, not of the caller: whoever runs a command may be bound to some of them.
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
            processors: std::fs::read_to_string("/sys/devices/system/cpu/online")
                .ok()
                .and_then(|text| online(text.trim()))
                .unwrap_or(1),
            memory: memory.unwrap_or(0),
        }
    }
}

/// How many processors a list such as `0-3,6` has.
fn online(ranges: &str) -> Option<usize> {
    ranges.split(',').try_fold(0_usize, |sum, range| {
        let (from, to) = range.split_once('-').unwrap_or((range, range));
        let [from, to]: [usize; 2] = [from.parse().ok()?, to.parse().ok()?];
        Some(sum + to.checked_sub(from)? + 1)
    })
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
    use super::{meminfo, online};

    #[test]
    fn processors_of_the_kernel() {
        for (list, expected) in [
            ("0", Some(1)),
            ("0-1", Some(2)),
            ("0-3,6,8-9", Some(7)),
            ("3-1", None),
            ("", None),
        ] {
            assert_eq!(online(list), expected, "{list}");
        }
    }

    #[test]
    fn memory_of_the_kernel() {
        let text = "MemTotal:       24592784 kB\nMemFree:         6461104 kB\nMemAvailable:   23095012 kB\n";
        assert_eq!(meminfo(text, "MemAvailable"), Some(23_095_012 * 1024));
        assert_eq!(meminfo(text, "MemTotal"), Some(24_592_784 * 1024));
        assert_eq!(meminfo("MemTotal: 1 kB\n", "MemAvailable"), None);
    }
}
