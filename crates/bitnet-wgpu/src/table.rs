//! [`GpuTable`]: the embedding or the head on the device, in the type that the file has.

use std::sync::Arc;

use bitnet_kernels::Pool;
use bitnet_models::backend::{GroupStack, GroupTensor, TableUses};
use bitnet_models::{LoadOptions, Result, Table};
use bitnet_quantization::dense::Dense;

use crate::context::Context;
use crate::memory::Part;
use crate::shaders::RowFormat;
use crate::weights::{GpuRotation, GroupWeights, Piece, code_bits};

/// A table with a row for each token.
pub struct GpuTable {
    pub(crate) rows: usize,
    pub(crate) cols: usize,
    /// The name of the format in the file.
    pub(crate) format_name: &'static str,
    pub(crate) kind: Kind,
}

/// How a table is stored.
pub(crate) enum Kind {
    /// Rows as in the file.
    Stored(StoredRows),
    /// Codes with a scale for each group of columns.
    Grouped {
        weights: Box<GroupWeights>,
        /// How looked-up rows are rotated back, if they are.
        rows_rotation: Option<GpuRotation>,
    },
}

/// Rows as in the file.
pub(crate) struct StoredRows {
    pub format: RowFormat,
    pub row_bytes: usize,
    pub pieces: Vec<Piece>,
}

impl GpuTable {
    /// Copies a table to the device.
    pub(crate) fn stored(context: &Arc<Context>, table: &Table) -> Result<Self> {
        let format = match table.format() {
            Dense::F32 => RowFormat::F32,
            Dense::F16 => RowFormat::F16,
            Dense::BF16 => RowFormat::Bf16,
            Dense::Q8_0 => RowFormat::Q8_0,
            Dense::Q4_0 => RowFormat::Q4_0,
            Dense::Q6_K => RowFormat::Q6K,
            other => {
                return Err(context.error(format!(
                    "an embedding or head of type {} is not supported; F32, F16, BF16, Q8_0, Q4_0, Q6_K and types with group scales are",
                    other.name()
                )));
            }
        };
        Ok(Self {
            rows: table.rows(),
            cols: table.cols(),
            format_name: table.format().name(),
            kind: Kind::Stored(StoredRows {
                format,
                row_bytes: table.row_bytes(),
                pieces: upload_rows(context, table)?,
            }),
        })
    }

    /// Packs a table with group scales.
    pub(crate) fn grouped(
        context: &Arc<Context>,
        pool: &Pool,
        tensor: &GroupTensor,
        uses: &TableUses,
        options: &LoadOptions,
    ) -> Result<Self> {
        let (codes, group_cols) = GroupTensor::common(std::slice::from_ref(tensor));
        let stack = GroupStack {
            parts: &[tensor.rows],
            cols: tensor.cols,
            codes,
            group_cols,
            rotation: uses.input_rotation.clone(),
        };
        let weights = GroupWeights::pack(
            context,
            pool,
            Part::Tables,
            &stack,
            options,
            &|_, rows, to, scales| tensor.unpack_rows(rows, codes, group_cols, to, scales),
        )?;
        let rotation = uses.rows_rotation.as_ref();
        let rotation = rotation.map(|rotation| GpuRotation::new(context, rotation));
        Ok(Self {
            rows: tensor.rows,
            cols: tensor.cols,
            format_name: tensor.format.name(),
            kind: Kind::Grouped {
                weights: Box::new(weights.cut_to(tensor.rows)),
                rows_rotation: rotation.transpose()?,
            },
        })
    }

    /// Bytes of a row.
    pub(crate) fn row_bytes(&self) -> usize {
        match &self.kind {
            Kind::Stored(stored) => stored.row_bytes,
            Kind::Grouped { weights, .. } => weights.num_bytes / self.rows.next_multiple_of(32),
        }
    }
}

impl StoredRows {
    /// The bits of [`RowFormat`] that a matrix of this table's codes has.
    pub(crate) fn of_groups(weights: &GroupWeights) -> RowFormat {
        RowFormat::Group(code_bits(weights.codes) as u32)
    }
}

/// Copies rows to the device, in pieces that one binding reaches.
fn upload_rows(context: &Arc<Context>, table: &Table) -> Result<Vec<Piece>> {
    let most = context.binding_bytes_max() as usize;
    // Rows of a piece; a multiple of 2, so that a piece is a whole number of words.
    let piece_rows = (most / table.row_bytes()).saturating_sub(16) / 2 * 2;
    if piece_rows == 0 {
        return Err(context.error(format!("a table with rows of {} bytes", table.row_bytes())));
    }
    let mut pieces = Vec::new();
    let bytes = table.stored_rows().chunks(piece_rows * table.row_bytes());
    for (index, bytes) in bytes.enumerate() {
        let whole = bytes.len() / 4 * 4;
        let weights = context.buffer(Part::Tables, "a table", bytes.len() as u64)?;
        context.fill(&weights, &bytes[..whole]);
        if whole < bytes.len() {
            let mut last = [0; 4];
            last[..bytes.len() - whole].copy_from_slice(&bytes[whole..]);
            context.write(&weights, whole as u64, &last);
        }
        pieces.push(Piece {
            weights,
            scales: None,
            first_row: index * piece_rows,
            rows: bytes.len() / table.row_bytes(),
        });
    }
    Ok(pieces)
}
