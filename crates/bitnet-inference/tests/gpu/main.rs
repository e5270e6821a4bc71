//! Engines on a device: Mesa's software driver or any other adapter of this machine. Each test says
//! that it skips if there is none, or if the crate was built without its feature `gpu`.

mod loss;
mod sampling;

use std::path::{Path, PathBuf};

use bitnet_inference::{Device, DeviceName, ModelSource, OpenModel, adapters};

/// An adapter that can run the kernels: software, because every machine of CI can have it, or else
/// any other.
fn device() -> Option<Device> {
    let able = || adapters().into_iter().filter(|gpu| gpu.missing.is_none());
    let found = able().find(|gpu| gpu.is_software).or_else(|| able().next());
    let Some(adapter) = found else {
        eprintln!(
            "skipped: no adapter here that can run the kernels (Debian: mesa-vulkan-drivers), or no feature gpu"
        );
        return None;
    };
    let named = Device::cpu(1).named(&DeviceName::Named(adapter.name), None);
    Some(named.expect("the adapter that was found").0)
}

/// A file of the golden models.
fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../../tests/data/golden")
        .join(name)
}

fn open(path: &Path, device: Device) -> OpenModel {
    let source = ModelSource::Path(path.to_owned());
    OpenModel::open(source, device, Default::default()).expect("the model loads")
}
