//! Operations on rows of f32: look tokens up, rotate by position, normalise, add.
//!
//! The threads share the rows, and a row's result depends on that row alone.

use std::cell::RefCell;
use std::ops::Range;

use crate::ops::attention::Place;
use crate::ops::cpu::{Cpu, Norm};
use crate::sets::math;
use crate::threads::counters::Kernel;
use crate::threads::disjoint::Disjoint;

/// Outputs of a product in f32 that a thread computes at once.
const FLOAT_OUTPUTS: usize = 8;

thread_local! {
    /// A buffer for a head while it is normalised. Kept, so that a decode step allocates nothing.
    static HEAD: RefCell<Vec<f32>> = const { RefCell::new(Vec::new()) };
}

impl Cpu {
    /// Calls `work(index, row)` for each row of `rows`, `[n, row_len]`, on all threads.
    ///
    /// # Panics
    /// If `row_len` is 0 or does not divide `rows`.
    pub fn for_rows<T: Send>(
        &self,
        rows: &mut [T],
        row_len: usize,
        work: &(dyn Fn(usize, &mut [T]) + Sync),
    ) {
        assert!(
            row_len > 0 && rows.len().is_multiple_of(row_len),
            "{} elements in rows of {row_len}",
            rows.len()
        );
        let num_rows = rows.len() / row_len;
        let rows = Disjoint::new(rows);
        self.pool().deal(num_rows, 1, &|share| {
            for index in share {
                // SAFETY: each row is in one thread's share.
                work(index, unsafe {
                    rows.slice(index * row_len..(index + 1) * row_len)
                });
            }
        });
    }

    /// Looks tokens up in a table with rows of `row_bytes`: `read_row(token, row)` writes one row.
    ///
    /// out: `[tokens, cols]`.
    ///
    /// # Panics
    /// If there are no columns, or `out` is not as long as the rows of all tokens.
    pub fn embed(
        &self,
        tokens: &[u32],
        cols: usize,
        row_bytes: usize,
        read_row: &(dyn Fn(usize, &mut [f32]) + Sync),
        out: &mut [f32],
    ) {
        assert_eq!(out.len(), tokens.len() * cols, "rows of {cols}");
        self.counters()
            .add(Kernel::EmbeddingLookup, 0, tokens.len() * row_bytes);
        self.for_rows(out, cols, &|row, out| read_row(tokens[row] as usize, out));
    }

    /// Cosines and sines of each row's angles, the same for all layers: `position · frequency`,
    /// rounded to f32 as the reference does, times `factor`.
    ///
    /// frequencies: `[pairs]`, out: `[places, 2 · pairs]`, the cosines of a row first.
    ///
    /// # Panics
    /// If the shapes do not fit.
    pub fn angles(&self, places: &[Place], frequencies: &[f32], factor: f32, out: &mut [f32]) {
        let pairs = frequencies.len();
        assert_eq!(out.len(), places.len() * 2 * pairs, "angles of {pairs}");
        self.for_rows(out, 2 * pairs, &|row, out| {
            let position = places[row].position as f32;
            let (cos, sin) = out.split_at_mut(pairs);
            for ((cos, sin), frequency) in cos.iter_mut().zip(sin).zip(frequencies) {
                let (s, c) = math::sin_cos(position * frequency);
                (*sin, *cos) = (s * factor, c * factor);
            }
        });
    }

    /// Rotates the heads in some columns of each row by the row's angles: of the first `2 · pairs`
    /// elements of a head, `i` and `i + pairs` are a pair, and the other elements stay as they are.
    ///
    /// x: `[rows, stride]`, angles: `[rows, 2 · pairs]` as [`Cpu::angles`] gives them.
    ///
    /// # Panics
    /// If the shapes do not fit.
    pub fn rotate(
        &self,
        x: &mut [f32],
        stride: usize,
        heads: &[Range<usize>],
        angles: &[f32],
        head_dim: usize,
    ) {
        let rows = x.len() / stride;
        let width = angles.len() / rows.max(1);
        assert!(
            width <= head_dim && width.is_multiple_of(2) && angles.len() == rows * width,
            "{} angles of {rows} rows for heads of {head_dim}",
            angles.len()
        );
        let num_heads = heads.iter().map(Range::len).sum::<usize>() / head_dim;
        self.counters()
            .add(Kernel::RopeApply, 2 * num_heads * width * rows, 0);
        let set = self.set();
        self.for_rows(x, stride, &|row, x| {
            let (cos, sin) = angles[row * width..(row + 1) * width].split_at(width / 2);
            for heads in heads {
                let heads = &mut x[heads.clone()];
                if width == head_dim {
                    set.rope_half_split(heads, cos, sin);
                    continue;
                }
                for head in heads.chunks_exact_mut(head_dim) {
                    set.rope_half_split(&mut head[..width], cos, sin);
                }
            }
        });
    }

    /// Normalises each head in some columns of each row by itself; x: `[rows, stride]`.
    ///
    /// # Panics
    /// If the norm's length does not divide the columns.
    pub fn normalize_heads(
        &self,
        x: &mut [f32],
        stride: usize,
        columns: Range<usize>,
        norm: Norm<'_>,
    ) {
        let head_dim = norm.weight.len();
        assert!(
            columns.len().is_multiple_of(head_dim),
            "heads of {head_dim} in {columns:?}"
        );
        let set = self.set();
        self.for_rows(x, stride, &|_, x| {
            HEAD.with_borrow_mut(|copy| {
                for head in x[columns.clone()].chunks_exact_mut(head_dim) {
                    copy.clear();
                    copy.extend_from_slice(head);
                    set.rms_norm(copy, norm.weight, norm.eps, head);
                }
            });
        });
    }

    /// `out = weights · x` in f32; weights: `[outputs, cols]`, x: `[rows, cols]`, out: `[rows,
    /// outputs]`.
    ///
    /// # Panics
    /// If the shapes do not fit.
    pub fn multiply_floats(&self, weights: &[f32], x: &[f32], cols: usize, out: &mut [f32]) {
        let (outputs, rows) = (weights.len() / cols, x.len() / cols);
        assert_eq!(
            out.len(),
            rows * outputs,
            "{outputs} outputs of {rows} rows"
        );
        let set = self.set();
        self.counters().add(
            Kernel::FloatGemm,
            rows * weights.len(),
            size_of_val(weights),
        );
        if rows == 1 {
            // One row: the threads share its outputs.
            let unit = FLOAT_OUTPUTS.min(outputs);
            let whole = outputs / unit * unit;
            let (most, rest) = out.split_at_mut(whole);
            self.for_rows(most, unit, &|index, out| {
                let first = index * unit * cols;
                set.matvec_f32(&weights[first..first + unit * cols], x, out);
            });
            return set.matvec_f32(&weights[whole * cols..], x, rest);
        }
        self.for_rows(out, outputs, &|row, out| {
            set.matvec_f32(weights, &x[row * cols..(row + 1) * cols], out);
        });
    }

    /// Normalises each row of `x` into `out`, both `[rows, norm.weight.len()]`.
    ///
    /// # Panics
    /// If the shapes do not fit.
    pub fn rms_norm(&self, x: &[f32], norm: Norm<'_>, out: &mut [f32]) {
        let cols = norm.weight.len();
        assert_eq!(x.len(), out.len(), "rows to normalise");
        let set = self.set();
        self.for_rows(out, cols, &|row, out| {
            let x = &x[row * cols..(row + 1) * cols];
            set.rms_norm(x, norm.weight, norm.eps, out);
        });
    }

    /// `x[row][columns] += values` for each row; x: `[rows, stride]`.
    ///
    /// # Panics
    /// If there are not as many values as columns.
    pub fn add_to_columns(
        &self,
        x: &mut [f32],
        stride: usize,
        columns: Range<usize>,
        values: &[f32],
    ) {
        let set = self.set();
        self.for_rows(x, stride, &|_, x| set.add(&mut x[columns.clone()], values));
    }

    /// `x *= factor`; x: `[rows, cols]`.
    pub fn scale(&self, x: &mut [f32], cols: usize, factor: f32) {
        self.for_rows(x, cols, &|_, x| x.iter_mut().for_each(|x| *x *= factor));
    }

    /// `x += y`; x: `[rows, cols]`, y: `[rows, stride]`, whose first `cols` columns count.
    ///
    /// # Panics
    /// If the shapes do not fit.
    pub fn add(&self, x: &mut [f32], cols: usize, y: &[f32], stride: usize) {
        assert_eq!(x.len() / cols, y.len() / stride, "rows to add");
        let set = self.set();
        self.for_rows(x, cols, &|row, x| {
            set.add(x, &y[row * stride..row * stride + cols]);
        });
    }
}
