//! Memory and failures.

use std::sync::Arc;

use bitnet_files::gguf::Gguf;
use bitnet_models::{Backend, KvType, LanguageModel, LoadOptions};
use bitnet_wgpu::{Adapter, DeviceLimits, OpenGpu, adapter_by_name};

use crate::{adapter, cache, integers, load, logits, root};

fn model_path() -> std::path::PathBuf {
    root().join("tests/data/golden/strict-b158/model-i2_s.gguf")
}

/// The device of the tests, opened once more, with this limit on all its memory.
fn open_gpu(adapter: &'static Adapter, total_bytes: Option<u64>) -> OpenGpu {
    let limits = DeviceLimits {
        total_bytes,
        ..DeviceLimits::default()
    };
    OpenGpu::new(adapter, limits).expect("an able adapter opens")
}

#[test]
fn fifty_loads_and_unloads_leave_memory_as_it_was() {
    let Some(adapter) = adapter() else { return };
    let open = open_gpu(adapter, None);
    let tokens = integers(
        &root().join("tests/data/golden/strict-b158/tokens.json"),
        "tokens",
    );
    let run = || {
        let gpu = open.start(1);
        let model = load(&model_path(), &gpu);
        let found = logits(&model, &gpu, &tokens[..3], KvType::F16, 3);
        assert!(found.iter().all(|logit| logit.is_finite()));
    };
    run();
    let before = (open.used_bytes(), open.allocated_bytes());
    for _ in 0..50 {
        run();
    }
    assert_eq!((open.used_bytes(), open.allocated_bytes()), before);
    assert_eq!(before.0, 0, "all buffers are gone");
}

#[test]
fn a_model_that_exceeds_the_memory_limit_is_refused_with_numbers() {
    let Some(adapter) = adapter() else { return };
    let gguf = Arc::new(Gguf::open(&model_path()).expect("the golden file opens"));
    let needs = {
        let open = open_gpu(adapter, None);
        let gpu = open.start(1);
        let _model = load(&model_path(), &gpu);
        open.used_bytes()
    };
    for limit in [0, 1000, needs / 2, needs - 1] {
        let open = open_gpu(adapter, Some(limit));
        let gpu = open.start(1);
        let error = LanguageModel::from_gguf(&gguf, &LoadOptions::default(), &gpu);
        let error = error.err().expect("too little memory").to_string();
        let words = [
            adapter.name(),
            "bytes of device memory",
            &format!("of {limit} are in use"),
        ];
        assert!(
            words.iter().all(|word| error.contains(word)),
            "{limit}: {error}"
        );
        assert_eq!(open.used_bytes(), 0, "what was loaded is given back");
    }
    let open = open_gpu(adapter, Some(needs));
    let gpu = open.start(1);
    let model = load(&model_path(), &gpu);
    let shape = bitnet_models::CacheShape {
        attention: model.config().attention,
        num_layers: model.config().num_layers,
        kv_type: KvType::F16,
        num_blocks: 7,
        state_len: 0,
        num_states: 0,
    };
    let error = gpu.cache(&shape).err().expect("no memory left").to_string();
    assert!(
        error.contains("key/value cache of 224 positions"),
        "{error}"
    );
    assert_eq!(gpu.failure(), None, "a refusal is no failure of the device");
}

#[test]
fn activations_that_exceed_the_memory_limit_are_a_failure_with_numbers() {
    let Some(adapter) = adapter() else { return };
    let open = open_gpu(adapter, None);
    let needs = {
        let gpu = open.start(1);
        let model = load(&model_path(), &gpu);
        let _cache = cache(&model, &gpu, KvType::F16, 1);
        open.used_bytes()
    };
    let open = open_gpu(adapter, Some(needs + 2000));
    let gpu = open.start(1);
    let model = load(&model_path(), &gpu);
    let found = logits(&model, &gpu, &[1, 2, 3], KvType::F16, 3);
    assert!(
        found.iter().all(|logit| *logit == 0.0),
        "no results after a failure"
    );
    let problem = gpu.failure().expect("a failure");
    assert!(
        problem.contains("a buffer of activations needs"),
        "{problem}"
    );
}

#[test]
fn a_lost_device_gives_no_results_and_says_so() {
    let Some(adapter) = adapter() else { return };
    let open = open_gpu(adapter, None);
    let gpu = open.start(1);
    let model = load(&model_path(), &gpu);
    let before = logits(&model, &gpu, &[1, 2, 3], KvType::F16, 3);
    assert!(before.iter().any(|logit| *logit != 0.0) && gpu.failure().is_none());
    open.lose();
    let problem = gpu.failure().expect("a failure");
    assert!(problem.contains("lost"), "{problem}");
    let again = open_gpu(adapter, None);
    let gpu = again.start(1);
    let model = load(&model_path(), &gpu);
    let after = logits(&model, &gpu, &[1, 2, 3], KvType::F16, 3);
    assert_eq!(before, after, "a new device of the same adapter works");
}

#[test]
fn an_unknown_adapter_is_an_error_that_names_it() {
    let error = adapter_by_name("no such adapter")
        .expect_err("there is none")
        .to_string();
    assert!(
        error.contains("whose name contains \"no such adapter\""),
        "{error}"
    );
}
