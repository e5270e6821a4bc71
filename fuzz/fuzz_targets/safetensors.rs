//! A checkpoint directory: one that opens can be described, and loads as a model or gives an error.
//!
//! An input is `config.json` and `model.safetensors`, with NUL between them.
#![no_main]

use std::hint::black_box;
use std::path::PathBuf;
use std::sync::LazyLock;
use std::{env, fs, process};

use bitnet_kernels::{Cpu, KernelSet};
use bitnet_models::huggingface::Checkpoint;
use bitnet_models::{LanguageModel, LoadOptions};
use libfuzzer_sys::fuzz_target;

/// The folder of each input's two files. The last input's files stay behind.
static FOLDER: LazyLock<PathBuf> = LazyLock::new(|| {
    let folder = env::temp_dir().join(format!("bitnet-fuzz-safetensors-{}", process::id()));
    fs::create_dir_all(&folder).expect("a folder for temporary files");
    folder
});

fuzz_target!(|input: &[u8]| {
    let Some(end) = input.iter().position(|&byte| byte == 0) else {
        return;
    };
    fs::write(FOLDER.join("config.json"), &input[..end]).expect("config.json is written");
    // Use a new file, because the last one may still be mapped.
    let weights = FOLDER.join("model.safetensors");
    drop(fs::remove_file(&weights));
    fs::write(weights, &input[end + 1..]).expect("model.safetensors is written");
    let Ok(checkpoint) = Checkpoint::open(&FOLDER) else {
        return;
    };
    for tensor in checkpoint.tensors() {
        black_box((format!("{tensor:?}"), tensor.num_bytes));
    }
    drop(black_box(LanguageModel::from_checkpoint(
        &checkpoint,
        &LoadOptions::default(),
        &Cpu::new(KernelSet::detect(), 1),
    )));
});
