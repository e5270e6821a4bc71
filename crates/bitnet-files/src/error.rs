//! The error of this crate: the problem with a file, its place, and the numbers.

use std::path::PathBuf;

/// Why a file cannot be read or written.
///
/// Names from a file are shortened and escaped before they get here, so a message is always one
/// printable line.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The operating system could not open, map or read the file.
    #[error("cannot read {}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// The system's error.
        source: std::io::Error,
    },
    /// The path names a directory, a pipe or a device.
    #[error("{} is not a regular file", path.display())]
    NotAFile {
        /// The path as given.
        path: PathBuf,
    },
    /// A pointer that Git LFS leaves in place of a large file.
    #[error(
        "{} is a Git LFS pointer, not the file itself; `git lfs pull` in its repository downloads it",
        path.display()
    )]
    LfsPointer {
        /// The file.
        path: PathBuf,
    },
    /// The file does not begin with the four bytes `GGUF`.
    #[error("not a GGUF file: begins with {found}, expected \"GGUF\"")]
    NotGguf {
        /// The first bytes of the file, escaped.
        found: String,
    },
    /// A big-endian GGUF file.
    #[error("GGUF file is big endian (version {version}); only little-endian files are supported")]
    GgufBigEndian {
        /// Its version, read as big endian.
        version: u32,
    },
    /// A GGUF version other than 2 and 3.
    #[error("GGUF version {version} is not supported; versions 2 and 3 are")]
    GgufVersion {
        /// The version in the file.
        version: u32,
    },
    /// The file ends before data that its header announces.
    #[error("GGUF file ends inside {what}: {needed} bytes needed at byte {offset}, {left} left")]
    GgufTruncated {
        /// What was being read.
        what: String,
        /// Where it begins, in bytes from the start of the file.
        offset: usize,
        /// Bytes it needs at least.
        needed: u64,
        /// Bytes the file has from there on.
        left: usize,
    },
    /// A cache of packed weights that cannot be used.
    #[error("{}: {problem}", path.display())]
    CacheFile {
        /// The file.
        path: PathBuf,
        /// What is wrong with it, with the numbers.
        problem: String,
    },
    /// Something in the file contradicts the format.
    #[error("GGUF {culprit}: {problem}")]
    GgufMalformed {
        /// The key, tensor or header field.
        culprit: String,
        /// What is wrong with it, with the numbers.
        problem: String,
    },
    /// A part of a split model that is missing or does not fit the others.
    #[error("{}: {problem}", path.display())]
    GgufSplit {
        /// The part.
        path: PathBuf,
        /// What is wrong with it, with the numbers.
        problem: String,
    },
    /// A tensor of a type whose size is not known.
    #[error("tensor {tensor} has type {found}, which is not supported; supported are {supported}")]
    TensorType {
        /// The tensor's name.
        tensor: String,
        /// The type id in the file, with its name where one is known.
        found: String,
        /// The names and ids of the types that can be read.
        supported: String,
    },
    /// A tensor whose type id is used for several formats, none of which has its size.
    #[error(
        "tensor {tensor} of shape {shape:?} has type id {id} and {room} bytes up to the next tensor; of that id fit: {sizes}"
    )]
    TensorSizes {
        /// The tensor's name.
        tensor: String,
        /// The type id in the file.
        id: u32,
        /// Its dimensions, the contiguous one first.
        shape: Vec<usize>,
        /// Bytes from its start to the next tensor or the end of the file.
        room: u64,
        /// Each format of that id and the bytes that it needs.
        sizes: String,
    },
    /// A required metadata key is missing.
    #[error("metadata key {key} is missing")]
    MetadataMissing {
        /// The key.
        key: String,
    },
    /// A metadata value of the wrong type or out of range.
    #[error("metadata key {key} is {found}, expected {wanted}")]
    MetadataType {
        /// The key.
        key: String,
        /// The type that was asked for.
        wanted: &'static str,
        /// The type and, for scalars, the value that the file holds.
        found: String,
    },
    /// A required tensor is missing.
    #[error("tensor {name} is missing")]
    TensorMissing {
        /// The tensor's name.
        name: String,
    },
    /// The files of a directory do not fit together.
    #[error("{}: {problem}", path.display())]
    Directory {
        /// The directory or the file in it.
        path: PathBuf,
        /// What is missing or contradictory, with the numbers.
        problem: String,
    },
    /// A file that is not JSON, or whose JSON lacks a required value.
    #[error("cannot understand {}", path.display())]
    Json {
        /// The file.
        path: PathBuf,
        /// What is wrong, and where.
        source: serde_json::Error,
    },
    /// A safetensors file contradicts its format.
    #[error("safetensors file {}: {culprit} {problem}", path.display())]
    Safetensors {
        /// The file.
        path: PathBuf,
        /// The header or the tensor.
        culprit: String,
        /// What is wrong with it, with the numbers.
        problem: String,
    },
    /// The file to write exists.
    #[error("{} exists; it is only overwritten on request", path.display())]
    OutputExists {
        /// The file.
        path: PathBuf,
    },
    /// The output cannot replace the existing file or directory.
    #[error("{} is not replaced: {problem}", path.display())]
    OutputKept {
        /// The file or directory.
        path: PathBuf,
        /// Why not.
        problem: String,
    },
    /// The operating system could not write a file.
    #[error("cannot write {}", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// The system's error.
        source: std::io::Error,
    },
    /// A tensor whose type cannot hold its shape.
    #[error("tensor {tensor} of shape {shape:?} cannot be {dtype}: {problem}")]
    TensorSize {
        /// The tensor's name.
        tensor: String,
        /// Its dimensions, the contiguous one first.
        shape: Vec<usize>,
        /// The type's name.
        dtype: &'static str,
        /// The rule that the shape breaks.
        problem: String,
    },
}

/// The result type of this crate.
pub type Result<T> = std::result::Result<T, Error>;

/// A name from a file, escaped and cut at 80 characters for an error message.
#[must_use]
pub fn shown(name: &str) -> String {
    let mut text: String = name.chars().take(80).flat_map(char::escape_debug).collect();
    if name.chars().nth(80).is_some() {
        text.push('…');
    }
    text
}
