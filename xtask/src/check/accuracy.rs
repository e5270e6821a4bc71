//! `xtask check accuracy`: measures the error of the ternary formats for the tables of
//! `docs/quantization.md`.
//!
//! The inputs come from a fixed generator and the kernels' own elementary functions, so the figures
//! are equal on every machine. A test compares the document with them.

use std::f64::consts::TAU;
use std::fmt::Write;
use std::ops::Range;
use std::path::Path;

use anyhow::{Context, ensure};
use bitnet_kernels::{Activations, Cpu, KernelSet, Packing, Part, Pool, TernaryMatrix, math};
use bitnet_quantization::i2_s::Form;
use bitnet_quantization::tq::Kind;
use bitnet_quantization::{Scaling, TernaryFormat, i2s_32, qk256, tl1, tl2};

use crate::marked;

const DOCUMENT: &str = "docs/quantization.md";
/// The shape of the measured matrices.
const SHAPE: (usize, usize) = (512, 1536);
/// The least accepted cosine of a product with int8 activations and the same product in floats.
const PRODUCT_COSINE_MIN: f64 = 0.998;
/// The largest possible cosine with three and with four levels on Gaussian weights: √(1 − D), where
/// D is the least mean square error of such a quantizer (Lloyd and Max: 0.1902 and 0.1175).
const BOUNDS: [(usize, f64); 2] = [(3, 0.900), (4, 0.939)];

#[derive(clap::Args)]
pub struct Options {
    /// Write the tables into docs/quantization.md instead of printing them
    #[arg(long)]
    write: bool,
}

/// Prints the tables, or replaces the ones in the document.
pub fn run(root: &Path, options: &Options) -> anyhow::Result<()> {
    let tables = tables()?;
    if !options.write {
        print!("{tables}");
        return Ok(());
    }
    marked::write(&root.join(DOCUMENT), "accuracy", &tables)
}

/// A format to measure: floats in, floats out.
#[derive(Clone, Copy)]
enum Codec {
    Ternary(TernaryFormat),
    I2s32,
    Qk256,
}

impl Codec {
    fn all() -> anyhow::Result<Vec<(&'static str, Self)>> {
        let (rows, cols) = SHAPE;
        let tl1 = tl1::Tile::choose(rows, cols).context("a tile for TL1")?;
        let tl2 = tl2::Tile::choose(rows, cols).context("a tile for TL2")?;
        Ok(vec![
            ("I2_S", Self::Ternary(TernaryFormat::I2_S(Form::Block128))),
            ("TL1", Self::Ternary(TernaryFormat::TL1(tl1))),
            ("TL2", Self::Ternary(TernaryFormat::TL2(tl2))),
            ("TQ1_0", Self::Ternary(TernaryFormat::TQ(Kind::TQ1_0))),
            ("TQ2_0", Self::Ternary(TernaryFormat::TQ(Kind::TQ2_0))),
            ("packed uint8", Self::Ternary(TernaryFormat::HfPacked)),
            ("I2S-32", Self::I2s32),
            ("QK256", Self::Qk256),
        ])
    }

    fn size_bytes(self) -> anyhow::Result<usize> {
        let (rows, cols) = SHAPE;
        Ok(match self {
            Self::Ternary(format) => format.size_bytes(rows, cols)?,
            Self::I2s32 => i2s_32::size_bytes(rows, cols)?,
            Self::Qk256 => qk256::size_bytes(rows, cols)?,
        })
    }

    /// Number of levels of its codes with a given scale.
    fn levels(self) -> usize {
        match self {
            Self::Ternary(_) => 3,
            Self::I2s32 | Self::Qk256 => 4,
        }
    }

    /// Quantizes and dequantizes.
    fn there_and_back(self, weights: &[f32], scaling: Scaling) -> anyhow::Result<Vec<f32>> {
        let ((rows, cols), pool) = (SHAPE, Pool::new(1));
        let (mut bytes, mut out) = (vec![0; self.size_bytes()?], vec![0.0; weights.len()]);
        match self {
            Self::Ternary(format) => {
                let scale = format.quantize(weights, rows, cols, scaling, &mut bytes, &pool)?;
                let outer = if format == TernaryFormat::HfPacked {
                    scale
                } else {
                    1.0
                };
                format.dequantize_rows(&bytes, outer, (rows, cols), 0..rows, &mut out, &pool)?;
            }
            Self::I2s32 => {
                i2s_32::quantize(weights, rows, cols, scaling, &mut bytes, &pool)?;
                i2s_32::dequantize(&bytes, rows, cols, &mut out, &pool)?;
            }
            Self::Qk256 => {
                let scale = qk256::quantize(weights, rows, cols, scaling, &mut bytes, &pool)?;
                qk256::dequantize(&bytes, scale, rows, cols, &mut out, &pool)?;
            }
        }
        Ok(out)
    }
}

fn tables() -> anyhow::Result<String> {
    Ok([ternary_table()?, gaussian_table()?, product_table()?].join("\n"))
}

/// The largest error on weights that are ternary times a scale, and the size in bits.
fn ternary_table() -> anyhow::Result<String> {
    let (rows, cols) = SHAPE;
    let mut out = format!(
        "Ternary weights times a scale, {rows} × {cols}, quantized by absmax: the largest error as a share of the scale.\n\n\
         | format | bits per weight | scale 0.03125, an f16 | scale 0.0371, none |\n|---|---:|---:|---:|\n"
    );
    let ternary: Vec<f32> = Random(1)
        .uniforms()
        .take(rows * cols)
        .map(|u| (u * 3.0).floor() as f32 - 1.0)
        .collect();
    for (name, codec) in Codec::all()? {
        let error = |scale: f32| -> anyhow::Result<f32> {
            let weights: Vec<f32> = ternary.iter().map(|w| w * scale).collect();
            let back = codec.there_and_back(&weights, Scaling::AbsMax)?;
            let errors = weights.iter().zip(back).map(|(w, x)| (w - x).abs() / scale);
            Ok(errors.fold(0.0, f32::max))
        };
        let bits = 8.0 * codec.size_bytes()? as f64 / (rows * cols) as f64;
        writeln!(
            out,
            "| {name} | {bits:.3} | {} | {} |",
            shown_error(error(0.03125)?),
            shown_error(error(0.0371)?)
        )?;
    }
    Ok(out)
}

fn shown_error(error: f32) -> String {
    if error == 0.0 {
        "0".to_owned()
    } else {
        format!("{error:.1e}")
    }
}

/// The cosine with Gaussian weights for each quantizer, beside the bound for its number of levels.
fn gaussian_table() -> anyhow::Result<String> {
    let (rows, cols) = SHAPE;
    let mut out = format!(
        "Gaussian weights, {rows} × {cols}: the cosine between the weights and the dequantized ones. *Given* is the best of the\n\
         scales 0.80, 0.81, … 1.50 times the standard deviation.\n\n| format | absmean | absmax | given | levels of given | bound |\n\
         |---|---:|---:|---:|---:|---:|\n"
    );
    let weights = Random(2).gaussians(rows * cols);
    // All formats with one scale per tensor have the same three levels, so one search serves them
    // all.
    let packed = Codec::Ternary(TernaryFormat::HfPacked);
    let best_scales = [packed, Codec::I2s32, Codec::Qk256].map(|codec| best_scale(codec, &weights));
    let [three_levels, i2s_32, qk256] = best_scales;
    let (three_levels, i2s_32, qk256) = (three_levels?, i2s_32?, qk256?);
    for (name, codec) in Codec::all()? {
        let cosine =
            |scaling| anyhow::Ok(cosine(&weights, &codec.there_and_back(&weights, scaling)?));
        let best = match codec {
            Codec::Ternary(_) => three_levels,
            Codec::I2s32 => i2s_32,
            Codec::Qk256 => qk256,
        };
        let given = cosine(Scaling::Given(best))?;
        let levels = codec.levels();
        let bound = BOUNDS
            .iter()
            .find(|(n, _)| *n == levels)
            .map_or(f64::NAN, |(_, bound)| *bound);
        ensure!(
            given < bound + 0.001,
            "{name}: a cosine of {given} exceeds the bound for {levels} levels"
        );
        let (absmean, absmax) = (cosine(Scaling::AbsMean)?, cosine(Scaling::AbsMax)?);
        writeln!(
            out,
            "| {name} | {absmean:.3} | {absmax:.3} | {given:.3} at {best:.2} | {levels} | {bound:.3} |"
        )?;
    }
    Ok(out)
}

/// The scale, in hundredths, with the largest cosine.
fn best_scale(codec: Codec, weights: &[f32]) -> anyhow::Result<f32> {
    let mut best = (f64::NEG_INFINITY, 0.0);
    for scale in (80..=150u16).map(|hundredths| f32::from(hundredths) / 100.0) {
        let found = cosine(
            weights,
            &codec.there_and_back(weights, Scaling::Given(scale))?,
        );
        if found > best.0 {
            best = (found, scale);
        }
    }
    Ok(best.1)
}

/// The cosine between the engine's product, with int8 activations, and the product in floats.
fn product_table() -> anyhow::Result<String> {
    let (rows, cols) = SHAPE;
    let cpu = Cpu::new(KernelSet::detect(), 1);
    let mut out = format!(
        "Products of {rows} × {cols} Gaussian weights quantized by absmean with activations quantized to int8: the cosine with\n\
         the product of the same weights and the activations in floats. At least {PRODUCT_COSINE_MIN} is required.\n\n\
         | format | Gaussian | one in 128 twenty times as large | squared relu of Gaussian |\n|---|---:|---:|---:|\n"
    );
    let weights = Random(3).gaussians(rows * cols);
    let plain = Random(4).gaussians(cols);
    let outliers = plain
        .iter()
        .enumerate()
        .map(|(i, x)| if i % 128 == 7 { 20.0 * x } else { *x })
        .collect();
    let squared = plain.iter().map(|x| x.max(0.0) * x.max(0.0)).collect();
    let inputs: [Vec<f32>; 3] = [plain, outliers, squared];
    for (name, codec) in Codec::all()? {
        let Codec::Ternary(format) = codec else {
            continue;
        };
        // The packing that the kernels use for this format.
        let packing = match format {
            TernaryFormat::I2_S(_) => cpu.set().packing,
            TernaryFormat::TL1(_) => Packing::Tl1,
            TernaryFormat::TL2(_) => Packing::Tl2,
            _ => continue,
        };
        let mut bytes = vec![0; codec.size_bytes()?];
        let scale = format.quantize(
            &weights,
            rows,
            cols,
            Scaling::AbsMean,
            &mut bytes,
            cpu.pool(),
        )?;
        let unpack = |_, range: Range<usize>, out: &mut [i8]| {
            format.unpack_rows(&bytes, rows, cols, range, out)
        };
        let matrix =
            TernaryMatrix::pack(cpu.pool(), &[Part { rows, scale }], cols, packing, &unpack)?;
        let floats = codec.there_and_back(&weights, Scaling::AbsMean)?;
        write!(out, "| {name} |")?;
        for input in &inputs {
            let (mut quantized, mut product) = (Activations::new(), vec![0.0; matrix.output_len()]);
            cpu.quantize(input, cols, cols, None, &mut quantized);
            cpu.ternary_matmul(&matrix, &quantized, &mut product);
            let dot = |row: &[f32]| {
                row.iter()
                    .zip(input)
                    .map(|(w, x)| f64::from(*w) * f64::from(*x))
                    .sum::<f64>()
            };
            let expected: Vec<f32> = floats
                .chunks_exact(cols)
                .map(|row| dot(row) as f32)
                .collect();
            let found = cosine(&expected, &product[..rows]);
            ensure!(
                found >= PRODUCT_COSINE_MIN,
                "{name}: the cosine {found} is below {PRODUCT_COSINE_MIN}"
            );
            write!(out, " {found:.5} |")?;
        }
        out.push('\n');
    }
    Ok(out)
}

fn cosine(a: &[f32], b: &[f32]) -> f64 {
    let dot = |a: &[f32], b: &[f32]| {
        a.iter()
            .zip(b)
            .map(|(a, b)| f64::from(*a) * f64::from(*b))
            .sum::<f64>()
    };
    dot(a, b) / (dot(a, a) * dot(b, b)).sqrt()
}

/// A small generator (xorshift) with a seed other than 0.
struct Random(u64);

impl Random {
    /// Numbers above 0 and below 1.
    fn uniforms(self) -> impl Iterator<Item = f64> {
        let mut x = self.0.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        std::iter::repeat_with(move || {
            x ^= x << 13;
            x ^= x >> 7;
            x ^= x << 17;
            ((x >> 12) as f64 + 0.5) / (1u64 << 52) as f64
        })
    }

    /// Numbers with mean 0 and standard deviation 1, by the Box–Muller transform.
    fn gaussians(self, len: usize) -> Vec<f32> {
        let mut uniforms = self.uniforms();
        let mut next = || uniforms.next().unwrap_or(0.5);
        let number = || {
            let radius = (-2.0 * math::ln_f64(next())).sqrt();
            let (_, cos) = math::sin_cos((TAU * next()) as f32);
            (radius * f64::from(cos)) as f32
        };
        std::iter::repeat_with(number).take(len).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_document_has_the_current_tables() {
        let document = std::fs::read_to_string(crate::repository().join(DOCUMENT)).unwrap();
        let tables = tables().unwrap();
        assert!(
            document[marked::place(&document, "accuracy").unwrap()] == tables,
            "run `cargo run -p xtask -- check accuracy --write`:\n{tables}"
        );
    }
}
