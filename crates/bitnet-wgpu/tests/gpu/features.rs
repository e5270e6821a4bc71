//! Kernels that use what only some adapters have give the bits of the plain kernels.

use bitnet_models::synthetic::{Shape, SyntheticModel};
use bitnet_models::{Backend, I2sForm, KvType};
use bitnet_quantization::TernaryFormat;
use bitnet_wgpu::{DeviceLimits, OpenGpu};

use crate::{adapter, assert_same_bits, gpu, load, logits};

#[test]
fn sums_over_subgroups_have_the_bits_of_the_plain_kernel() {
    let (Some(adapter), Some(with)) = (adapter(), gpu()) else {
        return;
    };
    // Rows of 1152 columns have more steps than a subgroup of Mesa's software driver has lanes.
    let model = SyntheticModel {
        shape: Shape {
            ffn_size: 1152,
            ..Shape::default()
        },
        seed: 5,
    };
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("model.gguf");
    let format = TernaryFormat::I2_S(I2sForm::Block128);
    model
        .write_gguf(&path, &|_, _| format)
        .expect("it is written");
    let limits = DeviceLimits {
        allows_subgroups: false,
        ..DeviceLimits::default()
    };
    let plain = OpenGpu::new(adapter, limits)
        .expect("an able adapter opens")
        .start(1);
    let (a, b) = (load(&path, &with), load(&path, &plain));
    let tokens: Vec<u32> = (0..15).map(|i| 31 * i % 512).collect();
    // Rows of a step are multiplied eight, four, two and one at a time.
    let found = logits(&a, &with, &tokens, KvType::F16, 15);
    let first = &tokens[..8];
    assert_same_bits(
        "steps of 8 rows",
        &logits(&a, &with, first, KvType::F16, 8),
        &logits(&b, &plain, first, KvType::F16, 8),
    );
    assert_same_bits(
        "steps of 7 rows",
        &logits(&a, &with, &tokens, KvType::F16, 7),
        &logits(&b, &plain, &tokens, KvType::F16, 7),
    );
    assert_same_bits(
        "steps of 15 rows, in tiles",
        &found,
        &logits(&b, &plain, &tokens, KvType::F16, 7),
    );
    assert_eq!((with.failure(), plain.failure()), (None, None));
}
