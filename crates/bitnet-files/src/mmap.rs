//! The bytes of a model: mapped from a file, embedded in the program, or owned; and the advice to
//! the system about them.

#![expect(
    unsafe_code,
    reason = "a file can only be mapped, and its pages dropped, through unsafe calls"
)]

use std::fs::File;
use std::ops::Deref;
use std::path::Path;
use std::sync::Arc;

use bitnet_guard::MappedFile;
use memmap2::Mmap;

use crate::error::{Error, Result};

/// The beginning of the text that Git LFS leaves in place of a large file.
const LFS_POINTER: &[u8] = b"version https://git-lfs.github.com/spec/";

/// The bytes of one model file, immutable for as long as they live.
pub enum ModelBytes {
    /// A mapped file. The watch is the first field, so that it is dropped before the mapping.
    Mapped(MappedFile, Mmap),
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
        if file.metadata().map_err(io)?.len() == 0 {
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
        Ok(Self::Mapped(watch, map))
    }

    /// Tells the system that a range will be read once, front to back, soon. Advice only: failure
    /// changes nothing.
    pub fn advise_sequential(&self, offset: usize, len: usize) {
        #[cfg(unix)]
        if let Self::Mapped(_, map) = self {
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
        if let Self::Mapped(_, map) = self {
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
            Self::Mapped(_, map) => map,
            Self::Static(bytes) => bytes,
            Self::Owned(bytes) => bytes,
        }
    }
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

    /// Lets the system take back the memory of the range; see [`ModelBytes::advise_done`].
    pub fn advise_done(&self) {
        self.file.advise_done(self.offset, self.len);
    }

    /// Tells the system that the range will be read once, front to back.
    pub fn advise_sequential(&self) {
        self.file.advise_sequential(self.offset, self.len);
    }
}

impl Deref for Extent {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.file[self.offset..self.offset + self.len]
    }
}
