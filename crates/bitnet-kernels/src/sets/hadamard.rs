//! The normalised Walsh-Hadamard transform, which rotates inputs of matrices whose weights were
//! rotated before they were rounded.
//!
//! `H[i][j] = (−1)^popcount(i & j) / √B` for blocks of `B` values, `B` a power of two (Sylvester's
//! order). `H` is symmetric and its own inverse. `log2 B` passes of sums and differences, strides
//! ascending, then one multiplication by `1 / √B`: one order, so the same bits on every set.

use crate::sets::compiled::Work;
use crate::sets::table::KernelSet;

/// Values that fit into one 512-bit register or two of 256 bits, so that their passes need no
/// memory.
const LANES: usize = 16;

/// The transform of each block, in place.
struct Transform<'a> {
    x: &'a mut [f32],
    block: usize,
}

/// The pass of one stride within each run of 16 values.
#[inline(always)]
fn pass_in_lanes<const STRIDE: usize>(x: &mut [f32; LANES]) {
    let old = *x;
    for (i, x) in x.iter_mut().enumerate() {
        // The stride is a constant, so the compiler turns the branches into a shuffle, an addition
        // and a subtraction.
        *x = if i & STRIDE == 0 {
            old[i] + old[i ^ STRIDE]
        } else {
            old[i ^ STRIDE] - old[i]
        };
    }
}

impl Work for Transform<'_> {
    type Output = ();
    #[inline(always)]
    fn run(self) {
        let factor = 1.0 / (self.block as f32).sqrt();
        for block in self.x.chunks_exact_mut(self.block) {
            let mut stride = 1;
            if block.len() >= LANES {
                for lanes in block.as_chunks_mut::<LANES>().0 {
                    pass_in_lanes::<1>(lanes);
                    pass_in_lanes::<2>(lanes);
                    pass_in_lanes::<4>(lanes);
                    pass_in_lanes::<8>(lanes);
                }
                stride = LANES;
            }
            while stride < block.len() {
                for pair in block.chunks_exact_mut(2 * stride) {
                    let (low, high) = pair.split_at_mut(stride);
                    for (a, b) in low.iter_mut().zip(high) {
                        (*a, *b) = (*a + *b, *a - *b);
                    }
                }
                stride *= 2;
            }
            for x in block {
                *x *= factor;
            }
        }
    }
}

impl KernelSet {
    /// Transforms each run of `block` values of `x` in place.
    ///
    /// # Panics
    /// If `block` is not a power of two or does not divide `x`.
    pub fn hadamard(&self, x: &mut [f32], block: usize) {
        assert!(
            block.is_power_of_two() && x.len().is_multiple_of(block),
            "blocks of {block} in {} values",
            x.len()
        );
        self.run(Transform { x, block });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_set_transforms_as_the_matrix_does() {
        for block in [1usize, 2, 8, 16, 64, 1024] {
            let x: Vec<f32> = (0..2 * block)
                .map(|i| ((i * 37 % 101) as f32 - 50.0) / 9.0)
                .collect();
            let mut first = None;
            for set in KernelSet::available() {
                let mut y = x.clone();
                set.hadamard(&mut y, block);
                for (i, y) in y.iter().enumerate() {
                    let (start, i) = (i / block * block, i % block);
                    let sum: f64 = (0..block)
                        .map(|j| {
                            let sign = if (i & j).count_ones() % 2 == 0 {
                                1.0
                            } else {
                                -1.0
                            };
                            sign * f64::from(x[start + j])
                        })
                        .sum();
                    assert!((f64::from(*y) - sum / (block as f64).sqrt()).abs() < 1e-4);
                }
                let bits: Vec<u32> = y.iter().map(|y| y.to_bits()).collect();
                assert_eq!(*first.get_or_insert_with(|| bits.clone()), bits, "{set:?}");
                set.hadamard(&mut y, block);
                assert!(y.iter().zip(&x).all(|(y, x)| (y - x).abs() < 1e-4));
            }
        }
    }
}
