//! Operations on rows of f32: look tokens up, rotate by position, normalise, add.
//!
//! Threads share the rows out; a row's result depends on that row alone.

use std::ops::Range;

use crate::ops::attention::Place;
use crate::ops::cpu::{Cpu, Norm};
use crate::sets::math;
use crate::threads::counters::Kernel;
use crate::threads::disjoint::Disjoint;

impl Cpu {
    /// Calls `work(index, row)` for each row of `rows`, `[n, row_len]`, on all threads.
    ///
    /// # Panics
    /// If `row_len` is 0 or does not divide `rows`.
    fn for_rows<T: Send>(
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
    /// rounded to f32 as the reference does.
    ///
    /// frequencies: `[pairs]`, out: `[places, 2 · pairs]`, the cosines of a row first.
    ///
    /// # Panics
    /// If the shapes do not fit.
    pub fn angles(&self, places: &[Place], frequencies: &[f32], out: &mut [f32]) {
        let pairs = frequencies.len();
        assert_eq!(out.len(), places.len() * 2 * pairs, "angles of {pairs}");
        self.for_rows(out, 2 * pairs, &|row, out| {
            let position = places[row].position as f32;
            let (cos, sin) = out.split_at_mut(pairs);
            for ((cos, sin), frequency) in cos.iter_mut().zip(sin).zip(frequencies) {
                (*sin, *cos) = math::sin_cos(position * frequency);
            }
        });
    }

    /// Rotates the heads in some columns of each row by the row's angles: element `i` of a head and
    /// the one half a head further on are a pair.
    ///
    /// x: `[rows, stride]`, angles: `[rows, head_dim]` as [`Cpu::angles`] gives them.
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
        let (rows, rotated) = (
            x.len() / stride,
            heads.iter().map(Range::len).sum::<usize>(),
        );
        assert_eq!(
            angles.len(),
            rows * head_dim,
            "angles of heads of {head_dim}"
        );
        self.counters()
            .add(Kernel::RopeApply, 2 * rotated * rows, 0);
        let set = self.set();
        self.for_rows(x, stride, &|row, x| {
            let angles = &angles[row * head_dim..(row + 1) * head_dim];
            let (cos, sin) = angles.split_at(head_dim / 2);
            for heads in heads {
                set.rope_half_split(&mut x[heads.clone()], cos, sin);
            }
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
