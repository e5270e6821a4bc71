//! A cursor over untrusted bytes: every read is checked against the bytes left, and an error says
//! where and in which field.

use std::fmt::Display;

use crate::error::{Error, Result};

/// Reads little-endian numbers and strings from `bytes`, front to back.
pub(super) struct Reader<'a> {
    bytes: &'a [u8],
    offset: usize,
}

impl<'a> Reader<'a> {
    /// Starts at byte `offset`, which is at most the length.
    pub(super) fn new(bytes: &'a [u8], offset: usize) -> Self {
        Self { bytes, offset }
    }

    /// Bytes from the start of the file to the next read.
    pub(super) fn offset(&self) -> usize {
        self.offset
    }

    /// Bytes from the next read to the end of the file.
    pub(super) fn left(&self) -> usize {
        self.bytes.len() - self.offset
    }

    /// The next `len` bytes.
    pub(super) fn take(&mut self, len: u64, what: &dyn Display) -> Result<&'a [u8]> {
        match usize::try_from(len) {
            Ok(len) if len <= self.left() => {
                let taken = &self.bytes[self.offset..self.offset + len];
                self.offset += len;
                Ok(taken)
            }
            _ => Err(self.truncated(len, what)),
        }
    }

    /// Checks that `count` items of at least `size` bytes each can still follow, before a loop over
    /// them.
    pub(super) fn expect_room(&self, count: u64, size: u64, what: &dyn Display) -> Result<()> {
        let needed = count.saturating_mul(size);
        if needed <= self.left() as u64 {
            Ok(())
        } else {
            Err(self.truncated(needed, what))
        }
    }

    /// The next little-endian u32.
    pub(super) fn u32(&mut self, what: &dyn Display) -> Result<u32> {
        Ok(u32::from_le_bytes(self.array(what)?))
    }

    /// The next little-endian u64.
    pub(super) fn u64(&mut self, what: &dyn Display) -> Result<u64> {
        Ok(u64::from_le_bytes(self.array(what)?))
    }

    /// The next string: a u64 length and that many bytes, which must be UTF-8.
    pub(super) fn string(&mut self, what: &dyn Display) -> Result<&'a str> {
        let len = self.u64(what)?;
        let bytes = self.take(len, what)?;
        std::str::from_utf8(bytes).map_err(|e| Error::GgufMalformed {
            culprit: what.to_string(),
            problem: format!("is not UTF-8 from its byte {} on", e.valid_up_to()),
        })
    }

    fn array<const N: usize>(&mut self, what: &dyn Display) -> Result<[u8; N]> {
        match self.bytes[self.offset..].first_chunk() {
            Some(chunk) => {
                self.offset += N;
                Ok(*chunk)
            }
            None => Err(self.truncated(N as u64, what)),
        }
    }

    fn truncated(&self, needed: u64, what: &dyn Display) -> Error {
        Error::GgufTruncated {
            what: what.to_string(),
            offset: self.offset,
            needed,
            left: self.left(),
        }
    }
}
