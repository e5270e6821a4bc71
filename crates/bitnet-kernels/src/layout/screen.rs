//! The 8-bit copy of the head, and the hidden states that are multiplied by it.
//!
//! Rows are taken 32 at a time, as in the packed matrices:
//!
//! ```text
//! line g of a block, 128 bytes:   dword r (0..32) = row r
//!     byte j (0..4) of the dword  =  integer + 128 of column 4 g + j
//! ```
//!
//! A value of a hidden state is an integer H of 16 bits times a scale, H = 256 a + b with a and b
//! in 8 bits. Sets that multiply bytes use the planes a and b, others use H itself.

use std::ops::Range;

use crate::layout::activations::{Activations, TILE_ROWS, Tile};
use crate::layout::lines::{BLOCK_ROWS, LINE_COLS};

/// Columns in a line.
pub(crate) const SCREEN_LINE_COLS: usize = 4;

/// The factor of the first plane.
pub(crate) const PLANE_FACTOR: i32 = 256;
/// Hidden states in a tile: two planes each.
const TILE_STATES: usize = TILE_ROWS / 2;
/// Columns over which 32 bits hold every sum of integers times H: at most 256 · 127 · 2^15 < 2^31.
pub(crate) const CHUNK_COLS: usize = 256;

/// Integer sums of a block of rows with the states of a tile, two integers a and b for each state:
/// `256 a + b` is `Σ integer · H`. Sets may differ in a and b.
pub(crate) type ScreenSums = [[i32; BLOCK_ROWS]; TILE_ROWS];

/// Hidden states as integers. Grows to the largest number of states so far.
#[derive(Default)]
pub(crate) struct ScreenStates {
    /// Rows 2t and 2t + 1 are the planes of state t.
    planes: Activations,
    /// H, `[padded cols / 4, states, 4]` for each tile; of four columns the order is 0, 2, 1, 3, so
    /// that two words stand beside each other for the even and two for the odd bytes of a line.
    words: Vec<i16>,
    /// `−128 · Σ H` of each chunk of columns, wrapped to 32 bits: `[chunks, states]` for each tile.
    biases: Vec<i32>,
}

/// The hidden states of one tile.
#[derive(Clone, Copy)]
#[cfg_attr(
    not(target_arch = "x86_64"),
    expect(dead_code, reason = "only AVX2 multiplies the states as words")
)]
pub(crate) struct ScreenTile<'a> {
    /// Both planes of each state.
    pub planes: Tile<'a>,
    /// `[padded cols / 4, states, 4]`, see [`ScreenStates`].
    pub words: &'a [i16],
    /// `[chunks, states]`: what to add to the sums of integers + 128 in a chunk.
    pub biases: &'a [i32],
}

/// One plane of a hidden state.
pub(crate) struct Plane<'a> {
    /// `[padded cols]`
    pub integers: &'a [i8],
    pub scale: f32,
    /// The sum of the integers.
    pub sum: i32,
}

impl ScreenTile<'_> {
    /// Number of hidden states.
    #[cfg(target_arch = "x86_64")]
    pub fn states(&self) -> usize {
        self.planes.scales.len() / 2
    }
}

impl ScreenStates {
    /// Makes room for `states` hidden states of `cols`; their values are unspecified until set.
    pub fn reset(&mut self, states: usize, cols: usize) {
        self.planes.reset(2 * states, cols);
        let (words, biases) = (states * self.padded_cols(), states * self.chunks());
        self.words.resize(words.max(self.words.len()), 0);
        self.biases.resize(biases.max(self.biases.len()), 0);
    }

    /// The length of a state with its padding.
    pub fn padded_cols(&self) -> usize {
        self.planes.padded_cols()
    }

    fn chunks(&self) -> usize {
        self.padded_cols().div_ceil(CHUNK_COLS)
    }

    /// Sets a state: 256 times the first plane plus the second.
    pub fn set(&mut self, state: usize, first: &Plane<'_>, second: &Plane<'_>) {
        for (row, plane) in (2 * state..).zip([first, second]) {
            self.planes
                .set_row(row, plane.integers, plane.scale, plane.sum);
        }
        let states = self.tile_states(state / TILE_STATES);
        let (index, num_states) = (state - states.start, states.len());
        let (cols, num_chunks) = (self.padded_cols(), self.chunks());
        let words = &mut self.words[states.start * cols..];
        let biases = &mut self.biases[states.start * num_chunks..];
        let chunks = first.integers.chunks(CHUNK_COLS);
        let chunks = chunks.zip(second.integers.chunks(CHUNK_COLS)).zip(
            words
                .chunks_mut(CHUNK_COLS * num_states)
                .zip(biases.chunks_mut(num_states)),
        );
        for ((first, second), (words, biases)) in chunks {
            let mut sum = 0;
            let fours = first
                .as_chunks::<4>()
                .0
                .iter()
                .zip(second.as_chunks::<4>().0);
            for ((first, second), words) in fours.zip(words.chunks_exact_mut(4 * num_states)) {
                let word =
                    |j: usize| PLANE_FACTOR as i16 * i16::from(first[j]) + i16::from(second[j]);
                let four = [0, 2, 1, 3].map(word);
                words[4 * index..4 * index + 4].copy_from_slice(&four);
                sum += four.iter().map(|word| i32::from(*word)).sum::<i32>();
            }
            biases[index] = sum.wrapping_mul(-128);
        }
    }

    /// Number of tiles that hold the states.
    pub fn num_tiles(&self) -> usize {
        self.planes.num_tiles()
    }

    /// The states of a tile.
    pub fn tile_states(&self, tile: usize) -> Range<usize> {
        let planes = self.planes.tile_rows(tile);
        planes.start / 2..planes.end / 2
    }

    pub fn tile(&self, tile: usize) -> ScreenTile<'_> {
        let states = self.tile_states(tile);
        let (cols, chunks) = (self.padded_cols(), self.chunks());
        ScreenTile {
            planes: self.planes.tile(tile),
            words: &self.words[states.start * cols..states.end * cols],
            biases: &self.biases[states.start * chunks..states.end * chunks],
        }
    }
}

/// Packs `[BLOCK_ROWS, padded cols]` integers into the lines of one block, some lines at a time, so
/// that the written lines stay in the first-level cache until they are complete.
pub(crate) fn pack_block(integers: &[i8], padded: usize, block: &mut [u8]) {
    for (first, lines) in (0..padded)
        .step_by(LINE_COLS)
        .zip(block.chunks_exact_mut(LINE_COLS * BLOCK_ROWS))
    {
        for (lane, row) in integers.chunks_exact(padded).enumerate() {
            for (four, line) in row[first..first + LINE_COLS]
                .as_chunks::<SCREEN_LINE_COLS>()
                .0
                .iter()
                .zip(lines.as_chunks_mut::<{ SCREEN_LINE_COLS * BLOCK_ROWS }>().0)
            {
                line[4 * lane..4 * lane + 4]
                    .copy_from_slice(&four.map(|integer| integer as u8 ^ 0x80));
            }
        }
    }
}
