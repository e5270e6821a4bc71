//! [`GpuMatrix`]: packed weights on the device.
//!
//! Rows are row-major: a row is a run of words with 16 codes of 2 bits, or 32 of 1 bit, in the order
//! of `ternary_gemv.wgsl` and `group_gemv.wgsl`. A matrix that one binding cannot reach is cut at
//! rows into pieces.

use std::sync::{Arc, Mutex, PoisonError};

use bitnet_kernels::{BLOCK_ROWS, GroupCodes, Pool, Unpack, UnpackGroups};
use bitnet_models::backend::{GroupStack, Rotation, Stack};
use bitnet_models::{Error, InputRounding, LoadOptions, Result};
use half::f16;

use crate::context::{Buffer, Context};
use crate::memory::Part;

/// Columns of a step of a ternary product: four words of 16 codes.
const STEP_COLS: usize = 64;
/// The longest block of a rotation: it lies in workgroup memory.
const ROTATION_BLOCK_MAX: usize = 4096;
/// Bytes of packed rows that the host has at once.
const PACKED_BYTES: usize = 32 << 20;

/// Packed weights.
pub enum GpuMatrix {
    /// With one scale for each matrix.
    #[expect(private_interfaces, reason = "opaque outside of this crate")]
    Ternary(TernaryWeights),
    /// With a scale for each group of columns.
    #[expect(private_interfaces, reason = "opaque outside of this crate")]
    Grouped(GroupWeights),
}

/// Rows of a matrix that one binding reaches.
pub(crate) struct Piece {
    pub weights: Buffer,
    /// Scales of groups; of no use without groups.
    pub scales: Option<Buffer>,
    pub first_row: usize,
    pub rows: usize,
}

/// Weights with one scale for each matrix of a stack.
pub(crate) struct TernaryWeights {
    pub pieces: Vec<Piece>,
    /// One for each 32 output rows.
    pub scales: Buffer,
    /// Steps of 64 columns in a row.
    pub steps: usize,
    /// The length of an output row.
    pub output_len: usize,
    /// Weights, padding not counted.
    pub num_weights: usize,
    pub num_bytes: usize,
}

/// Weights with a scale for each group of columns.
pub(crate) struct GroupWeights {
    pub pieces: Vec<Piece>,
    pub cols: usize,
    pub codes: GroupCodes,
    pub group_cols: usize,
    /// Inputs that are rounded with one scale.
    pub run_cols: usize,
    pub rotation: Option<GpuRotation>,
    pub output_len: usize,
    pub num_weights: usize,
    pub num_bytes: usize,
}

/// A rotation whose signs are on the device.
pub(crate) struct GpuRotation {
    pub block_size: usize,
    pub signs: Buffer,
    /// Heads of keys and of values, if heads of values are put into grouped order first.
    pub value_heads: Option<(usize, usize)>,
}

impl GpuRotation {
    pub fn new(context: &Arc<Context>, rotation: &Rotation) -> Result<Self> {
        if rotation.block_size > ROTATION_BLOCK_MAX {
            return Err(context.error(format!(
                "rotations of blocks of {} are not supported, at most {ROTATION_BLOCK_MAX}",
                rotation.block_size
            )));
        }
        Ok(Self {
            block_size: rotation.block_size,
            signs: context.upload(
                Part::Weights,
                "signs",
                bytemuck::cast_slice(&rotation.signs),
            )?,
            value_heads: rotation.value_heads,
        })
    }

    /// The largest block that the shader of this rotation has room for.
    pub fn block_max(&self) -> u32 {
        if self.block_size <= 1024 {
            1024
        } else {
            ROTATION_BLOCK_MAX as u32
        }
    }
}

/// Bits of a code.
pub(crate) fn code_bits(codes: GroupCodes) -> usize {
    match codes {
        GroupCodes::Signs => 1,
        GroupCodes::Trits | GroupCodes::TwoBits => 2,
    }
}

/// The rows of a stack in runs of at most 32 that belong to one part: `(part, first row, rows)`.
fn blocks(parts: impl Iterator<Item = usize>) -> Vec<(usize, usize, usize)> {
    let of_part = |(part, rows): (usize, usize)| {
        let firsts = (0..rows).step_by(BLOCK_ROWS);
        firsts.map(move |first| (part, first, BLOCK_ROWS.min(rows - first)))
    };
    parts.enumerate().flat_map(of_part).collect()
}

/// Fills the words and the scales of the 32 rows of a block.
type PackBlock<'a> = dyn Fn(usize, &mut [u32], &mut [u32]) -> Result<()> + Sync + 'a;

/// Packs blocks of rows on all threads and uploads them in pieces that one binding reaches. A context
/// that only counts gets the pieces alone.
fn upload_blocks(
    context: &Arc<Context>,
    pool: &Pool,
    (part, what): (Part, &str),
    num_blocks: usize,
    (row_words, row_scales): (usize, usize),
    pack: &PackBlock<'_>,
) -> Result<Vec<Piece>> {
    let block_words = BLOCK_ROWS * (row_words + row_scales);
    let block_bytes = BLOCK_ROWS * row_words * 4;
    let most = context.binding_bytes_max() as usize;
    if block_bytes > most {
        return Err(context.error(format!("{what} has rows of {} bytes", 4 * row_words)));
    }
    let piece_blocks = most / block_bytes.max(1);
    let at_once = (PACKED_BYTES / (4 * block_words)).clamp(1, num_blocks.max(1));
    let mut pieces = Vec::new();
    for first in (0..num_blocks).step_by(piece_blocks.max(1)) {
        let count = piece_blocks.min(num_blocks - first);
        let weights = context.buffer(part, what, (count * block_bytes) as u64)?;
        let scale_bytes = count * BLOCK_ROWS * row_scales * 4;
        let scales = (row_scales > 0).then(|| context.buffer(part, what, scale_bytes as u64));
        let scales = scales.transpose()?;
        let starts = (0..count).step_by(at_once);
        for start in starts.filter(|_| !context.only_counts()) {
            let blocks = at_once.min(count - start);
            let mut words = vec![0u32; blocks * block_words];
            let problem = Mutex::new(None);
            pool.split_mut(&mut words, block_words, 1, &|share, words| {
                let parts = words.chunks_exact_mut(block_words);
                for (block, words) in share.zip(parts) {
                    let (words, scales) = words.split_at_mut(BLOCK_ROWS * row_words);
                    if let Err(error) = pack(first + start + block, words, scales) {
                        let mut problem = problem.lock().unwrap_or_else(PoisonError::into_inner);
                        problem.get_or_insert(error);
                        return;
                    }
                }
            });
            if let Some(error) = problem.into_inner().unwrap_or_else(PoisonError::into_inner) {
                return Err(error);
            }
            for (block, words) in words.chunks_exact(block_words).enumerate() {
                let (words, row_scales) = words.split_at(BLOCK_ROWS * row_words);
                let at = ((start + block) * block_bytes) as u64;
                context.write(&weights, at, bytemuck::cast_slice(words));
                if let Some(scales) = &scales {
                    let at = ((start + block) * row_scales.len() * 4) as u64;
                    context.write(scales, at, bytemuck::cast_slice(row_scales));
                }
            }
            context.wait(context.queue.submit([]));
        }
        pieces.push(Piece {
            weights,
            scales,
            first_row: first * BLOCK_ROWS,
            rows: count * BLOCK_ROWS,
        });
    }
    Ok(pieces)
}

impl TernaryWeights {
    /// Packs a stack of matrices.
    pub fn pack(
        context: &Arc<Context>,
        pool: &Pool,
        stack: &Stack<'_>,
        unpack: &Unpack<'_, Error>,
    ) -> Result<Self> {
        let steps = stack.cols.div_ceil(STEP_COLS);
        let blocks = blocks(stack.parts.iter().map(|part| part.rows));
        let row_words = 4 * steps;
        let pack = |block: usize, words: &mut [u32], _: &mut [u32]| {
            let (part, first, rows) = blocks[block];
            let mut codes = vec![0i8; rows * stack.cols];
            unpack(part, first..first + rows, &mut codes)?;
            let rows = words
                .chunks_exact_mut(row_words)
                .zip(codes.chunks_exact(stack.cols));
            for (words, codes) in rows {
                for (col, code) in codes.iter().enumerate() {
                    words[col / 16] |= ((code + 1) as u32) << two_bit_shift(col);
                }
            }
            Ok(())
        };
        let what = (Part::Weights, "a matrix of weights");
        let shape = (row_words, 0);
        let pieces = upload_blocks(context, pool, what, blocks.len(), shape, &pack)?;
        let scales: Vec<f32> = blocks
            .iter()
            .map(|(part, ..)| stack.parts[*part].scale)
            .collect();
        let output_len = blocks.len() * BLOCK_ROWS;
        Ok(Self {
            pieces,
            scales: context.upload(Part::Weights, "scales", bytemuck::cast_slice(&scales))?,
            steps,
            output_len,
            num_weights: stack.parts.iter().map(|part| part.rows * stack.cols).sum(),
            num_bytes: output_len * row_words * 4,
        })
    }
}

/// Packs the codes of a row, `[cols]`, into words of zeros.
fn pack_codes(bits: usize, codes: &[u8], words: &mut [u32]) {
    for (col, code) in codes.iter().enumerate() {
        let shift = match bits {
            1 => 8 * (col % 4) + col % 32 / 4,
            _ => two_bit_shift(col),
        };
        words[col * bits / 32] |= u32::from(*code) << shift;
    }
}

/// Packs the scales of a row, two in a word.
fn pack_scales(scales: &[f16], words: &mut [u32]) {
    for (group, scale) in scales.iter().enumerate() {
        words[group / 2] |= u32::from(scale.to_bits()) << (16 * (group % 2));
    }
}

/// Where the code of a column lies in its word: byte j, bits 2s..2s+1 for column 4 s + j of 16.
fn two_bit_shift(col: usize) -> usize {
    8 * (col % 4) + 2 * (col % 16 / 4)
}

impl GroupWeights {
    /// Packs a stack of matrices, which are weights or a table.
    pub fn pack(
        context: &Arc<Context>,
        pool: &Pool,
        part: Part,
        stack: &GroupStack<'_>,
        options: &LoadOptions,
        unpack: &UnpackGroups<'_, Error>,
    ) -> Result<Self> {
        let GroupStack {
            parts,
            cols,
            codes,
            group_cols,
            ref rotation,
        } = *stack;
        let InputRounding::Int8(run_cols) = options.group_inputs else {
            let problem = "inputs of f32 for weights with group scales are not supported; int8-32, int8-64 and int8-128 are";
            return Err(context.error(problem.into()));
        };
        if !cols.is_multiple_of(group_cols) {
            return Err(context.error(format!(
                "{cols} columns in groups of {group_cols} are not supported, only whole groups"
            )));
        }
        let (bits, groups) = (code_bits(codes), cols / group_cols);
        let (row_words, row_scales) = (cols / 32 * bits, groups.div_ceil(2));
        let blocks = blocks(parts.iter().copied());
        let pack = |block: usize, words: &mut [u32], packed: &mut [u32]| {
            let (part, first, rows) = blocks[block];
            let mut found = vec![0u8; rows * cols];
            let mut scales = vec![f16::ZERO; rows * groups];
            unpack(part, first..first + rows, &mut found, &mut scales)?;
            let rows = words.chunks_exact_mut(row_words);
            rows.zip(found.chunks_exact(cols))
                .for_each(|(words, codes)| pack_codes(bits, codes, words));
            let rows = packed.chunks_exact_mut(row_scales);
            rows.zip(scales.chunks_exact(groups))
                .for_each(|(packed, scales)| pack_scales(scales, packed));
            Ok(())
        };
        let what = (part, "a matrix of weights with group scales");
        let shape = (row_words, row_scales);
        let pieces = upload_blocks(context, pool, what, blocks.len(), shape, &pack)?;
        let rotation = rotation
            .as_ref()
            .map(|rotation| GpuRotation::new(context, rotation));
        let output_len = blocks.len() * BLOCK_ROWS;
        Ok(Self {
            pieces,
            cols,
            codes,
            group_cols,
            // A run of inputs may not be longer than a group of weights.
            run_cols: run_cols.min(group_cols),
            rotation: rotation.transpose()?,
            output_len,
            num_weights: parts.iter().sum::<usize>() * cols,
            num_bytes: output_len * (row_words + row_scales) * 4,
        })
    }

    /// Makes the matrix give `rows` outputs, without the padding of its last block.
    pub fn cut_to(mut self, rows: usize) -> Self {
        for piece in &mut self.pieces {
            piece.rows = piece.rows.min(rows - piece.first_row);
        }
        self.output_len = rows;
        self
    }

    /// Scales of a row.
    pub fn num_groups(&self) -> usize {
        self.cols / self.group_cols
    }
}
