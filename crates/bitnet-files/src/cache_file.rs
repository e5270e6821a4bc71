//! [`CacheFile`]: byte ranges that take long to compute, with a checksum for every few megabytes.
//!
//! ```text
//! 0    "BITNETPK" | version u32 | 0 u32 | table length u64 | table checksum u64 | file length u64
//!      | checksum u64 of these 40 bytes
//! 64   table: JSON with what the owner says, and length and checksums of each piece
//!      pieces, each at the next multiple of 4096
//! ```
//! Numbers are little endian. A file is written under another name and gets its own when it is
//! complete ([`Output`]), and is never changed after that. Opening checks header and table, so
//! every piece lies in the file; [`CacheFile::is_intact`] checks the bytes of the pieces, block by
//! block, which threads can share.

use std::io::Write;
use std::path::Path;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::checksum::Checksum;
use crate::error::{Error, Result};
use crate::mmap::{Extent, ModelBytes};
use crate::output::Output;

const MAGIC: &[u8; 8] = b"BITNETPK";
/// The version of this layout.
const VERSION: u32 = 1;
/// Bytes of the header, the unused ones at its end included.
const HEADER_BYTES: usize = 64;
/// Bytes of the header that its checksum covers.
const CHECKED_BYTES: usize = 40;
/// The alignment of pieces: a page, so that a mapped piece begins with one.
const ALIGNMENT: usize = 4096;
/// Maximum length of the table in bytes.
const TABLE_BYTES_MAX: u64 = 64 << 20;
/// Bytes that have a checksum of their own.
const BLOCK_BYTES: usize = 4 << 20;
/// Bytes that are written at a time.
const WRITE_BYTES: usize = 8 << 20;

/// An open cache file.
pub struct CacheFile {
    file: Arc<ModelBytes>,
    head: Value,
    pieces: Vec<Extent>,
    /// The blocks of all pieces: piece, offset in it, checksum.
    blocks: Vec<(usize, usize, u64)>,
}

#[derive(Serialize, Deserialize)]
struct Table {
    head: Value,
    pieces: Vec<Piece>,
}

#[derive(Serialize, Deserialize)]
struct Piece {
    len: usize,
    /// One for each block.
    checksums: Vec<u64>,
}

impl CacheFile {
    /// Maps a file and checks its header and its table.
    ///
    /// # Errors
    /// If there is no such file, or it is not complete, of another version or damaged.
    pub fn open(path: &Path) -> Result<Self> {
        let file = Arc::new(ModelBytes::map(path)?);
        let wrong = |problem: String| Error::CacheFile {
            path: path.to_owned(),
            problem,
        };
        let table = read_table(&file).map_err(wrong)?;
        let (mut pieces, mut blocks) = (Vec::new(), Vec::new());
        let mut offset = HEADER_BYTES + header_number(&file, 16) as usize;
        for (index, piece) in table.pieces.iter().enumerate() {
            offset = offset.next_multiple_of(ALIGNMENT);
            if offset > file.len() || piece.len > file.len() - offset {
                let (len, left) = (piece.len, file.len().saturating_sub(offset));
                return Err(wrong(format!(
                    "piece {index} has {len} bytes at {offset}, where {left} are left"
                )));
            }
            let num_blocks = piece.len.div_ceil(BLOCK_BYTES);
            if piece.checksums.len() != num_blocks {
                let found = piece.checksums.len();
                return Err(wrong(format!(
                    "piece {index} has {found} checksums, expected {num_blocks}"
                )));
            }
            pieces.push(Extent::new(&file, offset, piece.len));
            let starts = (0..piece.len).step_by(BLOCK_BYTES);
            let of_piece = starts.zip(&piece.checksums);
            blocks.extend(of_piece.map(|(start, checksum)| (index, start, *checksum)));
            offset += piece.len;
        }
        Ok(Self {
            file,
            head: table.head,
            pieces,
            blocks,
        })
    }

    /// What the owner says about the pieces.
    pub fn head(&self) -> &Value {
        &self.head
    }

    /// The bytes of the file.
    pub fn file_len(&self) -> usize {
        self.file.len()
    }

    /// The pieces. They keep the mapping.
    pub fn pieces(&self) -> &[Extent] {
        &self.pieces
    }

    /// Blocks that have checksums.
    pub fn num_blocks(&self) -> usize {
        self.blocks.len()
    }

    /// Whether a block has its checksum. Reads it completely.
    ///
    /// # Panics
    /// If there is no such block.
    pub fn is_intact(&self, block: usize) -> bool {
        let (piece, start, checksum) = self.blocks[block];
        let piece = &self.pieces[piece];
        let len = BLOCK_BYTES.min(piece.len() - start);
        piece.advise_soon(start, len);
        Checksum::of(&piece[start..start + len]) == checksum
    }

    /// Writes a file, in place of one of that name. `head` is what the owner says about the pieces.
    /// Stores it on the disk before it gets its name, and calls `go_on` now and then: if it returns
    /// false, writing ends and nothing is left of it. Returns the bytes of the file.
    ///
    /// # Errors
    /// If the system refuses, another process writes the same file, or `go_on` returns false.
    pub fn write(
        path: &Path,
        head: Value,
        pieces: &[impl AsRef<[u8]> + Sync],
        go_on: &dyn Fn() -> bool,
    ) -> Result<u64> {
        let table = Table {
            head,
            pieces: checked(pieces),
        };
        let io = |source| Error::Write {
            path: path.to_owned(),
            source,
        };
        let table = serde_json::to_vec(&table).map_err(|error| io(error.into()))?;
        let end = |end: usize, piece: &dyn AsRef<[u8]>| {
            end.next_multiple_of(ALIGNMENT) + piece.as_ref().len()
        };
        let table_end = HEADER_BYTES + table.len();
        let file_len = pieces.iter().fold(table_end, |len, piece| end(len, piece));
        let output = Output::replacing(path)?;
        let mut file = output.handle()?;
        file.write_all(&header(&table, file_len)).map_err(io)?;
        file.write_all(&table).map_err(io)?;
        let mut len = table_end;
        for piece in pieces {
            let start = len.next_multiple_of(ALIGNMENT);
            file.write_all(&vec![0; start - len]).map_err(io)?;
            for bytes in piece.as_ref().chunks(WRITE_BYTES) {
                if !go_on() {
                    return Err(io(std::io::ErrorKind::Interrupted.into()));
                }
                file.write_all(bytes).map_err(io)?;
            }
            len = start + piece.as_ref().len();
        }
        file.sync_all().map_err(io)?;
        output.commit()?;
        Ok(len as u64)
    }
}

/// The pieces with their checksums.
fn checked(pieces: &[impl AsRef<[u8]> + Sync]) -> Vec<Piece> {
    let checksums = |bytes: &[u8]| bytes.chunks(BLOCK_BYTES).map(Checksum::of).collect();
    let of = |piece: &[u8]| Piece {
        len: piece.len(),
        checksums: checksums(piece),
    };
    pieces.iter().map(|piece| of(piece.as_ref())).collect()
}

fn header(table: &[u8], file_len: usize) -> [u8; HEADER_BYTES] {
    let mut header = [0; HEADER_BYTES];
    header[..8].copy_from_slice(MAGIC);
    header[8..12].copy_from_slice(&VERSION.to_le_bytes());
    let mut put = |at: usize, number: u64| {
        header[at..at + 8].copy_from_slice(&number.to_le_bytes());
    };
    put(16, table.len() as u64);
    put(24, Checksum::of(table));
    put(32, file_len as u64);
    let checksum = Checksum::of(&header[..CHECKED_BYTES]);
    header[CHECKED_BYTES..CHECKED_BYTES + 8].copy_from_slice(&checksum.to_le_bytes());
    header
}

/// The number at an offset of the header, whose length was checked.
fn header_number(file: &[u8], at: usize) -> u64 {
    let mut number = [0; 8];
    number.copy_from_slice(&file[at..at + 8]);
    u64::from_le_bytes(number)
}

/// Checks header and table. The error says what is wrong.
fn read_table(file: &[u8]) -> std::result::Result<Table, String> {
    if !file.starts_with(MAGIC) {
        return Err("it is not a cache of packed weights".into());
    }
    if file.len() < HEADER_BYTES {
        return Err(format!("it ends after {} bytes, in its header", file.len()));
    }
    let version = header_number(file, 8) as u32;
    if version != VERSION {
        return Err(format!("it has version {version}, expected {VERSION}"));
    }
    if header_number(file, CHECKED_BYTES) != Checksum::of(&file[..CHECKED_BYTES]) {
        return Err("its header is damaged".into());
    }
    let (table_len, file_len) = (header_number(file, 16), header_number(file, 32));
    if file_len != file.len() as u64 {
        return Err(format!("it has {} bytes, expected {file_len}", file.len()));
    }
    let left = file_len - HEADER_BYTES as u64;
    if table_len > left.min(TABLE_BYTES_MAX) {
        return Err(format!(
            "its table has {table_len} bytes, where {left} are left"
        ));
    }
    let table = &file[HEADER_BYTES..HEADER_BYTES + table_len as usize];
    if Checksum::of(table) != header_number(file, 24) {
        return Err("its table is damaged".into());
    }
    serde_json::from_slice(table).map_err(|error| format!("its table is not readable: {error}"))
}

#[cfg(test)]
mod tests {
    use std::fs;

    use serde_json::json;

    use super::*;

    /// A file of three pieces: one of two blocks, none, and one of a few bytes.
    fn example(path: &Path) -> Vec<Vec<u8>> {
        let large = (0..BLOCK_BYTES + 5).map(|i| (i % 251) as u8).collect();
        let pieces = vec![large, Vec::new(), vec![1, 2, 3]];
        let len = CacheFile::write(path, json!({ "of": "me" }), &pieces, &|| true);
        let len = len.expect("it is written");
        assert_eq!(len, fs::metadata(path).expect("it is there").len());
        pieces
    }

    fn problem(path: &Path) -> String {
        match CacheFile::open(path) {
            Ok(_) => panic!("{} opens", path.display()),
            Err(error) => error.to_string(),
        }
    }

    #[test]
    fn pieces_come_back_at_the_start_of_pages() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("a");
        let pieces = example(&path);
        let file = CacheFile::open(&path).expect("it opens");
        assert_eq!(file.head(), &json!({ "of": "me" }));
        assert_eq!(file.pieces().len(), 3);
        for (found, piece) in file.pieces().iter().zip(&pieces) {
            assert!(**found == **piece && found.offset().is_multiple_of(ALIGNMENT));
        }
        assert_eq!(file.num_blocks(), 3);
        assert!((0..3).all(|block| file.is_intact(block)));
    }

    #[test]
    fn every_changed_bit_is_found() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("a");
        example(&path);
        let bytes = fs::read(&path).expect("it can be read");
        let table_len = header_number(&bytes, 16) as usize;
        let mut tried = 0;
        let (first, last) = (HEADER_BYTES + table_len, bytes.len() - 3);
        for at in (0..first).chain([ALIGNMENT, ALIGNMENT + BLOCK_BYTES, last, last + 2]) {
            let is_unused = (12..16).contains(&at) || (48..HEADER_BYTES).contains(&at);
            if is_unused || at >= first && at < ALIGNMENT {
                continue;
            }
            let mut changed = bytes.clone();
            changed[at] ^= 1 << (at % 8);
            let path = folder.path().join("b");
            fs::write(&path, changed).expect("it is written");
            let is_intact = CacheFile::open(&path)
                .is_ok_and(|file| (0..file.num_blocks()).all(|block| file.is_intact(block)));
            assert!(!is_intact, "byte {at}");
            tried += 1;
        }
        assert!(tried > table_len);
    }

    #[test]
    fn files_that_end_early_or_are_no_caches_are_refused() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("a");
        example(&path);
        let bytes = fs::read(&path).expect("it can be read");
        for len in [8, 63, 64, 100, 4096, bytes.len() - 1] {
            let path = folder.path().join("b");
            fs::write(&path, &bytes[..len]).expect("it is written");
            let problem = problem(&path);
            assert!(problem.contains("bytes"), "{len}: {problem}");
        }
        fs::write(&path, b"GGUF").expect("it is written");
        assert!(problem(&path).contains("not a cache of packed weights"));
        fs::write(&path, b"").expect("it is written");
        assert!(problem(&path).contains("not a cache of packed weights"));
        let mut newer = bytes;
        newer[8] = 2;
        fs::write(&path, newer).expect("it is written");
        assert!(problem(&path).contains("it has version 2, expected 1"));
    }

    #[test]
    fn nothing_is_left_of_a_file_that_is_not_written_completely() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("a");
        example(&path);
        let before = fs::read(&path).expect("it can be read");
        let result = CacheFile::write(&path, Value::Null, &[[7u8; 9]], &|| false);
        assert!(result.is_err());
        assert!(fs::read(&path).expect("it can be read") == before);
        assert_eq!(fs::read_dir(folder.path()).expect("a folder").count(), 1);
    }
}
