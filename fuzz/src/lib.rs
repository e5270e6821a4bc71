//! Shared parts of the targets for ternary formats: bytes to weights and back, floats to bytes and
//! back.
//!
//! An input is two numbers for the shape, one for switches, then the bytes of the tensor or of the
//! floats. Every input gives an error, or weights −1, 0, 1 that survive packing, and floats that
//! survive quantizing again.

use bitnet_kernels::Pool;
use bitnet_quantization::{Scaling, TernaryFormat};

/// The largest matrix tried.
pub const WEIGHTS_MAX: usize = 1 << 15;

/// The shape, switches and bytes of an input.
pub fn shape(input: &[u8]) -> Option<(usize, usize, u8, &[u8])> {
    let [rows, cols, switches, bytes @ ..] = input else {
        return None;
    };
    let (rows, cols) = (usize::from(*rows), usize::from(*cols));
    // Most formats reject odd shapes, and all must reject shapes beyond memory.
    Some(match switches & 3 {
        0 => (rows, cols, *switches, bytes),
        1 => (4 * rows, 32 * cols, *switches, bytes),
        2 => (16 * rows, 32 * cols, *switches, bytes),
        _ => ((1 << 63) + (rows << 40), (1 << 30) + cols, *switches, bytes),
    })
}

/// The quantizer that an input selects.
pub fn scaling(switches: u8, bytes: &[u8]) -> Scaling {
    match switches >> 2 & 3 {
        0 => Scaling::AbsMean,
        1 => Scaling::AbsMax,
        _ => Scaling::Given(floats(bytes, 1).first().copied().unwrap_or(0.5)),
    }
}

/// The bytes, repeated up to the length.
pub fn filled(bytes: &[u8], len: usize) -> Vec<u8> {
    bytes
        .iter()
        .copied()
        .chain(std::iter::repeat_n(0x55, usize::from(bytes.is_empty())))
        .cycle()
        .take(len)
        .collect()
}

/// The bytes as floats, repeated up to the length.
pub fn floats(bytes: &[u8], len: usize) -> Vec<f32> {
    let bytes = filled(bytes, bytes.len().next_multiple_of(4).max(4));
    bytes
        .as_chunks()
        .0
        .iter()
        .map(|bytes| f32::from_le_bytes(*bytes))
        .cycle()
        .take(len)
        .collect()
}

/// Tries a format on an input; `format` may depend on the shape and the switches.
pub fn try_format(input: &[u8], format: impl Fn(usize, usize, u8) -> Option<TernaryFormat>) {
    let Some((rows, cols, switches, bytes)) = shape(input) else {
        return;
    };
    let Some(format) = format(rows, cols, switches) else {
        return;
    };
    let (scaling, pool) = (scaling(switches, bytes), Pool::new(1));
    let Ok(size) = format.size_bytes(rows, cols) else {
        assert!(
            format
                .unpack_rows(bytes, rows, cols, 0..1, &mut [])
                .is_err()
        );
        assert!(
            format
                .quantize(&[], rows, cols, scaling, &mut [], &pool)
                .is_err()
        );
        return;
    };
    if rows * cols > WEIGHTS_MAX {
        return;
    }
    // The bytes are unchanged, so usually too long or too short.
    drop(format.unpack_rows(bytes, rows, cols, 0..rows, &mut vec![0; rows * cols]));
    unpack_and_pack(format, &filled(bytes, size), rows, cols, &pool);
    quantize_and_dequantize(
        format,
        &floats(bytes, rows * cols),
        rows,
        cols,
        scaling,
        &pool,
    );
}

fn unpack_and_pack(format: TernaryFormat, bytes: &[u8], rows: usize, cols: usize, pool: &Pool) {
    let mut weights = vec![9; rows * cols];
    if format
        .unpack_rows(bytes, rows, cols, 0..rows, &mut weights)
        .is_err()
    {
        return;
    }
    assert!(weights.iter().all(|w| (-1..=1).contains(w)));
    let range = rows / 3..rows - rows / 4;
    let mut some = vec![9; range.len() * cols];
    format
        .unpack_rows(bytes, rows, cols, range.clone(), &mut some)
        .expect("rows of a sound tensor");
    assert!(some == weights[range.start * cols..range.end * cols]);

    let scale = format
        .scale(bytes, rows, cols)
        .ok()
        .flatten()
        .unwrap_or(0.5);
    let mut packed = vec![0; bytes.len()];
    if format
        .pack(&weights, rows, cols, scale, &mut packed)
        .is_err()
    {
        return;
    }
    let mut again = vec![9; rows * cols];
    format
        .unpack_rows(&packed, rows, cols, 0..rows, &mut again)
        .expect("packed by us");
    assert!(again == weights);
    let mut floats = vec![f32::NAN; rows * cols];
    if format
        .dequantize_rows(bytes, 1.0, (rows, cols), 0..rows, &mut floats, pool)
        .is_ok()
    {
        assert!(floats.iter().all(|x| x.is_finite()));
    }
}

fn quantize_and_dequantize(
    format: TernaryFormat,
    weights: &[f32],
    rows: usize,
    cols: usize,
    scaling: Scaling,
    pool: &Pool,
) {
    let round_trip = |weights: &[f32], scaling| {
        let mut bytes = vec![0xa5; format.size_bytes(rows, cols).ok()?];
        let scale = format
            .quantize(weights, rows, cols, scaling, &mut bytes, pool)
            .ok()?;
        assert!(scale.is_finite() && scale >= 0.0);
        let outer = if format == TernaryFormat::HfPacked {
            scale
        } else {
            1.0
        };
        let mut out = vec![f32::NAN; weights.len()];
        let range = 0..rows;
        format
            .dequantize_rows(&bytes, outer, (rows, cols), range, &mut out, pool)
            .expect("quantized by us");
        assert!(out.iter().all(|x| x.is_finite()));
        Some(out)
    };
    if weights.iter().any(|w| !w.is_finite()) {
        assert!(round_trip(weights, scaling).is_none());
    } else if let Some(ternary) = round_trip(weights, scaling) {
        assert!(round_trip(&ternary, Scaling::AbsMax).as_ref() == Some(&ternary));
    }
}
