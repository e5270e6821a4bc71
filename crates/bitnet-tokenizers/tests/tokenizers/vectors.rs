//! The published vocabularies and their test vectors: every `.inp` text becomes the ids of its `.out` line.

use crate::common::{data_dir, gguf_tokenizer, shared_dir};
use bitnet_tokenizers::{DecodeOptions, EncodeOptions, Tokenizer, TokenizerFiles};

const PLAIN: EncodeOptions = EncodeOptions { add_special: false, parse_special: false };

/// The texts and their ids of one pair of files.
fn cases(name: &str) -> Vec<(String, Vec<u32>)> {
    let read = |suffix| {
        let path = data_dir().join(format!("ggml-vocab-{name}.gguf.{suffix}"));
        std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
    };
    let (inputs, outputs) = (read("inp"), read("out"));
    let ids = |line: &str| line.split_whitespace().map(|id| id.parse().expect("an id")).collect();
    let cases: Vec<_> =
        inputs.split("\n__ggml_vocab_test__\n").map(str::to_owned).zip(outputs.lines().map(ids)).collect();
    assert!(cases.len() > 40, "{name}: only {} cases", cases.len());
    assert_eq!(outputs.lines().count(), cases.len(), "{name}");
    cases
}

fn check(name: &str, tokenizer: &Tokenizer) {
    for (text, expected) in cases(name) {
        let tokens = tokenizer.encode(&text, PLAIN).expect("an encodable text");
        let ids: Vec<_> = tokens.iter().map(|id| id.0).collect();
        assert_eq!(ids, expected, "{name}: {text:?}");
        assert_eq!(tokenizer.decode(&tokens, DecodeOptions::default()), text, "{name}");
    }
}

#[test]
fn gpt_2_passes_its_vectors() {
    check("gpt-2", &gguf_tokenizer(&data_dir().join("ggml-vocab-gpt-2.gguf")));
}

#[test]
fn llama_spm_passes_its_vectors() {
    check("llama-spm", &gguf_tokenizer(&data_dir().join("ggml-vocab-llama-spm.gguf")));
}

#[test]
fn falcon_passes_its_vectors() {
    let Some(shared) = shared_dir() else { return };
    check("falcon", &gguf_tokenizer(&shared.join("tokenizers/ggml-vocab-falcon.gguf")));
}

#[test]
fn llama_3_passes_its_vectors_from_json_and_as_gguf_metadata() {
    let Some(shared) = shared_dir() else { return };
    let files = TokenizerFiles::read(&shared.join("tokenizers/llama3")).expect("readable files");
    check("llama-bpe", &Tokenizer::from_files(&files).expect("a tokenizer"));
    let mut spec = files.to_spec("llama").expect("a GGUF description");
    assert_eq!((&*spec.model, spec.pre.as_deref()), ("gpt2", Some("llama-bpe")));
    check("llama-bpe", &Tokenizer::from_spec(&spec).expect("a tokenizer"));
    // The official BitNet file names no pre-tokenizer.
    (spec.architecture, spec.pre) = ("bitnet-b1.58".into(), None);
    check("llama-bpe", &Tokenizer::from_spec(&spec).expect("a tokenizer"));
}
