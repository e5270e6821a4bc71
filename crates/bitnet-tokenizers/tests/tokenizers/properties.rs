//! Properties of every text and every sequence of tokens.

use std::sync::{Arc, LazyLock};

use bitnet_tokenizers::{
    DecodeOptions, Detokenizer, EncodeOptions, TokenId, Tokenizer, TokenizerSpec,
};
use proptest::prelude::*;

use crate::common::{data_dir, gguf_tokenizer};

static GPT_2: LazyLock<Arc<Tokenizer>> =
    LazyLock::new(|| Arc::new(gguf_tokenizer(&data_dir().join("ggml-vocab-gpt-2.gguf"))));
static LLAMA_SPM: LazyLock<Arc<Tokenizer>> = LazyLock::new(|| {
    Arc::new(gguf_tokenizer(
        &data_dir().join("ggml-vocab-llama-spm.gguf"),
    ))
});

/// Text of every kind: ASCII, white space, other scripts, control tokens.
fn any_text() -> impl Strategy<Value = String> {
    let part = prop_oneof![
        any::<String>(),
        "[ -~\\s]{0,20}",
        "\\PC{0,20}",
        Just("<|endoftext|>".to_owned()),
        Just("</s>".to_owned()),
    ];
    prop::collection::vec(part, 0..6).prop_map(|parts| parts.concat())
}

fn incremental(tokenizer: &Arc<Tokenizer>, tokens: &[TokenId], options: DecodeOptions) -> String {
    let mut detokenizer = Detokenizer::new(Arc::clone(tokenizer), options);
    let mut text = String::new();
    for &id in tokens {
        text.push_str(detokenizer.push(id));
    }
    text.push_str(detokenizer.finish());
    text
}

proptest! {
    #[test]
    fn byte_level_text_decodes_to_itself(text in any_text(), parse_special: bool) {
        let tokens = GPT_2.encode(&text, EncodeOptions { add_special: false, parse_special }).expect("encodable");
        let options = DecodeOptions { show_special: true, ..DecodeOptions::default() };
        prop_assert_eq!(GPT_2.decode(&tokens, options), text);
    }

    #[test]
    fn sentence_piece_text_decodes_to_itself(text in any_text()) {
        // This vocabulary writes a space as this sign.
        let text = text.replace('▁', "_");
        let tokens = LLAMA_SPM.encode(&text, EncodeOptions::default()).expect("encodable");
        prop_assert_eq!(LLAMA_SPM.decode(&tokens, DecodeOptions::default()), text);
    }

    #[test]
    fn plain_text_has_no_control_tokens(text in any_text()) {
        for tokenizer in [&GPT_2, &LLAMA_SPM] {
            let plain = EncodeOptions { add_special: false, parse_special: false };
            let tokens = tokenizer.encode(&text, plain).expect("encodable");
            prop_assert!(!tokens.iter().any(|&id| tokenizer.is_special(id)));
        }
    }

    #[test]
    fn decoding_piecewise_gives_the_whole_text(
        ids in prop::collection::vec(0..60_000u32, 0..40),
        show_special: bool,
        strip_space_prefix: bool,
    ) {
        let tokens: Vec<_> = ids.into_iter().map(TokenId).collect();
        let options = DecodeOptions { show_special, strip_space_prefix };
        for tokenizer in [&GPT_2, &LLAMA_SPM] {
            prop_assert_eq!(incremental(tokenizer, &tokens, options), tokenizer.decode(&tokens, options));
        }
    }

    #[test]
    fn decoding_byte_by_byte_is_lossy_utf_8(bytes in prop::collection::vec(any::<u8>(), 0..40)) {
        let tokens: Vec<_> = bytes.iter().map(|&byte| TokenId(3 + u32::from(byte))).collect();
        let options = DecodeOptions { show_special: false, strip_space_prefix: false };
        prop_assert_eq!(incremental(&LLAMA_SPM, &tokens, options), String::from_utf8_lossy(&bytes));
    }

    #[test]
    fn no_metadata_makes_a_tokenizer_panic(
        tokens in prop::collection::vec("[ab▁Ġ< ]{0,3}|<0x[0-9A-G]{2}>|</s>", 0..12),
        token_types in prop::collection::vec(-1..8i32, 0..12),
        scores in prop::collection::vec(any::<f32>(), 0..12),
        merges in prop::collection::vec("[ab▁Ġ< ]{0,5}", 0..6),
        ids in prop::array::uniform4(prop::option::of(0..14u32)),
        flags in prop::array::uniform3(any::<Option<bool>>()),
        model in "gpt2|llama",
        text in "[ab▁ <漢\u{0}]{0,20}",
    ) {
        let spec = TokenizerSpec {
            model: model.into(),
            token_types: if token_types.len() > 6 { token_types[..tokens.len().min(token_types.len())].to_vec() } else { Vec::new() },
            scores: if scores.len() > 6 { scores[..tokens.len().min(scores.len())].to_vec() } else { Vec::new() },
            tokens: tokens.into_iter().map(Into::into).collect(),
            merges: merges.into_iter().map(Into::into).collect(),
            bos: ids[0],
            eos: ids[1],
            unknown: ids[2],
            padding: ids[3],
            add_bos: flags[0],
            add_eos: flags[1],
            add_space_prefix: flags[2],
            ..TokenizerSpec::default()
        };
        if let Ok(tokenizer) = Tokenizer::from_spec(&spec)
            && let Ok(tokens) = tokenizer.encode(&text, EncodeOptions { add_special: true, parse_special: true })
        {
            prop_assert!(tokens.iter().all(|id| (id.0 as usize) < tokenizer.vocab_size()));
            tokenizer.decode(&tokens, DecodeOptions::default());
        }
    }
}

#[test]
fn no_partial_character_is_returned() {
    let mut detokenizer = Detokenizer::new(Arc::clone(&LLAMA_SPM), DecodeOptions::default());
    let bytes = "é漢🦙".bytes().map(|byte| TokenId(3 + u32::from(byte)));
    let texts: Vec<_> = bytes.map(|id| detokenizer.push(id).to_owned()).collect();
    assert_eq!(texts, ["", "é", "", "", "漢", "", "", "", "🦙"]);
    assert_eq!(detokenizer.push(TokenId(3 + 0xF0)), "");
    assert_eq!(detokenizer.push(TokenId(3 + 0x41)), "\u{FFFD}A");
    assert_eq!(detokenizer.push(TokenId(3 + 0xE6)), "");
    assert_eq!(detokenizer.finish(), "\u{FFFD}");
    assert_eq!(detokenizer.finish(), "");
}
