//! GGUF metadata, valid and hostile.

use bitnet_tokenizers::{
    DecodeOptions, EncodeOptions, Error, TokenId, TokenKind, Tokenizer, TokenizerSpec,
};

use crate::common::{data_dir, gguf_tokenizer, small_spec};

const SPECIALS: EncodeOptions = EncodeOptions {
    add_special: true,
    parse_special: true,
};

fn ids(tokenizer: &Tokenizer, text: &str, options: EncodeOptions) -> Vec<u32> {
    tokenizer
        .encode(text, options)
        .expect("an encodable text")
        .into_iter()
        .map(|id| id.0)
        .collect()
}

/// The error of a small tokenizer's metadata after `spoil`.
fn refused(spoil: impl FnOnce(&mut TokenizerSpec<'static>)) -> String {
    let mut spec = small_spec(&["a b"], &["<s>"]);
    spoil(&mut spec);
    match Tokenizer::from_spec(&spec) {
        Ok(_) => panic!("accepted"),
        Err(error) => error.to_string(),
    }
}

#[test]
fn a_vocabulary_of_single_bytes_needs_no_merges() {
    let tokenizer = Tokenizer::from_spec(&small_spec(&[], &["<s>"])).expect("a tokenizer");
    assert_eq!(ids(&tokenizer, "ab<s>é", SPECIALS), [97, 98, 256, 195, 169]);
}

#[test]
fn wrong_metadata_is_refused_with_the_culprit_and_the_numbers() {
    assert_eq!(
        refused(|spec| spec.tokens.clear()),
        "tokenizer.ggml.token_type has 258 entries, expected 0 (one per token)"
    );
    assert_eq!(
        refused(|spec| (spec.tokens, spec.token_types) = (vec![], vec![])),
        "the vocabulary has no tokens"
    );
    assert_eq!(
        refused(|spec| spec.scores = vec![0.0; 3]),
        "tokenizer.ggml.scores has 3 entries, expected 258 (one per token)"
    );
    assert_eq!(
        refused(|spec| spec.bos = Some(258)),
        "bos token 258 is outside the vocabulary of 258 tokens"
    );
    assert_eq!(
        refused(|spec| spec.merges[0] = "ab".into()),
        "merge 0 is \"ab\", expected two pieces separated by a space"
    );
    assert_eq!(
        refused(|spec| spec.merges[0] = "a ".into()),
        "merge 0 is \"a \", expected two pieces separated by a space"
    );
    assert_eq!(
        refused(|spec| spec.merges[0] = "".into()),
        "merge 0 is \"\", expected two pieces separated by a space"
    );
    assert_eq!(
        refused(|spec| spec.merges.clear()),
        "a byte-level vocabulary of 258 tokens needs merges, the file has none"
    );
    assert_eq!(
        refused(|spec| spec.model = "bert".into()),
        "tokenizer model \"bert\" is not supported (supported: gpt2, llama)"
    );
    assert!(
        refused(|spec| spec.pre = Some("tekken".into()))
            .contains("\"tekken\" is not supported (supported: llama-bpe, ")
    );
    assert_eq!(
        refused(|spec| spec.add_bos = Some(true)),
        "the tokenizer adds bos to every text, but names no such token"
    );
}

#[test]
fn odd_metadata_in_published_files_is_accepted() {
    let mut spec = small_spec(&["a b", "x y"], &["<s>"]);
    // Empty and duplicate tokens, merges of strings that are not tokens, ids of −1, unknown
    // token types.
    spec.tokens.extend(["", "ab", ""].map(Into::into));
    spec.token_types.extend([1, 99, -7]);
    spec.merges.extend(["c d", "cd e", "漢 字"].map(Into::into));
    (spec.unknown, spec.padding) = (Some(u32::MAX), Some(u32::MAX));
    let tokenizer = Tokenizer::from_spec(&spec).expect("a tokenizer");
    assert_eq!(
        ids(&tokenizer, "ab", SPECIALS),
        [260],
        "of two tokens with the same text the later counts"
    );
    assert_eq!(
        ids(&tokenizer, "cdexy", SPECIALS),
        [99, 100, 101, 257],
        "pieces that are no tokens are spelled in bytes"
    );
    assert_eq!(tokenizer.token_bytes(TokenId(259)), b"");
    assert_eq!(
        (
            tokenizer.token_bytes(TokenId(u32::MAX)),
            tokenizer.kind(TokenId(9999))
        ),
        (&b""[..], TokenKind::Unused)
    );
    assert_eq!(
        tokenizer.decode(&[TokenId(97), TokenId(70_000)], DecodeOptions::default()),
        "a"
    );
}

#[test]
fn an_absent_pre_is_llama_bpe_for_bitnet_and_default_for_others() {
    let named = |architecture: &'static str| {
        let spec = TokenizerSpec {
            architecture: architecture.into(),
            pre: None,
            ..small_spec(&["a b"], &[])
        };
        Tokenizer::from_spec(&spec)
            .expect("a tokenizer")
            .pretokenizer_name()
    };
    for architecture in [
        "bitnet",
        "bitnet-b1.58",
        "bitnet_b1_58",
        "bitnet-25",
        "bitnet25",
        "bitnet158",
    ] {
        assert_eq!(named(architecture), "llama-bpe", "{architecture}");
    }
    assert_eq!(named("llama"), "default");
}

#[test]
fn control_tokens_match_only_if_the_caller_allows_them() {
    let mut spec = small_spec(&["a b"], &["<s>", "</s>", "<tool>"]);
    (spec.bos, spec.eos, spec.add_eos) = (Some(257), Some(258), Some(true));
    spec.token_types[259] = 4;
    let tokenizer = Tokenizer::from_spec(&spec).expect("a tokenizer");
    assert_eq!(
        ids(&tokenizer, "ab<s><tool>", SPECIALS),
        [257, 256, 257, 259, 258]
    );
    let spelled: Vec<_> = [257, 256]
        .into_iter()
        .chain("<s>".bytes().map(u32::from))
        .chain([259, 258])
        .collect();
    assert_eq!(
        ids(&tokenizer, "ab<s><tool>", EncodeOptions::default()),
        spelled
    );
    assert_eq!(
        ids(
            &tokenizer,
            "",
            EncodeOptions {
                add_special: false,
                ..SPECIALS
            }
        ),
        Vec::<u32>::new()
    );
    assert_eq!(tokenizer.stop_ids(), [TokenId(258)]);
    assert!(tokenizer.is_special(TokenId(257)) && !tokenizer.is_special(TokenId(259)));
}

#[test]
fn tokens_that_end_a_generation_are_known_by_role_and_by_name() {
    let mut spec = small_spec(&["a b"], &["<|eot_id|>", "<|x|>", "<|im_end|>", "<|y|>"]);
    spec.eos = Some(258);
    // Some converters mark the name as plain text.
    spec.token_types[259] = 1;
    let tokenizer = Tokenizer::from_spec(&spec).expect("a tokenizer");
    assert_eq!(
        tokenizer.stop_ids(),
        [TokenId(257), TokenId(258), TokenId(259)]
    );
    assert!(tokenizer.is_special(TokenId(259)));
}

#[test]
fn sentence_piece_adds_a_space_before_text_and_removes_it_again() {
    let tokenizer = gguf_tokenizer(&data_dir().join("ggml-vocab-llama-spm.gguf"));
    let tokens = tokenizer
        .encode("Hello</s>Hello", SPECIALS)
        .expect("an encodable text");
    assert_eq!(
        tokens,
        [1, 15043, 2, 15043].map(TokenId),
        "BOS, ▁Hello, EOS, ▁Hello"
    );
    let continued = DecodeOptions {
        strip_space_prefix: false,
        show_special: false,
    };
    assert_eq!(
        tokenizer.decode(&tokens[1..2], DecodeOptions::default()),
        "Hello"
    );
    assert_eq!(tokenizer.decode(&tokens[1..2], continued), " Hello");
    let shown = DecodeOptions {
        show_special: true,
        ..DecodeOptions::default()
    };
    assert_eq!(tokenizer.decode(&tokens, shown), "<s> Hello</s> Hello");
}

#[test]
fn a_word_of_a_megabyte_does_not_take_quadratic_time() {
    let tokenizer = gguf_tokenizer(&data_dir().join("ggml-vocab-gpt-2.gguf"));
    for text in [
        "a".repeat(1 << 20),
        " ".repeat(1 << 20),
        "<|endoftext".repeat(1 << 16),
    ] {
        let started = std::time::Instant::now();
        let tokens = tokenizer
            .encode(&text, EncodeOptions::default())
            .expect("an encodable text");
        assert_eq!(tokenizer.decode(&tokens, DecodeOptions::default()), text);
        // Merging by scanning would take hours.
        assert!(started.elapsed().as_secs() < 60, "{:?}", started.elapsed());
    }
}

#[test]
fn text_without_tokens_is_an_error_unless_there_is_an_unknown_token() {
    let mut spec = TokenizerSpec {
        model: "llama".into(),
        tokens: ["<unk>", "▁", "a", "▁a"].map(Into::into).to_vec(),
        token_types: vec![2, 1, 1, 1],
        scores: vec![0.0, -3.0, -2.0, -1.0],
        add_bos: Some(false),
        add_space_prefix: Some(false),
        ..TokenizerSpec::default()
    };
    let tokenizer = Tokenizer::from_spec(&spec).expect("a tokenizer");
    assert_eq!(ids(&tokenizer, " a漢a", SPECIALS), [3, 0, 2]);
    spec = TokenizerSpec {
        model: "gpt2".into(),
        merges: vec!["a a".into()],
        ..spec
    };
    let tokenizer = Tokenizer::from_spec(&spec).expect("a tokenizer");
    let error = tokenizer
        .encode("ab", SPECIALS)
        .expect_err("no token for b");
    assert!(
        matches!(&error, Error::NoTokenFor { text } if text == "b"),
        "{error}"
    );
}
