//! The measurements of `bitnet tune` on this machine.

use std::path::PathBuf;

use bitnet_inference::{Device, Tuning};
use bitnet_kernels::Packing;

/// The packings that `bitnet tune` found to be the fastest on this machine, by shape; empty if it
/// has not run.
pub fn fastest_packings(device: Device) -> Vec<((usize, usize), Packing)> {
    match tuning_path().map(|path| Tuning::read(&path)) {
        Some(Ok(tuning)) => tuning.packings(device),
        None => Vec::new(),
        Some(Err(error)) => {
            // The model runs without the file, and the results are the same.
            let error = anyhow::Error::from(error);
            eprintln!("warning: {error:#}; bitnet tune replaces it");
            Vec::new()
        }
    }
}

/// The file of the measurements.
pub fn tuning_path() -> Option<PathBuf> {
    Tuning::path(|name| std::env::var_os(name).map(PathBuf::from))
}
