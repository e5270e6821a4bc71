//! I2_S in its three forms.
#![no_main]

use bitnet_fuzz::try_format;
use bitnet_quantization::TernaryFormat;
use bitnet_quantization::i2_s::Form;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| {
    try_format(input, |_, _, switches| {
        Some(TernaryFormat::I2_S(
            Form::ALL[usize::from(switches >> 4) % 3],
        ))
    });
});
