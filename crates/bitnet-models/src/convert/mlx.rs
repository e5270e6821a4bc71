//! Writes a model with group scales as a directory of MLX: of each matrix the codes, and a scale
//! and an offset for each group of columns (`huggingface/mlx.rs` draws them).

use std::sync::Arc;

use bitnet_files::safetensors::DType;
use bitnet_kernels::{GroupCodes, Pool};
use bitnet_quantization::dense::Dense;
use half::f16;
use serde_json::{Value, json};

use super::items::{Content, Item, table_item};
use super::tables::BATCH_WEIGHTS;
use crate::config::Architecture;
use crate::error::{Error, Result};
use crate::huggingface::mlx::Affine;
use crate::huggingface::names::name as huggingface_name;
use crate::rotation::Rotations;
use crate::source::{GroupTensor, LayerSlot, Slot, Source};

/// One of the three tensors of a matrix.
pub(super) struct AffinePart {
    tensor: Arc<GroupTensor>,
    pub affine: Affine,
    part: Part,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Part {
    Codes,
    Scales,
    Biases,
}

/// Refuses models and an option that a directory of MLX cannot hold.
pub(super) fn check(source: &dyn Source, bf16_scales: bool) -> Result<()> {
    let config = source.config();
    let problem = if !matches!(
        config.architecture,
        Architecture::Llama | Architecture::Qwen2 | Architecture::Qwen3
    ) {
        format!(
            "directories of MLX hold models of Llama, Qwen2 and Qwen3, this is {}",
            config.architecture_name
        )
    } else if source.rotations()? != Rotations::default() {
        "the weights are rotated (prism.hadamard), which a directory of MLX cannot say".to_owned()
    } else if config.input_norm_eps.is_some() {
        "each projection has a norm of its own, which mlx-lm does not have".to_owned()
    } else if bf16_scales {
        "--bf16-scales is for packed directories; scales of MLX stay f16 as they are".to_owned()
    } else {
        return Ok(());
    };
    Err(Error::Convert { problem })
}

/// The tensors of a slot. tables: the type of tables without group scales, if one is asked for.
pub(super) fn items(
    slot: Slot,
    source: &dyn Source,
    tables: Option<Dense>,
    pool: &Pool,
) -> Result<Vec<Item>> {
    let config = source.config();
    let name = huggingface_name(slot);
    match slot {
        Slot::Embedding | Slot::Head => {
            let (rows, cols) = (config.vocab_size, config.hidden_size);
            match source.grouped(slot, rows, cols, true, pool)? {
                Some(tensor) => Ok(parts(&name, tensor)),
                None => {
                    let table = source.table(slot, rows, cols)?;
                    Ok(vec![table_item(name, table, tables)?])
                }
            }
        }
        Slot::Layer(index, slot @ LayerSlot::Weight(projection)) => {
            let (rows, cols) = projection.shape(config);
            match source.grouped(Slot::Layer(index, slot), rows, cols, true, pool)? {
                Some(tensor) => Ok(parts(&name, tensor)),
                None => Err(Error::Convert {
                    problem: format!(
                        "{name} has one scale for the whole matrix, but directories of MLX have one \
                         for each group of columns; convert to pq2_0 first"
                    ),
                }),
            }
        }
        Slot::OutputNorm => Ok(vec![vector(name, source.vector(slot, config.hidden_size)?)]),
        Slot::Layer(_, of_layer) => {
            let len = of_layer.dims(config).iter().product();
            Ok(vec![vector(name, source.vector(slot, len)?)])
        }
    }
}

/// States how each module is quantized: the parameters of the first, and of modules with others.
pub(super) fn state(json: &mut Value, plan: &[Item]) {
    let codes = plan.iter().filter_map(|item| match &item.content {
        Content::Affine(part) if part.part == Part::Codes => {
            let module = item.entry.name.strip_suffix(".weight");
            Some((module.unwrap_or(&item.entry.name), part.affine))
        }
        _ => None,
    });
    let object = |affine: Affine| json!({"group_size": affine.group, "bits": affine.bits});
    let mut stated = json!({});
    let mut first = None;
    for (module, affine) in codes {
        let common = *first.get_or_insert_with(|| {
            stated = object(affine);
            affine
        });
        if affine != common {
            stated[module] = object(affine);
        }
    }
    // MLX's tools write their parameters under both names.
    json["quantization_config"] = stated.clone();
    json["quantization"] = stated;
}

/// Codes, scales and offsets of a matrix.
fn parts(name: &str, tensor: GroupTensor) -> Vec<Item> {
    let (rows, cols, tensor) = (tensor.rows, tensor.cols, Arc::new(tensor));
    let affine = Affine::of(tensor.format);
    let module = name.strip_suffix(".weight").unwrap_or(name);
    let item = |suffix: &str, dtype, row_len, part| {
        let content = Content::Affine(AffinePart {
            tensor: Arc::clone(&tensor),
            affine,
            part,
        });
        Item::new(
            format!("{module}.{suffix}"),
            dtype,
            vec![rows, row_len],
            content,
        )
    };
    let groups = cols / affine.group;
    vec![
        item("weight", DType::U32, cols * affine.bits / 32, Part::Codes),
        item("scales", DType::F16, groups, Part::Scales),
        item("biases", DType::F16, groups, Part::Biases),
    ]
}

/// A norm or a bias: F16, as the scales are, if that is exact, else F32.
fn vector(name: String, values: Vec<f32>) -> Item {
    let is_exact = values.iter().all(|x| f16::from_f32(*x).to_f32() == *x);
    let dtype = if is_exact { DType::F16 } else { DType::F32 };
    Item::new(name, dtype, vec![values.len()], Content::Floats(values))
}

impl AffinePart {
    /// Writes the bytes, some rows at a time.
    pub(super) fn write(&self, write: &mut dyn FnMut(&[u8]) -> Result<()>) -> Result<()> {
        let GroupTensor { rows, cols, .. } = *self.tensor;
        let (kind, group) = (self.affine.codes(), self.affine.group);
        let batch = (BATCH_WEIGHTS / cols).clamp(1, rows);
        self.tensor.data.advise_sequential();
        for first in (0..rows).step_by(batch) {
            let range = first..rows.min(first + batch);
            let mut codes = vec![0; range.len() * cols];
            let mut scales = vec![f16::ZERO; codes.len() / group];
            self.tensor
                .unpack_rows(range, kind, group, &mut codes, &mut scales)?;
            self.tensor.data.advise_done();
            write(&self.bytes(&codes, &scales, first)?)?;
        }
        Ok(())
    }

    /// The bytes of some rows. first: the row that they begin with.
    fn bytes(&self, codes: &[u8], scales: &[f16], first: usize) -> Result<Vec<u8>> {
        let Affine { bits, group } = self.affine;
        match self.part {
            Part::Codes => {
                let bytes = codes.chunks_exact(8 / bits);
                let byte =
                    |codes: &[u8]| codes.iter().rev().fold(0, |byte, code| byte << bits | code);
                Ok(bytes.map(byte).collect())
            }
            Part::Biases => Ok(scales.iter().flat_map(|d| (-*d).to_le_bytes()).collect()),
            Part::Scales => {
                let steps = scales.iter().map(|d| match self.affine.codes() {
                    // From −d to d in one step.
                    GroupCodes::Signs => f16::from_f32(2.0 * d.to_f32()),
                    _ => *d,
                });
                let steps: Vec<f16> = steps.collect();
                if let Some(at) = steps.iter().position(|step| !step.is_finite()) {
                    let groups = self.tensor.cols / group;
                    let (row, col) = (first + at / groups, at % groups * group);
                    let problem = format!(
                        "twice the scale {} at row {row}, column {col} is too large for f16",
                        scales[at]
                    );
                    let tensor = self.tensor.name.clone();
                    return Err(Error::TensorValues { tensor, problem });
                }
                Ok(steps.iter().flat_map(|step| step.to_le_bytes()).collect())
            }
        }
    }
}
