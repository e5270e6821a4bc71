//! [`Pieces`]: a file written front to back, tensor by tensor, with a checksum of each.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use crate::checksum::Checksum;
use crate::error::{Error, Result};

/// The layout of both kinds of model files: a head, then tensors, each padded to an alignment.
pub(crate) struct Pieces {
    path: PathBuf,
    out: BufWriter<File>,
    alignment: usize,
    /// One per piece that has begun.
    checksums: Vec<Checksum>,
    /// Bytes that the current piece still lacks.
    left: usize,
    /// Padding after the current piece.
    padding: usize,
}

impl Pieces {
    /// Writes the head, whose length is a multiple of the alignment, into an empty file. path: its
    /// name, for messages.
    pub(crate) fn new(file: File, path: &Path, head: &[u8], alignment: usize) -> Result<Self> {
        let out = BufWriter::with_capacity(1 << 20, file);
        let mut pieces = Self {
            path: path.to_owned(),
            out,
            alignment,
            checksums: Vec::new(),
            left: 0,
            padding: 0,
        };
        pieces.write_all(head)?;
        Ok(pieces)
    }

    /// Pieces that have begun.
    pub(crate) fn num_begun(&self) -> usize {
        self.checksums.len()
    }

    /// Begins the next piece, of `len` bytes.
    ///
    /// # Panics
    /// If the piece before is incomplete.
    pub(crate) fn begin(&mut self, len: usize) -> Result<()> {
        self.end()?;
        self.left = len;
        self.padding = len.next_multiple_of(self.alignment) - len;
        self.checksums.push(Checksum::default());
        Ok(())
    }

    /// Appends bytes to the current piece.
    ///
    /// # Panics
    /// If the piece has less room.
    pub(crate) fn write(&mut self, bytes: &[u8]) -> Result<()> {
        assert!(
            bytes.len() <= self.left,
            "{} bytes for a tensor that lacks {}",
            bytes.len(),
            self.left
        );
        self.left -= bytes.len();
        if let Some(checksum) = self.checksums.last_mut() {
            checksum.update(bytes);
        }
        self.write_all(bytes)
    }

    /// Flushes everything to the disk. Returns the checksums of the pieces.
    ///
    /// # Panics
    /// If the last piece is incomplete.
    pub(crate) fn finish(mut self) -> Result<Vec<Checksum>> {
        self.end()?;
        let io = |source| Error::Write {
            path: self.path.clone(),
            source,
        };
        let file = self
            .out
            .into_inner()
            .map_err(|error| io(error.into_error()))?;
        file.sync_all().map_err(io)?;
        Ok(self.checksums)
    }

    fn end(&mut self) -> Result<()> {
        assert_eq!(
            self.left,
            0,
            "bytes that tensor {} lacks",
            self.checksums.len()
        );
        let padding = vec![0; std::mem::take(&mut self.padding)];
        self.write_all(&padding)
    }

    fn write_all(&mut self, bytes: &[u8]) -> Result<()> {
        self.out.write_all(bytes).map_err(|source| Error::Write {
            path: self.path.clone(),
            source,
        })
    }
}
