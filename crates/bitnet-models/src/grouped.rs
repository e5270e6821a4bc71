//! Weights with a scale for each group of columns on the CPU: rotation and rounding of their
//! inputs, products, and tables.

use std::cell::RefCell;

use bitnet_kernels::{
    Cpu, GroupActivations, GroupCodes, GroupMatrix, KernelSet, Norm, Packing, UnpackGroups,
};
use half::f16;

use crate::backend::{GroupStack, MatrixFacts, NeuronColumns, TableUses};
use crate::error::{Error, Result};
use crate::kept::{Keeper, Packed};
use crate::options::{InputRounding, LoadOptions};
use crate::rotation::Rotation;
use crate::source::GroupTensor;
use crate::table::Table;

/// Rounded inputs, or inputs in f32 if nothing is rounded.
#[derive(Default)]
pub(crate) struct GroupRows {
    int8: GroupActivations,
    /// `[rows, cols]`, if nothing is rounded.
    floats: Option<Vec<f32>>,
    cols: usize,
}

impl GroupRows {
    pub(crate) fn rows(&self) -> usize {
        match &self.floats {
            Some(floats) => floats.len() / self.cols,
            None => self.int8.rows(),
        }
    }
}

/// Packed weights, and the rotation and rounding of their inputs.
pub struct GroupWeights {
    matrix: GroupMatrix,
    rotation: Option<Rotation>,
    rounding: InputRounding,
}

thread_local! {
    /// A buffer for values during a permutation or an activation. Kept, so that a decode step
    /// allocates nothing.
    static VALUES: RefCell<Vec<f32>> = const { RefCell::new(Vec::new()) };
    /// Rounded hidden states. Kept for the same reason.
    static HIDDEN: RefCell<GroupRows> = RefCell::default();
}

impl GroupWeights {
    pub(crate) fn pack(
        cpu: &Cpu,
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
        let pool = cpu.pool();
        let packing = options.packing.unwrap_or(cpu.set().packing);
        if codes == GroupCodes::TwoBits && packing == Packing::FiveThirds {
            // Nearly all files have no code 3, but most forms allow it.
            let unpack = |part, rows, codes: &mut [u8], scales: &mut [f16]| {
                unpack(part, rows, codes, scales).map_err(Some)?;
                if codes.contains(&3) {
                    Err(None)
                } else {
                    Ok(())
                }
            };
            match GroupMatrix::pack(pool, parts, cols, GroupCodes::Trits, group_cols, &unpack) {
                Ok(matrix) => return Ok(Self::new(matrix, rotation.clone(), options)),
                Err(None) => {}
                Err(Some(error)) => return Err(error),
            }
        }
        let matrix = GroupMatrix::pack(pool, parts, cols, codes, group_cols, unpack)?;
        Ok(Self::new(matrix, rotation.clone(), options))
    }

    /// Weights whose input is rotated by `rotation`.
    pub(crate) fn new(
        matrix: GroupMatrix,
        rotation: Option<Rotation>,
        options: &LoadOptions,
    ) -> Self {
        let rounding = match options.group_inputs {
            // A run of inputs may not be longer than a group of weights.
            InputRounding::Int8(run) => InputRounding::Int8(run.min(matrix.group_cols())),
            InputRounding::None => InputRounding::None,
        };
        Self {
            matrix,
            rotation,
            rounding,
        }
    }

    /// The bytes of the weights for a cache file.
    pub(crate) fn packed(&self) -> Packed {
        Packed::of_groups(&self.matrix)
    }

    pub(crate) fn facts(&self) -> MatrixFacts {
        MatrixFacts {
            packing: self.matrix.codes().name(),
            num_bytes: self.matrix.num_bytes(),
            copy_bytes: None,
        }
    }

    /// The length of an output row.
    pub(crate) fn output_len(&self) -> usize {
        self.matrix.output_len()
    }

    /// Normalises, rotates and rounds rows; x: `[rows, cols]`.
    pub(crate) fn round(&self, cpu: &Cpu, x: &[f32], norm: Option<Norm<'_>>, to: &mut GroupRows) {
        let (set, cols) = (cpu.set(), self.matrix.cols());
        self.fill(cpu, x.len() / cols, to, &|row, values| {
            let x = &x[row * cols..(row + 1) * cols];
            match norm {
                None => values.copy_from_slice(x),
                Some(norm) => set.rms_norm(x, norm.weight, norm.eps, values),
            }
        });
    }

    /// Gates, normalises, rotates and rounds the inner values of a feed-forward network; gate_up:
    /// rows of `stride`.
    pub(crate) fn gate_and_round(
        &self,
        cpu: &Cpu,
        (gate_up, stride): (&[f32], usize),
        neurons: &NeuronColumns,
        norm: Option<Norm<'_>>,
        to: &mut GroupRows,
    ) {
        let set = cpu.set();
        self.fill(cpu, gate_up.len() / stride, to, &|row, values| {
            let row = &gate_up[row * stride..(row + 1) * stride];
            let (gates, ups) = (&row[neurons.gates.clone()], &row[neurons.ups.clone()]);
            set.gate_mul(neurons.gate, gates, ups, values);
            if let Some(norm) = norm {
                VALUES.with_borrow_mut(|gated| {
                    gated.clear();
                    gated.extend_from_slice(values);
                    set.rms_norm(gated, norm.weight, norm.eps, values);
                });
            }
        });
    }

    /// Rounds rows that `make(row, values)` writes, rotated if the weights are.
    fn fill(
        &self,
        cpu: &Cpu,
        rows: usize,
        to: &mut GroupRows,
        make: &(dyn Fn(usize, &mut [f32]) + Sync),
    ) {
        let (set, cols) = (cpu.set(), self.matrix.cols());
        let make = |row: usize, values: &mut [f32]| {
            make(row, values);
            if let Some(rotation) = &self.rotation {
                rotate(set, rotation, values);
            }
        };
        to.cols = cols;
        match self.rounding {
            InputRounding::Int8(run) => {
                to.floats = None;
                cpu.fill_groups(rows, cols, run, &mut to.int8, &make);
            }
            InputRounding::None => {
                let floats = to.floats.get_or_insert_default();
                floats.resize(rows * cols, 0.0);
                cpu.for_rows(floats, cols, &make);
            }
        }
    }

    /// `out = W · x`, out: `[rows, output_len]`.
    pub(crate) fn multiply(&self, cpu: &Cpu, x: &GroupRows, out: &mut [f32]) {
        match &x.floats {
            Some(floats) => cpu.group_matmul_floats(&self.matrix, floats, out),
            None => cpu.group_matmul(&self.matrix, &x.int8, out),
        }
    }

    /// `out = W · x` for the one matrix of a head, out: `[rows, vocabulary]`.
    fn logits(&self, cpu: &Cpu, x: &GroupRows, out: &mut [f32]) {
        match &x.floats {
            Some(floats) => cpu.group_logits_floats(&self.matrix, floats, out),
            None => cpu.group_logits(&self.matrix, &x.int8, out),
        }
    }
}

/// A table with group scales. Rows are looked up in the file; a head is also packed.
pub struct GroupTable {
    stored: Table,
    /// How looked-up rows are rotated back, if they are.
    rows_rotation: Option<Rotation>,
    head: Option<GroupWeights>,
}

impl GroupTable {
    pub(crate) fn new(
        cpu: &Cpu,
        tensor: GroupTensor,
        uses: &TableUses,
        options: &LoadOptions,
        keeper: &Keeper,
    ) -> Result<Self> {
        let (codes, group_cols) = GroupTensor::common(std::slice::from_ref(&tensor));
        let stack = GroupStack {
            parts: &[tensor.rows],
            cols: tensor.cols,
            codes,
            group_cols,
            rotation: uses.input_rotation.clone(),
        };
        let restore = |packed: &Packed| {
            let rotation = uses.input_rotation.clone();
            Some(GroupWeights::new(packed.groups()?, rotation, options))
        };
        let make = || {
            GroupWeights::pack(cpu, &stack, options, &|_, rows, to, scales| {
                tensor.unpack_rows(rows, codes, group_cols, to, scales)
            })
        };
        let head = uses
            .gives_logits
            .then(|| keeper.find_or_make("head", restore, make, |head| Some(head.packed())));
        Ok(Self {
            head: head.transpose()?,
            stored: tensor.into_table()?,
            rows_rotation: uses.rows_rotation.clone(),
        })
    }

    /// Rows: one for each token.
    pub(crate) fn rows(&self) -> usize {
        self.stored.rows()
    }

    /// Numbers in a row.
    pub(crate) fn cols(&self) -> usize {
        self.stored.cols()
    }

    /// Bytes of a row in the file.
    pub(crate) fn row_bytes(&self) -> usize {
        self.stored.row_bytes()
    }

    pub(crate) fn format_name(&self) -> &'static str {
        self.stored.format().name()
    }

    /// The row of a token, exact, rotated back if rows are rotated.
    pub(crate) fn read_row(&self, set: &KernelSet, token: usize, out: &mut [f32]) {
        self.stored.read_row(token, out);
        if let Some(rotation) = &self.rows_rotation {
            set.hadamard(out, rotation.block_size);
            multiply_signs(out, &rotation.signs);
        }
    }

    /// `out = head · x`; x: `[rows, cols]`, out: `[rows, vocabulary]`.
    ///
    /// # Panics
    /// If the table is not the head.
    pub(crate) fn project(&self, cpu: &Cpu, x: &[f32], out: &mut [f32]) {
        let Some(head) = &self.head else {
            panic!("logits from a table that is not the head")
        };
        HIDDEN.with_borrow_mut(|hidden| {
            head.round(cpu, x, None, hidden);
            head.logits(cpu, hidden, out);
        });
    }
}

/// `H(s ⊙ x)` for each block. If the weights need it, value heads are first put into grouped order.
fn rotate(set: &KernelSet, rotation: &Rotation, x: &mut [f32]) {
    if let Some((key_heads, value_heads)) = rotation.value_heads {
        VALUES.with_borrow_mut(|tiled| {
            tiled.clear();
            tiled.extend_from_slice(x);
            let (head_dim, per_key) = (x.len() / value_heads, value_heads / key_heads);
            for (index, head) in x.chunks_exact_mut(head_dim).enumerate() {
                let (key, repeat) = (index / per_key, index % per_key);
                let from = (key + key_heads * repeat) * head_dim;
                head.copy_from_slice(&tiled[from..from + head_dim]);
            }
        });
    }
    multiply_signs(x, &rotation.signs);
    set.hadamard(x, rotation.block_size);
}

fn multiply_signs(x: &mut [f32], signs: &[f32]) {
    for (x, sign) in x.iter_mut().zip(signs) {
        *x *= sign;
    }
}
