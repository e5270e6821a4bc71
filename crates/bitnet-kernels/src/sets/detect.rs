//! The one place that detects the CPU's features.

use std::sync::LazyLock;

#[cfg(target_arch = "aarch64")]
use crate::sets::neon;
use crate::sets::scalar;
use crate::sets::table::KernelSet;
#[cfg(target_arch = "x86_64")]
use crate::sets::{avx2, avx512};

impl KernelSet {
    /// The sets that this CPU can run, best first. The scalar set, which is the reference, is
    /// always the last.
    pub fn available() -> impl Iterator<Item = &'static KernelSet> {
        let mut sets: [Option<&'static KernelSet>; 5] =
            [None, None, None, None, Some(&scalar::SCALAR)];
        #[cfg(target_arch = "x86_64")]
        {
            if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("f16c") {
                sets[3] = Some(&avx2::AVX2);
                if is_x86_feature_detected!("avx512f")
                    && is_x86_feature_detected!("avx512bw")
                    && is_x86_feature_detected!("avx512vl")
                    && is_x86_feature_detected!("avx512vnni")
                {
                    sets[2] = Some(&avx512::AVX512);
                    if is_x86_feature_detected!("avx512vbmi") {
                        let by_amd = avx512::made_by_amd();
                        sets[usize::from(by_amd)] = Some(&avx512::AVX512_VBMI);
                        sets[usize::from(!by_amd)] = Some(&avx512::AVX512_ZEN);
                    }
                }
            }
        }
        // The kernels need little endian: they read four bytes in memory as one dword.
        #[cfg(all(target_arch = "aarch64", target_endian = "little"))]
        {
            if std::arch::is_aarch64_feature_detected!("neon") {
                sets[1] = Some(&neon::NEON);
                if std::arch::is_aarch64_feature_detected!("dotprod") {
                    sets[0] = Some(&neon::NEON_DOTPROD);
                }
            }
        }
        sets.into_iter().flatten()
    }

    /// The best set for this CPU.
    #[must_use]
    pub fn detect() -> &'static KernelSet {
        // Detected once: a virtual machine traps the instruction that gives the CPU's vendor, which
        // takes 8 µs.
        static BEST: LazyLock<&KernelSet> =
            LazyLock::new(|| KernelSet::available().next().unwrap_or(&scalar::SCALAR));
        &BEST
    }

    /// The set with this name, if this CPU can run it.
    #[must_use]
    pub fn by_name(name: &str) -> Option<&'static KernelSet> {
        Self::available().find(|set| set.name == name)
    }
}
