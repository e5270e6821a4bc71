//! The one error of this crate: what is wrong with a model, which part, and the numbers.

use std::path::PathBuf;

/// Why a model cannot be loaded, run or converted.
///
/// Names from a file are shortened and escaped before they get here, so a message is always one
/// printable line.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file that holds the model.
    #[error(transparent)]
    File(#[from] bitnet_files::Error),
    /// An architecture that there is no graph for.
    #[error("architecture {found:?} is not supported; supported are {supported}")]
    Architecture {
        /// The name in the file, shortened and escaped.
        found: String,
        /// The names that are.
        supported: String,
    },
    /// A number of the configuration that is out of range or contradicts another.
    #[error("model configuration: {key} is {problem}")]
    Config {
        /// The key.
        key: String,
        /// Its value and what would be possible.
        problem: String,
    },
    /// A tensor whose shape is not what the configuration says.
    #[error("tensor {tensor} has shape {found:?}, expected {expected:?}")]
    Shape {
        /// The tensor's name.
        tensor: String,
        /// Its dimensions, the contiguous one first.
        found: Vec<usize>,
        /// What they must be.
        expected: Vec<usize>,
    },
    /// A tensor of a type that cannot be used in its place.
    #[error("tensor {tensor} has type {found}; {used_as} can be {supported}")]
    TensorUse {
        /// The tensor's name.
        tensor: String,
        /// Its type.
        found: &'static str,
        /// What it is needed for.
        used_as: &'static str,
        /// The types that would do.
        supported: &'static str,
    },
    /// A tensor that the graph of this architecture does not have. Leaving it out would change the
    /// result.
    #[error("tensor {tensor} has no place in the {architecture} graph, which uses {used}")]
    TensorUnknown {
        /// The tensor's name.
        tensor: String,
        /// The architecture as the file names it.
        architecture: String,
        /// What the graph uses.
        used: &'static str,
    },
    /// The bytes of a tensor contradict its format.
    #[error("tensor {tensor}")]
    Tensor {
        /// The tensor's name.
        tensor: String,
        /// What is wrong with them.
        source: bitnet_quantization::Error,
    },
    /// Values of a tensor that no model can have.
    #[error("tensor {tensor}: {problem}")]
    TensorValues {
        /// The tensor's name.
        tensor: String,
        /// What is wrong, with the numbers.
        problem: String,
    },
    /// A TL1 or TL2 tensor whose tile sizes are nowhere stated.
    #[error(
        "tensor {tensor} is {format} of shape [{rows}, {cols}], whose tile is not known; metadata key {key} or --tl-tile can give it"
    )]
    TileUnknown {
        /// The tensor's name.
        tensor: String,
        /// TL1 or TL2.
        format: &'static str,
        /// Output rows.
        rows: usize,
        /// Input columns.
        cols: usize,
        /// The key that would state it.
        key: String,
    },
    /// The caller stopped a conversion.
    #[error("interrupted; nothing was written")]
    Interrupted,
    /// A model that the target format cannot hold.
    #[error("cannot convert: {problem}")]
    Convert {
        /// What it cannot hold, with the numbers.
        problem: String,
    },
    /// A written file has other contents when it is read back.
    #[error("{} was not written correctly: {problem}", path.display())]
    ReadBack {
        /// The file.
        path: PathBuf,
        /// What differs.
        problem: String,
    },
    /// No memory for the key/value cache.
    #[error("no memory for the key/value cache of {positions} positions ({bytes} bytes)")]
    KvMemory {
        /// Positions it was to hold.
        positions: usize,
        /// Bytes that takes.
        bytes: usize,
        /// What the system said.
        source: std::io::Error,
    },
    /// No memory for recurrent states.
    #[error("no memory for {num_states} recurrent states ({bytes} bytes)")]
    StateMemory {
        /// Slots asked for.
        num_states: usize,
        /// Bytes of all slots.
        bytes: usize,
        /// The system's error.
        source: std::io::Error,
    },
}

/// The crate's results.
pub type Result<T> = std::result::Result<T, Error>;
