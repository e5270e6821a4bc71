//! Runs `bitnet convert` and `bitnet quantize`: conversions keep the model, and no signal leaves a
//! partial output.

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use bitnet_models::Architecture;
use bitnet_models::synthetic::{CheckpointWeights, Shape, SyntheticModel};
use bitnet_quantization::dense::Dense;
use serde_json::Value;

fn stories() -> String {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../../models/stories/stories.gguf")
        .display()
        .to_string()
}

fn command(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_bitnet"));
    command
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    command
}

fn bitnet(arguments: &[&str]) -> Output {
    command(arguments).output().expect("the program runs")
}

/// The stdout and stderr of a command that must succeed.
fn output(arguments: &[&str]) -> (String, String) {
    let result = bitnet(arguments);
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).expect("UTF-8");
    assert!(
        result.status.success(),
        "{arguments:?}: {}",
        text(&result.stderr)
    );
    (text(&result.stdout), text(&result.stderr))
}

fn json(arguments: &[&str]) -> Value {
    serde_json::from_str(&output(arguments).0).expect("one JSON object")
}

fn failure(arguments: &[&str]) -> String {
    let result = bitnet(arguments);
    assert!(!result.status.success(), "{arguments:?} must fail");
    String::from_utf8(result.stderr).expect("UTF-8")
}

/// A temporary folder, and the paths in it as text.
struct Folder(tempfile::TempDir);

impl Folder {
    fn new() -> Self {
        Self(tempfile::tempdir().expect("a folder"))
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn at(&self, name: &str) -> String {
        self.path(name).display().to_string()
    }

    fn names(&self) -> Vec<String> {
        let entries = std::fs::read_dir(self.0.path()).expect("a folder");
        let mut names: Vec<String> = entries
            .map(|entry| {
                entry
                    .expect("an entry")
                    .file_name()
                    .to_string_lossy()
                    .into_owned()
            })
            .collect();
        names.sort();
        names
    }
}

#[test]
fn every_format_of_the_built_in_model_gives_the_same_story() {
    let folder = Folder::new();
    let story = |model: &str| {
        json(&[
            "run",
            "-m",
            model,
            "Once upon a time",
            "--temp",
            "0",
            "-n",
            "40",
            "--json",
        ])["tokens"]
            .clone()
    };
    let expected = story(&stories());
    let mut source = stories();
    for form in [
        "tq2_0",
        "tl1",
        "pq2_0",
        "f32",
        "tl2",
        "ptq1_0",
        "tq1_0",
        "bf16",
        "i2_s",
        "safetensors",
        "i2_s",
    ] {
        let out = folder.at(&format!("{}-{form}", folder.names().len()));
        let report = json(&["convert", &source, "--type", form, "-o", &out, "--json"]);
        assert_eq!(
            (report["type"].as_str(), report["scales_rounded"].as_u64()),
            (Some(form), Some(0)),
            "{report}"
        );
        assert_eq!(story(&out), expected, "{form}");
        let shown = json(&["inspect", &out, "--json"]);
        let odd = shown["odd"].to_string();
        assert_eq!(
            odd.contains("such projections run"),
            matches!(form, "f32" | "bf16"),
            "{form}: {odd}"
        );
        let type_name = if form == "safetensors" {
            "U8"
        } else {
            &form.to_uppercase()
        };
        assert!(
            shown["types"][type_name]["tensors"].as_u64() >= Some(42),
            "{form}: {shown}"
        );
        source = out;
    }
    let tensors = |model: &str| json(&["inspect", model, "--tensors", "--json"])["tensors"].clone();
    assert_eq!(
        tensors(&source),
        tensors(&stories()),
        "the tensors equal the original ones"
    );
}

#[test]
fn a_conversion_from_and_to_a_directory_keeps_the_tokenizer() {
    let folder = Folder::new();
    let model = SyntheticModel {
        shape: Shape {
            vocab_size: 1024,
            ..Shape::default()
        },
        seed: 21,
    };
    model
        .write_checkpoint(&folder.path("source"), CheckpointWeights::Bf16, 2)
        .expect("a directory");
    std::fs::write(
        folder.path("source/generation_config.json"),
        "{\"eos_token_id\": [257]}",
    )
    .expect("a file");
    let ids = |model: &str| json(&["tokenize", "-m", model, "some text 42", "--json"]);
    let expected = ids(&folder.at("source"));
    for (source, form, out) in [
        ("source", "tq2_0", "refused.gguf"),
        ("source", "i2_s", "file.gguf"),
        ("source", "safetensors", "packed"),
        ("file.gguf", "safetensors", "from-file"),
        ("from-file", "tl2", "again.gguf"),
    ] {
        let (source, out) = (folder.at(source), folder.at(out));
        let arguments = ["convert", &source, "--type", form, "-o", &out];
        if form == "tq2_0" {
            assert!(
                failure(&arguments).contains("Down has 384 columns, TQ2_0 needs a multiple of 256")
            );
            continue;
        }
        assert_eq!(output(&arguments).1, "", "{form}");
        assert_eq!(ids(&out), expected, "{form}");
    }
    let read = |name: &str| std::fs::read(folder.path(name)).expect("a file");
    for name in [
        "tokenizer.json",
        "tokenizer_config.json",
        "generation_config.json",
    ] {
        assert!(
            read(&format!("packed/{name}")) == read(&format!("source/{name}")),
            "{name} is copied"
        );
    }
}

#[test]
fn a_conversion_keeps_sampling_defaults_and_stop_tokens() {
    let folder = Folder::new();
    let shape = Shape {
        vocab_size: 1024,
        ..Shape::default()
    };
    let source = folder.at("source");
    SyntheticModel { shape, seed: 23 }
        .write_checkpoint(&folder.path("source"), CheckpointWeights::Packed, 1)
        .expect("a directory");
    let generation = "{\"eos_token_id\": [900, 901, 902, 903, 904], \"do_sample\": true, \
                      \"temperature\": 0.6, \"top_k\": 20, \"top_p\": 0.9, \"repetition_penalty\": 1.1}";
    std::fs::write(folder.path("source/generation_config.json"), generation).expect("a file");
    let expected = serde_json::json!(
        {"temperature": 0.6, "top_k": 20.0, "top_p": 0.9, "repetition_penalty": 1.1}
    );
    let inspected = |model: &str| json(&["inspect", model, "--json"]);
    assert_eq!(inspected(&source)["sampling"], expected);

    let (file, again) = (folder.at("file.gguf"), folder.at("again"));
    let (_, said) = output(&["convert", &source, "-o", &file]);
    assert!(
        said.contains("GGUF has no place for all tokens that end an answer: "),
        "{said}"
    );
    assert_eq!(inspected(&file)["sampling"], expected);
    let stops = inspected(&file)["tokenizer"]["stop_ids"].to_string();
    assert!(stops.contains("900") && stops.contains("901"), "{stops}");
    output(&["convert", &file, "--type", "safetensors", "-o", &again]);
    assert_eq!(inspected(&again)["sampling"], expected);
    let text = std::fs::read(folder.path("again/generation_config.json")).expect("a file");
    let json: Value = serde_json::from_slice(&text).expect("JSON");
    assert_eq!(
        (&json["do_sample"], &json["top_k"]),
        (&true.into(), &20.into())
    );
}

#[test]
fn directories_have_the_fields_that_other_loaders_read() {
    let folder = Folder::new();
    let shape = Shape {
        architecture: Architecture::Llama,
        tied: false,
        vocab_size: 1024,
        ..Shape::default()
    };
    let model = SyntheticModel { shape, seed: 24 };
    model
        .write_checkpoint(&folder.path("source"), CheckpointWeights::Bf16, 1)
        .expect("a directory");
    let path = folder.path("source/config.json");
    let mut config: Value =
        serde_json::from_slice(&std::fs::read(&path).expect("a file")).expect("JSON");
    config["rope_parameters"] = serde_json::json!({"rope_type": "default", "rope_theta": 5000.0});
    config
        .as_object_mut()
        .expect("an object")
        .remove("rope_theta");
    std::fs::write(&path, config.to_string()).expect("a file");
    let (source, file) = (folder.at("source"), folder.at("file.gguf"));
    output(&["convert", &source, "-o", &file]);
    for (source, out) in [(&source, "packed"), (&file, "from-file")] {
        let out = folder.at(out);
        let arguments = [
            "convert",
            source,
            "--type",
            "safetensors",
            "--bf16-scales",
            "-o",
            &out,
        ];
        let (_, said) = output(&arguments);
        assert!(
            said.contains("scales were rounded to the 16 bits"),
            "{said}"
        );
        let text = std::fs::read(Path::new(&out).join("config.json")).expect("a file");
        let config: Value = serde_json::from_slice(&text).expect("JSON");
        assert_eq!(
            config["quantization_config"]["modules_to_not_convert"],
            serde_json::json!(["lm_head"])
        );
        assert_eq!(
            (
                &config["rope_theta"],
                &config["rope_parameters"]["rope_theta"]
            ),
            (&5000.0.into(), &5000.0.into())
        );
        let tensors = json(&["inspect", &out, "--tensors", "--json"])["tensors"].clone();
        let scales = tensors.as_array().expect("a list").iter();
        let scales =
            scales.filter(|tensor| tensor["name"].as_str().expect("a name").ends_with("_scale"));
        assert!(scales.clone().count() > 0 && scales.clone().all(|scale| scale["type"] == "BF16"));
    }
}

#[test]
fn a_directory_of_floats_without_a_quantization_config_is_quantized_on_request() {
    let folder = Folder::new();
    let model = SyntheticModel {
        shape: Shape {
            vocab_size: 1024,
            ..Shape::default()
        },
        seed: 25,
    };
    let (source, expected, out) = (
        folder.at("source"),
        folder.at("expected.gguf"),
        folder.at("out.gguf"),
    );
    model
        .write_checkpoint(&folder.path("source"), CheckpointWeights::Bf16, 1)
        .expect("a directory");
    output(&["convert", &source, "-o", &expected]);
    let path = folder.path("source/config.json");
    let mut config: Value =
        serde_json::from_slice(&std::fs::read(&path).expect("a file")).expect("JSON");
    config
        .as_object_mut()
        .expect("an object")
        .remove("quantization_config");
    std::fs::write(&path, config.to_string()).expect("a file");
    let message = failure(&["convert", &source, "-o", &out]);
    assert!(
        message.contains("so they are not ternary; `bitnet quantize` rounds them"),
        "{message}"
    );
    let odd = json(&["inspect", &source, "--json"])["odd"].to_string();
    assert!(
        odd.contains("config.json has no quantization_config"),
        "{odd}"
    );
    output(&["quantize", &source, "-o", &out]);
    assert!(std::fs::read(&out).expect("a file") == std::fs::read(&expected).expect("a file"));
}

#[test]
fn convert_names_the_programs_that_cannot_run_the_result() {
    let folder = Folder::new();
    for form in ["tq2_0", "q2_0", "i2_s"] {
        let (_, said) = output(&[
            "convert",
            &stories(),
            "--type",
            form,
            "-o",
            &folder.at(form),
        ]);
        assert_eq!(
            said.contains("llama.cpp has no graph with squared ReLU"),
            form != "i2_s",
            "{said}"
        );
    }
}

#[test]
fn quantize_rounds_only_weights_that_are_not_ternary() {
    let folder = Folder::new();
    let shape = Shape {
        architecture: Architecture::Llama,
        tied: false,
        vocab_size: 1024,
        ..Shape::default()
    };
    let model = SyntheticModel { shape, seed: 22 };
    model
        .write_float_gguf(&folder.path("plain.gguf"), Dense::BF16)
        .expect("a file");
    model
        .write_checkpoint(&folder.path("source"), CheckpointWeights::Bf16, 1)
        .expect("a directory");
    let (plain, quantized, expected) = (
        folder.at("plain.gguf"),
        folder.at("quantized.gguf"),
        folder.at("expected.gguf"),
    );
    for command in [
        ["run", "-m", &plain, "hello"].as_slice(),
        &["convert", &plain, "-o", &quantized],
    ] {
        let message = failure(command);
        assert!(
            message.contains("not ternary") && message.contains("bitnet quantize"),
            "{message}"
        );
    }
    output(&["quantize", &plain, "-o", &quantized]);
    output(&["convert", &folder.at("source"), "-o", &expected]);
    let logits = |model: &str| {
        let file = folder.at("logits.npy");
        output(&["logits", "-m", model, "--tokens", "1,2,3,4,5", "-o", &file]);
        std::fs::read(file).expect("the file")
    };
    assert!(
        logits(&quantized) == logits(&expected)
            && logits(&folder.at("source")) == logits(&expected)
    );
    let (_, said) = output(&[
        "convert",
        &quantized,
        "--type",
        "f16",
        "-o",
        &folder.at("f16.gguf"),
    ]);
    assert!(
        said.contains("scales"),
        "the output names the rounded tensors: {said:?}"
    );
}

/// Runs only on systems that can send signals.
#[cfg(unix)]
mod signals {
    use super::*;

    #[derive(Clone, Copy, Debug, PartialEq)]
    enum Signal {
        /// A signal that cannot be caught.
        Kill,
        /// Ctrl-C.
        Interrupt,
    }

    /// Runs a program and sends it a signal after a delay. Returns its exit code; `None` if the
    /// signal ended it.
    fn strike(arguments: &[&str], after: Duration, signal: Signal) -> Option<i32> {
        let mut child = command(arguments).spawn().expect("the program starts");
        std::thread::sleep(after);
        match signal {
            Signal::Kill => child.kill().expect("a signal"),
            Signal::Interrupt => {
                // The process may have ended already.
                let _ = Command::new("kill")
                    .args(["-INT", &child.id().to_string()])
                    .stderr(Stdio::null())
                    .status();
            }
        }
        child.wait().expect("the program ends").code()
    }

    /// Interrupts a command at twenty moments of its run with each signal. Afterwards `out` is
    /// either absent or complete, and leftover files do not break the next run.
    fn survives(folder: &Folder, arguments: &[&str], out: &str) {
        let before = folder.names();
        let start = Instant::now();
        output(arguments);
        let whole = start.elapsed();
        let expected = std::fs::read(folder.path(out)).expect("the file");
        std::fs::remove_file(folder.path(out)).expect("the file");
        let partial = format!(".{out}.partial");
        let mut unfinished = 0;
        for signal in [Signal::Kill, Signal::Interrupt] {
            for moment in 0..20 {
                let code = strike(arguments, whole * moment / 20, signal);
                let left: Vec<String> = folder
                    .names()
                    .into_iter()
                    .filter(|name| !before.contains(name))
                    .collect();
                let finished = left.iter().any(|name| name == out);
                if finished {
                    let found = std::fs::read(folder.path(out)).expect("the file");
                    assert!(
                        found == expected,
                        "{signal:?} at {moment}/20 left {} bytes",
                        found.len()
                    );
                    std::fs::remove_file(folder.path(out)).expect("the file");
                }
                let others = left.iter().filter(|name| *name != out);
                assert!(
                    others
                        .clone()
                        .all(|name| *name == partial && signal == Signal::Kill),
                    "{signal:?}: {left:?}"
                );
                if signal == Signal::Interrupt && !finished {
                    // Before the program handles signals, a signal ends it with the default action.
                    assert!(matches!(code, Some(130) | None), "{code:?}");
                    assert_eq!(others.count(), 0);
                }
                unfinished += usize::from(!finished);
            }
            output(arguments);
            assert!(
                std::fs::read(folder.path(out)).expect("the file") == expected,
                "after {signal:?}"
            );
            std::fs::remove_file(folder.path(out)).expect("the file");
            assert_eq!(folder.names(), before, "no file is left behind");
        }
        assert!(
            unfinished >= 10,
            "only {unfinished} of 40 runs were interrupted"
        );
    }

    /// A model with some million weights, so that a conversion takes long enough to interrupt.
    fn model() -> SyntheticModel {
        let shape = Shape {
            hidden_size: 512,
            heads: 8,
            ffn_size: 1536,
            vocab_size: 8192,
            ..Shape::default()
        };
        SyntheticModel {
            shape: Shape {
                num_layers: 4,
                ..shape
            },
            seed: 23,
        }
    }

    #[test]
    fn a_conversion_can_be_killed_at_any_moment() {
        let folder = Folder::new();
        model()
            .write_checkpoint(&folder.path("source"), CheckpointWeights::Bf16, 1)
            .expect("a directory");
        let (source, out) = (folder.at("source"), folder.at("out.gguf"));
        survives(
            &folder,
            &[
                "convert", &source, "--type", "tq1_0", "--tables", "q8_0", "-o", &out,
            ],
            "out.gguf",
        );
    }

    #[test]
    fn quantizing_can_be_killed_at_any_moment() {
        let folder = Folder::new();
        model()
            .write_float_gguf(&folder.path("plain.gguf"), Dense::F32)
            .expect("a file");
        let (source, out) = (folder.at("plain.gguf"), folder.at("out.gguf"));
        survives(
            &folder,
            &["quantize", &source, "--type", "tl2", "-o", &out],
            "out.gguf",
        );
    }
}
