//! Cells: weights with one scale for a group of columns.
//!
//! Rows are taken 32 at a time. The columns of such a block are cut into groups of 64 or 128, the
//! groups into cells of 32 (the last group may have fewer). After the cells of a group come the
//! scales of its 32 rows in f16, so a thread reads codes and scales as one sequential stream:
//!
//! ```text
//! group of a block:   cell 0, cell 1, …, then 32 scales of 2 bytes, that of row r at byte 2 r
//!
//! cell of 2 bits, 256 bytes: two lines of 16 columns
//!     line g: dword r = row r;  byte j, bits 2s..2s+1  =  code of column 16 g + 4 s + j
//!
//! cell of signs, 128 bytes: four runs of 32 bytes, eight columns each
//!     run i: byte p(r) = row r;  bit b  =  1 where the weight of column 8 i + b is positive
//!     p(r) = 4 (r / 8) + r % 4, and 16 more where r % 8 is 4 or more
//!
//! 2 bits:  block 0, block 1, …
//! trits:   block 0, block 1, …
//! signs:   the first 1024 columns of all blocks, the next 1024 columns of all blocks, …
//! ```
//!
//! **Trits** are codes of 2 bits without code 3, squeezed to 1.67 bits. The lines of three whole
//! groups, a trio, are a multiple of six, so they become groups of five lines as
//! [`packing`](super::packing) draws them, and the scales of the three follow. Groups after the last
//! trio stay in 2 bits:
//!
//! ```text
//! trio:    five sixths of the lines of three groups, then 3 × 32 scales
//! block:   trio 0, trio 1, …, then at most two whole groups and one shorter group in 2 bits
//! ```
//!
//! With 128 columns to a scale that is 1.79 bits a weight. Kernels read codes of 2 bits, so trits
//! are spread first: a trio at a time by kernels for few rows, a block at a time for many.
//!
//! A code c of 2 bits is the weight c − 1, so −1, 0, 1 or 2. Kernels look signs up instead of
//! multiplying: four activations have only 16 signed sums, four sign bits are the index of one of
//! them, and a shuffle instruction looks up the sums of 32 rows at once. The sums of a run are
//! bytes; interleaving the 128-bit halves twice widens them, and p(r) is chosen so that this leaves
//! eight rows in order in each 256-bit register. The tables of 1024 columns take 8 KiB, so they
//! stay in the first-level cache while a thread reads the weights of all blocks.

use half::f16;

use crate::layout::lines::{BLOCK_ROWS, LINE_BYTES, LINE_COLS, Line};
use crate::layout::packing::{GROUP_LINES, Group, pack_line_row, spread_group, squeeze_group};

/// Columns in a cell.
pub(crate) const CELL_COLS: usize = 32;
/// Bytes of the scales of a group.
pub(crate) const SCALE_BYTES: usize = 2 * BLOCK_ROWS;
/// Columns of signs whose tables fit into a thread's first-level cache.
const CHUNK_COLS: usize = 1024;
/// Bytes of a run of signs, one for each row.
pub(crate) const SIGN_RUN_BYTES: usize = BLOCK_ROWS;
/// Columns of a run of signs.
pub(crate) const SIGN_RUN_COLS: usize = 8;
/// Lines in a cell of 2 bits.
pub(crate) const CELL_LINES: usize = CELL_COLS / LINE_COLS;
/// Runs in a cell of signs.
pub(crate) const CELL_SIGN_RUNS: usize = CELL_COLS / SIGN_RUN_COLS;

/// Groups of columns that are stored together as trits.
const TRIO_GROUPS: usize = 3;
/// The most lines that a trio has, in 2 bits.
const TRIO_LINES_MAX: usize = TRIO_GROUPS * 128 / LINE_COLS;

/// Eight columns of signs of 32 rows.
pub(crate) type SignRun = [u8; SIGN_RUN_BYTES];

/// The set of codes of weights that have a scale for each group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GroupCodes {
    /// 0 is −1 and 1 is +1; 1 bit per weight.
    Signs,
    /// 0 to 2 are −1, 0 and +1; 1.67 bits per weight where three groups lie together, else 2 bits.
    Trits,
    /// 0 to 3 are −1, 0, +1 and +2; 2 bits per weight.
    TwoBits,
}

impl GroupCodes {
    /// The name of these codes in reports.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Signs => "signs",
            Self::Trits => "1.67-bit groups",
            Self::TwoBits => "2-bit groups",
        }
    }

    /// All sets of codes.
    pub const ALL: [Self; 3] = [Self::Signs, Self::Trits, Self::TwoBits];

    /// The number of different codes: all codes are below it.
    #[must_use]
    pub fn num_codes(self) -> u8 {
        match self {
            Self::Signs => 2,
            Self::Trits => 3,
            Self::TwoBits => 4,
        }
    }

    /// The weight of a code, before its scale.
    #[must_use]
    pub fn weight(self, code: u8) -> i8 {
        match self {
            Self::Signs => 2 * code as i8 - 1,
            Self::Trits | Self::TwoBits => code as i8 - 1,
        }
    }

    /// Bytes in memory of a block of 32 rows of `cols` columns with a scale for every `group_cols`:
    /// codes, scales and padding.
    #[must_use]
    pub fn block_bytes(self, cols: usize, group_cols: usize) -> usize {
        let layout = GroupLayout {
            codes: self,
            cols,
            group_cols,
        };
        layout.stored_bytes()
    }

    /// Bytes of a cell, as kernels read it.
    fn cell_bytes(self) -> usize {
        match self {
            Self::Signs => CELL_SIGN_RUNS * SIGN_RUN_BYTES,
            Self::Trits | Self::TwoBits => CELL_LINES * LINE_BYTES,
        }
    }
}

/// How the columns of a matrix with group scales are split. All but [`GroupLayout::stored_bytes`]
/// and the functions about trios describe what kernels read: trits are codes of 2 bits there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct GroupLayout {
    pub codes: GroupCodes,
    /// Columns of a row, without padding.
    pub cols: usize,
    /// Columns that share a scale.
    pub group_cols: usize,
}

/// Consecutive groups of every block. The chunk stores them block by block.
#[derive(Clone, Copy, Debug)]
pub(crate) struct GroupChunk {
    pub first_group: usize,
    pub num_groups: usize,
    /// Bytes of one block.
    pub block_bytes: usize,
    /// Bytes of one block in all chunks before this one.
    first_byte: usize,
}

impl GroupChunk {
    /// Where the chunk of a block begins in a matrix of `num_blocks` blocks.
    pub fn start(&self, block: usize, num_blocks: usize) -> usize {
        self.first_byte * num_blocks + block * self.block_bytes
    }
}

impl GroupLayout {
    /// Groups in a row.
    pub fn num_groups(self) -> usize {
        self.cols.div_ceil(self.group_cols)
    }

    /// Cells in a row.
    pub fn num_cells(self) -> usize {
        self.cols.div_ceil(CELL_COLS)
    }

    /// Cells in a group.
    pub fn group_cells(self, group: usize) -> usize {
        let whole = self.group_cols / CELL_COLS;
        whole.min(self.num_cells() - group * whole)
    }

    /// Bytes of a whole group of a block, its scales included.
    pub fn group_bytes(self) -> usize {
        self.group_cols / CELL_COLS * self.codes.cell_bytes() + SCALE_BYTES
    }

    /// Bytes of a block.
    pub fn block_bytes(self) -> usize {
        self.num_cells() * self.codes.cell_bytes() + self.num_groups() * SCALE_BYTES
    }

    /// Bytes of a block in memory.
    pub fn stored_bytes(self) -> usize {
        match self.codes {
            GroupCodes::Signs | GroupCodes::TwoBits => self.block_bytes(),
            GroupCodes::Trits => {
                let (plain, stored) = self.trios_bytes();
                self.block_bytes() - plain + stored
            }
        }
    }

    /// Bytes of all trios of a block, with codes of 2 bits and with trits.
    fn trios_bytes(self) -> (usize, usize) {
        let trios = self.cols / self.group_cols / TRIO_GROUPS;
        (
            trios * TRIO_GROUPS * self.group_bytes(),
            trios * self.trio_bytes(),
        )
    }

    /// Bytes of a trio in memory.
    pub fn trio_bytes(self) -> usize {
        let lines = TRIO_GROUPS * self.group_cols / LINE_COLS;
        lines / GROUP_LINES * size_of::<Group>() + TRIO_GROUPS * SCALE_BYTES
    }

    /// The trios of a block in memory, and its groups after them, which are in 2 bits.
    #[inline(always)]
    pub fn split_trios(self, stored: &[u8]) -> (&[u8], &[u8]) {
        stored.split_at(self.trios_bytes().1)
    }

    /// The trits and the scales of a trio.
    #[inline(always)]
    pub fn split_trio(trio: &[u8]) -> (&[Group], &[u8]) {
        let (trits, scales) = trio.split_at(trio.len() - TRIO_GROUPS * SCALE_BYTES);
        (trits.as_chunks::<LINE_BYTES>().0.as_chunks().0, scales)
    }

    /// Turns a block with codes of 2 bits into a block of trits. No code may be 3.
    pub fn squeeze(self, plain: &[u8], stored: &mut [u8]) {
        let (plain, plain_rest) = plain.split_at(self.trios_bytes().0);
        let (stored, stored_rest) = stored.split_at_mut(self.trios_bytes().1);
        stored_rest.copy_from_slice(plain_rest);
        let plain = plain.chunks_exact(TRIO_GROUPS * self.group_bytes());
        for (plain, stored) in plain.zip(stored.chunks_exact_mut(self.trio_bytes())) {
            let (trits, scales) = stored.split_at_mut(stored.len() - TRIO_GROUPS * SCALE_BYTES);
            let mut lines = [[0; LINE_BYTES]; TRIO_LINES_MAX];
            let group_lines = self.group_cols / LINE_COLS;
            let groups = plain
                .chunks_exact(self.group_bytes())
                .zip(lines.chunks_exact_mut(group_lines));
            for ((plain, lines), scales) in groups.zip(scales.chunks_exact_mut(SCALE_BYTES)) {
                let (codes, plain_scales) = plain.split_at(plain.len() - SCALE_BYTES);
                lines.copy_from_slice(codes.as_chunks().0);
                scales.copy_from_slice(plain_scales);
            }
            let trits = trits.as_chunks_mut::<LINE_BYTES>().0.as_chunks_mut().0;
            for (lines, trits) in lines.as_chunks().0.iter().zip(trits) {
                squeeze_group(lines, trits);
            }
        }
    }

    /// Turns a block of trits into a block with codes of 2 bits.
    pub fn spread(self, stored: &[u8], plain: &mut [u8]) {
        self.spread_with(stored, plain, |trits, lines| {
            for (trits, lines) in trits.iter().zip(lines.as_chunks_mut().0) {
                spread_group(trits, lines);
            }
        });
    }

    /// The same, with a function that turns the trits of a trio into lines of 2 bits.
    #[inline(always)]
    pub fn spread_with(
        self,
        stored: &[u8],
        plain: &mut [u8],
        spread: impl Fn(&[Group], &mut [Line]),
    ) {
        let (stored, stored_rest) = self.split_trios(stored);
        let (plain, plain_rest) = plain.split_at_mut(self.trios_bytes().0);
        plain_rest.copy_from_slice(stored_rest);
        let mut lines = [[0; LINE_BYTES]; TRIO_LINES_MAX];
        let group_lines = self.group_cols / LINE_COLS;
        let plain = plain.chunks_exact_mut(TRIO_GROUPS * self.group_bytes());
        for (stored, plain) in stored.chunks_exact(self.trio_bytes()).zip(plain) {
            let (trits, scales) = Self::split_trio(stored);
            spread(trits, &mut lines[..TRIO_GROUPS * group_lines]);
            let groups = plain
                .chunks_exact_mut(self.group_bytes())
                .zip(lines.chunks_exact(group_lines));
            for ((plain, lines), scales) in groups.zip(scales.chunks_exact(SCALE_BYTES)) {
                let (codes, plain_scales) = plain.split_at_mut(plain.len() - SCALE_BYTES);
                codes.copy_from_slice(lines.as_flattened());
                plain_scales.copy_from_slice(scales);
            }
        }
    }

    /// The chunks of a block, in the order of the columns.
    pub fn chunks(self) -> impl Iterator<Item = GroupChunk> {
        let step = match self.codes {
            GroupCodes::Signs => CHUNK_COLS / self.group_cols,
            GroupCodes::Trits | GroupCodes::TwoBits => self.num_groups(),
        };
        let start = move |group: usize| {
            if group < self.num_groups() {
                group * self.group_bytes()
            } else {
                self.block_bytes()
            }
        };
        (0..self.num_groups())
            .step_by(step)
            .map(move |first_group| {
                let end = self.num_groups().min(first_group + step);
                GroupChunk {
                    first_group,
                    num_groups: end - first_group,
                    block_bytes: start(end) - start(first_group),
                    first_byte: start(first_group),
                }
            })
    }

    /// Where a group of a block begins in a matrix of `num_blocks` blocks, and the number of its
    /// bytes of codes.
    pub fn group_place(self, block: usize, group: usize, num_blocks: usize) -> (usize, usize) {
        let chunk = self
            .chunks()
            .find(|chunk| group < chunk.first_group + chunk.num_groups)
            .expect("a group of the row");
        let start =
            chunk.start(block, num_blocks) + (group - chunk.first_group) * self.group_bytes();
        (start, self.group_cells(group) * self.codes.cell_bytes())
    }

    /// Packs row `lane` of a group, at most `group_cols` codes and the scale, into its bytes.
    pub fn pack_row(self, codes: &[u8], scale: f16, lane: usize, group: &mut [u8]) {
        let (cells, scales) = group.split_at_mut(group.len() - SCALE_BYTES);
        scales[2 * lane..2 * lane + 2].copy_from_slice(&scale.to_le_bytes());
        match self.codes {
            GroupCodes::Signs => pack_sign_row(codes, lane, cells),
            GroupCodes::Trits | GroupCodes::TwoBits => pack_two_bit_row(codes, lane, cells),
        }
    }

    /// The code of a column of row `lane` of a group, from the group's bytes.
    pub fn code(self, group: &[u8], lane: usize, col: usize) -> u8 {
        let (byte, shift) = self.place(lane, col);
        let mask = match self.codes {
            GroupCodes::Signs => 1,
            GroupCodes::Trits | GroupCodes::TwoBits => 3,
        };
        group[byte] >> shift & mask
    }

    /// The byte of a group, and the bit of it, at which the code of a row and a column begins.
    fn place(self, lane: usize, col: usize) -> (usize, usize) {
        match self.codes {
            GroupCodes::Signs => {
                let run = col / SIGN_RUN_COLS;
                (run * SIGN_RUN_BYTES + sign_byte(lane), col % SIGN_RUN_COLS)
            }
            GroupCodes::Trits | GroupCodes::TwoBits => {
                let (line, col) = (col / LINE_COLS, col % LINE_COLS);
                (line * LINE_BYTES + 4 * lane + col % 4, 2 * (col / 4))
            }
        }
    }
}

/// The scale of row `lane`, from the scales of a group.
pub(crate) fn scale_of(scales: &[u8], lane: usize) -> f32 {
    f16::from_le_bytes([scales[2 * lane], scales[2 * lane + 1]]).to_f32()
}

/// Signs past the end have any value: the activations there are zero.
fn pack_sign_row(codes: &[u8], lane: usize, cells: &mut [u8]) {
    let runs = cells.as_chunks_mut::<SIGN_RUN_BYTES>().0;
    for (codes, run) in codes.chunks(SIGN_RUN_COLS).zip(runs) {
        let mut eight = [0; SIGN_RUN_COLS];
        eight[..codes.len()].copy_from_slice(codes);
        // Byte i, which is 0 or 1, times 2^(56 - 7 i) is bit i of the highest byte. The other
        // products fall on other bits, so one multiplication gathers all eight bits.
        let bits = u64::from_le_bytes(eight).wrapping_mul(0x0102_0408_1020_4080) >> 56;
        run[sign_byte(lane)] = bits as u8;
    }
}

/// Columns past the end are zero weights, code 1.
fn pack_two_bit_row(codes: &[u8], lane: usize, cells: &mut [u8]) {
    let mut of_lines = codes.chunks(LINE_COLS);
    for line in cells.as_chunks_mut::<LINE_BYTES>().0 {
        let mut sixteen = [1; LINE_COLS];
        for (to, code) in sixteen.iter_mut().zip(of_lines.next().unwrap_or_default()) {
            *to = *code as i8;
        }
        pack_line_row(&sixteen, &mut line[4 * lane..4 * lane + 4]);
    }
}

/// The byte of a run of signs that holds a row.
pub(crate) const fn sign_byte(lane: usize) -> usize {
    4 * (lane / 8) + lane % 4 + if lane % 8 < 4 { 0 } else { 16 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signs_take_1_125_bits_per_weight_and_codes_of_two_bits_2_125() {
        let bytes = |codes, cols, group_cols| {
            GroupLayout {
                codes,
                cols,
                group_cols,
            }
            .block_bytes()
        };
        for cols in [128, 2048, 6144, 12288] {
            assert_eq!(bytes(GroupCodes::Signs, cols, 128), 32 * cols * 9 / 64);
            assert_eq!(bytes(GroupCodes::TwoBits, cols, 128), 32 * cols * 17 / 64);
            assert_eq!(bytes(GroupCodes::TwoBits, cols, 64), 32 * cols * 18 / 64);
        }
        assert_eq!(bytes(GroupCodes::TwoBits, 1, 64), 256 + 64);
    }

    #[test]
    fn trits_take_at_most_1_83_bits_per_weight_of_the_matrices_of_real_models() {
        for cols in [2048, 2560, 4096, 5120, 6144, 9728, 12288, 17408] {
            let bits = 8.0 * GroupCodes::Trits.block_bytes(cols, 128) as f64 / (32 * cols) as f64;
            assert!((1.79..1.83).contains(&bits), "{bits} with {cols} columns");
        }
        // A trio of 384 columns, one whole group and a shorter one in 2 bits.
        let block = GroupCodes::Trits.block_bytes(384 + 128 + 32, 128);
        assert_eq!(block, 20 * 128 + 3 * 64 + (8 * 128 + 64) + (2 * 128 + 64));
    }

    #[test]
    fn squeezing_a_block_to_trits_and_spreading_it_gives_the_same_block() {
        for (cols, group_cols) in [(96, 32), (384, 128), (1000, 64), (500, 128), (100, 128)] {
            let layout = GroupLayout {
                codes: GroupCodes::Trits,
                cols,
                group_cols,
            };
            let mut plain = vec![0u8; layout.block_bytes()];
            let mut state = 1u32;
            for byte in &mut plain {
                state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                let code = |place: u32| ((state >> (8 + 4 * place)) as u8 & 15) % 3;
                *byte = code(0) | code(1) << 2 | code(2) << 4 | code(3) << 6;
            }
            let mut stored = vec![0xff; layout.stored_bytes()];
            layout.squeeze(&plain, &mut stored);
            let mut back = vec![0xff; plain.len()];
            layout.spread(&stored, &mut back);
            assert_eq!(plain, back, "{cols} columns in groups of {group_cols}");
        }
    }

    #[test]
    fn every_code_has_its_own_place() {
        for codes in GroupCodes::ALL {
            let layout = GroupLayout {
                codes,
                cols: 128,
                group_cols: 128,
            };
            let mut seen = std::collections::BTreeSet::new();
            for (lane, col) in (0..32).flat_map(|lane| (0..128).map(move |col| (lane, col))) {
                let (byte, shift) = layout.place(lane, col);
                assert!(byte < layout.group_bytes() - SCALE_BYTES && seen.insert((byte, shift)));
            }
        }
    }
}
