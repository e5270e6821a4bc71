//! Formats with a scale for each group of columns: Q1_0, Q2_0, PQ2_0 and PTQ1_0.
#![no_main]

use bitnet_fuzz::{WEIGHTS_MAX, filled, shape, try_format};
use bitnet_quantization::GroupFormat::{PQ2_0, PTQ1_0, Q1_0, Q2_0};
use bitnet_quantization::TernaryFormat;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| {
    let format = |switches: u8| [Q1_0, Q2_0, PQ2_0, PTQ1_0][usize::from(switches >> 6)];
    try_format(input, |_, _, switches| {
        Some(TernaryFormat::Group(format(switches)))
    });
    // Unpacks codes and scales; what can be read packs again to bytes that read the same.
    let Some((rows, cols, switches, bytes)) = shape(input) else {
        return;
    };
    let format = format(switches);
    let Ok(size) = format.size_bytes(rows, cols) else {
        return;
    };
    if rows * cols > WEIGHTS_MAX {
        return;
    }
    let read = |bytes: &[u8]| {
        let mut codes = vec![9; rows * cols];
        let mut scales = vec![f32::NAN; codes.len() / format.group_len()];
        let result = format.unpack_rows(bytes, rows, cols, 0..rows, &mut codes, &mut scales);
        result.is_ok().then_some((codes, scales))
    };
    let Some((codes, scales)) = read(&filled(bytes, size)) else {
        return;
    };
    let mut packed = vec![0; size];
    format
        .pack(&codes, &scales, rows, cols, &mut packed)
        .expect("codes that were read");
    assert!(read(&packed) == Some((codes, scales)));
});
