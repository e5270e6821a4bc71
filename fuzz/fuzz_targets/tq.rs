//! TQ1_0 and TQ2_0.
#![no_main]

use bitnet_fuzz::try_format;
use bitnet_quantization::TernaryFormat;
use bitnet_quantization::tq::Kind;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| {
    let kind = |switches: u8| {
        if switches >> 7 == 0 {
            Kind::TQ1_0
        } else {
            Kind::TQ2_0
        }
    };
    try_format(input, |_, _, switches| {
        Some(TernaryFormat::TQ(kind(switches)))
    });
});
