//! Directories, and what `inspect` shows of a model's files.

use std::path::Path;

use bitnet_files::gguf::{Gguf, GgufWriter, MetadataValue, TensorInfo};
use serde_json::Value;

use crate::{bitnet, data, failure, golden, json, list, output, text, tokens_json};

#[test]
fn a_directory_and_its_conversion_give_the_same_logits() {
    let folder = tempfile::tempdir().expect("a folder");
    let at = |name: &str| folder.path().join(name).display().to_string();
    let directory = data("golden/strict-b158/hf-packed").display().to_string();
    let converted = at("converted.gguf");
    let result = bitnet(&[
        "convert", &directory, "-o", &converted, "--tables", "bf16", "--json",
    ]);
    assert!(result.status.success(), "{}", text(&result.stderr));
    assert!(
        text(&result.stderr).contains("tokenizer.json"),
        "the warning names the missing file"
    );
    let tokens = list(&tokens_json()["tokens"]);
    for (model, file) in [(&directory, at("a.npy")), (&converted, at("b.npy"))] {
        output(&["logits", "-m", model, "--tokens", &tokens, "-o", &file]);
    }
    assert!(
        std::fs::read(at("a.npy")).expect("a file") == std::fs::read(at("b.npy")).expect("a file")
    );

    let before = std::fs::read(&converted).expect("the file");
    let (code, message) = failure(&["convert", &directory, "-o", &converted]);
    assert!(code == 1 && message.contains("converted.gguf"), "{message}");
    assert!(
        std::fs::read(&converted).expect("the file") == before,
        "the existing file stays"
    );
    assert!(
        bitnet(&["convert", &directory, "-o", &converted, "--force"])
            .status
            .success()
    );
    assert_ne!(
        std::fs::read(&converted).expect("the file"),
        before,
        "f16 tables by default"
    );
    let (_, message) = failure(&["run", "-m", &converted, "hello"]);
    assert!(message.contains("--prompt-tokens"), "{message}");
    let names = std::fs::read_dir(folder.path()).expect("a folder").count();
    assert_eq!(names, 3, "nothing half-written is left");
}

#[test]
fn a_directory_may_have_more_tokens_than_rows() {
    let folder = tempfile::tempdir().expect("a folder");
    let at = |name: &str| folder.path().join(name).display().to_string();
    let stories = data("../../models/stories/stories.gguf")
        .display()
        .to_string();
    let directory = at("stories");
    let convert = [
        "convert",
        &stories,
        "--type",
        "safetensors",
        "-o",
        &directory,
    ];
    assert!(bitnet(&convert).status.success());
    let edit = |name: &str, change: &dyn Fn(&mut Value)| {
        let path = folder.path().join("stories").join(name);
        let text = std::fs::read_to_string(&path).expect("the file");
        let mut json = serde_json::from_str(&text).expect("JSON");
        change(&mut json);
        std::fs::write(path, json.to_string()).expect("written");
    };
    output(&[
        "logits",
        "-m",
        &directory,
        "--tokens",
        "1,2",
        "-o",
        &at("a.npy"),
    ]);
    edit("tokenizer.json", &|json| {
        let token = serde_json::json!({"id": 4096, "content": "<extra>", "special": false});
        let tokens = json["added_tokens"].as_array_mut().expect("a list");
        tokens.push(token);
    });
    edit("config.json", &|json| {
        json["rope_scaling"] = serde_json::json!({"factor": 2.0})
    });
    output(&[
        "logits",
        "-m",
        &directory,
        "--tokens",
        "1,2",
        "-o",
        &at("b.npy"),
    ]);
    let read = |name: &str| std::fs::read(at(name)).expect("a file");
    assert!(read("a.npy") == read("b.npy"));
    let (code, message) = failure(&["run", "-m", &directory, "-n", "1", "Once<extra>"]);
    assert_eq!(code, 2, "{message}");
    assert!(
        message.contains("prompt token 2 is 4096, but the vocabulary ends at 4095"),
        "{message}"
    );
    let odd = json(&["inspect", &directory, "--json"])["odd"].to_string();
    for line in [
        "the tokenizer has 4097 tokens, but the model only 4096, so prompts with the others are refused",
        "config.json scales positions by 2 without a rope_type",
    ] {
        assert!(odd.contains(line), "{odd}");
    }
    let (_, message) = failure(&["convert", &directory, "-o", &at("x.gguf")]);
    assert!(message.contains("4097"), "{message}");
}

#[test]
fn inspect_shows_the_contents_and_warns_about_problems() {
    let report = json(&["inspect", &golden(), "--tensors", "--json"]);
    assert_eq!(report["model"]["architecture"], "bitnet-b1.58");
    assert_eq!(report["model"]["layers"], 2);
    assert_eq!(report["types"]["I2_S"]["tensors"], 14);
    assert_eq!(report["tensors"].as_array().map(Vec::len), Some(24));
    assert!(
        report["odd"][0]
            .as_str()
            .expect("a line")
            .contains("tokenizer.ggml.pre is missing")
    );
    assert!(output(&["inspect", &golden()]).contains("hidden        256"));
    let directory = data("golden/strict-b158/hf-packed").display().to_string();
    assert_eq!(json(&["inspect", &directory, "--json"])["model"], {
        let mut model = report["model"].clone();
        model["name"] = Value::Null;
        model["architecture"] = "BitNetForCausalLM".into();
        model
    });
    assert!(output(&["inspect", &directory, "--tensors"]).contains("model.embed_tokens.weight"));
}

/// Writes a model to `path` with some pairs replaced or added, and without the pairs and tensors
/// whose names begin with `without`.
fn rewrite(source: &str, path: &Path, pairs: &[(&str, MetadataValue)], without: &str) -> String {
    let gguf = Gguf::open(Path::new(source)).expect("the model");
    let mut all: Vec<(String, MetadataValue)> = gguf
        .metadata()
        .iter()
        .map(|(key, value)| (key.to_owned(), value.into()))
        .collect();
    all.retain(|(key, _)| !key.starts_with(without));
    for (key, value) in pairs {
        all.retain(|(known, _)| known != key);
        all.push(((*key).to_owned(), value.clone()));
    }
    let kept = || {
        gguf.tensors()
            .filter(|tensor| !tensor.name.starts_with(without))
    };
    let infos = kept().map(|tensor| TensorInfo {
        name: tensor.name.to_owned(),
        dtype: tensor.dtype,
        dims: tensor.dims.to_vec(),
    });
    let mut writer = GgufWriter::create(path, &all, infos.collect()).expect("a new file");
    for tensor in kept() {
        writer.begin_tensor().expect("room");
        writer.write(tensor.data).expect("room");
    }
    writer.finish().expect("room");
    path.display().to_string()
}

#[test]
fn inspect_reports_why_a_file_cannot_be_used() {
    let folder = tempfile::tempdir().expect("a folder");
    let text = |text: &str| MetadataValue::String(text.to_owned());
    for (name, pairs, without, expected) in [
        (
            "block",
            vec![],
            "blk.1.ffn_up",
            "the model cannot be run: tensor blk.1.ffn_up.weight is missing",
        ),
        (
            "template",
            vec![("tokenizer.chat_template", text("{% if x %}"))],
            "-",
            "the chat template cannot be used, so every chat fails: ",
        ),
        (
            "eos",
            vec![("tokenizer.ggml.eos_token_id", MetadataValue::U32(u32::MAX))],
            "-",
            "tokenizer.ggml.eos_token_id is 4294967295, but the vocabulary ends at ",
        ),
        (
            "tokens",
            vec![],
            "tokenizer.ggml.tokens",
            "the tokenizer cannot be used: metadata key tokenizer.ggml.tokens is missing",
        ),
        (
            "name",
            vec![("general.name", text("Ternary-Bonsai-2-2B"))],
            "-",
            "the keys prism.hadamard.* are missing",
        ),
        (
            "top_p",
            vec![("general.sampling.top_p", MetadataValue::F32(7.0))],
            "-",
            "the recommended sampling cannot be used: model configuration: general.sampling.*: the top_p is 7",
        ),
    ] {
        let path = rewrite(&golden(), &folder.path().join(name), &pairs, without);
        let odd = json(&["inspect", &path, "--json"])["odd"].to_string();
        assert!(odd.contains(expected), "{name}: {odd}");
        let plain = output(&["inspect", &path]);
        let (_, odd) = plain.split_once("\nWarnings\n").expect("the section");
        assert!(odd.contains(expected), "{name}: {odd}");
    }
}

#[test]
fn inspect_shows_the_sampling_that_a_model_recommends() {
    let folder = tempfile::tempdir().expect("a folder");
    let pairs = [
        ("general.sampling.temp", MetadataValue::F32(0.6)),
        ("general.sampling.top_k", MetadataValue::I32(20)),
    ];
    let path = rewrite(&golden(), &folder.path().join("model.gguf"), &pairs, "-");
    let sampling = &json(&["inspect", &path, "--json"])["sampling"];
    assert_eq!(
        *sampling,
        serde_json::json!({"temperature": 0.6, "top_k": 20.0})
    );
    assert!(
        output(&["inspect", &path]).contains("Recommended sampling\n  temperature        0.6\n")
    );
    assert_eq!(
        json(&["inspect", &golden(), "--json"])["sampling"],
        serde_json::json!({})
    );
}

#[test]
fn the_models_sampling_comes_after_the_options_and_before_the_defaults() {
    let folder = tempfile::tempdir().expect("a folder");
    let stories = data("../../models/stories/stories.gguf")
        .display()
        .to_string();
    let pairs = [("general.sampling.temp", MetadataValue::F32(0.0))];
    let greedy = rewrite(&stories, &folder.path().join("model.gguf"), &pairs, "-");
    let tokens = |model: &str, options: &[&str]| {
        let arguments = [
            "run", "-m", model, "Once", "-n", "16", "--json", "--seed", "3",
        ];
        json(&[&arguments, options].concat())["tokens"].clone()
    };
    let (recommended, hot) = (tokens(&greedy, &[]), tokens(&greedy, &["--temp", "1.5"]));
    assert_eq!(recommended, tokens(&stories, &["--temp", "0"]));
    assert_eq!(hot, tokens(&stories, &["--temp", "1.5"]));
    assert_ne!(recommended, hot);
    assert_eq!(
        tokens(&stories, &[]),
        tokens(&stories, &["--temp", "0.8", "--top-k", "40"])
    );
}
