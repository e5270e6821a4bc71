//! Pooled hidden states equal the reference's, with any chunks and any other requests.

use std::path::{Path, PathBuf};

use bitnet_inference::{Device, Engine, EngineOptions, Event, Pooling, Request, load, normalize};
use bitnet_models::KvType;
use bitnet_tokenizers::TokenId;

fn folder(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../../tests/data/golden-graphs")
        .join(name)
}

/// The tokens of a golden model.
fn tokens(folder: &Path) -> Vec<TokenId> {
    let text = std::fs::read_to_string(folder.join("tokens.json")).expect("a readable file");
    let json: serde_json::Value = serde_json::from_str(&text).expect("JSON");
    let list = json["tokens"].as_array().expect("a list");
    list.iter()
        .map(|token| TokenId(token.as_u64().expect("an id") as u32))
        .collect()
}

/// The values of an npy file of f32.
fn read_npy(path: &Path) -> Vec<f32> {
    let bytes = std::fs::read(path).expect("a readable file");
    let header = u16::from_le_bytes([bytes[8], bytes[9]]) as usize;
    let values = bytes[10 + header..].chunks_exact(4);
    values
        .map(|value| f32::from_le_bytes(value.try_into().expect("four bytes")))
        .collect()
}

/// What an engine with this chunk size gives for prompts that it computes together.
fn pooled(folder: &Path, chunk: usize, prompts: &[(&[TokenId], Pooling)]) -> Vec<Vec<f32>> {
    let device = Device::cpu(2);
    let loaded = load(&folder.join("model.gguf"), &Default::default(), device).expect("it loads");
    let options = EngineOptions {
        context: 64,
        cache: 512,
        kv_type: KvType::F32,
        prefill_chunk: chunk,
        ..EngineOptions::default()
    };
    let mut engine = Engine::new(loaded.model, None, device, options).expect("memory");
    let ids: Vec<_> = prompts
        .iter()
        .map(|(tokens, pooling)| {
            let request = Request {
                prompt: tokens.to_vec(),
                max_tokens: Some(0),
                pooling: Some(*pooling),
                ..Request::default()
            };
            engine.submit(request).expect("a valid request")
        })
        .collect();
    let mut found = vec![Vec::new(); ids.len()];
    let mut events = Vec::new();
    while engine.is_busy() {
        engine.step(&mut events);
        for event in events.drain(..) {
            if let Event::Finished { id, finish, .. } = event {
                let index = ids.iter().position(|known| *known == id).expect("ours");
                found[index] = finish.pooled.expect("a pooled vector");
            }
        }
    }
    found
}

/// The pooled vector of the first `len` rows.
fn expected(rows: &[f32], hidden: usize, len: usize, pooling: Pooling) -> Vec<f32> {
    let row = |index: usize| &rows[index * hidden..(index + 1) * hidden];
    match pooling {
        Pooling::First => row(0).to_vec(),
        Pooling::Last => row(len - 1).to_vec(),
        Pooling::Mean => (0..hidden)
            .map(|col| (0..len).map(|index| row(index)[col]).sum::<f32>() / len as f32)
            .collect(),
    }
}

#[test]
fn pooled_hidden_states_equal_the_reference_in_any_batch_and_chunk() {
    for name in ["qwen3-embedding", "gemma3-embedding"] {
        let folder = folder(name);
        let (tokens, rows) = (tokens(&folder), read_npy(&folder.join("hidden-int8.npy")));
        let hidden = rows.len() / tokens.len();
        let prompts: Vec<(&[TokenId], Pooling)> = [1, 7, 24]
            .into_iter()
            .flat_map(|len| Pooling::ALL.map(|pooling| (&tokens[..len], pooling)))
            .collect();
        let together = pooled(&folder, 16, &prompts);
        for ((prompt, pooling), found) in prompts.iter().zip(&together) {
            let expected = expected(&rows, hidden, prompt.len(), *pooling);
            let pairs = found.iter().zip(&expected);
            let worst = pairs.map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
            let what = format!("{name} {} tokens {}", prompt.len(), pooling.name());
            assert!(found.len() == hidden && worst <= 1e-5, "{what}: {worst:e}");
        }
        for chunk in [1, 5, 64] {
            let found = pooled(&folder, chunk, &prompts);
            assert!(found == together, "{name}: chunks of {chunk} change a bit");
        }
        for (prompt, expected) in prompts.iter().zip(&together) {
            let found = pooled(&folder, 9, std::slice::from_ref(prompt));
            assert!(found[0] == *expected, "{name}: alone, a bit changes");
        }
    }
}

#[test]
fn normalized_vectors_have_length_1() {
    let mut values = [3.0, 0.0, -4.0];
    normalize(&mut values);
    assert_eq!(values, [0.6, 0.0, -0.8]);
    let mut zeros = [0.0; 4];
    normalize(&mut zeros);
    assert_eq!(zeros, [0.0; 4]);
}
