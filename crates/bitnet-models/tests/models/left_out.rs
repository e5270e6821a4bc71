//! Parts of files that the engine does not run: each is named, and changes nothing else.

use std::sync::Arc;

use bitnet_files::gguf::{Gguf, MetadataValue};
use bitnet_kernels::{Cpu, KernelSet};
use bitnet_models::{Config, LanguageModel, LoadOptions, num_extra_layers};

use crate::groups::golden_model;
use crate::rotation::changed;

#[test]
fn layers_that_predict_further_tokens_are_counted_and_left_out() {
    let Some(folder) = golden_model("qwen35-ptq1_0-rot512-part") else {
        return;
    };
    let number = |value| Some(MetadataValue::U32(value));
    let changes = [
        ("qwen35.block_count", number(9)),
        ("qwen35.nextn_predict_layers", number(1)),
    ];
    let base = folder.join("model.gguf");
    let file = changed(&base, &changes, "");
    let gguf = Arc::new(Gguf::open(file.path()).expect("a well-formed file"));
    assert_eq!(num_extra_layers(gguf.metadata()), 1);
    let plain = Gguf::open(&base).expect("a golden file opens");
    assert_eq!(num_extra_layers(plain.metadata()), 0);
    let cpu = Cpu::new(KernelSet::detect(), 1);
    let model = LanguageModel::from_gguf(&gguf, &LoadOptions::default(), &cpu);
    assert_eq!(model.expect("a model").info().config.num_layers, 8);
}

#[test]
fn a_vision_projector_is_named_as_one() {
    let Some(folder) = golden_model("qwen3-ptq1_0") else {
        return;
    };
    let clip = Some(MetadataValue::String("clip".to_owned()));
    let changes = [("general.architecture", clip)];
    let file = changed(&folder.join("model.gguf"), &changes, "");
    let error = Config::from_gguf(&Gguf::open(file.path()).expect("a file"));
    let error = error.expect_err("no language model").to_string();
    assert!(
        error.contains("a vision projector (architecture clip), not a language"),
        "{error}"
    );
}
