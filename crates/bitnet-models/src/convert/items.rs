//! A tensor of a new directory: its entry in the file and the source of its bytes.

use bitnet_files::safetensors::{DType, TensorEntry};
use bitnet_kernels::Pool;
use bitnet_quantization::dense::Dense;
use bitnet_quantization::hf_packed;
use half::{bf16, f16};

use super::mlx::AffinePart;
use super::tables::{BATCH_WEIGHTS, write_table};
use crate::error::{Error, Result};
use crate::source::TernaryTensor;
use crate::table::Table;

/// A tensor to write and its source. Small tensors are in memory; tables and weights stay in the
/// source's files.
pub(super) struct Item {
    pub entry: TensorEntry,
    pub content: Content,
}

pub(super) enum Content {
    Table(Table, Dense),
    Codes(TernaryTensor),
    Affine(AffinePart),
    Floats(Vec<f32>),
}

impl Item {
    pub(super) fn new(name: String, dtype: DType, shape: Vec<usize>, content: Content) -> Self {
        let entry = TensorEntry { name, dtype, shape };
        Self { entry, content }
    }

    pub(super) fn write(
        &self,
        pool: &Pool,
        write: &mut dyn FnMut(&[u8]) -> Result<()>,
    ) -> Result<()> {
        match &self.content {
            Content::Table(table, format) => {
                write_table(&self.entry.name, table, *format, pool, write)
            }
            Content::Codes(tensor) => write_packed(&self.entry.name, tensor, write),
            Content::Affine(part) => part.write(write),
            Content::Floats(values) => write(&float_bytes(self.entry.dtype, values)),
        }
    }
}

/// A table of the type that is asked for, else as it is if a directory can hold that, else as F32.
pub(super) fn table_item(name: String, table: Table, asked: Option<Dense>) -> Result<Item> {
    let (format, dtype) = table_type(&name, &table, asked)?;
    let shape = vec![table.rows(), table.cols()];
    Ok(Item::new(name, dtype, shape, Content::Table(table, format)))
}

/// The type of a table in the file.
fn table_type(name: &str, table: &Table, asked: Option<Dense>) -> Result<(Dense, DType)> {
    match asked.unwrap_or(table.format()) {
        Dense::F16 => Ok((Dense::F16, DType::F16)),
        Dense::BF16 => Ok((Dense::BF16, DType::BF16)),
        other if other == Dense::F32 || asked.is_none() => Ok((Dense::F32, DType::F32)),
        other => {
            let problem = format!(
                "{name}: safetensors files cannot hold {}, expected f16, bf16 or f32",
                other.name()
            );
            Err(Error::Convert { problem })
        }
    }
}

/// BF16 if it represents all these numbers exactly, else F32.
pub(super) fn float_type(values: &[f32]) -> DType {
    let is_exact = values.iter().all(|x| bf16::from_f32(*x).to_f32() == *x);
    if is_exact { DType::BF16 } else { DType::F32 }
}

fn float_bytes(dtype: DType, values: &[f32]) -> Vec<u8> {
    match dtype {
        DType::F16 => values
            .iter()
            .flat_map(|x| f16::from_f32(*x).to_le_bytes())
            .collect(),
        DType::BF16 => values
            .iter()
            .flat_map(|x| bf16::from_f32(*x).to_le_bytes())
            .collect(),
        _ => values.iter().flat_map(|x| x.to_le_bytes()).collect(),
    }
}

/// Packs some rows at a time. A packed row holds four rows that lie a quarter of the matrix apart.
fn write_packed(
    name: &str,
    tensor: &TernaryTensor,
    write: &mut dyn FnMut(&[u8]) -> Result<()>,
) -> Result<()> {
    let of_tensor = |source| Error::Tensor {
        tensor: name.to_owned(),
        source,
    };
    let (cols, quarter) = (tensor.cols, tensor.rows / 4);
    let batch = (BATCH_WEIGHTS / 4 / cols).clamp(1, quarter);
    let (mut weights, mut packed) = (vec![0i8; 4 * batch * cols], vec![0u8; batch * cols]);
    tensor.data.advise_sequential();
    for first in (0..quarter).step_by(batch) {
        let num_rows = batch.min(quarter - first);
        let weights = &mut weights[..4 * num_rows * cols];
        for (part, weights) in weights.chunks_exact_mut(num_rows * cols).enumerate() {
            let row = part * quarter + first;
            tensor.unpack_rows(row..row + num_rows, weights)?;
        }
        let packed = &mut packed[..num_rows * cols];
        hf_packed::pack(weights, 4 * num_rows, cols, packed).map_err(of_tensor)?;
        tensor.data.advise_done();
        write(packed)?;
    }
    Ok(())
}
