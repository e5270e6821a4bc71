//! `perplexity`, from the logits.

use std::path::Path;

use crate::{golden, json, output};

/// The f32 values of a version 1 `.npy` file.
fn read_npy(path: &Path) -> Vec<f32> {
    let bytes = std::fs::read(path).expect("a npy file");
    let header = usize::from(u16::from_le_bytes([bytes[8], bytes[9]]));
    bytes[10 + header..]
        .as_chunks::<4>()
        .0
        .iter()
        .map(|b| f32::from_le_bytes(*b))
        .collect()
}

#[test]
fn perplexity_follows_from_the_logits() {
    let golden = golden();
    let folder = tempfile::tempdir().expect("a folder");
    let at = |name: &str| folder.path().join(name).display().to_string();
    let content = "Anyone can print a number. This one has to be the one that the logits of every chunk come to.";
    std::fs::write(at("text.txt"), content).expect("a file");
    let tokens = json(&["tokenize", "-m", &golden, content, "--json"])["tokens"].clone();
    let tokens: Vec<u64> = tokens
        .as_array()
        .expect("a list")
        .iter()
        .map(|id| id.as_u64().expect("an id"))
        .collect();
    let (bos, len) = (tokens[0], tokens.len());
    // Count by hand: windows, the leading tokens that are not counted, and whether BOS replaces the
    // first token.
    let chunks: Vec<_> = (0..len / 16)
        .map(|i| (i * 16, i * 16 + 16, 9, true))
        .collect();
    let strides: Vec<_> = (0..(len - 18).div_ceil(4))
        .map(|i| (i * 4, i * 4 + 18, 14, false))
        .collect();
    assert!(chunks.len() > 3 && strides.len() > 10, "{len} tokens");
    for (options, windows) in [
        (&["--ctx", "16"][..], chunks),
        (&["--ctx", "16", "--stride", "4"], strides),
    ] {
        let (mut nats, mut count) = (0.0, 0);
        for (start, end, skip, with_bos) in windows {
            let mut window = tokens[start..end].to_vec();
            if with_bos {
                window[0] = bos;
            }
            let ids = window
                .iter()
                .map(u64::to_string)
                .collect::<Vec<_>>()
                .join(",");
            output(&[
                "logits",
                "-m",
                &golden,
                "--tokens",
                &ids,
                "-o",
                &at("logits.npy"),
            ]);
            let logits: Vec<f64> = read_npy(&folder.path().join("logits.npy"))
                .into_iter()
                .map(f64::from)
                .collect();
            for (row, &next) in logits
                .chunks(logits.len() / window.len())
                .zip(&window[1..])
                .skip(skip - 1)
            {
                nats += row.iter().map(|logit| logit.exp()).sum::<f64>().ln() - row[next as usize];
                count += 1;
            }
        }
        let found = json(
            &[
                &["perplexity", "-m", &golden, "-f", &at("text.txt"), "--json"],
                options,
            ]
            .concat(),
        );
        assert_eq!(found["tokens"], count);
        let perplexity = found["perplexity"].as_f64().expect("a number");
        assert!(
            (perplexity / (nats / f64::from(count)).exp() - 1.0).abs() < 1e-6,
            "{found}"
        );
    }
}
