//! Estimates of logits with `smull` and with `sdot`.

use std::arch::aarch64::*;

use super::vector::{LINE_REGISTERS, REGISTER_ROWS, broadcast, dot, load_registers};
use crate::layout::lines::LINE_BYTES;
use crate::layout::screen::{ScreenSums, ScreenTile};

/// Defines `Σ integer · q` of 32 rows with each plane of a tile, two planes at a time; `$add` adds
/// four products to a lane.
macro_rules! screen_block {
    ($name:ident: $features:literal, $add:path) => {
        #[target_feature(enable = $features)]
        pub(crate) fn $name(
            lines: &[u8],
            _ahead: &[u8],
            tile: &ScreenTile<'_>,
            sums: &mut ScreenSums,
        ) {
            let tile = tile.planes;
            let planes = tile.scales.len();
            for (pair, sums) in sums[..planes].as_chunks_mut::<2>().0.iter_mut().enumerate() {
                let mut acc = [[vdupq_n_s32(0); LINE_REGISTERS]; 2];
                for (line, values) in lines
                    .chunks_exact(LINE_BYTES)
                    .zip(tile.values.chunks_exact(4 * planes))
                {
                    let q = [broadcast(values, 2 * pair), broadcast(values, 2 * pair + 1)];
                    for (register, bytes) in load_registers::<LINE_REGISTERS>(line, 0)
                        .into_iter()
                        .enumerate()
                    {
                        let integers = veorq_u8(bytes, vdupq_n_u8(0x80));
                        acc[0][register] = $add(acc[0][register], integers, q[0]);
                        acc[1][register] = $add(acc[1][register], integers, q[1]);
                    }
                }
                for (acc, sums) in acc.iter().zip(sums) {
                    for (acc, sums) in acc.iter().zip(sums.as_chunks_mut::<REGISTER_ROWS>().0) {
                        // SAFETY: four writable integers; the store needs no alignment.
                        unsafe { vst1q_s32(sums.as_mut_ptr(), *acc) };
                    }
                }
            }
        }
    };
}

screen_block!(screen_block: "neon", dot_bytes);
screen_block!(screen_block_dotprod: "neon,dotprod", dot::<0>);

/// Adds to each lane the products of its four signed bytes. Two of them are at most 2 · 127 · 127 =
/// 32,258.
#[inline]
#[target_feature(enable = "neon")]
fn dot_bytes(acc: int32x4_t, integers: uint8x16_t, q: int8x16_t) -> int32x4_t {
    let integers = vreinterpretq_s8_u8(integers);
    let low = vmull_s8(vget_low_s8(integers), vget_low_s8(q));
    let high = vmull_high_s8(integers, q);
    vpadalq_s16(acc, vpaddq_s16(low, high))
}
