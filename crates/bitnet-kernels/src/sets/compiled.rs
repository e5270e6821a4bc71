//! [`KernelSet::run`]: plain Rust compiled once for each instruction set, for loops that the
//! compiler vectorises by itself. So a crate without `unsafe` gets the CPU's widest registers, and
//! still the same bits everywhere.

use crate::sets::table::KernelSet;
#[cfg(target_arch = "x86_64")]
use crate::sets::{avx2, avx512};

/// Loops that are compiled for each instruction set.
pub trait Work {
    /// The result of the loops.
    type Output;

    /// Runs the loops. It must be `#[inline(always)]`, and so must every function that its loops
    /// call: only code that is inlined into [`KernelSet::run`] is compiled for the set. Other code
    /// gives the same result at the baseline's speed.
    fn run(self) -> Self::Output;
}

impl KernelSet {
    /// Runs `work` as compiled for this set. On ARM, whose baseline has NEON, this is a plain call.
    #[inline]
    pub fn run<W: Work>(&self, work: W) -> W::Output {
        #[cfg(target_arch = "x86_64")]
        {
            let with_avx512 = [
                &raw const avx512::AVX512,
                &raw const avx512::AVX512_VBMI,
                &raw const avx512::AVX512_ZEN,
            ];
            if with_avx512.contains(&std::ptr::from_ref(self)) {
                // SAFETY: a set exists only on a CPU that can run it.
                return unsafe { run_with_avx512(work) };
            }
            if std::ptr::eq(self, &raw const avx2::AVX2) {
                // SAFETY: a set exists only on a CPU that can run it.
                return unsafe { run_with_avx2(work) };
            }
        }
        work.run()
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni,avx2,f16c")]
fn run_with_avx512<W: Work>(work: W) -> W::Output {
    work.run()
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,f16c")]
fn run_with_avx2<W: Work>(work: W) -> W::Output {
    work.run()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Sums whose order and roundings the compiler must keep.
    struct Sums<'a>(&'a [f32]);

    impl Work for Sums<'_> {
        type Output = [u32; 16];
        #[inline(always)]
        fn run(self) -> [u32; 16] {
            let mut sums = [0.1f32; 16];
            for chunk in self.0.as_chunks::<16>().0 {
                for (sum, x) in sums.iter_mut().zip(chunk) {
                    *sum = *sum * x + x;
                }
            }
            sums.map(f32::to_bits)
        }
    }

    #[test]
    fn every_set_gives_the_same_bits() {
        let values: Vec<f32> = (0..4096).map(|i| (i as f32).sqrt() / 70.0).collect();
        for set in KernelSet::available() {
            assert_eq!(set.run(Sums(&values)), Sums(&values).run(), "{set:?}");
        }
    }
}
