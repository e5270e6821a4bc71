//! TL2, with the tile for the shape and with any tile.
#![no_main]

use bitnet_fuzz::try_format;
use bitnet_quantization::TernaryFormat;
use bitnet_quantization::tl2::Tile;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| {
    try_format(input, |rows, cols, switches| {
        let any = Tile {
            tile_rows: 32 << (switches >> 4 & 1),
            block_cols: 24 * usize::from(switches >> 5 & 3),
        };
        Some(TernaryFormat::TL2(if switches >> 7 == 0 {
            Tile::choose(rows, cols)?
        } else {
            any
        }))
    });
});
