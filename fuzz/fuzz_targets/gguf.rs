//! A GGUF file: a file that opens can be read to its last byte, and loads as a model or gives an
//! error.
#![no_main]

use std::hint::black_box;
use std::sync::Arc;

use bitnet_kernels::{Cpu, KernelSet};
use bitnet_files::gguf::Gguf;
use bitnet_models::{LanguageModel, LoadOptions};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let Ok(gguf) = Gguf::from_vec(bytes.to_vec()) else {
        return;
    };
    for (key, value) in gguf.metadata().iter() {
        black_box((
            key.len(),
            value.as_array().map(|array| array.iter().count()),
            format!("{value:?}").len(),
        ));
    }
    for tensor in gguf.tensors() {
        black_box((
            tensor.rows(),
            tensor.cols(),
            tensor.data.iter().map(|&byte| u64::from(byte)).sum::<u64>(),
        ));
        assert_eq!(
            gguf.tensor(tensor.name).map(|found| found.range()),
            Some(tensor.range())
        );
    }
    drop(black_box(LanguageModel::from_gguf(
        &Arc::new(gguf),
        &LoadOptions::default(),
        &Cpu::new(KernelSet::detect(), 1),
    )));
});
