//! The error type of this crate: each error names the problem, the part of the model and the
//! numbers.

use std::path::PathBuf;

/// The reason why a model cannot be loaded, run or converted.
///
/// Names from a file are shortened and escaped before they get here, so a message is always one
/// printable line.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file that holds the model.
    #[error(transparent)]
    File(#[from] bitnet_files::Error),
    /// A cache of packed weights that lacks some of them.
    #[error("the cache of packed weights lacks {name}")]
    KeptWeights {
        /// Their name.
        name: String,
    },
    /// An architecture without a graph.
    #[error("architecture {found:?} is not supported; supported are {supported}")]
    Architecture {
        /// The name in the file, shortened and escaped.
        found: String,
        /// The supported names.
        supported: String,
    },
    /// A file that turns pictures into embeddings for a language model.
    #[error(
        "the file is a vision projector (architecture clip), not a language model: give the file of the \
         language model; pictures are not supported"
    )]
    VisionProjector,
    /// A number of the configuration that is out of range or contradicts another.
    #[error("model configuration: {key} is {problem}")]
    Config {
        /// The key.
        key: String,
        /// Its value and the valid values.
        problem: String,
    },
    /// A tensor whose shape contradicts the configuration.
    #[error("tensor {tensor} has shape {found:?}, expected {expected:?}")]
    Shape {
        /// The tensor's name.
        tensor: String,
        /// Its dimensions, the contiguous one first.
        found: Vec<usize>,
        /// The expected dimensions.
        expected: Vec<usize>,
    },
    /// A tensor of a type that is not supported for its use.
    #[error("tensor {tensor} has type {found}; {used_as} can be {supported}")]
    TensorUse {
        /// The tensor's name.
        tensor: String,
        /// Its type.
        found: &'static str,
        /// Its use.
        used_as: &'static str,
        /// The supported types.
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
        /// The tensors that the graph uses.
        used: &'static str,
    },
    /// The bytes of a tensor contradict its format.
    #[error("tensor {tensor}")]
    Tensor {
        /// The tensor's name.
        tensor: String,
        /// The problem.
        source: bitnet_quantization::Error,
    },
    /// Invalid values in a tensor.
    #[error("tensor {tensor}: {problem}")]
    TensorValues {
        /// The tensor's name.
        tensor: String,
        /// The problem, with the numbers.
        problem: String,
    },
    /// A TL1 or TL2 tensor without stated tile sizes.
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
    /// A model that the target format cannot represent.
    #[error("cannot convert: {problem}")]
    Convert {
        /// The part that it cannot represent, with the numbers.
        problem: String,
    },
    /// A written file has other contents when it is read back.
    #[error("{} was not written correctly: {problem}", path.display())]
    ReadBack {
        /// The file.
        path: PathBuf,
        /// The difference.
        problem: String,
    },
    /// Something that a device does not have or cannot do.
    #[error("{device}: {problem}")]
    Device {
        /// The device's name.
        device: String,
        /// The problem, with the numbers.
        problem: String,
    },
    /// No memory for the key/value cache.
    #[error("no memory for the key/value cache of {positions} positions ({bytes} bytes)")]
    KvMemory {
        /// Requested positions.
        positions: usize,
        /// Bytes that it needs.
        bytes: usize,
        /// The system's error.
        source: std::io::Error,
    },
    /// No memory for recurrent states.
    #[error("no memory for {num_states} recurrent states ({bytes} bytes)")]
    StateMemory {
        /// Requested slots.
        num_states: usize,
        /// Bytes of all slots.
        bytes: usize,
        /// The system's error.
        source: std::io::Error,
    },
}

/// The result type of this crate.
pub type Result<T> = std::result::Result<T, Error>;
