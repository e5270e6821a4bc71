//! Products with group scales of many rows of activations, with tables of sums.
//!
//! The kernel takes a group of columns of all blocks, and adds one panel after the other to sums of
//! 16 bits. After the last panel of a run these become floats. Runs of a group, and groups, are
//! added in ascending order by the rule of `portable`.
//!
//! A code 3 is the weight 2. Few files have it, so the tables have no such sums: a second pass over
//! the same tables adds another 1 where a code is 3.

use std::arch::x86_64::*;
use std::cell::RefCell;
use std::ops::Range;

use super::sums::{
    Indices, PanelTables, Sums, for_outputs, has_threes, indices_of_threes, panel_cols, row_of,
    sign_indices, ternary_indices, wide_values, widened,
};
use super::vector::{fold, load_scales, store8};
use crate::layout::activations::TILE_ROWS;
use crate::layout::cells::SCALE_BYTES;
use crate::layout::group_activations::GroupActivations;
use crate::layout::lines::{BLOCK_ROWS, LINE_BYTES};
use crate::sets::output::Output;
use crate::weights::groups::{GroupBlocks, GroupOfBlocks};

/// The most panels in a group.
const MAX_PANELS: usize = 8;
/// Bytes of the next group that are prefetched with each panel. A group of 128 columns has 1088
/// bytes for eight panels of codes of 2 bits, 576 for four of signs.
const AHEAD_BYTES: usize = 192;

/// The products of a row of weights, in the order of [`widened`].
type Products = [__m256; 4];

/// A thread's buffers. Kept, so that a step allocates nothing. Each but the first has an entry for
/// each block.
struct Scratch {
    tables: PanelTables,
    /// The indices of each panel of a group.
    indices: [Vec<[Indices; BLOCK_ROWS]>; MAX_PANELS],
    /// The same where a code is 3.
    threes: [Vec<[Indices; BLOCK_ROWS]>; MAX_PANELS],
    scales: Vec<[f32; BLOCK_ROWS]>,
    /// Sums of the current run, over the panels added so far.
    sums: Vec<[Sums; BLOCK_ROWS]>,
    /// Sums of the runs of a group.
    of_runs: Vec<[Products; BLOCK_ROWS]>,
    products: Vec<[Products; BLOCK_ROWS]>,
}

thread_local! {
    static SCRATCH: RefCell<Option<Box<Scratch>>> = const { RefCell::new(None) };
}

/// A panel of a group.
#[derive(Clone, Copy)]
struct Panel {
    /// Its place in the group.
    index: usize,
    /// Whether a run begins with it.
    starts_run: bool,
    /// Whether a run ends with it.
    ends_run: bool,
    /// Whether its run is the first of the group.
    in_first_run: bool,
    /// Whether the group ends with it.
    ends_group: bool,
}

/// Products with signs, see [`crate::sets::groups::GroupMultiply`], for up to 32 rows of
/// activations.
#[target_feature(enable = "avx2,f16c")]
pub(crate) fn signs(
    matrix: &GroupBlocks<'_>,
    blocks: Range<usize>,
    rows: Range<usize>,
    activations: &GroupActivations,
    output: &Output<'_>,
) {
    multiply::<true>(matrix, blocks, rows, activations, output);
}

/// The same with codes of 2 bits.
#[target_feature(enable = "avx2,f16c")]
pub(crate) fn two_bits(
    matrix: &GroupBlocks<'_>,
    blocks: Range<usize>,
    rows: Range<usize>,
    activations: &GroupActivations,
    output: &Output<'_>,
) {
    multiply::<false>(matrix, blocks, rows, activations, output);
}

#[inline]
#[target_feature(enable = "avx2,f16c")]
fn multiply<const SIGNS: bool>(
    matrix: &GroupBlocks<'_>,
    blocks: Range<usize>,
    rows: Range<usize>,
    activations: &GroupActivations,
    output: &Output<'_>,
) {
    let values = wide_values(&rows, |index| {
        let tile = activations.tile(index);
        (tile.values, tile.rows)
    });
    let (layout, cols) = (matrix.layout(), panel_cols(SIGNS));
    let (group_panels, run_panels) = (layout.group_cols / cols, activations.run_cols() / cols);
    SCRATCH.with_borrow_mut(|scratch| {
        let scratch = scratch.get_or_insert_with(|| Box::new(Scratch::new()));
        scratch.reset(blocks.len());
        for group in 0..layout.num_groups() {
            let panels = scratch.read::<SIGNS>(&matrix.group(group), blocks.clone());
            let next = matrix.group((group + 1).min(layout.num_groups() - 1));
            for index in 0..panels {
                let ends_group = index + 1 == panels;
                let panel = Panel {
                    index,
                    starts_run: index.is_multiple_of(run_panels),
                    ends_run: (index + 1).is_multiple_of(run_panels) || ends_group,
                    in_first_run: index < run_panels,
                    ends_group,
                };
                let in_row = group * group_panels + index;
                scratch.tables.fill::<SIGNS>(&values, in_row);
                let scales = run_scales(activations, rows.clone(), in_row / run_panels);
                scratch.add_panel::<SIGNS>(panel, scales, blocks.start, &next);
            }
        }
        for (block, products) in blocks.zip(&scratch.products) {
            let products = products
                .each_ref()
                .map(|of_row| of_row.map(|p| _mm256_castps_si256(p)));
            for_outputs(&products, rows.len(), |row, first, products| {
                // SAFETY: each block of outputs is computed by one thread.
                let out = unsafe { output.block(rows.start + row, block) };
                store8(&mut out[first..first + 8], _mm256_castsi256_ps(products));
            });
        }
    });
}

/// The scales of run `run` of the rows, in the order of [`widened`]; 0 for lanes without a row.
#[inline]
#[target_feature(enable = "avx2,f16c")]
fn run_scales(activations: &GroupActivations, rows: Range<usize>, run: usize) -> Products {
    let scale = |row: usize| {
        let tile = activations.tile(row / TILE_ROWS);
        tile.scales[run * tile.rows + row % TILE_ROWS]
    };
    let scales: [[f32; 8]; 4] = std::array::from_fn(|register| {
        std::array::from_fn(|lane| {
            let row = rows.start + row_of(register, lane);
            if row < rows.end { scale(row) } else { 0.0 }
        })
    });
    // SAFETY: eight readable floats; the loads need no alignment.
    scales.map(|scales| unsafe { _mm256_loadu_ps(scales.as_ptr()) })
}

impl Scratch {
    #[target_feature(enable = "avx2,f16c")]
    fn new() -> Self {
        Self {
            tables: PanelTables::new(),
            indices: Default::default(),
            threes: Default::default(),
            scales: Vec::new(),
            sums: Vec::new(),
            of_runs: Vec::new(),
            products: Vec::new(),
        }
    }

    /// Makes room for `blocks` blocks of weights and sets their products to 0.
    #[target_feature(enable = "avx2,f16c")]
    fn reset(&mut self, blocks: usize) {
        let zero = _mm256_setzero_ps();
        for indices in &mut self.indices {
            indices.resize(blocks, [0; BLOCK_ROWS]);
        }
        self.scales.resize(blocks, [0.0; BLOCK_ROWS]);
        self.sums
            .resize(blocks, [[_mm256_setzero_si256(); 2]; BLOCK_ROWS]);
        self.of_runs.resize(blocks, [[zero; 4]; BLOCK_ROWS]);
        self.products.clear();
        self.products.resize(blocks, [[zero; 4]; BLOCK_ROWS]);
    }

    /// Reads a group of all blocks: its scales, and the indices of its panels. Returns the number
    /// of panels.
    #[target_feature(enable = "avx2,f16c")]
    fn read<const SIGNS: bool>(
        &mut self,
        group: &GroupOfBlocks<'_>,
        blocks: Range<usize>,
    ) -> usize {
        let (mut panels, mut any_threes) = (0, false);
        for (index, block) in blocks.clone().enumerate() {
            let bytes = group.of(block);
            let (codes, scales) = bytes.split_at(bytes.len() - SCALE_BYTES);
            let of_rows = self.scales[index].as_chunks_mut::<8>().0;
            for (quarter, to) in of_rows.iter_mut().enumerate() {
                store8(to, load_scales(scales, quarter));
            }
            if SIGNS {
                let cells = codes.as_chunks().0.as_chunks().0;
                panels = cells.len();
                for (cell, indices) in cells.iter().zip(&mut self.indices) {
                    sign_indices(cell, &mut indices[index]);
                }
            } else {
                let lines = codes.as_chunks::<LINE_BYTES>().0;
                panels = lines.len();
                for (line, indices) in lines.iter().zip(&mut self.indices) {
                    any_threes |= has_threes(line);
                    ternary_indices(line, &mut indices[index]);
                }
            }
        }
        for threes in &mut self.threes {
            threes.clear();
        }
        if any_threes {
            self.read_threes(group, blocks);
        }
        panels
    }

    /// Makes the indices of the codes 3 of a group.
    #[target_feature(enable = "avx2,f16c")]
    fn read_threes(&mut self, group: &GroupOfBlocks<'_>, blocks: Range<usize>) {
        for bytes in blocks.map(|block| group.of(block)) {
            let codes = &bytes[..bytes.len() - SCALE_BYTES];
            for (line, threes) in codes.as_chunks().0.iter().zip(&mut self.threes) {
                let mut indices = [0; BLOCK_ROWS];
                indices_of_threes(line, &mut indices);
                threes.push(indices);
            }
        }
    }

    /// Adds the products of a panel; `scales` are the scales of its run. Prefetches a part of the next
    /// group.
    #[target_feature(enable = "avx2,f16c")]
    fn add_panel<const SIGNS: bool>(
        &mut self,
        panel: Panel,
        scales: Products,
        first_block: usize,
        next: &GroupOfBlocks<'_>,
    ) {
        for index in 0..self.sums.len() {
            let ahead = next
                .of(first_block + index)
                .as_ptr()
                .wrapping_add(panel.index * AHEAD_BYTES);
            for cache_line in (0..AHEAD_BYTES).step_by(64) {
                _mm_prefetch::<_MM_HINT_T1>(ahead.wrapping_add(cache_line).cast());
            }
            let (indices, sums) = (&self.indices[panel.index][index], &mut self.sums[index]);
            let mut starts_run = panel.starts_run;
            if let Some(threes) = self.threes[panel.index].get(index) {
                add_sums::<SIGNS>(&self.tables, starts_run, threes, sums);
                starts_run = false;
            }
            if !panel.ends_run {
                add_sums::<SIGNS>(&self.tables, starts_run, indices, sums);
                continue;
            }
            let mut rows = Rows {
                tables: &self.tables,
                indices,
                starts_run,
                sums,
                run_scales: scales,
                of_runs: &mut self.of_runs[index],
                scales: &self.scales[index],
                products: &mut self.products[index],
            };
            match (panel.in_first_run, panel.ends_group) {
                (true, true) => rows.fold::<SIGNS, true, true>(),
                (true, false) => rows.fold::<SIGNS, true, false>(),
                (false, true) => rows.fold::<SIGNS, false, true>(),
                (false, false) => rows.fold::<SIGNS, false, false>(),
            }
        }
    }
}

/// Adds the products of a panel to the sums of a run of 32 rows, which begin at 0 if `start`.
#[inline]
#[target_feature(enable = "avx2,f16c")]
fn add_sums<const SIGNS: bool>(
    tables: &PanelTables,
    start: bool,
    indices: &[Indices; BLOCK_ROWS],
    sums: &mut [Sums; BLOCK_ROWS],
) {
    for (sums, indices) in sums.iter_mut().zip(indices) {
        let before = if start {
            [_mm256_setzero_si256(); 2]
        } else {
            *sums
        };
        *sums = tables.add::<SIGNS>(before, *indices);
    }
}

/// The rows of a block and the panel that is added to them.
struct Rows<'a> {
    tables: &'a PanelTables,
    indices: &'a [Indices; BLOCK_ROWS],
    /// Whether the run begins with the panel, so that its sums begin at 0.
    starts_run: bool,
    sums: &'a [Sums; BLOCK_ROWS],
    run_scales: Products,
    of_runs: &'a mut [Products; BLOCK_ROWS],
    scales: &'a [f32; BLOCK_ROWS],
    products: &'a mut [Products; BLOCK_ROWS],
}

impl Rows<'_> {
    /// Adds the last panel of a run, and the run to the sums of the group: by the rules of
    /// `portable::fold_run` and `portable::fold_group`.
    ///
    /// `FIRST`: it is the first run of the group. `LAST`: it is the last, so the group is added to
    /// the products.
    #[inline]
    #[target_feature(enable = "avx2,f16c")]
    fn fold<const SIGNS: bool, const FIRST: bool, const LAST: bool>(&mut self) {
        for row in 0..BLOCK_ROWS {
            let before = if self.starts_run {
                [_mm256_setzero_si256(); 2]
            } else {
                self.sums[row]
            };
            let sums = self.tables.add::<SIGNS>(before, self.indices[row]);
            for (register, sums) in widened(sums).into_iter().enumerate() {
                let of_runs = if FIRST {
                    _mm256_setzero_ps()
                } else {
                    self.of_runs[row][register]
                };
                let sums = _mm256_cvtepi32_ps(sums);
                let of_runs = fold(of_runs, sums, self.run_scales[register]);
                if LAST {
                    let scale = _mm256_set1_ps(self.scales[row]);
                    let products = &mut self.products[row][register];
                    *products = fold(*products, of_runs, scale);
                } else {
                    self.of_runs[row][register] = of_runs;
                }
            }
        }
    }
}
