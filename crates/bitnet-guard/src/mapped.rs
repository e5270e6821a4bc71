//! [`MappedFile`]: a file whose bytes are mapped into memory, watched while they are used.
//!
//! Another program may truncate the file or write into it. Then the mapping has other bytes, or
//! none: a read past the file's new end raises the signal SIGBUS, which ends a process. This
//! module's handler of that signal maps zeros where the file no longer has bytes, and marks the
//! file. The computation that reads the zeros continues with wrong numbers, so the caller must
//! check [`file_problems`] before it returns results; without a problem the check reads one number.
//!
//! A file that is replaced by renaming another one over it is not affected: the mapping keeps the
//! old file. [`replaced_files`] lists such files.

#![expect(
    unsafe_code,
    reason = "a signal handler is installed, and maps memory, through unsafe calls"
)]

use std::fs::{File, Metadata};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::SystemTime;

/// Maximum number of mappings watched by the handler; further ones are watched only for changes of
/// size and time.
const SLOTS: usize = 256;

/// A mapping that the signal handler can read without locks. `start` is 0 in a free slot.
struct Slot {
    start: AtomicUsize,
    end: AtomicUsize,
    is_cut: AtomicBool,
}

static SLOT: [Slot; SLOTS] = [const {
    Slot {
        start: AtomicUsize::new(0),
        end: AtomicUsize::new(0),
        is_cut: AtomicBool::new(false),
    }
}; SLOTS];

/// The number of mappings that lost bytes.
static NUM_CUT: AtomicUsize = AtomicUsize::new(0);

/// All watched files.
static WATCHED: Mutex<Vec<Watched>> = Mutex::new(Vec::new());

struct Watched {
    id: usize,
    path: PathBuf,
    /// The open file itself, even if its name now refers to another file.
    file: File,
    size: u64,
    modified: Option<SystemTime>,
    slot: Option<usize>,
}

/// Watches one mapping until it is dropped, which must be before the memory is unmapped.
#[derive(Debug)]
pub struct MappedFile {
    id: usize,
}

/// A problem of a file that is in use.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FileProblem {
    /// The file was truncated and lost bytes that were read.
    Cut(PathBuf),
    /// Its size or modification time has changed.
    Changed(PathBuf),
}

impl FileProblem {
    /// The file.
    pub fn path(&self) -> &Path {
        match self {
            Self::Cut(path) | Self::Changed(path) => path,
        }
    }
}

impl std::fmt::Display for FileProblem {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (path, what) = match self {
            Self::Cut(path) => (
                path,
                "was cut while it was in use: bytes of the model are gone",
            ),
            Self::Changed(path) => (path, "was written to while it was in use"),
        };
        write!(f, "{} {what}", path.display())
    }
}

impl std::error::Error for FileProblem {}

impl MappedFile {
    /// Watches `file`, opened from `path`, which is mapped read-only at the addresses `range`.
    ///
    /// # Errors
    /// If the system does not give the file's size or refuses the handler of SIGBUS.
    pub fn watch(path: &Path, file: File, range: Range<*const u8>) -> std::io::Result<Self> {
        static NEXT_ID: AtomicUsize = AtomicUsize::new(0);
        let metadata = file.metadata()?;
        let slot = handler::install()?.then(|| take_slot(&range)).flatten();
        let id = NEXT_ID.fetch_add(1, Ordering::Relaxed);
        watched().push(Watched {
            id,
            path: path.to_owned(),
            file,
            size: metadata.len(),
            modified: metadata.modified().ok(),
            slot,
        });
        Ok(Self { id })
    }
}

impl Drop for MappedFile {
    fn drop(&mut self) {
        let mut watched = watched();
        let Some(index) = watched.iter().position(|watched| watched.id == self.id) else {
            return;
        };
        if let Some(slot) = watched.swap_remove(index).slot.map(|slot| &SLOT[slot]) {
            slot.start.store(0, Ordering::Release);
            if slot.is_cut.swap(false, Ordering::Relaxed) {
                NUM_CUT.fetch_sub(1, Ordering::Relaxed);
            }
        }
    }
}

impl Watched {
    fn problem(&self) -> Option<FileProblem> {
        if self.is_cut() {
            return Some(FileProblem::Cut(self.path.clone()));
        }
        let is_same =
            |now: Metadata| now.len() == self.size && now.modified().ok() == self.modified;
        // If the file system does not answer, the bytes may still be intact.
        let is_changed = self.file.metadata().is_ok_and(|now| !is_same(now));
        is_changed.then(|| FileProblem::Changed(self.path.clone()))
    }

    #[cfg(unix)]
    fn is_replaced(&self) -> bool {
        use std::os::unix::fs::MetadataExt;
        let id = |metadata: Metadata| (metadata.dev(), metadata.ino());
        match (std::fs::metadata(&self.path), self.file.metadata()) {
            (Ok(named), Ok(mapped)) => id(named) != id(mapped),
            (Err(error), _) => error.kind() == std::io::ErrorKind::NotFound,
            _ => false,
        }
    }

    /// Other systems do not let another file take the name of a mapped one.
    #[cfg(not(unix))]
    fn is_replaced(&self) -> bool {
        false
    }

    fn is_cut(&self) -> bool {
        self.slot
            .is_some_and(|slot| SLOT[slot].is_cut.load(Ordering::Relaxed))
    }
}

/// The problems of all mapped files. With `looks` it reads each file's size and time, which may
/// take long on a network disk. Without, it reports only what the signal handler has found, at the
/// cost of reading one number.
pub fn file_problems(looks: bool) -> Vec<FileProblem> {
    if !looks && NUM_CUT.load(Ordering::Relaxed) == 0 {
        return Vec::new();
    }
    let watched = watched();
    match looks {
        true => watched.iter().filter_map(Watched::problem).collect(),
        false => {
            let cut = watched.iter().filter(|watched| watched.is_cut());
            cut.map(|watched| FileProblem::Cut(watched.path.clone()))
                .collect()
        }
    }
}

/// The mapped files whose name now belongs to another file, or to none. The mappings keep the old
/// bytes, so results stay right. Looks each name up, which may take long on a network disk.
pub fn replaced_files() -> Vec<PathBuf> {
    let watched = watched();
    let replaced = watched.iter().filter(|watched| watched.is_replaced());
    replaced.map(|watched| watched.path.clone()).collect()
}

fn watched() -> std::sync::MutexGuard<'static, Vec<Watched>> {
    // Each change is complete before anything can panic.
    WATCHED.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Registers a mapping with the handler; `None` if all slots are taken.
fn take_slot(range: &Range<*const u8>) -> Option<usize> {
    let (start, end) = (range.start.addr(), range.end.addr());
    SLOT.iter().position(|slot| {
        // While `end` is 0 or out of date, the handler may see an empty or a wrong range, but no
        // thread reads the new mapping before this function returns.
        let is_free = slot
            .start
            .compare_exchange(0, start, Ordering::AcqRel, Ordering::Relaxed);
        is_free
            .map(|_| slot.end.store(end, Ordering::Release))
            .is_ok()
    })
}

#[cfg(unix)]
mod handler {
    use std::sync::OnceLock;
    use std::sync::atomic::Ordering;

    use crate::mapped::{NUM_CUT, SLOT};

    /// The previous action for SIGBUS; it has no pointers to our memory.
    static PREVIOUS: OnceLock<libc::sigaction> = OnceLock::new();
    static PAGE_BYTES: OnceLock<usize> = OnceLock::new();

    /// Installs the handler once per process; true if it is installed.
    pub fn install() -> std::io::Result<bool> {
        static INSTALLED: std::sync::Mutex<bool> = std::sync::Mutex::new(false);
        let mut is_installed = INSTALLED
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        if *is_installed {
            return Ok(true);
        }
        PAGE_BYTES.get_or_init(rustix::param::page_size);
        // SAFETY: all-zero bytes are a valid `sigaction`: the default action, no flags, no signals.
        let (mut action, mut previous): (libc::sigaction, libc::sigaction) =
            unsafe { (std::mem::zeroed(), std::mem::zeroed()) };
        action.sa_sigaction = on_fault as extern "C" fn(_, _, _) as usize;
        // Runs on the signal stack that Rust gives each thread, as Rust's own handler does.
        action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
        // SAFETY: asks for the present action only; `previous` outlives the call.
        if unsafe { libc::sigaction(libc::SIGBUS, std::ptr::null(), &raw mut previous) } != 0 {
            return Err(std::io::Error::last_os_error());
        }
        // Stored before the handler can run.
        PREVIOUS.get_or_init(|| previous);
        // SAFETY: `on_fault` has the signature that SA_SIGINFO needs and calls only functions that
        // are safe in a signal handler; `action` outlives the call.
        if unsafe { libc::sigaction(libc::SIGBUS, &raw const action, std::ptr::null_mut()) } != 0 {
            return Err(std::io::Error::last_os_error());
        }
        *is_installed = true;
        Ok(true)
    }

    /// Maps zeros from the page of a fault to the end of its mapping, since past the end of a file
    /// there are no bytes. Restores the earlier action for a fault outside all mappings.
    ///
    /// Uses only atomics and two system calls, since it may interrupt any code, even an allocation.
    extern "C" fn on_fault(
        _signal: libc::c_int,
        info: *mut libc::siginfo_t,
        _context: *mut libc::c_void,
    ) {
        // SAFETY: the kernel passes a valid `siginfo_t` with the address of the fault.
        let address = unsafe { (*info).si_addr() }.addr();
        let page_bytes = PAGE_BYTES.get().copied().unwrap_or(4096);
        for slot in &SLOT {
            let (start, end) = (
                slot.start.load(Ordering::Acquire),
                slot.end.load(Ordering::Acquire),
            );
            if start == 0 || address < start || address >= end {
                continue;
            }
            let page = address & !(page_bytes - 1);
            // SAFETY: replaces pages of a read-only mapping that `MappedFile` keeps a place for, so
            // the range is ours; the pages had no readable bytes, because the first of them faulted
            // and the others lie further past the file's end.
            let mapped = unsafe {
                libc::mmap(
                    std::ptr::without_provenance_mut(page),
                    end - page,
                    libc::PROT_READ,
                    libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED,
                    -1,
                    0,
                )
            };
            if mapped != libc::MAP_FAILED {
                if !slot.is_cut.swap(true, Ordering::Relaxed) {
                    NUM_CUT.fetch_add(1, Ordering::Relaxed);
                }
                return;
            }
        }
        if let Some(previous) = PREVIOUS.get() {
            // SAFETY: the system returned `previous`; the fault occurs again under that action.
            unsafe { libc::sigaction(libc::SIGBUS, previous, std::ptr::null_mut()) };
        }
    }
}

#[cfg(not(unix))]
mod handler {
    /// Other systems do not allow truncating a mapped file.
    pub fn install() -> std::io::Result<bool> {
        Ok(false)
    }
}
