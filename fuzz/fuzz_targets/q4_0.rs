//! Q4_0 that holds ternary weights.
#![no_main]

use bitnet_fuzz::try_format;
use bitnet_quantization::TernaryFormat;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| {
    try_format(input, |_, _, _| Some(TernaryFormat::Q4_0));
});
