//! The same bits for any chunk, batch and repetition on one device.

use std::path::Path;

use bitnet_models::{Backend, Chunk, KvType, LogitRows, Workspace};

use crate::{assert_same_bits, cache, golden_folders, gpu, integers, load, logits};

/// Golden models of each graph: the file, and the file of its tokens.
fn models() -> Vec<(std::path::PathBuf, std::path::PathBuf)> {
    let of_folder = |folder: &Path, file: &str| (folder.join(file), folder.join("tokens.json"));
    let plain = golden_folders("golden", "model-i2_s.gguf");
    let plain = plain
        .iter()
        .map(|folder| of_folder(folder, "model-i2_s.gguf"));
    let groups = golden_folders("golden-group", "model.gguf");
    let groups = groups.iter().map(|folder| of_folder(folder, "model.gguf"));
    plain.chain(groups).collect()
}

#[test]
fn chunks_and_repetitions_change_no_bit() {
    let Some(gpu) = gpu() else { return };
    for (path, tokens) in models() {
        let model = load(&path, &gpu);
        let tokens = integers(&tokens, "tokens");
        let tokens = &tokens[..tokens.len().min(24)];
        let expected = logits(&model, &gpu, tokens, KvType::F16, tokens.len());
        // 9 rows and more are multiplied in tiles, fewer are not.
        for chunk in [1, 7, tokens.len()] {
            let found = logits(&model, &gpu, tokens, KvType::F16, chunk);
            assert_same_bits(&format!("{} {chunk}", path.display()), &found, &expected);
        }
    }
}

#[test]
fn other_sequences_of_a_batch_change_no_bit() {
    let Some(gpu) = gpu() else { return };
    for (path, tokens) in models() {
        let model = load(&path, &gpu);
        let vocab = model.config().vocab_size;
        let tokens = integers(&tokens, "tokens");
        let ours = &tokens[..9];
        let others: Vec<u32> = (0..15).map(|i| (i * 37 + 5) % vocab as u32).collect();
        let alone = logits(&model, &gpu, ours, KvType::F16, 3);
        let mut cache = cache(&model, &gpu, KvType::F16, 3);
        let mut workspace = Workspace::new();
        let mut found = Vec::new();
        for step in 0..3 {
            let chunk = |tokens, position, block: &'static [u32], state| Chunk {
                tokens,
                position,
                blocks: block,
                state,
                logits: LogitRows::All,
            };
            let chunks = [
                chunk(&others[5 * step..5 * step + 5], 5 * step, &[1], 3),
                chunk(&ours[3 * step..3 * step + 3], 3 * step, &[2], 0),
                chunk(&others[step..step + 1], step, &[0], 2),
            ];
            let all = model.forward(&gpu, &mut workspace, &mut cache, &chunks);
            found.extend_from_slice(&all[5 * vocab..8 * vocab]);
        }
        assert_eq!(gpu.failure(), None);
        assert_same_bits(&path.display().to_string(), &found, &alone);
    }
}

#[test]
fn a_copied_state_continues_a_sequence() {
    let Some(gpu) = gpu() else { return };
    for folder in golden_folders("golden-group", "model.gguf") {
        let model = load(&folder.join("model.gguf"), &gpu);
        if model.config().linear.is_none() {
            continue;
        }
        let tokens = integers(&folder.join("tokens.json"), "tokens");
        let (first, rest) = tokens[..12].split_at(8);
        let expected = logits(&model, &gpu, &tokens[..12], KvType::F16, 8);
        let mut cache = cache(&model, &gpu, KvType::F16, 1);
        let mut workspace = Workspace::new();
        let mut run = |cache: &mut _, tokens, position, state| {
            let chunk = Chunk {
                tokens,
                position,
                blocks: &[0],
                state,
                logits: LogitRows::All,
            };
            model
                .forward(&gpu, &mut workspace, cache, &[chunk])
                .to_vec()
        };
        run(&mut cache, first, 0, 1);
        gpu.copy_state(&mut cache, 1, 3);
        // The first sequence goes on, which must not change the copy.
        run(&mut cache, &tokens[20..24], 8, 1);
        let found = run(&mut cache, rest, 8, 3);
        let name = folder.display().to_string();
        assert_same_bits(&name, &found, &expected[8 * model.config().vocab_size..]);
    }
}
