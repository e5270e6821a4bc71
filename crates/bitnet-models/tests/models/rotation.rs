//! Invalid `prism.hadamard.*` keys are refused, with the key in the message: a model with a wrong
//! rotation writes fluent nonsense.

use std::path::Path;
use std::sync::Arc;

use bitnet_files::gguf::{Gguf, GgufWriter, MetadataValue, TensorInfo};
use bitnet_kernels::{Cpu, KernelSet};
use bitnet_models::{LanguageModel, LoadOptions, lost_rotation};

use crate::groups::golden_model;

/// A change of one key; `None` removes it.
pub(crate) type Change = (&'static str, Option<MetadataValue>);

fn key(name: &str) -> String {
    if name.contains('.') {
        name.to_owned()
    } else {
        format!("prism.hadamard.{name}")
    }
}

/// A copy of a file with other metadata, and without the tensors called `left_out`.
pub(crate) fn changed(from: &Path, changes: &[Change], left_out: &str) -> tempfile::NamedTempFile {
    let gguf = Gguf::open(from).expect("a golden file opens");
    let mut metadata: Vec<(String, MetadataValue)> = gguf
        .metadata()
        .iter()
        .filter(|(name, _)| changes.iter().all(|(changed, _)| key(changed) != *name))
        .map(|(name, value)| (name.to_owned(), value.into()))
        .collect();
    for (name, value) in changes {
        metadata.extend(value.clone().map(|value| (key(name), value)));
    }
    let tensors: Vec<_> = gguf
        .tensors()
        .filter(|tensor| tensor.name != left_out)
        .collect();
    let infos = tensors.iter().map(|tensor| TensorInfo {
        name: tensor.name.to_owned(),
        dtype: tensor.dtype,
        dims: tensor.dims.to_vec(),
    });
    let file = tempfile::NamedTempFile::new().expect("a temporary file");
    let handle = file.reopen().expect("the same file");
    let mut writer = GgufWriter::new(handle, file.path(), &metadata, infos.collect())
        .expect("a file can be begun");
    for tensor in tensors {
        writer.begin_tensor().expect("a tensor");
        writer.write(tensor.data).expect("its bytes");
    }
    writer.finish().expect("the file");
    file
}

/// The error of loading a changed copy, its causes included; `None` if it loads.
pub fn error(from: &Path, changes: &[Change], left_out: &str) -> Option<String> {
    let file = changed(from, changes, left_out);
    let gguf = Gguf::open(file.path()).expect("a well-formed file");
    let cpu = Cpu::new(KernelSet::detect(), 1);
    let loaded = LanguageModel::from_gguf(&Arc::new(gguf), &LoadOptions::default(), &cpu);
    loaded.err().map(|error| error.to_string())
}

pub fn text(text: &str) -> Option<MetadataValue> {
    Some(MetadataValue::String(text.to_owned()))
}

fn names(names: &[&str]) -> Option<MetadataValue> {
    let names = names.iter().map(|name| (*name).to_owned());
    Some(MetadataValue::Strings(names.collect()))
}

fn integers(values: Vec<i32>) -> Option<MetadataValue> {
    Some(MetadataValue::I32s(values))
}

/// The integers of a key of a file.
fn stored(from: &Path, name: &str) -> Vec<i32> {
    let gguf = Gguf::open(from).expect("a golden file opens");
    let key = key(name);
    let values = gguf.metadata().i32s(&key).expect("integers");
    values.expect("the key").collect()
}

#[test]
fn unknown_rotations_are_errors_that_name_the_key() {
    let Some(folder) = golden_model("qwen35-ptq1_0-rot512-part") else {
        return;
    };
    let base = folder.join("model.gguf");
    let number = |value| Some(MetadataValue::U32(value));
    let (widths, values) = (stored(&base, "sign_widths"), stored(&base, "sign_values"));
    let mut odd = values.clone();
    odd[3] = 2;
    let mut long = values.clone();
    long.push(1);
    let short = values[..values.len() - 1].to_vec();
    let bad: Vec<(&str, Option<MetadataValue>, &str)> = vec![
        ("version", number(0), "prism.hadamard.version is 0; 1 and 2"),
        ("version", number(3), "prism.hadamard.version is 3; 1 and 2"),
        ("version", None, "prism.hadamard.version"),
        ("version", number(2), "which a tied head (version 2) needs"),
        (
            "tied_output",
            Some(MetadataValue::Bool(true)),
            "true, but version is 1",
        ),
        ("block_size", number(0), "0; a power of two is expected"),
        ("block_size", number(96), "96; a power of two is expected"),
        (
            "block_size",
            number(1024),
            "1024, which does not divide the 512 columns of",
        ),
        ("block_size", None, "prism.hadamard.block_size"),
        (
            "transform",
            text("hadamard"),
            "normalized-sylvester-walsh-hadamard is supported",
        ),
        ("transform", None, "prism.hadamard.transform"),
        (
            "axis",
            text("output"),
            "output; input-last-dimension is supported",
        ),
        (
            "sign_mode",
            text("random"),
            "random; identity and explicit are supported",
        ),
        ("sign_mode", None, "prism.hadamard.sign_mode"),
        ("sign_widths", None, "prism.hadamard.sign_widths"),
        ("sign_values", None, "prism.hadamard.sign_values"),
        ("sign_values", integers(short), "values for a width of"),
        (
            "sign_values",
            integers(long),
            "1 values more than sign_widths says",
        ),
        (
            "sign_values",
            integers(odd),
            "sign_values is 2, expected 1 or -1",
        ),
        (
            "sign_values",
            Some(MetadataValue::F32s(vec![1.0])),
            "not a list of integers",
        ),
        (
            "sign_widths",
            integers(vec![-widths[0]]),
            "expected a multiple of the block, 512",
        ),
        (
            "sign_widths",
            integers(vec![511]),
            "expected a multiple of the block, 512",
        ),
        ("weight_names", None, "prism.hadamard.weight_names"),
        ("weight_names", names(&[]), "an empty list"),
        (
            "weight_names",
            names(&["a", "a"]),
            "weight_names is a twice",
        ),
        (
            "weight_names",
            names(&["blk.9.ssm_out.weight"]),
            "which is not a tensor of the file",
        ),
        (
            "weight_names",
            names(&["blk.0.attn_norm.weight"]),
            "whose input cannot be rotated",
        ),
        (
            "weight_names",
            names(&["token_embd.weight"]),
            "whose input cannot be rotated",
        ),
        (
            "inverse_weight_names",
            names(&["output.weight"]),
            "expected token_embd.weight",
        ),
    ];
    assert_eq!(error(&base, &[], ""), None, "the file as it is");
    for (name, value, expected) in bad {
        let found = error(&base, &[(name, value)], "");
        let found = found.unwrap_or_else(|| panic!("{name} was accepted; expected {expected}"));
        assert!(
            found.contains(expected),
            "{name}: {found}; expected {expected}"
        );
    }
}

#[test]
fn version_1_means_tied_output_false() {
    let Some(folder) = golden_model("qwen35-ptq1_0-rot512-part") else {
        return;
    };
    let unused = ("tied_output", Some(MetadataValue::Bool(false)));
    assert_eq!(error(&folder.join("model.gguf"), &[unused], ""), None);
}

#[test]
fn a_model_named_bonsai_2_without_a_rotation_is_refused() {
    let Some(folder) = golden_model("qwen3-ptq1_0") else {
        return;
    };
    let lost = |name: &str| {
        let file = changed(
            &folder.join("model.gguf"),
            &[("general.name", text(name))],
            "",
        );
        lost_rotation(Gguf::open(file.path()).expect("a file").metadata())
    };
    assert!(lost("Ternary-Bonsai-2-4B") && lost("bonsai 2 27b") && lost("Bonsai_2"));
    assert!(!lost("Ternary-Bonsai-27B") && !lost("Bonsai-4B") && !lost("Bonsai 27B"));
    let Some(rotated) = golden_model("qwen35-ptq1_0-rot512-part") else {
        return;
    };
    let renamed = changed(
        &rotated.join("model.gguf"),
        &[("general.name", text("Bonsai-2"))],
        "",
    );
    assert!(!lost_rotation(
        Gguf::open(renamed.path()).expect("a file").metadata()
    ));
}
