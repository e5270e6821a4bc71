//! What the operating system says about the machine: the name of its CPU, and the memory of this
//! process.

const ARCHITECTURE: &str = if cfg!(target_arch = "x86_64") {
    "x86_64"
} else if cfg!(target_arch = "aarch64") {
    "aarch64"
} else {
    "unknown"
};

/// The name of the CPU, or of its architecture where the system does not say.
#[must_use]
pub fn cpu_name() -> String {
    let text = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let name = text
        .lines()
        .find_map(|line| line.strip_prefix("model name")?.split_once(": "));
    name.map_or_else(
        || ARCHITECTURE.to_owned(),
        |(_, name)| name.trim().to_owned(),
    )
}

/// The bytes of this process that are resident now, where the system says.
#[must_use]
pub fn rss_bytes() -> Option<u64> {
    status_bytes("VmRSS:")
}

/// The largest number of bytes that this process has had resident, where the system says.
#[must_use]
pub fn peak_rss_bytes() -> Option<u64> {
    status_bytes("VmHWM:")
}

/// A field of `/proc/self/status`, which has kibibytes.
fn status_bytes(field: &str) -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let kib = status.lines().find_map(|line| line.strip_prefix(field))?;
    Some(kib.trim().strip_suffix(" kB")?.parse::<u64>().ok()? * 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[cfg(target_os = "linux")]
    #[test]
    fn memory_now_is_at_most_the_peak() {
        let (now, peak) = (
            rss_bytes().expect("Linux"),
            peak_rss_bytes().expect("Linux"),
        );
        assert!(now > 0 && peak > 0);
        assert!(rss_bytes() <= peak_rss_bytes());
    }

    #[test]
    fn the_cpu_has_a_name() {
        assert!(!cpu_name().trim().is_empty());
    }
}
