//! TL1, with the tile for the shape and with any tile.
#![no_main]

use bitnet_fuzz::try_format;
use bitnet_quantization::TernaryFormat;
use bitnet_quantization::tl1::Tile;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| {
    try_format(input, |rows, cols, switches| {
        let any = Tile {
            tile_rows: 16 << (switches >> 4 & 3),
            block_cols: 32 << (switches >> 6 & 1),
            inner_rows: 8 << (switches >> 4 & 3),
        };
        Some(TernaryFormat::TL1(if switches >> 7 == 0 {
            Tile::choose(rows, cols)?
        } else {
            any
        }))
    });
});
