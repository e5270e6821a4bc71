//! The packed uint8 of Hugging Face checkpoints.
#![no_main]

use bitnet_fuzz::try_format;
use bitnet_quantization::TernaryFormat;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| {
    try_format(input, |_, _, _| Some(TernaryFormat::HfPacked));
});
