//! Finds the test vocabularies and builds tokenizers from their GGUF metadata.

use std::path::{Path, PathBuf};

use bitnet_files::gguf::Gguf;
use bitnet_tokenizers::{Tokenizer, TokenizerSpec};

/// `tests/data/tokenizers` of the repository.
pub fn data_dir() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/data/tokenizers")
}

/// The folder of larger test data beside the checkout; reports if there is none.
pub fn shared_dir() -> Option<PathBuf> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared");
    if !path.is_dir() {
        println!("skipped: {} is not there", path.display());
        return None;
    }
    Some(path)
}

/// The tokenizer of a vocabulary-only GGUF file.
pub fn gguf_tokenizer(path: &Path) -> Tokenizer {
    let gguf = Gguf::open(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    Tokenizer::from_spec(&gguf_spec(&gguf))
        .unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// The tokenizer metadata of a GGUF file.
pub fn gguf_spec(gguf: &Gguf) -> TokenizerSpec<'_> {
    let metadata = gguf.metadata();
    let key = |name: &str| format!("tokenizer.ggml.{name}");
    let text = |name: &str| metadata.str(name).expect("a string").map(Into::into);
    let strings = |name: &str| match metadata.strings(&key(name)).expect("strings") {
        Some(strings) => strings.map(Into::into).collect(),
        None => Vec::new(),
    };
    let id = |name: &str| metadata.u32(&key(name)).expect("an id");
    let flag = |name: &str| metadata.bool(&key(name)).expect("a flag");
    TokenizerSpec {
        architecture: text("general.architecture").unwrap_or_default(),
        model: text("tokenizer.ggml.model").unwrap_or_default(),
        pre: text("tokenizer.ggml.pre"),
        tokens: strings("tokens"),
        scores: metadata
            .f32s(&key("scores"))
            .expect("scores")
            .map_or_else(Vec::new, Iterator::collect),
        token_types: metadata
            .i32s(&key("token_type"))
            .expect("types")
            .map_or_else(Vec::new, Iterator::collect),
        merges: strings("merges"),
        bos: id("bos_token_id"),
        eos: id("eos_token_id"),
        eot: id("eot_token_id"),
        eom: id("eom_token_id"),
        unknown: id("unknown_token_id"),
        padding: id("padding_token_id"),
        add_bos: flag("add_bos_token"),
        add_eos: flag("add_eos_token"),
        add_space_prefix: flag("add_space_prefix"),
        chat_template: text("tokenizer.chat_template"),
        named_chat_templates: Vec::new(),
    }
}

/// The metadata of a byte-level tokenizer: the 256 bytes as tokens 0 to 255, `merges` with their
/// unions, then `control` tokens.
pub fn small_spec(merges: &[&'static str], control: &[&'static str]) -> TokenizerSpec<'static> {
    let mut tokens: Vec<_> = (0..=255u8)
        .map(|byte| byte_char(byte).to_string().into())
        .collect();
    tokens.extend(merges.iter().map(|merge| merge.replacen(' ', "", 1).into()));
    let num_normal = tokens.len();
    tokens.extend(control.iter().map(|&name| name.into()));
    let token_types = (0..tokens.len())
        .map(|id| if id < num_normal { 1 } else { 3 })
        .collect();
    TokenizerSpec {
        architecture: "llama".into(),
        model: "gpt2".into(),
        pre: Some("llama-bpe".into()),
        tokens,
        token_types,
        merges: merges.iter().map(|&merge| merge.into()).collect(),
        ..TokenizerSpec::default()
    }
}

/// The character that byte-level vocabularies write for a byte.
pub fn byte_char(byte: u8) -> char {
    let printable = |byte: &u8| matches!(byte, b'!'..=b'~' | 0xA1..=0xAC | 0xAE..=0xFF);
    if printable(&byte) {
        return char::from(byte);
    }
    let index = (0..byte).filter(|byte| !printable(byte)).count();
    char::from_u32(256 + index as u32).expect("a character")
}
