//! Hugging Face's files.

use bitnet_tokenizers::{DecodeOptions, EncodeOptions, TokenId, Tokenizer, TokenizerFiles};
use serde_json::{Value, json};

use crate::common::{byte_char, shared_dir};

const SPECIALS: EncodeOptions = EncodeOptions {
    add_special: true,
    parse_special: true,
};

/// SentencePiece as BPE, in the form of Llama 2's file.
fn sentence_piece() -> Value {
    json!({
        "added_tokens": [
            {"id": 0, "content": "<unk>", "special": true},
            {"id": 1, "content": "<s>", "special": true},
            {"id": 9, "content": "<sep>", "special": false, "lstrip": true},
        ],
        "normalizer": {"type": "Sequence", "normalizers": [
            {"type": "Prepend", "prepend": "▁"},
            {"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
        ]},
        "pre_tokenizer": null,
        "post_processor": {"type": "TemplateProcessing", "single": [
            {"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}},
        ]},
        "decoder": {"type": "Sequence", "decoders": [
            {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
            {"type": "ByteFallback"}, {"type": "Fuse"}, {"type": "Strip", "content": " ", "start": 1, "stop": 0},
        ]},
        "model": {
            "type": "BPE", "unk_token": "<unk>", "fuse_unk": true, "byte_fallback": true,
            "vocab": {"<unk>": 0, "<s>": 1, "<0xC3>": 2, "<0xA9>": 3, "▁": 4, "a": 5, "b": 6, "ab": 7, "▁ab": 8},
            "merges": ["a b", ["▁", "ab"]],
        },
    })
}

fn load(tokenizer: &Value, config: Option<Value>) -> Result<Tokenizer, String> {
    let files = TokenizerFiles {
        tokenizer: tokenizer.to_string(),
        tokenizer_config: config.map(|config| config.to_string()),
        ..TokenizerFiles::default()
    };
    Tokenizer::from_files(&files).map_err(|error| error.to_string())
}

fn ids(tokenizer: &Tokenizer, text: &str) -> Vec<u32> {
    tokenizer
        .encode(text, SPECIALS)
        .expect("an encodable text")
        .into_iter()
        .map(|id| id.0)
        .collect()
}

#[test]
fn sentence_piece_as_bpe_falls_back_to_bytes_then_to_unknown() {
    let tokenizer = load(&sentence_piece(), None).expect("a tokenizer");
    assert_eq!(
        ids(&tokenizer, "ab é漢漢 <sep>b"),
        [1, 8, 4, 2, 3, 0, 9, 4, 6]
    );
    let tokens = [1, 8, 4, 2, 3].map(TokenId);
    assert_eq!(tokenizer.decode(&tokens, DecodeOptions::default()), "ab é");
    let spec_files = TokenizerFiles {
        tokenizer: sentence_piece().to_string(),
        ..TokenizerFiles::default()
    };
    let spec = spec_files.to_spec("llama").expect("a GGUF description");
    assert_eq!(
        (&*spec.model, spec.add_bos, spec.add_space_prefix),
        ("llama", Some(true), Some(true))
    );
    assert_eq!(spec.token_types, [2, 3, 6, 6, 1, 1, 1, 1, 1, 4]);
    let from_spec = Tokenizer::from_spec(&spec).expect("a tokenizer");
    assert_eq!(ids(&from_spec, "ab é<s>b"), ids(&tokenizer, "ab é<s>b"));
}

#[test]
fn the_configuration_names_the_special_tokens_and_the_template() {
    let config = json!({
        "bos_token": {"content": "<s>"}, "eos_token": "<sep>", "pad_token": "<nowhere>", "add_bos_token": false,
        "chat_template": [{"name": "rag", "template": "r"}, {"name": "default", "template": "d"}],
    });
    let files = TokenizerFiles {
        tokenizer: sentence_piece().to_string(),
        tokenizer_config: Some(config.to_string()),
        generation_config: Some(r#"{"eos_token_id": [9, 1]}"#.into()),
        ..TokenizerFiles::default()
    };
    let tokenizer = Tokenizer::from_files(&files).expect("a tokenizer");
    assert_eq!(
        (tokenizer.bos(), tokenizer.eos(), tokenizer.padding()),
        (Some(TokenId(1)), Some(TokenId(9)), None)
    );
    assert_eq!(tokenizer.stop_ids(), [TokenId(1), TokenId(9)]);
    assert_eq!(tokenizer.chat_template(), Some("d"));
    assert_eq!(tokenizer.named_chat_template("rag"), Some("r"));
    assert_eq!(
        ids(&tokenizer, "ab")[0],
        1,
        "the post-processor decides about BOS, not add_bos_token"
    );
    let error = load(&sentence_piece(), Some(json!({"eos_token": "</nowhere>"}))).err();
    assert_eq!(
        error.as_deref(),
        Some("eos_token \"</nowhere>\" is not in the vocabulary")
    );
}

#[test]
fn unsupported_components_are_refused_by_name() {
    let refused = |path: &str, value: Value| {
        let mut file = sentence_piece();
        *file.pointer_mut(path).expect("a place in the file") = value;
        load(&file, None).err().expect("a refusal")
    };
    assert_eq!(
        refused("/model/type", json!("Unigram")),
        "tokenizer.json: model Unigram is not supported"
    );
    assert_eq!(
        refused("/normalizer", json!({"type": "NFKC"})),
        "tokenizer.json: normalizer NFKC is not supported"
    );
    let whitespace = refused("/pre_tokenizer", json!({"type": "Whitespace"}));
    assert_eq!(
        whitespace,
        "tokenizer.json: pre_tokenizer Whitespace is not supported"
    );
    assert_eq!(
        refused("/decoder/decoders/1/type", json!("WordPiece")),
        "tokenizer.json: decoder WordPiece is not supported"
    );
    assert!(refused("/post_processor/type", json!("Bert")).contains("post_processor Bert"));
    let sparse = refused("/added_tokens/2/id", json!(4_000_000_000u64));
    assert_eq!(
        sparse,
        "token \"<sep>\" has id 4000000000, but the file has only 12 tokens"
    );
    assert!(refused("/model/merges/0", json!("ab")).starts_with("merge 0 is \"ab\""));
    assert!(refused("/model/vocab", json!([1, 2])).contains("a list for a vocabulary"));
    assert!(
        refused("/model/merges/1", json!(["a"])).starts_with("tokenizer.json: invalid length 1")
    );
}

#[test]
fn every_truncation_of_a_file_is_an_error() {
    let text = sentence_piece().to_string();
    for end in (0..text.len()).filter(|&end| text.is_char_boundary(end)) {
        let files = TokenizerFiles {
            tokenizer: text[..end].to_owned(),
            ..TokenizerFiles::default()
        };
        assert!(Tokenizer::from_files(&files).is_err(), "cut at {end}");
    }
}

#[test]
fn a_directory_is_read_and_its_control_tokens_are_known() {
    let Some(shared) = shared_dir() else { return };
    let tokenizer = Tokenizer::from_dir(&shared.join("tokenizers/llama3")).expect("a tokenizer");
    assert_eq!(
        (tokenizer.vocab_size(), tokenizer.pretokenizer_name()),
        (128_256, "llama-bpe")
    );
    assert_eq!(
        tokenizer.special_token("<|eot_id|>"),
        Some(TokenId(128_009))
    );
    assert_eq!(
        tokenizer.stop_ids(),
        [128_001, 128_008, 128_009].map(TokenId)
    );
    assert_eq!(ids(&tokenizer, "<|begin_of_text|>Hello"), [128_000, 9906]);
    let absent = Tokenizer::from_dir(&shared.join("tokenizers/nowhere"))
        .err()
        .expect("an error")
        .to_string();
    assert!(
        absent.contains("tokenizers/nowhere/tokenizer.json: No such file"),
        "{absent}"
    );
}

/// Expected ids: transformers 5.24 with these files.
#[test]
fn normalized_added_tokens_are_found_in_decomposed_text() {
    let mut alphabet: Vec<char> = (0..=255).map(byte_char).collect();
    alphabet.sort_unstable();
    let vocab: serde_json::Map<String, Value> = alphabet
        .iter()
        .enumerate()
        .map(|(id, c)| (c.to_string(), json!(id)))
        .collect();
    let file = json!({
        "added_tokens": [
            {"id": 256, "content": "<s>", "special": true},
            {"id": 257, "content": "é!", "special": false, "normalized": true},
            {"id": 258, "content": "è!", "special": false, "normalized": false},
        ],
        "normalizer": {"type": "NFC"},
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": false, "use_regex": true},
        "post_processor": {"type": "ByteLevel"},
        "decoder": {"type": "ByteLevel"},
        "model": {"type": "BPE", "vocab": vocab, "merges": []},
    });
    let config = json!({"bos_token": "<s>", "add_bos_token": true});
    let files = TokenizerFiles {
        tokenizer: file.to_string(),
        tokenizer_config: Some(config.to_string()),
        ..TokenizerFiles::default()
    };
    let tokenizer = Tokenizer::from_files(&files).expect("a tokenizer");
    for (text, expected) in [
        ("xé!y", &[87, 257, 88][..]),
        ("xe\u{301}!y", &[87, 257, 88]),
        ("xè!y", &[87, 258, 88]),
        ("xe\u{300}!y", &[87, 127, 101, 0, 88]),
        ("<s>a", &[256, 64]),
    ] {
        assert_eq!(ids(&tokenizer, text), expected, "{text:?}");
    }
}
