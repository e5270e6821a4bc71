//! Memory and failures.

use std::path::Path;
use std::sync::Arc;

use bitnet_files::gguf::Gguf;
use bitnet_models::{Backend, Chunk, KvType, LanguageModel, LoadOptions, LogitRows, Workspace};
use bitnet_wgpu::{Adapter, DeviceLimits, DeviceMemory, OpenGpu, adapter_by_name};

use crate::{adapter, cache, golden_folders, integers, load, logits, root};

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
    let before = (open.memory().total(), open.allocated_bytes());
    for _ in 0..50 {
        run();
    }
    assert_eq!((open.memory().total(), open.allocated_bytes()), before);
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
        open.memory().total()
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
        assert_eq!(open.memory().total(), 0, "what was loaded is given back");
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
        open.memory().total()
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

/// The memory of a model with a cache and the activations of two chunks of tokens.
fn memory_of_a_run(open: &OpenGpu, path: &Path, tokens: &[u32]) -> DeviceMemory {
    let gpu = open.start(1);
    let model = load(path, &gpu);
    let mut cache = cache(&model, &gpu, KvType::F16, 2);
    let mut workspace = Workspace::new();
    for (position, tokens, logits) in [(0, tokens, LogitRows::Last), (9, tokens, LogitRows::All)] {
        let chunk = Chunk {
            tokens,
            position,
            blocks: &[1, 0],
            state: 0,
            logits,
        };
        model.forward(&gpu, &mut workspace, &mut cache, &[chunk]);
    }
    assert_eq!(gpu.failure(), None, "{}", path.display());
    open.memory()
}

#[test]
fn a_device_that_counts_finds_the_memory_that_a_model_takes() {
    let Some(adapter) = adapter() else { return };
    let open = open_gpu(adapter, None);
    let plain = golden_folders("golden", "model-i2_s.gguf").into_iter();
    let plain = plain.map(|folder| folder.join("model-i2_s.gguf")).take(1);
    let groups = golden_folders("golden-group", "model.gguf").into_iter();
    // The last one has linear attention.
    let groups = groups.map(|folder| folder.join("model.gguf")).rev().take(1);
    let tokens: Vec<u32> = (1..10).collect();
    let mut num_states = 0;
    for path in plain.chain(groups) {
        let counting = open.counting();
        let before = (open.memory(), open.allocated_bytes());
        let counted = memory_of_a_run(&counting, &path, &tokens);
        assert_eq!(
            (open.memory(), open.allocated_bytes()),
            before,
            "counting takes no memory"
        );
        let taken = memory_of_a_run(&open, &path, &tokens);
        assert_eq!(counted, taken, "{}", path.display());
        assert!(taken.weights > 0 && taken.tables > 0 && taken.workspace > 0);
        num_states += usize::from(taken.states > 0);
        assert_eq!(counting.memory(), DeviceMemory::default(), "all is dropped");
    }
    assert!(num_states > 0, "no golden model with linear attention");
}

#[test]
fn a_model_without_room_is_refused_with_all_numbers_before_it_is_loaded() {
    let Some(adapter) = adapter() else { return };
    let needed = memory_of_a_run(&open_gpu(adapter, None).counting(), &model_path(), &[1, 2]);
    let limit = needed.total() - 1;
    let open = open_gpu(adapter, Some(limit));
    let before = open.allocated_bytes();
    let error = open.check_room(&needed).expect_err("a byte too few");
    let words = format!(
        "the model needs {} bytes (weights {}, tables {}, key/value cache {}, workspace {}) of device memory, but {limit} of the limit of {limit} are available",
        needed.total(),
        needed.weights,
        needed.tables,
        needed.cache,
        needed.workspace,
    );
    assert!(error.to_string().contains(&words), "{error}");
    open_gpu(adapter, Some(limit + 1))
        .check_room(&needed)
        .expect("room for all");
    open.refuse_after(0);
    let less = DeviceMemory {
        weights: 0,
        ..needed
    };
    let error = open.check_room(&less).expect_err("the driver has nothing");
    assert!(
        error
            .to_string()
            .contains("but 0 of the driver's are available"),
        "{error}"
    );
    assert_eq!(open.allocated_bytes(), before, "nothing was taken");
}

#[test]
fn a_driver_that_refuses_any_buffer_of_a_load_leaves_nothing_behind() {
    let Some(adapter) = adapter() else { return };
    let gguf = Arc::new(Gguf::open(&model_path()).expect("the golden file opens"));
    let open = open_gpu(adapter, None);
    let mut num_refused = 0;
    for count in 0.. {
        let gpu = open.start(1);
        open.refuse_after(count);
        match LanguageModel::from_gguf(&gguf, &LoadOptions::default(), &gpu) {
            Ok(_) => break,
            Err(error) => {
                let error = error.to_string();
                assert!(error.contains("the driver has no more"), "{count}: {error}");
            }
        }
        assert_eq!(open.memory().total(), 0, "after {count} buffers");
        assert_eq!(gpu.failure(), None, "a refusal is no failure of the device");
        num_refused += 1;
    }
    assert!(num_refused > 10, "only {num_refused} buffers");
}

#[test]
fn a_driver_that_refuses_a_buffer_of_a_request_is_a_failure_of_the_device() {
    let Some(adapter) = adapter() else { return };
    let open = open_gpu(adapter, None);
    let gpu = open.start(1);
    let model = load(&model_path(), &gpu);
    let mut cache = cache(&model, &gpu, KvType::F16, 1);
    let mut workspace = Workspace::new();
    let mut run = |position: usize, tokens: &[u32]| {
        let chunk = Chunk {
            tokens,
            position,
            blocks: &[0],
            state: 0,
            logits: LogitRows::Last,
        };
        let logits = model.forward(&gpu, &mut workspace, &mut cache, &[chunk]);
        logits.iter().any(|logit| *logit != 0.0)
    };
    assert!(run(0, &[1, 2]) && gpu.failure().is_none());
    open.refuse_after(0);
    assert!(run(2, &[3, 4]), "a step that needs no more memory goes on");
    assert!(!run(4, &[5; 20]), "no results after a failure");
    let problem = gpu.failure().expect("a failure");
    assert!(problem.contains("the driver has no more"), "{problem}");
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
