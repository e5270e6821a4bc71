//! Tokens that are sampled from the first logits of a row, which the device chooses, equal tokens
//! that are sampled from the whole row.

use std::path::PathBuf;

use bitnet_inference::{
    Device, Driver, EngineOptions, OpenModel, ReplyStream, Request, SamplingParams,
};
use bitnet_tokenizers::TokenId;

use crate::{device, golden, open};

/// The model files in the folders of the repository's golden models.
fn golden_models() -> Vec<PathBuf> {
    let mut found = Vec::new();
    for kind in ["golden", "golden-group"] {
        let folders = std::fs::read_dir(golden("..").join(kind)).expect("golden models");
        for folder in folders.map(|entry| entry.expect("an entry").path()) {
            let files = ["model-i2_s.gguf", "model.gguf"].map(|name| folder.join(name));
            found.extend(files.into_iter().find(|file| file.exists()));
        }
    }
    found.sort();
    assert!(found.len() > 2, "{found:?}");
    found
}

/// An engine with room for all requests at once.
fn start(model: &OpenModel, draft_max: usize) -> Driver {
    let options = EngineOptions {
        context: 64,
        cache: 512,
        running_max: 5,
        prefill_chunk: 32,
        mixed_chunk: 16,
        draft_max,
        ..EngineOptions::default()
    };
    model.start(options).expect("an engine")
}

/// Requests of every kind that needs no more than the first logits.
fn requests() -> Vec<Request> {
    let default = SamplingParams::default;
    let kinds = [
        SamplingParams {
            temperature: 0.0,
            ..default()
        },
        default(),
        SamplingParams {
            top_k: 64,
            top_p: 1.0,
            min_p: 0.0,
            temperature: 1.5,
            ..default()
        },
        SamplingParams {
            top_k: 5,
            typical_p: 0.7,
            ..default()
        },
    ];
    let request = |(index, sampling): (usize, SamplingParams)| Request {
        prompt: [1, 2, 3 + index as u32, 1, 2].map(TokenId).to_vec(),
        sampling,
        max_tokens: Some(8),
        ..Request::default()
    };
    kinds.into_iter().enumerate().map(request).collect()
}

/// The tokens of requests that run together.
fn together(driver: &Driver, requests: Vec<Request>) -> Vec<Vec<TokenId>> {
    let streams = requests.into_iter().map(|request| driver.stream(request));
    let streams: Vec<_> = streams.collect::<Result<_, _>>().expect("a thread");
    let wait = |stream: ReplyStream| stream.wait().expect("an answer").tokens;
    streams.into_iter().map(wait).collect()
}

/// The same requests with log-probabilities, for which whole rows are read.
fn with_logprobs(requests: Vec<Request>) -> Vec<Request> {
    let with = |request| Request {
        logprobs: Some(0),
        ..request
    };
    requests.into_iter().map(with).collect()
}

#[test]
fn tokens_of_golden_models_equal_tokens_from_whole_rows() {
    let Some(device) = device() else { return };
    for path in golden_models() {
        let driver = start(&open(&path, device), 0);
        let whole = together(&driver, with_logprobs(requests()));
        let found = together(&driver, requests());
        assert_eq!(found, whole, "{}", path.display());
    }
}

#[test]
fn neither_drafts_nor_requests_that_need_whole_rows_change_tokens() {
    let Some(device) = device() else { return };
    let model = open(&golden("strict-b158/model-i2_s.gguf"), device);
    let driver = start(&model, 0);
    let alone = together(&driver, requests());
    assert_eq!(together(&start(&model, 4), requests()), alone);
    let penalty = Request {
        sampling: SamplingParams {
            repetition_penalty: 1.3,
            ..SamplingParams::default()
        },
        ..requests().remove(1)
    };
    let mixed = [requests(), vec![penalty]].concat();
    let found = together(&driver, mixed);
    assert_eq!(found[..alone.len()], alone);
}

#[test]
fn the_story_of_the_built_in_model_is_the_cpus() {
    let Some(device) = device() else { return };
    if !device.adapter().is_some_and(|adapter| adapter.is_software) {
        eprintln!("skipped: {device:?} may round otherwise than the CPU");
        return;
    }
    let path = golden("../../../models/stories/stories.gguf");
    let tokens = |device: Device| together(&start(&open(&path, device), 0), requests());
    assert_eq!(tokens(device), tokens(Device::cpu(1)));
}
