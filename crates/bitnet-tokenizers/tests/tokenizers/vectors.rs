//! The published vocabularies and their test vectors: every `.inp` text becomes the ids of its
//! `.out` line.

use crate::common::{data_dir, gguf_spec, gguf_tokenizer, shared_dir};
use bitnet_files::gguf::Gguf;
use bitnet_tokenizers::{DecodeOptions, EncodeOptions, Tokenizer, TokenizerFiles, TokenizerSpec};

const PLAIN: EncodeOptions = EncodeOptions {
    add_special: false,
    parse_special: false,
};

/// The texts and their ids of one pair of files.
fn cases(name: &str) -> Vec<(String, Vec<u32>)> {
    let read = |suffix| {
        let path = data_dir().join(format!("ggml-vocab-{name}.gguf.{suffix}"));
        std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
    };
    let (inputs, outputs) = (read("inp"), read("out"));
    let ids = |line: &str| {
        line.split_whitespace()
            .map(|id| id.parse().expect("an id"))
            .collect()
    };
    let cases: Vec<_> = inputs
        .split("\n__ggml_vocab_test__\n")
        .map(str::to_owned)
        .zip(outputs.lines().map(ids))
        .collect();
    assert!(cases.len() > 40, "{name}: only {} cases", cases.len());
    assert_eq!(outputs.lines().count(), cases.len(), "{name}");
    cases
}

fn check(name: &str, tokenizer: &Tokenizer) {
    for (text, expected) in cases(name) {
        let tokens = tokenizer.encode(&text, PLAIN).expect("an encodable text");
        let ids: Vec<_> = tokens.iter().map(|id| id.0).collect();
        assert_eq!(ids, expected, "{name}: {text:?}");
        assert_eq!(
            tokenizer.decode(&tokens, DecodeOptions::default()),
            text,
            "{name}"
        );
    }
}

#[test]
fn gpt_2_passes_its_vectors() {
    check(
        "gpt-2",
        &gguf_tokenizer(&data_dir().join("ggml-vocab-gpt-2.gguf")),
    );
}

#[test]
fn llama_spm_passes_its_vectors() {
    check(
        "llama-spm",
        &gguf_tokenizer(&data_dir().join("ggml-vocab-llama-spm.gguf")),
    );
}

#[test]
fn falcon_passes_its_vectors() {
    let Some(shared) = shared_dir() else { return };
    check(
        "falcon",
        &gguf_tokenizer(&shared.join("tokenizers/ggml-vocab-falcon.gguf")),
    );
}

#[test]
fn llama_3_passes_its_vectors_from_json_and_as_gguf_metadata() {
    let Some(shared) = shared_dir() else { return };
    let files = TokenizerFiles::read(&shared.join("tokenizers/llama3")).expect("readable files");
    check(
        "llama-bpe",
        &Tokenizer::from_files(&files).expect("a tokenizer"),
    );
    let mut spec = files.to_spec("llama").expect("a GGUF description");
    assert_eq!(
        (&*spec.model, spec.pre.as_deref()),
        ("gpt2", Some("llama-bpe"))
    );
    check(
        "llama-bpe",
        &Tokenizer::from_spec(&spec).expect("a tokenizer"),
    );
    // The official BitNet file names no pre-tokenizer.
    (spec.architecture, spec.pre) = ("bitnet-b1.58".into(), None);
    check(
        "llama-bpe",
        &Tokenizer::from_spec(&spec).expect("a tokenizer"),
    );
}

/// Converts a GGUF file's tokenizer to files, which must pass its vectors and have the same special
/// tokens.
fn check_files(name: &str, spec: &TokenizerSpec<'_>) -> TokenizerFiles {
    let files = spec.to_files().expect("files");
    let (found, expected) = (Tokenizer::from_files(&files), Tokenizer::from_spec(spec));
    let (found, expected) = (found.expect("a tokenizer"), expected.expect("a tokenizer"));
    check(name, &found);
    let special = EncodeOptions {
        add_special: true,
        parse_special: true,
    };
    let bos = expected
        .bos()
        .map(|id| String::from_utf8_lossy(expected.token_bytes(id)).into_owned());
    let text = format!("a{} b\n", bos.unwrap_or_default());
    assert_eq!(
        found.encode(&text, special).expect("ids"),
        expected.encode(&text, special).expect("ids"),
        "{name}"
    );
    let roles = |tokenizer: &Tokenizer| {
        (
            tokenizer.bos(),
            tokenizer.eos(),
            tokenizer.padding(),
            tokenizer.adds_bos(),
        )
    };
    assert_eq!(roles(&found), roles(&expected), "{name}");
    assert_eq!(found.vocab_size(), expected.vocab_size(), "{name}");
    assert!(
        expected
            .stop_ids()
            .iter()
            .all(|id| found.stop_ids().contains(id)),
        "{name}"
    );
    files
}

#[test]
fn metadata_becomes_files_that_pass_the_vectors() {
    for name in ["gpt-2", "llama-spm"] {
        let gguf = Gguf::open(&data_dir().join(format!("ggml-vocab-{name}.gguf"))).expect("a file");
        let mut spec = gguf_spec(&gguf);
        spec.chat_template = Some("{{ messages[0].content }}".into());
        let files = check_files(name, &spec);
        let tokenizer = Tokenizer::from_files(&files).expect("a tokenizer");
        assert_eq!(tokenizer.chat_template(), spec.chat_template.as_deref());
    }
    let Some(shared) = shared_dir() else { return };
    let gguf = Gguf::open(&shared.join("tokenizers/ggml-vocab-falcon.gguf")).expect("a file");
    check_files("falcon", &gguf_spec(&gguf));
    let files = TokenizerFiles::read(&shared.join("tokenizers/llama3")).expect("readable files");
    let spec = files.to_spec("llama").expect("a GGUF description");
    let again = check_files("llama-bpe", &spec);
    let vocabulary = |files: &TokenizerFiles| {
        let json: serde_json::Value = serde_json::from_str(&files.tokenizer).expect("JSON");
        let merges = json["model"]["merges"]
            .as_array()
            .expect("a list")
            .iter()
            .map(|merge| match merge.as_str() {
                Some(text) => text.to_owned(),
                None => format!(
                    "{} {}",
                    merge[0].as_str().expect("a piece"),
                    merge[1].as_str().expect("a piece")
                ),
            });
        (
            json["model"]["vocab"].clone(),
            merges.collect::<Vec<_>>(),
            json["model"]["ignore_merges"].clone(),
        )
    };
    assert!(
        vocabulary(&again) == vocabulary(&files),
        "the vocabulary of Llama 3 comes back as it was"
    );
    let mut duplicate = crate::common::small_spec(&["a b"], &[]);
    duplicate.tokens[0] = duplicate.tokens[1].clone();
    assert!(
        duplicate
            .to_files()
            .is_err_and(|error| error.to_string().contains("two tokens"))
    );
}

/// The cases of the models with group scales: vocabularies of Qwen's form, special tokens parsed.
#[test]
fn qwen_vocabularies_give_the_ids_of_llama_cpp() {
    #[derive(serde::Deserialize)]
    struct Case {
        text: String,
        ids: Vec<u32>,
    }
    let Some(shared) = shared_dir() else { return };
    let options = EncodeOptions {
        add_special: false,
        parse_special: true,
    };
    for model in ["qwen3-q2_0", "qwen35-q2_0"] {
        let folder = shared.join("golden-group").join(model);
        // Files in this format are only readable if no other format has its type number.
        let Ok(gguf) = Gguf::open(&folder.join("model.gguf")) else {
            println!("skipped: {model} cannot be opened");
            continue;
        };
        let tokenizer = Tokenizer::from_spec(&gguf_spec(&gguf)).expect("a tokenizer");
        let cases = std::fs::read_to_string(folder.join("text.json")).expect("the cases");
        let cases: Vec<Case> = serde_json::from_str(&cases).expect("cases");
        assert!(cases.len() > 8, "{model}: only {} cases", cases.len());
        for Case { text, ids } in cases {
            let tokens = tokenizer.encode(&text, options).expect("an encodable text");
            let tokens: Vec<_> = tokens.iter().map(|id| id.0).collect();
            assert_eq!(tokens, ids, "{model}: {text:?}");
        }
    }
}
