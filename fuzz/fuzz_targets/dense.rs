//! F32, F16, BF16, Q8_0, Q6_K and Q4_0: any bytes give numbers, and quantized data have the right
//! length.
#![no_main]

use bitnet_fuzz::{WEIGHTS_MAX, filled, floats, shape};
use bitnet_quantization::dense::Dense;
use libfuzzer_sys::fuzz_target;

const FORMATS: [Dense; 6] = [
    Dense::F32,
    Dense::F16,
    Dense::BF16,
    Dense::Q8_0,
    Dense::Q6_K,
    Dense::Q4_0,
];

fuzz_target!(|input: &[u8]| {
    let Some((rows, cols, switches, bytes)) = shape(input) else {
        return;
    };
    let format = FORMATS[usize::from(switches >> 2) % FORMATS.len()];
    let Ok(size) = format.size_bytes(rows, cols) else {
        return;
    };
    if rows * cols > WEIGHTS_MAX {
        return;
    }
    let mut out = vec![9.0; rows * cols];
    drop(format.dequantize(bytes, &mut out));
    format
        .dequantize(&filled(bytes, size), &mut out)
        .expect("any bytes are numbers");
    let (values, mut stored) = (floats(bytes, rows * cols), vec![0xa5; size]);
    if format.quantize(&values, &mut stored).is_ok() {
        format
            .dequantize(&stored, &mut out)
            .expect("quantized by us");
        assert!(out.iter().all(|x| x.is_finite()));
        let largest = |values: &[f32]| {
            values
                .iter()
                .fold(0.0f32, |largest, x| largest.max(x.abs()))
        };
        assert!(
            largest(&out) <= 1.1 * largest(&values) + 1e-6,
            "{} {}",
            largest(&out),
            largest(&values)
        );
    }
});
