//! The tokenizer in a GGUF file's metadata: a tokenizer that builds can encode any text and decode
//! the result.
//!
//! An input is four paragraphs with an empty line between them: settings (`model gpt2`, `eos 3`),
//! tokens (`score type text` a line), merges, and the text.
#![no_main]

use std::sync::Arc;

use bitnet_tokenizers::{
    DecodeOptions, Detokenizer, EncodeOptions, TokenId, Tokenizer, TokenizerSpec,
};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &str| {
    let mut paragraphs = input.splitn(4, "\n\n");
    let [settings, tokens, merges, text] = [(); 4].map(|()| paragraphs.next().unwrap_or_default());
    let Ok(tokenizer) = Tokenizer::from_spec(&spec(settings, tokens, merges)) else {
        return;
    };
    let (tokenizer, options) = (Arc::new(tokenizer), DecodeOptions::default());
    for parse_special in [false, true] {
        let Ok(ids) = tokenizer.encode(
            text,
            EncodeOptions {
                add_special: true,
                parse_special,
            },
        ) else {
            return;
        };
        assert!(
            ids.iter()
                .all(|id| (id.0 as usize) < tokenizer.vocab_size()),
            "{ids:?}"
        );
        let mut detokenizer = Detokenizer::new(Arc::clone(&tokenizer), options);
        let mut pieces: String = ids
            .iter()
            .map(|&id| detokenizer.push(id).to_owned())
            .collect();
        pieces += detokenizer.finish();
        assert_eq!(pieces, tokenizer.decode(&ids, options));
    }
    tokenizer.decode(&[TokenId(0), TokenId(u32::MAX)], options);
});

fn spec<'a>(settings: &'a str, tokens: &'a str, merges: &'a str) -> TokenizerSpec<'a> {
    let mut spec = TokenizerSpec::default();
    for (key, value) in settings.lines().filter_map(|line| line.split_once(' ')) {
        let (id, flag) = (value.parse().ok(), value.parse().ok());
        match key {
            "architecture" => spec.architecture = value.into(),
            "model" => spec.model = value.into(),
            "pre" => spec.pre = Some(value.into()),
            "bos" => spec.bos = id,
            "eos" => spec.eos = id,
            "eot" => spec.eot = id,
            "eom" => spec.eom = id,
            "unknown" => spec.unknown = id,
            "padding" => spec.padding = id,
            "add_bos" => spec.add_bos = flag,
            "add_eos" => spec.add_eos = flag,
            "add_space_prefix" => spec.add_space_prefix = flag,
            _ => {}
        }
    }
    for line in tokens.lines() {
        let mut parts = line.splitn(3, ' ');
        spec.scores.push(
            parts
                .next()
                .and_then(|score| score.parse().ok())
                .unwrap_or(0.0),
        );
        spec.token_types
            .push(parts.next().and_then(|kind| kind.parse().ok()).unwrap_or(1));
        spec.tokens.push(parts.next().unwrap_or_default().into());
    }
    spec.merges = merges.lines().map(Into::into).collect();
    spec
}
