//! Golden models: logits equal the reference's and the CPU's.

use bitnet_models::{Backend, Chunk, KvType, LogitRows, Workspace};
use bitnet_wgpu::{DeviceLimits, OpenGpu};

use crate::{
    adapter, assert_same_bits, cache, cosine, cpu, exact_gpu, golden_folders, gpu, greedy,
    hidden_states, integers, largest_difference, load, logits, read_npy,
};

#[test]
fn strict_models_are_within_1e_5_of_the_reference() {
    let Some(gpu) = gpu() else { return };
    for folder in golden_folders("golden", "model-i2_s.gguf") {
        if !folder.to_string_lossy().contains("strict") {
            continue;
        }
        let model = load(&folder.join("model-i2_s.gguf"), &gpu);
        let tokens = integers(&folder.join("tokens.json"), "tokens");
        let found = logits(&model, &gpu, &tokens, KvType::F32, 64);
        assert_eq!(gpu.failure(), None);
        let worst = largest_difference(&found, &read_npy(&folder.join("logits.npy")));
        eprintln!("{}: largest difference {worst:e}", folder.display());
        assert!(worst <= 1e-5, "{}: {worst:e}", folder.display());
    }
}

#[test]
fn logits_of_golden_models_equal_the_cpus_bit_for_bit() {
    let Some(gpu) = exact_gpu() else { return };
    let cpu = cpu();
    for folder in golden_folders("golden", "model-i2_s.gguf") {
        let path = folder.join("model-i2_s.gguf");
        let tokens = integers(&folder.join("tokens.json"), "tokens");
        let (on_gpu, on_cpu) = (load(&path, &gpu), load(&path, &cpu));
        for (kv_type, chunk) in [(KvType::F16, 64), (KvType::F32, 5), (KvType::F16, 1)] {
            let found = logits(&on_gpu, &gpu, &tokens, kv_type, chunk);
            let expected = logits(&on_cpu, &cpu, &tokens, kv_type, chunk);
            assert_eq!(gpu.failure(), None);
            let name = format!("{} {kv_type:?} {chunk}", folder.display());
            assert_same_bits(&name, &found, &expected);
        }
    }
}

#[test]
fn greedy_text_of_strict_models_equals_the_reference() {
    let Some(gpu) = gpu() else { return };
    for folder in golden_folders("golden", "model-i2_s.gguf") {
        if !folder.to_string_lossy().contains("strict") {
            continue;
        }
        let model = load(&folder.join("model-i2_s.gguf"), &gpu);
        let prompt = integers(&folder.join("tokens.json"), "greedy_prompt");
        let expected = integers(&folder.join("tokens.json"), "greedy_continuation");
        let found = greedy(&model, &gpu, &prompt, expected.len());
        assert_eq!(found, expected, "{}", folder.display());
    }
}

#[test]
fn logits_of_every_graph_equal_the_cpus_bit_for_bit() {
    let Some(gpu) = exact_gpu() else { return };
    let cpu = cpu();
    let mut failures = Vec::new();
    let groups = golden_folders("golden-group", "model.gguf");
    for folder in groups
        .into_iter()
        .chain(golden_folders("golden-graphs", "model.gguf"))
    {
        let path = folder.join("model.gguf");
        let tokens = integers(&folder.join("tokens.json"), "tokens");
        let (on_gpu, on_cpu) = (load(&path, &gpu), load(&path, &cpu));
        for (kv_type, chunk) in [(KvType::F16, tokens.len()), (KvType::F32, 3)] {
            let found = logits(&on_gpu, &gpu, &tokens, kv_type, chunk);
            let expected = logits(&on_cpu, &cpu, &tokens, kv_type, chunk);
            assert_eq!(gpu.failure(), None);
            let worst = largest_difference(&found, &expected);
            eprintln!(
                "{} chunks of {chunk}: largest difference {worst:e}",
                folder.display()
            );
            if worst > 0.0 {
                failures.push(format!("{} chunks of {chunk}: {worst:e}", folder.display()));
            }
        }
    }
    assert!(failures.is_empty(), "{failures:#?}");
}

#[test]
fn greedy_text_of_models_with_group_scales_equals_the_reference() {
    let Some(gpu) = gpu() else { return };
    for folder in golden_folders("golden-group", "model.gguf") {
        let model = load(&folder.join("model.gguf"), &gpu);
        let path = folder.join("greedy.json");
        let prompt = integers(&path, "prompt");
        let expected = integers(&path, "int8-32");
        let found = greedy(&model, &gpu, &prompt, expected.len());
        assert_eq!(found, expected, "{}", folder.display());
    }
}

#[test]
fn decays_in_f32_change_logits_no_more_than_rounding_flips_do() {
    let Some(adapter) = adapter() else { return };
    let limits = DeviceLimits {
        allows_f64: false,
        ..DeviceLimits::default()
    };
    let gpu = OpenGpu::new(adapter, limits)
        .expect("an able adapter opens")
        .start(1);
    let cpu = cpu();
    let mut num_models = 0;
    for folder in golden_folders("golden-group", "model.gguf")
        .iter()
        .rev()
        .take(2)
    {
        let path = folder.join("model.gguf");
        let tokens = integers(&folder.join("tokens.json"), "tokens");
        let on_gpu = load(&path, &gpu);
        num_models += usize::from(on_gpu.config().linear.is_some());
        let found = logits(&on_gpu, &gpu, &tokens, KvType::F16, 16);
        let expected = logits(&load(&path, &cpu), &cpu, &tokens, KvType::F16, 16);
        let vocab = on_gpu.config().vocab_size;
        for (found, expected) in found.chunks(vocab).zip(expected.chunks(vocab)) {
            assert!(cosine(found, expected) >= 0.99, "{}", folder.display());
        }
    }
    assert!(num_models > 0, "no golden model with linear attention");
}

#[test]
fn hidden_states_equal_the_cpus_bit_for_bit() {
    let Some(gpu) = exact_gpu() else { return };
    let cpu = cpu();
    for folder in golden_folders("golden-graphs", "model.gguf") {
        let path = folder.join("model.gguf");
        let tokens = integers(&folder.join("tokens.json"), "tokens");
        let found = hidden_states(&load(&path, &gpu), &gpu, &tokens);
        let expected = hidden_states(&load(&path, &cpu), &cpu, &tokens);
        assert_same_bits(&folder.display().to_string(), &found, &expected);
    }
}

#[test]
fn the_first_logits_of_golden_models_are_read_back_without_the_others() {
    let Some(gpu) = gpu() else { return };
    let plain = golden_folders("golden", "model-i2_s.gguf").into_iter();
    let plain = plain.map(|folder| folder.join("model-i2_s.gguf"));
    // A head with group scales, too.
    let groups = golden_folders("golden-group", "model.gguf").into_iter();
    let groups = groups.map(|folder| folder.join("model.gguf")).take(1);
    for path in plain.take(1).chain(groups) {
        let model = load(&path, &gpu);
        let mut cache = cache(&model, &gpu, KvType::F16, 1);
        let mut workspace = Workspace::new();
        let chunk = Chunk {
            tokens: &[1, 2, 3],
            position: 0,
            blocks: &[0],
            state: 0,
            logits: LogitRows::All,
        };
        model.hidden_states(&gpu, &mut workspace, &mut cache, std::iter::once(chunk));
        let (mut all, mut top) = (Vec::new(), Vec::new());
        model.logits(&gpu, &workspace, &[0, 2], &mut all);
        let before = gpu.bytes_read();
        assert!(model.top_logits(&gpu, &workspace, &[0, 2], 5, &mut top));
        assert_eq!(gpu.bytes_read() - before, 2 * 5 * 8, "{}", path.display());
        let vocab = model.config().vocab_size;
        let mut expected = Vec::new();
        for row in all.chunks_exact(vocab) {
            let mut ranked: Vec<(u32, f32)> = (0..).zip(row.iter().copied()).collect();
            ranked.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
            expected.extend_from_slice(&ranked[..5]);
        }
        assert_eq!(top, expected, "{}", path.display());
        let most = bitnet_wgpu::TOP_MAX + 1;
        assert!(!model.top_logits(&gpu, &workspace, &[0], most, &mut top));
    }
    assert_eq!(gpu.failure(), None);
}
