//! The bytes of a model: mapped from a file, embedded in the program, or owned; and the advice to
//! the system about them.

#![expect(
    unsafe_code,
    reason = "a file can only be mapped, and its pages dropped, through unsafe calls"
)]

use std::fs::{File, Metadata};
use std::ops::Deref;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::UNIX_EPOCH;

use bitnet_guard::MappedFile;
use memmap2::Mmap;
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};

/// The beginning of the text that Git LFS leaves in place of a large file.
const LFS_POINTER: &[u8] = b"version https://git-lfs.github.com/spec/";

/// The bytes of one model file, immutable for as long as they live.
pub enum ModelBytes {
    /// A mapped file as it was when it was opened. The watch is the first field, so that it is
    /// dropped before the mapping.
    Mapped(MappedFile, Mmap, FileStamp),
    /// Bytes in the program itself.
    Static(&'static [u8]),
    /// Bytes in memory.
    Owned(Vec<u8>),
}

impl ModelBytes {
    /// Maps a regular file read-only. Nothing is read yet; the system loads a page on its first
    /// use.
    pub fn map(path: &Path) -> Result<Self> {
        let io = |source| Error::Io {
            path: path.to_owned(),
            source,
        };
        // Check the type before opening: opening a pipe would wait for its writer.
        if !std::fs::metadata(path).map_err(io)?.is_file() {
            return Err(Error::NotAFile {
                path: path.to_owned(),
            });
        }
        let file = File::open(path).map_err(io)?;
        let metadata = file.metadata().map_err(io)?;
        if metadata.len() == 0 {
            return Ok(Self::Owned(Vec::new())); // some systems refuse to map nothing
        }
        // SAFETY: the mapping is read-only and lives as long as the value. Replacing the file by
        // renaming is harmless. A program that truncates or rewrites it in place changes the bytes
        // under us; `MappedFile` notices that, and maps zeros where no bytes are left.
        let map = unsafe { Mmap::map(&file) }.map_err(io)?;
        let watch = MappedFile::watch(path, file, map.as_ptr_range()).map_err(io)?;
        if map.starts_with(LFS_POINTER) {
            return Err(Error::LfsPointer {
                path: path.to_owned(),
            });
        }
        let stamp = FileStamp::new(path, &metadata).map_err(io)?;
        Ok(Self::Mapped(watch, map, stamp))
    }

    /// The file as it was when it was opened; `None` for bytes that are in no file.
    pub fn stamp(&self) -> Option<&FileStamp> {
        match self {
            Self::Mapped(_, _, stamp) => Some(stamp),
            Self::Static(_) | Self::Owned(_) => None,
        }
    }

    /// Tells the system that a range will be read soon, to be kept then. Advice only.
    pub fn advise_soon(&self, offset: usize, len: usize) {
        #[cfg(unix)]
        if let Self::Mapped(_, map, _) = self {
            let _ = map.advise_range(memmap2::Advice::WillNeed, offset, len);
        }
        #[cfg(not(unix))]
        let _ = (offset, len);
    }

    /// Tells the system that a range will be read once, front to back, soon. Advice only: failure
    /// changes nothing.
    pub fn advise_sequential(&self, offset: usize, len: usize) {
        #[cfg(unix)]
        if let Self::Mapped(_, map, _) = self {
            let _ = map.advise_range(memmap2::Advice::Sequential, offset, len);
            let _ = map.advise_range(memmap2::Advice::WillNeed, offset, len);
        }
        #[cfg(not(unix))]
        let _ = (offset, len);
    }

    /// Lets the system take back the memory of a range. The bytes stay readable: they come from the
    /// file again.
    pub fn advise_done(&self, offset: usize, len: usize) {
        #[cfg(unix)]
        if let Self::Mapped(_, map, _) = self {
            // SAFETY: the mapping is shared, read-only and backed by the file, so dropping its
            // pages loses nothing: a later read, through a borrow older than this call too, faults
            // the same bytes in again.
            let _ = unsafe {
                map.unchecked_advise_range(memmap2::UncheckedAdvice::DontNeed, offset, len)
            };
        }
        #[cfg(not(unix))]
        let _ = (offset, len);
    }
}

impl Deref for ModelBytes {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match self {
            Self::Mapped(_, map, _) => map,
            Self::Static(bytes) => bytes,
            Self::Owned(bytes) => bytes,
        }
    }
}

/// Distinguishes a file from a later one of that name, as far as the system knows without
/// reading it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileStamp {
    /// Its path, absolute and without links.
    pub path: PathBuf,
    /// Its size in bytes.
    pub size: u64,
    /// When its bytes were last written, in nanoseconds since 1970.
    modified_ns: Option<u64>,
    /// When its bytes or its entry were last changed (which no program can set), device and inode;
    /// `None` where the system has no such numbers.
    node: Option<[u64; 3]>,
}

impl FileStamp {
    /// The file at a path as it is now.
    ///
    /// # Errors
    /// If there is none, or the system refuses.
    pub fn of(path: &Path) -> std::io::Result<Self> {
        Self::new(path, &std::fs::metadata(path)?)
    }

    fn new(path: &Path, metadata: &Metadata) -> std::io::Result<Self> {
        let modified = metadata.modified().ok();
        let since = modified.and_then(|time| time.duration_since(UNIX_EPOCH).ok());
        Ok(Self {
            path: path.canonicalize()?,
            size: metadata.len(),
            modified_ns: since.and_then(|since| u64::try_from(since.as_nanos()).ok()),
            node: node(metadata),
        })
    }

    /// Whether the file at the path still is this one, unchanged.
    pub fn is_current(&self) -> bool {
        Self::of(&self.path).is_ok_and(|now| now == *self)
    }
}

#[cfg(unix)]
fn node(metadata: &Metadata) -> Option<[u64; 3]> {
    use std::os::unix::fs::MetadataExt;
    let changed_ns = metadata.ctime() * 1_000_000_000 + metadata.ctime_nsec();
    Some([changed_ns as u64, metadata.dev(), metadata.ino()])
}

#[cfg(not(unix))]
fn node(_: &Metadata) -> Option<[u64; 3]> {
    None
}

/// A range of a file's bytes, which keeps the bytes alive. It is checked to lie within the file
/// when it is made.
#[derive(Clone)]
pub struct Extent {
    file: Arc<ModelBytes>,
    offset: usize,
    len: usize,
}

impl Extent {
    /// `len` bytes of `file` from `offset` on.
    ///
    /// # Panics
    /// If the file is shorter.
    pub fn new(file: &Arc<ModelBytes>, offset: usize, len: usize) -> Self {
        assert!(
            offset <= file.len() && len <= file.len() - offset,
            "{len} bytes at {offset} of {}",
            file.len()
        );
        Self {
            file: Arc::clone(file),
            offset,
            len,
        }
    }

    /// The file that the range lies in.
    pub fn file(&self) -> &Arc<ModelBytes> {
        &self.file
    }

    /// Where the range begins in the file, in bytes.
    pub fn offset(&self) -> usize {
        self.offset
    }

    /// Tells the system that `len` bytes from `start` on will be read soon, to be kept then.
    pub fn advise_soon(&self, start: usize, len: usize) {
        self.file.advise_soon(self.offset + start, len);
    }

    /// Lets the system take back the memory of the range; see [`ModelBytes::advise_done`].
    pub fn advise_done(&self) {
        self.file.advise_done(self.offset, self.len);
    }

    /// Tells the system that the range will be read once, front to back.
    pub fn advise_sequential(&self) {
        self.file.advise_sequential(self.offset, self.len);
    }
}

impl AsRef<[u8]> for Extent {
    fn as_ref(&self) -> &[u8] {
        self
    }
}

impl Deref for Extent {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.file[self.offset..self.offset + self.len]
    }
}
