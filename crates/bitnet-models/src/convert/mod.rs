//! Writes a model in another form: converts any loadable source to a GGUF file or a Hugging Face
//! directory.
//!
//! It works tensor by tensor, some rows at a time, so memory use does not depend on the model's
//! size: some megabytes, with TL1 and TL2 the packed size of the largest matrix. The result gets
//! its name only when it is complete and has been read back.

mod checkpoint;
mod gguf;
mod groups;
mod items;
mod mlx;
mod tables;

use std::ops::ControlFlow;
use std::sync::Arc;

use bitnet_files::Checksum;
use bitnet_files::gguf::{Gguf, TensorType};
use bitnet_quantization::GroupFormat;
use bitnet_quantization::dense::Dense;

use crate::error::{Error, Result};
use crate::huggingface::Checkpoint;
use crate::options::LoadOptions;
use crate::source::gguf::GgufSource;
use crate::source::{FloatRule, Source};

pub use checkpoint::{CHECKPOINT_FILES, to_checkpoint};
pub use gguf::to_gguf;

/// Number of bytes to read back at once.
const READ_BACK_BYTES: usize = 4 << 20;

/// A model to convert.
#[derive(Clone, Copy)]
pub enum Input<'a> {
    /// A Hugging Face directory. Float weights are quantized by the absmean formula, as the model's
    /// own code does. In graphs other than BitNet's, float weights must be weights with group
    /// scales, unless the caller asks to round them.
    Checkpoint(&'a Checkpoint),
    /// A GGUF file, and options for facts that it does not state.
    Gguf {
        /// The file.
        gguf: &'a Arc<Gguf>,
        /// The options.
        options: &'a LoadOptions,
        /// Whether to quantize float projections that are not ternary; otherwise they are refused.
        /// The rule is the absmean formula or, in graphs other than BitNet's with a target that has
        /// group scales, the rule of that target.
        quantize: bool,
    },
}

impl<'a> Input<'a> {
    fn open(self) -> Result<Opened<'a>> {
        Ok(match self {
            Self::Checkpoint(checkpoint) => Opened::Checkpoint(checkpoint),
            Self::Gguf {
                gguf,
                options,
                quantize,
            } => {
                let floats = if quantize {
                    FloatRule::TernaryOrAbsmean
                } else {
                    FloatRule::Ternary
                };
                let source = GgufSource::new(gguf, options)?.with_floats(floats);
                let extra = source.config().num_extra_layers;
                if extra > 0 {
                    let problem = format!(
                        "{extra} layers that predict further tokens, which conversions do not keep"
                    );
                    return Err(Error::Convert { problem });
                }
                Opened::Gguf(Box::new(source))
            }
        })
    }
}

/// The source of an input.
enum Opened<'a> {
    Checkpoint(&'a Checkpoint),
    Gguf(Box<GgufSource<'a>>),
}

impl Opened<'_> {
    fn source(&self) -> &dyn Source {
        match self {
            Self::Checkpoint(checkpoint) => *checkpoint,
            Self::Gguf(source) => source.as_ref(),
        }
    }
}

/// How projections are stored.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[expect(non_camel_case_types, reason = "the field's own names")]
pub enum WeightType {
    /// Two bits per weight, one scale per tensor: Microsoft's format.
    #[default]
    I2_S,
    /// 1.69 bits per weight, an f16 scale for each 256.
    TQ1_0,
    /// 2.06 bits per weight, an f16 scale for each 256.
    TQ2_0,
    /// Signs, 1.125 bits per weight, an f16 scale for each 128.
    Q1_0,
    /// 2.25 bits per weight, an f16 scale for each 64.
    Q2_0,
    /// 2.125 bits per weight, an f16 scale for each 128.
    PQ2_0,
    /// 1.75 bits per weight, an f16 scale for each 128.
    PTQ1_0,
    /// Two bits per weight in tiles for table lookup on ARM.
    TL1,
    /// 1.67 bits per weight in tiles for table lookup on x86.
    TL2,
    /// The scale or zero, as f16.
    F16,
    /// The scale or zero, as bf16.
    BF16,
    /// The scale or zero, as f32, which is exact.
    F32,
}

impl WeightType {
    /// The type of the tensors.
    #[must_use]
    pub fn dtype(self) -> TensorType {
        match self {
            Self::I2_S => TensorType::I2_S,
            Self::TQ1_0 => TensorType::TQ1_0,
            Self::TQ2_0 => TensorType::TQ2_0,
            Self::Q1_0 => TensorType::Q1_0,
            Self::Q2_0 => TensorType::Q2_0,
            Self::PQ2_0 => TensorType::PQ2_0,
            Self::PTQ1_0 => TensorType::PTQ1_0,
            Self::TL1 => TensorType::TL1,
            Self::TL2 => TensorType::TL2,
            Self::F16 => TensorType::F16,
            Self::BF16 => TensorType::BF16,
            Self::F32 => TensorType::F32,
        }
    }

    /// The format with a scale for each group of columns that this is, if it is one.
    fn group(self) -> Option<GroupFormat> {
        self.dtype().group()
    }

    /// Rounds a scale as this type stores it.
    fn rounded(self, scale: f32) -> f32 {
        match self {
            Self::I2_S | Self::TL1 | Self::TL2 | Self::F32 => scale,
            Self::TQ1_0
            | Self::TQ2_0
            | Self::Q1_0
            | Self::Q2_0
            | Self::PQ2_0
            | Self::PTQ1_0
            | Self::F16 => half::f16::from_f32(scale).to_f32(),
            Self::BF16 => half::bf16::from_f32(scale).to_f32(),
        }
    }
}

/// How embedding and head are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(non_camel_case_types, reason = "the field's own names")]
pub enum TableType {
    /// As in the published files. Values of bf16 below 6e-5 lose digits.
    F16,
    /// Exact for checkpoints in bf16, which most are.
    BF16,
    /// Exact for all.
    F32,
    /// 8.5 bits per value.
    Q8_0,
    /// 6.6 bits per value.
    Q6_K,
}

impl TableType {
    fn format(self) -> Dense {
        match self {
            Self::F16 => Dense::F16,
            Self::BF16 => Dense::BF16,
            Self::F32 => Dense::F32,
            Self::Q8_0 => Dense::Q8_0,
            Self::Q6_K => Dense::Q6_K,
        }
    }
}

/// How a directory holds projections.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum DirectoryForm {
    /// Four ternary weights in a byte, with one scale for a matrix: Microsoft's form, in
    /// transformers.
    #[default]
    Packed,
    /// Codes of 1 or 2 bits, with a scale and an offset for each group of columns, and tables with
    /// group scales likewise.
    Mlx,
}

/// Options of a conversion.
#[derive(Clone, Debug, Default)]
pub struct ConvertOptions {
    /// How projections are stored in a GGUF file.
    pub weights: WeightType,
    /// How projections are stored in a directory.
    pub directory: DirectoryForm,
    /// How embedding and head are stored. `None`: as in the source GGUF file; from a directory as
    /// F16 in a GGUF file, or like the projections if those are floats. A directory holds floats
    /// only: F32 in place of quantized tables. Tables with group scales are stored like the
    /// projections if those have group scales or are floats.
    pub tables: Option<TableType>,
    /// Whether the scales in a directory are rounded to BF16, as mlx-lm needs them beside BF16
    /// tables.
    pub bf16_scales: bool,
    /// Whether to replace an existing file or directory.
    pub force: bool,
    /// `general.name`; the source's own or the directory's name if `None`.
    pub name: Option<String>,
}

/// The result of a conversion.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Report {
    /// Bytes of all tensors.
    pub tensor_bytes: usize,
    /// Ternary tensors whose scale the format rounds.
    pub scales_rounded: usize,
    /// The largest relative change of a scale.
    pub scale_change_max: f32,
}

impl Report {
    /// Records a scale and returns it as a type stores it. Fails if the type cannot store it.
    fn note_scale(&mut self, tensor: &str, weights: WeightType, scale: f32) -> Result<f32> {
        let kept = weights.rounded(scale);
        if !kept.is_finite() || (kept == 0.0 && scale != 0.0) {
            let problem = format!(
                "its scale {scale} is too large or too small for {}",
                weights.dtype()
            );
            return Err(Error::TensorValues {
                tensor: tensor.to_owned(),
                problem,
            });
        }
        if kept != scale {
            self.scales_rounded += 1;
            self.scale_change_max = self.scale_change_max.max(((kept - scale) / scale).abs());
        }
        Ok(kept)
    }
}

/// The progress of a conversion.
#[derive(Clone, Copy, Debug)]
pub struct Progress<'a> {
    /// The current stage.
    pub phase: Phase,
    /// The tensor.
    pub tensor: &'a str,
    /// Bytes of tensors done.
    pub bytes_done: usize,
    /// Bytes of all tensors.
    pub bytes_total: usize,
}

/// The conversion writes everything, then reads everything back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "the phases are their names")]
pub enum Phase {
    Writing,
    Checking,
}

/// Called a few times per second; [`ControlFlow::Break`] ends the conversion with
/// [`Error::Interrupted`].
pub type ProgressFn<'a> = dyn FnMut(Progress<'_>) -> ControlFlow<()> + 'a;

/// Counts bytes and reports progress.
struct Meter<'a, 'b> {
    progress: &'a mut ProgressFn<'b>,
    phase: Phase,
    bytes_done: usize,
    bytes_total: usize,
}

impl Meter<'_, '_> {
    fn advance(&mut self, tensor: &str, bytes: usize) -> Result<()> {
        self.bytes_done += bytes;
        let (phase, bytes_done, bytes_total) = (self.phase, self.bytes_done, self.bytes_total);
        match (self.progress)(Progress {
            phase,
            tensor,
            bytes_done,
            bytes_total,
        }) {
            ControlFlow::Continue(()) => Ok(()),
            ControlFlow::Break(()) => Err(Error::Interrupted),
        }
    }

    /// Begins to read back.
    fn start_checking(&mut self) {
        (self.phase, self.bytes_done) = (Phase::Checking, 0);
    }

    /// Whether bytes that were read back have the checksum of the written ones. `done` releases
    /// their memory.
    fn check(
        &mut self,
        tensor: &str,
        bytes: &[u8],
        written: &Checksum,
        done: &dyn Fn(),
    ) -> Result<bool> {
        let mut found = Checksum::default();
        for bytes in bytes.chunks(READ_BACK_BYTES) {
            found.update(bytes);
            done();
            self.advance(tensor, bytes.len())?;
        }
        Ok(found == *written)
    }
}
