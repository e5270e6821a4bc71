//! Parts of files that the engine does not run: each is named, and changes nothing else.

use std::sync::Arc;

use bitnet_files::gguf::{Gguf, MetadataValue};
use bitnet_kernels::{Cpu, KernelSet};
use bitnet_models::{Config, LanguageModel, LoadOptions};

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
    let cpu = Cpu::new(KernelSet::detect(), 1);
    let model = LanguageModel::from_gguf(&gguf, &LoadOptions::default(), &cpu);
    let info = model.expect("a model").info();
    assert_eq!(
        (info.config.num_layers, info.config.num_extra_layers),
        (8, 1)
    );
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
