//! Models with a scale for each group of weights, including hybrid and rotated ones: their logits
//! equal the reference's, and any chunks, threads and instruction set give the same bits.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use bitnet_files::gguf::{Gguf, MetadataValue};
use bitnet_kernels::{Cpu, KernelSet, Packing};
use bitnet_models::{InputRounding, KvType, LanguageModel, LoadOptions};

use crate::{assert_same_bits, logits, read_npy, rotation};

/// The golden models that exist here: all models of `shared/` beside this repository, or the ones
/// in the repository.
fn golden_models() -> Vec<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let places = [
        root.join("../shared/golden-group"),
        root.join("tests/data/golden-group"),
    ];
    let Some(folder) = places.into_iter().find(|folder| folder.exists()) else {
        eprintln!("skipped: no golden models with group scales here");
        return Vec::new();
    };
    let entries = std::fs::read_dir(folder).expect("a readable folder");
    let mut models: Vec<PathBuf> = entries
        .map(|entry| entry.expect("an entry").path())
        .filter(|path| path.join("model.gguf").exists())
        .collect();
    models.sort();
    models
}

/// The golden model with this name.
pub fn golden_model(name: &str) -> Option<PathBuf> {
    golden_models()
        .into_iter()
        .find(|folder| folder.ends_with(name))
}

pub fn load(folder: &Path, group_inputs: InputRounding, cpu: &Cpu) -> LanguageModel<Cpu> {
    let gguf = Gguf::open(&folder.join("model.gguf")).expect("a golden file opens");
    let options = LoadOptions {
        group_inputs,
        ..LoadOptions::default()
    };
    LanguageModel::from_gguf(&Arc::new(gguf), &options, cpu).expect("a golden file loads")
}

/// A list of integers, optionally behind a key.
pub fn integers(path: &Path, key: Option<&str>) -> Vec<u32> {
    let text = std::fs::read_to_string(path).expect("a readable file");
    let start = key.map_or(0, |key| text.find(&format!("\"{key}\":")).expect("the key"));
    let list = text[start..].split_once('[').expect("a list").1;
    let list = list.split_once(']').expect("its end").0;
    list.split(',')
        .map(|id| id.trim().parse().expect("an id"))
        .collect()
}

fn name(folder: &Path) -> String {
    folder
        .file_name()
        .expect("a name")
        .to_string_lossy()
        .into_owned()
}

#[test]
fn logits_equal_the_reference_for_every_rounding_of_inputs() {
    let cpu = Cpu::new(KernelSet::detect(), 2);
    let mut failures = Vec::new();
    for folder in golden_models() {
        let tokens = integers(&folder.join("tokens.json"), Some("tokens"));
        for rounding in InputRounding::ALL {
            let expected = match rounding {
                InputRounding::Int8(run) => format!("logits-int8-{run}.npy"),
                InputRounding::None => "logits.npy".to_owned(),
            };
            let is_shortened = rounding == InputRounding::Int8(128)
                && name(&folder).contains("q2_0")
                && !name(&folder).contains("pq2_0")
                && !name(&folder).contains("g128");
            if is_shortened {
                // A run of inputs is never longer than a group of weights, 64 here.
                continue;
            }
            let model = load(&folder, rounding, &cpu);
            let found = logits(&model, &cpu, &tokens, KvType::F32, 13);
            let expected = read_npy(&folder.join(expected));
            assert_eq!(found.len(), expected.len(), "{}", name(&folder));
            let differences = found.iter().zip(&expected).map(|(a, b)| (a - b).abs());
            let worst = differences.fold(0.0, f32::max);
            eprintln!(
                "{} {}: largest difference {worst:e}",
                name(&folder),
                rounding.name()
            );
            if worst > 1e-4 {
                let first = found
                    .iter()
                    .zip(&expected)
                    .position(|(a, b)| (a - b).abs() > 1e-4);
                failures.push(format!(
                    "{} {}: {worst:e} from position {} on",
                    name(&folder),
                    rounding.name(),
                    first.unwrap_or(0) / model.config().vocab_size
                ));
            }
        }
    }
    assert!(failures.is_empty(), "{failures:#?}");
}

#[test]
fn greedy_text_equals_the_reference_text() {
    let cpu = Cpu::new(KernelSet::detect(), 2);
    for folder in golden_models() {
        let model = load(&folder, InputRounding::default(), &cpu);
        let vocab = model.config().vocab_size;
        let mut tokens = integers(&folder.join("greedy.json"), Some("prompt"));
        let text = std::fs::read_to_string(folder.join("greedy.json")).expect("greedy.json");
        let rounded = text.split_once("\"int8-32\"").expect("the rounding").1;
        let list = rounded.split_once('[').expect("a list").1;
        let list = list.split_once(']').expect("its end").0;
        let expected: Vec<u32> = list
            .split(',')
            .map(|id| id.trim().parse().expect("an id"))
            .collect();
        let prompt = tokens.len();
        for _ in &expected {
            let all = logits(&model, &cpu, &tokens, KvType::F32, 7);
            let last = &all[all.len() - vocab..];
            let best = (0..vocab).fold(0, |best, i| if last[i] > last[best] { i } else { best });
            tokens.push(best as u32);
        }
        assert_eq!(tokens[prompt..], expected, "{}", name(&folder));
    }
}

#[test]
fn chunks_threads_and_sets_change_no_bit() {
    let shapes = [(1, 1), (2, 5), (3, 48)];
    for (number, folder) in golden_models().into_iter().enumerate() {
        let tokens = integers(&folder.join("tokens.json"), Some("tokens"));
        let reference = {
            let cpu = Cpu::new(KernelSet::by_name("scalar").expect("the reference"), 1);
            let model = load(&folder, InputRounding::default(), &cpu);
            logits(&model, &cpu, &tokens, KvType::F16, tokens.len())
        };
        for (index, set) in KernelSet::available().enumerate() {
            // The best set runs all shapes. Each other set runs one shape, a different one for each
            // model.
            let own = (index + number) % shapes.len();
            let shapes = if index == 0 {
                &shapes[..]
            } else {
                &shapes[own..=own]
            };
            for (threads, chunk) in shapes {
                let cpu = Cpu::new(set, *threads);
                let model = load(&folder, InputRounding::default(), &cpu);
                let found = logits(&model, &cpu, &tokens, KvType::F16, chunk + index);
                let name = format!("{} {set:?} {threads} {chunk}", name(&folder));
                assert_same_bits(&name, &found, &reference);
            }
        }
    }
}

#[test]
fn trits_take_less_memory_and_give_the_same_bits() {
    let load = |folder: &Path, packing, cpu: &Cpu| {
        let gguf = Gguf::open(&folder.join("model.gguf")).expect("a golden file opens");
        let options = LoadOptions {
            packing: Some(packing),
            ..LoadOptions::default()
        };
        LanguageModel::from_gguf(&Arc::new(gguf), &options, cpu).expect("a golden file loads")
    };
    for name in ["qwen3-ptq1_0", "qwen35-ptq1_0-rot512-part"] {
        let Some(folder) = golden_model(name) else {
            continue;
        };
        let tokens = integers(&folder.join("tokens.json"), Some("tokens"));
        for set in [
            KernelSet::by_name("scalar").expect("the reference"),
            KernelSet::detect(),
        ] {
            let cpu = Cpu::new(set, 2);
            let [plain, trits] =
                [Packing::Two, Packing::FiveThirds].map(|packing| load(&folder, packing, &cpu));
            assert_eq!(plain.packing(), "2-bit groups");
            assert_eq!(trits.packing(), "1.67-bit groups");
            assert!(trits.num_ternary_bytes() < plain.num_ternary_bytes());
            let found = logits(&trits, &cpu, &tokens, KvType::F16, 16);
            let expected = logits(&plain, &cpu, &tokens, KvType::F16, 16);
            assert_same_bits(name, &found, &expected);
        }
    }
}

#[test]
fn a_matrix_with_a_code_of_3_keeps_2_bits() {
    let Some(folder) = golden_model("qwen3-q2_0") else {
        return;
    };
    let cpu = Cpu::new(KernelSet::detect(), 2);
    let gguf = Gguf::open(&folder.join("model.gguf")).expect("a golden file opens");
    let options = LoadOptions {
        packing: Some(Packing::FiveThirds),
        ..LoadOptions::default()
    };
    let model = LanguageModel::from_gguf(&Arc::new(gguf), &options, &cpu).expect("it loads");
    assert!(
        model.packing().contains("2-bit groups"),
        "{}",
        model.packing()
    );
}

#[test]
fn invalid_numbers_of_yarn_are_errors_that_name_the_key() {
    let Some(folder) = golden_model("qwen3-ptq1_0") else {
        return;
    };
    let base = folder.join("model.gguf");
    let yarn = |key: &'static str, value: f32| {
        let f32 = |value| Some(MetadataValue::F32(value));
        let mut changes = vec![
            ("qwen3.rope.scaling.type", rotation::text("yarn")),
            ("qwen3.rope.scaling.factor", f32(4.0)),
            (
                "qwen3.rope.scaling.original_context_length",
                Some(MetadataValue::U32(64)),
            ),
        ];
        changes.retain(|(known, _)| *known != key);
        changes.push((key, f32(value)));
        rotation::error(&base, &changes, "")
    };
    let (factor, fast) = (
        "qwen3.rope.scaling.factor",
        "qwen3.rope.scaling.yarn_beta_fast",
    );
    assert_eq!((yarn(factor, 4.0), yarn(fast, 32.0)), (None, None));
    for value in [0.0, -1.0, f32::INFINITY, f32::NAN, 1e-40, 1e10] {
        for key in [factor, fast] {
            let error = yarn(key, value).unwrap_or_default();
            let words = format!("{key} is {value}, expected more than 0 and at most 1e9");
            assert!(error.contains(&words), "{value}: {error}");
        }
    }
}
