//! Memory and limits, as the system reports them.

#![expect(
    unsafe_code,
    reason = "the allocator gives memory back through a C function"
)]

/// Gives freed memory back to the system. This takes milliseconds for large amounts, so call it
/// after a burst.
pub fn give_memory_back() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    // SAFETY: the function has no preconditions; it locks the allocator's arenas itself.
    unsafe {
        libc::malloc_trim(0);
    }
}

/// Bytes of address space and of writable memory that this process has now; `None` where the system
/// does not report them.
pub(crate) fn in_use() -> Option<(u64, u64)> {
    let pages = std::fs::read_to_string("/proc/self/statm").ok()?;
    let mut pages = pages.split_whitespace().map(str::parse::<u64>);
    let (addresses, data) = (pages.next()?.ok()?, pages.nth(4)?.ok()?);
    Some((addresses * page_bytes(), data * page_bytes()))
}

#[cfg(unix)]
fn page_bytes() -> u64 {
    rustix::param::page_size() as u64
}

#[cfg(not(unix))]
fn page_bytes() -> u64 {
    4096
}

/// Bytes of address space that this process may still take; `None` where there is no limit.
pub fn address_space_left() -> Option<u64> {
    #[cfg(unix)]
    {
        let limit = rustix::process::getrlimit(rustix::process::Resource::As).current?;
        Some(limit.saturating_sub(in_use()?.0))
    }
    #[cfg(not(unix))]
    None
}

/// Bytes of memory that programs may still take without swapping: what the system has, or what the
/// control group of this process has left, if that is less. `None` where the system does not report
/// it.
pub fn available_memory() -> Option<u64> {
    let meminfo = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = meminfo
        .lines()
        .find_map(|line| line.strip_prefix("MemAvailable:"))?;
    let of_system = line.trim().strip_suffix(" kB")?.parse::<u64>().ok()? * 1024;
    Some(of_system.min(control_group_left().unwrap_or(u64::MAX)))
}

/// Bytes that the control group of this process (version 2) and the groups around it may still
/// take; `None` without a limit. Pages of files that the system can drop count as free.
fn control_group_left() -> Option<u64> {
    let groups = std::fs::read_to_string("/proc/self/cgroup").ok()?;
    let group = groups.lines().find_map(|line| line.strip_prefix("0::/"))?;
    let root = std::path::Path::new("/sys/fs/cgroup");
    let folder = root.join(group);
    let limited = folder
        .ancestors()
        .take_while(|folder| folder.starts_with(root));
    limited.filter_map(left_in).min()
}

/// Bytes that the control group in this folder may still take.
fn left_in(folder: &std::path::Path) -> Option<u64> {
    let read = |name: &str| std::fs::read_to_string(folder.join(name)).ok();
    let number = |name: &str| read(name)?.trim().parse::<u64>().ok();
    let stat = read("memory.stat").unwrap_or_default();
    let droppable = stat
        .lines()
        .find_map(|line| line.strip_prefix("inactive_file "));
    let droppable = droppable.and_then(|bytes| bytes.parse().ok()).unwrap_or(0);
    let used = number("memory.current")?.saturating_sub(droppable);
    Some(number("memory.max")?.saturating_sub(used))
}

/// Resident bytes of this process now; `None` where the system does not report them.
pub fn rss_bytes() -> Option<u64> {
    status_bytes("VmRSS:")
}

/// Maximum number of resident bytes of this process so far; `None` where the system does not report
/// it.
pub fn peak_rss_bytes() -> Option<u64> {
    status_bytes("VmHWM:")
}

fn status_bytes(field: &str) -> Option<u64> {
    let kib = status_field(field)?;
    Some(kib.strip_suffix(" kB")?.parse::<u64>().ok()? * 1024)
}

/// The value of a field of `/proc/self/status`.
fn status_field(field: &str) -> Option<String> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let value = status.lines().find_map(|line| line.strip_prefix(field))?;
    Some(value.trim().to_owned())
}

/// Whether this process was started with the signal SIGHUP ignored, as `nohup` does.
pub fn is_hangup_ignored() -> bool {
    const SIGHUP_BIT: u64 = 1;
    let ignored = status_field("SigIgn:").and_then(|mask| u64::from_str_radix(&mask, 16).ok());
    ignored.is_some_and(|mask| mask & SIGHUP_BIT != 0)
}

/// Raises the number of files that this process may open to `wanted`, as far as the system allows.
/// Returns the new limit; `None` if there is no limit.
pub fn open_files_limit(wanted: u64) -> Option<u64> {
    #[cfg(unix)]
    {
        use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
        let limit = getrlimit(Resource::Nofile);
        let current = limit.current?;
        let raised = limit.maximum.map_or(wanted, |maximum| maximum.min(wanted));
        if raised <= current {
            return Some(current);
        }
        let new = Rlimit {
            current: Some(raised),
            maximum: limit.maximum,
        };
        Some(setrlimit(Resource::Nofile, new).map_or(current, |()| raised))
    }
    #[cfg(not(unix))]
    {
        let _ = wanted;
        None
    }
}

#[cfg(target_os = "linux")]
#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_now_is_at_most_the_peak() {
        let now = rss_bytes().expect("Linux");
        let peak = peak_rss_bytes().expect("Linux");
        assert!(0 < now && now <= peak, "{now} {peak}");
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn available_memory_is_at_most_all_memory() {
        let meminfo = std::fs::read_to_string("/proc/meminfo").expect("Linux");
        let total = meminfo.lines().find_map(|line| {
            let kib = line.strip_prefix("MemTotal:")?.trim().strip_suffix(" kB")?;
            kib.parse::<u64>().ok()
        });
        let total = 1024 * total.expect("a number");
        let available = available_memory().expect("Linux");
        assert!(0 < available && available <= total, "{available} {total}");
    }
}
