//! The real program, tested from outside.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use bitnet_files::gguf::{Gguf, GgufWriter, MetadataValue, TensorInfo};
use serde_json::Value;

/// A file of the test data.
fn data(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../../tests/data")
        .join(name)
}

fn golden() -> String {
    data("golden/strict-b158/model-i2_s.gguf")
        .display()
        .to_string()
}

/// Runs the program with these arguments and this standard input.
fn bitnet_with_input(arguments: &[&str], input: &str) -> Output {
    bitnet_with_cache(Path::new(env!("CARGO_TARGET_TMPDIR")), arguments, input)
}

/// The same, with this cache directory.
fn bitnet_with_cache(cache: &Path, arguments: &[&str], input: &str) -> Output {
    let mut child = Command::new(env!("CARGO_BIN_EXE_bitnet"))
        .args(arguments)
        // The tests must not depend on the tuning of this machine.
        .env("XDG_CACHE_HOME", cache)
        .env_remove("BITNET_SEED")
        .env_remove("BITNET_DETERMINISTIC")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the program starts");
    // A program that fails early closes its input before it has read everything.
    let _ = child
        .stdin
        .take()
        .expect("a pipe")
        .write_all(input.as_bytes());
    child.wait_with_output().expect("the program ends")
}

fn bitnet(arguments: &[&str]) -> Output {
    bitnet_with_input(arguments, "")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).expect("UTF-8")
}

/// The output of a command that must succeed.
fn output(arguments: &[&str]) -> String {
    let result = bitnet(arguments);
    assert!(
        result.status.success(),
        "{arguments:?}: {}",
        text(&result.stderr)
    );
    assert_eq!(text(&result.stderr), "", "{arguments:?} is quiet in a pipe");
    text(&result.stdout)
}

fn json(arguments: &[&str]) -> Value {
    serde_json::from_str(&output(arguments)).expect("one JSON object")
}

/// The exit code and the line on standard error of a command that must fail.
fn failure(arguments: &[&str]) -> (i32, String) {
    let result = bitnet(arguments);
    let message = text(&result.stderr);
    assert!(!result.status.success(), "{arguments:?} must fail");
    (result.status.code().expect("an exit code"), message)
}

fn tokens_json() -> Value {
    let file =
        std::fs::read_to_string(data("golden/strict-b158/tokens.json")).expect("tokens.json");
    serde_json::from_str(&file).expect("JSON")
}

fn list(tokens: &Value) -> String {
    tokens
        .as_array()
        .expect("a list")
        .iter()
        .map(Value::to_string)
        .collect::<Vec<_>>()
        .join(",")
}

#[test]
fn greedy_text_equals_the_reference() {
    let tokens = tokens_json();
    let prompt = list(&tokens["greedy_prompt"]);
    let expected = &tokens["greedy_continuation"];
    let n = expected.as_array().expect("a list").len().to_string();
    let arguments = [
        "run",
        "-m",
        &golden(),
        "--prompt-tokens",
        &prompt,
        "-n",
        &n,
        "--temp",
        "0",
        "--ignore-eos",
        "--kv-type",
        "f32",
        "--json",
    ];
    let answer = json(&arguments);
    assert_eq!(&answer["tokens"], expected);
    assert_eq!(answer["finish_reason"], "length");
    assert_eq!(list(&answer["prompt_tokens"]), prompt);
    assert_eq!(
        answer["timings"]["generated_tokens"],
        expected.as_array().expect("a list").len()
    );
}

#[test]
fn logits_are_identical_for_all_kernels_threads_and_chunks() {
    let folder = tempfile::tempdir().expect("a folder");
    let tokens = list(&tokens_json()["tokens"]);
    let write = |name: &str, options: &[&str]| {
        let path = folder.path().join(name).display().to_string();
        let golden = golden();
        output(
            &[
                &["logits", "-m", &golden, "--tokens", &tokens, "-o", &path],
                options,
            ]
            .concat(),
        );
        std::fs::read(path).expect("the file")
    };
    for kv_type in ["f16", "f32"] {
        let expected = write(
            "reference.npy",
            &["--kv-type", kv_type, "--kernels", "scalar", "-t", "1"],
        );
        assert!(expected.starts_with(b"\x93NUMPY\x01\x00"));
        for options in [
            ["-t", "1", "--prefill-chunk", "1"],
            ["-t", "2", "--prefill-chunk", "5"],
            ["-t", "3", "--prefill-chunk", "64"],
            ["--packing", "2", "--prefill-chunk", "3"],
            ["--packing", "1.67", "--prefill-chunk", "7"],
            ["--packing", "1.67", "--kernels", "scalar"],
            ["--ffn-sparsity", "on", "--prefill-chunk", "1"],
            ["--packing", "tl1", "--prefill-chunk", "1"],
            ["--packing", "tl2", "--prefill-chunk", "1"],
            ["--ternary-kernel", "tl1", "--prefill-chunk", "6"],
            ["--ternary-kernel", "tl2", "--kernels", "scalar"],
        ] {
            assert!(
                expected
                    == write(
                        "other.npy",
                        &[&["--kv-type", kv_type], &options[..]].concat()
                    ),
                "{options:?}"
            );
        }
    }
}

#[test]
fn text_does_not_depend_on_sparsity() {
    let golden = golden();
    let run = |mode: &str| {
        let options = [
            "-n",
            "20",
            "-s",
            "3",
            "--ignore-eos",
            "--ffn-sparsity",
            mode,
            "--json",
        ];
        json(&[&["run", "-m", &golden, "ab"], &options[..]].concat())
    };
    let (on, off, auto) = (run("on"), run("off"), run("auto"));
    assert_eq!((&on["tokens"], &on["text"]), (&off["tokens"], &off["text"]));
    assert_eq!(
        (&auto["tokens"], &auto["text"]),
        (&off["tokens"], &off["text"])
    );
    for shares in ["closed_gates", "zeros", "dead_neurons"] {
        assert_eq!(
            on["ffn_sparsity"][shares], off["ffn_sparsity"][shares],
            "{shares}"
        );
    }
    assert!(on["ffn_sparsity"]["copy_bytes"].as_u64() > off["ffn_sparsity"]["copy_bytes"].as_u64());
}

#[test]
fn a_seed_gives_the_same_text_every_time() {
    let golden = golden();
    let run = |seed: &str| {
        json(&["run", "-m", &golden, "ab", "-n", "20", "-s", seed, "--json"])["tokens"].clone()
    };
    assert_eq!(run("7"), run("7"));
    assert_ne!(run("7"), run("8"));
}

#[test]
fn prompts_come_from_arguments_files_and_standard_input() {
    let golden = golden();
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("prompt.txt").display().to_string();
    std::fs::write(&file, "ab ab\n").expect("a file");
    let options = ["-m", &golden, "-n", "4", "--temp", "0"];
    let from_argument = output(&[&["run", "ab ab"], &options[..]].concat());
    assert!(from_argument.starts_with("ab ab"), "{from_argument:?}");
    assert_eq!(
        from_argument,
        output(&[&["run", "-p", "ab ab"], &options[..]].concat())
    );
    assert_eq!(
        from_argument,
        output(&[&["run", "-f", &file], &options[..]].concat())
    );
    let piped = bitnet_with_input(&[&["run"], &options[..]].concat(), "ab ab\n");
    assert_eq!(from_argument, text(&piped.stdout));
    let bare = output(&[&["run", "ab ab", "--no-display-prompt"], &options[..]].concat());
    assert_eq!(from_argument, format!("ab ab{bare}"));
}

#[test]
fn stop_strings_end_an_answer_before_themselves() {
    let golden = golden();
    let options = [
        "run",
        "-m",
        &golden,
        "ab",
        "-n",
        "30",
        "--temp",
        "0",
        "--ignore-eos",
        "--json",
    ];
    let whole = json(&options)["text"].as_str().expect("text").to_owned();
    let middle: String = whole
        .chars()
        .skip(whole.chars().count() / 2)
        .take(2)
        .collect();
    let answer = json(&[&options[..], &["--stop", &middle]].concat());
    let expected = &whole[..whole.find(&middle).expect("it is in there")];
    assert_eq!(answer["text"], expected);
    assert_eq!(answer["finish_reason"], "stop");
}

#[test]
fn tokenize_reads_every_format_with_a_tokenizer() {
    let gpt2 = data("tokenizers/ggml-vocab-gpt-2.gguf")
        .display()
        .to_string();
    let result = json(&["tokenize", "-m", &gpt2, "Hello world", "--json"]);
    assert_eq!(
        result,
        serde_json::json!({ "tokens": [15496, 995], "pieces": ["Hello", " world"] })
    );
    let golden = golden();
    let with_bos = json(&["tokenize", "-m", &golden, "ab", "--json"]);
    let without = json(&["tokenize", "-m", &golden, "ab", "--no-bos", "--json"]);
    assert_eq!(
        with_bos["tokens"].as_array().map(Vec::len),
        without["tokens"].as_array().map(|t| t.len() + 1)
    );
    let piped = bitnet_with_input(&["tokenize", "-m", &golden, "--json"], "ab");
    assert_eq!(
        serde_json::from_slice::<Value>(&piped.stdout).expect("JSON"),
        with_bos
    );
}

#[test]
fn tokenize_shows_the_ids_that_run_uses() {
    let golden = golden();
    for options in [&["-m", &golden][..], &["-m", &golden, "--no-bos"], &[]] {
        let text = "ab ab";
        let shown = json(&[&["tokenize", text, "--json"], options].concat());
        let used = json(&[&["run", text, "-n", "1", "--json"], options].concat());
        assert_eq!(shown["tokens"], used["prompt_tokens"], "{options:?}");
    }
}

#[test]
fn chat_answers_lines_and_runs_commands() {
    let golden = golden();
    let arguments = [
        "chat",
        "-m",
        &golden,
        "--chat-template",
        "chatml",
        "-n",
        "3",
        "--temp",
        "0",
        "--ignore-eos",
        "--json",
    ];
    let result = bitnet_with_input(
        &arguments,
        "hello\nand again\n/clear\nhello\n/quit\nnever read\n",
    );
    assert!(result.status.success(), "{}", text(&result.stderr));
    let answers: Vec<Value> = text(&result.stdout)
        .lines()
        .map(|line| serde_json::from_str(line).expect("JSON"))
        .collect();
    assert_eq!(answers.len(), 3);
    assert_eq!(
        answers[0]["tokens"], answers[2]["tokens"],
        "a cleared conversation starts again"
    );
    let cached = |answer: &Value| {
        answer["timings"]["cached_tokens"]
            .as_u64()
            .expect("a number")
    };
    assert!(
        cached(&answers[1]) > 0,
        "the second turn starts from the first one's cache"
    );
    let (code, message) = failure(&["chat", "-m", &golden, "--chat-template", "nonsense"]);
    assert_eq!(code, 2);
    assert!(message.contains("chatml"), "{message}");
}

#[cfg(unix)]
#[test]
fn logits_can_be_written_to_a_pipe_and_other_errors_do_not_name_it() {
    use std::os::unix::fs::FileTypeExt;
    let directory = tempfile::tempdir().expect("a folder");
    let at = |name: &str| directory.path().join(name);
    let (pipe, file) = (at("pipe"), at("file.npy").display().to_string());
    let made = Command::new("mkfifo").arg(&pipe).status();
    assert!(made.expect("mkfifo runs").success());
    let reader = std::thread::spawn({
        let pipe = pipe.clone();
        move || std::fs::read(pipe).expect("a pipe")
    });
    let (model, name) = (golden(), pipe.display().to_string());
    output(&["logits", "-m", &model, "--tokens", "1,2", "-o", &name]);
    output(&["logits", "-m", &model, "--tokens", "1,2", "-o", &file]);
    let from_pipe = reader.join().expect("the reader ends");
    assert_eq!(from_pipe, std::fs::read(&file).expect("a file"));
    let kind = std::fs::symlink_metadata(&pipe)
        .expect("still there")
        .file_type();
    assert!(kind.is_fifo());

    let result = bitnet(&["logits", "-m", &model, "--tokens", "1,99999", "-o", &file]);
    let error = text(&result.stderr);
    assert_eq!(result.status.code(), Some(2), "{error}");
    assert!(error.contains("prompt token 1 is 99999"), "{error}");
    assert!(!error.contains("cannot write"), "{error}");
    assert_eq!(from_pipe, std::fs::read(&file).expect("the old file"));
}

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

#[test]
fn bench_reports_both_phases() {
    let report = json(&[
        "bench",
        "-m",
        &golden(),
        "-p",
        "8",
        "-n",
        "4",
        "-r",
        "3",
        "-t",
        "1",
        "--json",
    ]);
    for (phase, tokens) in [("prefill", 8), ("decode", 4)] {
        assert_eq!(report[phase]["tokens"], tokens);
        let speed = &report[phase]["tokens_per_second"];
        let number = |key: &str| speed[key].as_f64().expect("a number");
        assert!(
            0.0 < number("min")
                && number("min") <= number("median")
                && number("median") <= number("max"),
            "{speed}"
        );
    }
    assert_eq!(report["threads"], 1);
    assert!(report["kernels"].is_string() && report["model"]["layers"] == 2);
    assert!(["2", "1.67"].contains(&report["packing"].as_str().expect("its name")));
    assert!(report["ternary_bytes"].as_u64().expect("bytes") > 0);
    let sparsity = &report["ffn_sparsity"];
    assert!(
        sparsity["mode"] == "auto" && sparsity["copy_bytes"] == 0,
        "the layers are too small for copies"
    );
    for seen in sparsity["layers"]
        .as_array()
        .expect("two layers")
        .iter()
        .chain([sparsity])
    {
        assert!(
            (0.0..1.0).contains(&seen["closed_gates"].as_f64().expect("a share")),
            "{sparsity}"
        );
        assert!(
            (0.0..1.0).contains(&seen["zeros"].as_f64().expect("a share")),
            "{sparsity}"
        );
    }
    #[cfg(target_os = "linux")]
    assert!(report["peak_rss_bytes"].as_u64().expect("bytes") > 1_000_000);
}

#[test]
fn bench_counts_table_lookups_and_shows_no_peak_for_them() {
    for kernel in ["tl1", "tl2"] {
        let arguments = [
            "bench",
            "-m",
            &golden(),
            "-p",
            "8",
            "-n",
            "2",
            "-r",
            "1",
            "-t",
            "1",
            "--json",
        ];
        let report = json(&[&arguments[..], &["--packing", kernel]].concat());
        for phase in ["prefill", "decode"] {
            assert!(
                report[phase]["macs_per_second"].as_f64().expect("a number") > 0.0,
                "{report}"
            );
            assert_eq!(report[phase]["share_of_peak"], Value::Null, "{report}");
        }
    }
}

#[test]
fn ternary_kernel_is_an_older_name_of_packing() {
    let packing = |options: &[&str]| {
        let run = ["run", "-m", &golden(), "ab", "-n", "1", "--json"];
        json(&[&run[..], options].concat())["packing"].clone()
    };
    for (options, expected) in [
        (&["--ternary-kernel", "tl1"][..], "tl1"),
        (&["--ternary-kernel", "tl2", "--packing", "2"], "tl2"),
        (&["--ternary-kernel", "i2s", "--packing", "1.67"], "1.67"),
        (&["--ternary-kernel", "auto", "--packing", "tl1"], "tl1"),
        (&["--ternary-kernel", "i2s", "--kernels", "scalar"], "2"),
        (&["--packing", "i2s", "--kernels", "scalar"], "2"),
    ] {
        assert_eq!(packing(options), expected, "{options:?}");
    }
    assert!(!output(&["run", "--help"]).contains("ternary-kernel"));
}

#[test]
fn bench_counts_the_products_of_group_scales() {
    let model = data("golden-group/qwen3-ptq1_0/model.gguf");
    let model = model.to_str().expect("UTF-8");
    let report = json(&[
        "bench", "-m", model, "-p", "8", "-n", "2", "-r", "1", "-t", "1", "--json",
    ]);
    for phase in ["prefill", "decode"] {
        assert!(
            report[phase]["macs_per_second"].as_f64().expect("a number") > 0.0,
            "{report}"
        );
    }
}

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

#[test]
fn a_run_writes_its_receipt_even_if_its_output_is_closed() {
    let folder = tempfile::tempdir().expect("a folder");
    for (name, more) in [("text", &[][..]), ("json", &["--json"])] {
        let receipt = folder.path().join(name);
        let mut child = Command::new(env!("CARGO_BIN_EXE_bitnet"))
            .args([
                "run",
                "-m",
                &golden(),
                "ab",
                "-n",
                "5",
                "-s",
                "3",
                "--ignore-eos",
                "--receipt",
            ])
            .arg(&receipt)
            .args(more)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .expect("the program starts");
        drop(child.stdout.take());
        assert!(child.wait().expect("the program ends").success());
        let text = std::fs::read_to_string(&receipt).expect("a receipt");
        bitnet_receipts::verify(&text).expect("it verifies");
    }
}

#[test]
fn runs_write_receipts() {
    let golden = golden();
    let folder = tempfile::tempdir().expect("a folder");
    let at = |name: &str| folder.path().join(name).display().to_string();
    let read = |name: &str| -> Value {
        let text = std::fs::read_to_string(folder.path().join(name)).expect("a receipt");
        bitnet_receipts::verify(&text).expect("it verifies");
        serde_json::from_str(&text).expect("JSON")
    };
    let answer = json(&[
        "run",
        "-m",
        &golden,
        "ab",
        "-n",
        "5",
        "-s",
        "3",
        "--ignore-eos",
        "--json",
        "--receipt",
        &at("run.json"),
    ]);
    let receipt = read("run.json");
    assert_eq!(receipt["run"]["prompt_tokens"], answer["prompt_tokens"]);
    assert_eq!(
        (&receipt["tokens_generated"], &receipt["deterministic"]),
        (&5.into(), &true.into())
    );
    assert_eq!(receipt["model"]["path"], golden);

    output(&[
        "bench",
        "-m",
        &golden,
        "-p",
        "9",
        "-n",
        "4",
        "-r",
        "2",
        "--kernels",
        "scalar",
        "--receipt",
        &at("bench.json"),
    ]);
    let receipt = read("bench.json");
    assert_eq!(
        (&receipt["kernel_set"], &receipt["compute_path"]),
        (&"scalar".into(), &"real".into())
    );
    assert!(
        receipt["backend_summary"]
            .as_str()
            .expect("a summary")
            .starts_with("requested=scalar detected=[")
    );

    // The receipt verifies with each packing, each kind of sparsity and each length of draft.
    let prompt = [
        "-m",
        &golden,
        "--prompt-tokens",
        "5,6,7,8,5,6,7,8,5,6,7",
        "-n",
        "24",
        "--temp",
        "0",
        "--ignore-eos",
    ];
    let mut outputs = Vec::new();
    for packing in ["2", "1.67"] {
        for head in ["full", "screened"] {
            for sparsity in ["off", "on"] {
                for draft in ["0", "4"] {
                    let how = [
                        "--packing",
                        packing,
                        "--head",
                        head,
                        "--ffn-sparsity",
                        sparsity,
                        "--draft",
                        draft,
                    ];
                    output(
                        &[
                            &["run", "--json"][..],
                            &prompt,
                            &how,
                            &["--receipt", &at("how.json")],
                        ]
                        .concat(),
                    );
                    let receipt = read("how.json");
                    let run = &receipt["run"];
                    assert_eq!(
                        (&run["packing"], &run["head"]),
                        (&packing.into(), &head.into())
                    );
                    let skipped = |kernel: &str| {
                        receipt["kernel_counts"][kernel]["macs_skipped"].as_u64() > Some(0)
                    };
                    assert_eq!(skipped("logits_projection"), head == "screened", "{how:?}");
                    assert_eq!(skipped("i2s_gemv"), sparsity == "on", "{how:?}");
                    assert_eq!(
                        run["drafted_tokens"].as_u64() > Some(0),
                        draft != "0",
                        "{how:?}"
                    );
                    outputs.push(receipt["output_tokens_sha256"].clone());
                }
            }
        }
    }
    outputs.dedup();
    assert_eq!(outputs.len(), 1, "the tokens are the same");

    let stamped = Command::new(env!("CARGO_BIN_EXE_bitnet"))
        .args([
            "run",
            "-m",
            &golden,
            "ab",
            "-n",
            "1",
            "--receipt",
            &at("stamped.json"),
        ])
        .env("BITNET_DETERMINISTIC", "1")
        .env("BITNET_SEED", "42")
        .output()
        .expect("the program runs");
    assert!(stamped.status.success(), "{}", text(&stamped.stderr));
    let receipt = read("stamped.json");
    let environment = &receipt["environment"];
    assert_eq!(
        (
            &environment["BITNET_DETERMINISTIC"],
            &environment["BITNET_SEED"]
        ),
        (&"1".into(), &"42".into())
    );
    assert_eq!(
        (
            &receipt["run"]["sampling"]["seed"],
            &receipt["tokens_per_second"]
        ),
        (&42.into(), &Value::Null)
    );

    for (arguments, code) in [
        (&["run", "-m", "nowhere.gguf", "ab"][..], 1),
        (&["run", "-m", &golden, "ab", "--temp", "-1"], 2),
        (&["run", "-m", &golden, "ab", "-n", "600"], 1),
        (&["bench", "-m", &golden, "-r", "0"], 2),
    ] {
        let receipt = at("none.json");
        assert_eq!(
            failure(&[arguments, &["--receipt", &receipt]].concat()).0,
            code,
            "{arguments:?}"
        );
        assert!(
            !folder.path().join("none.json").exists(),
            "{arguments:?} leaves no receipt"
        );
    }
    let nowhere = at("no/such/folder.json");
    assert_eq!(
        failure(&["run", "-m", &golden, "ab", "-n", "1", "--receipt", &nowhere]).0,
        2
    );
}

#[test]
fn wrong_usage_is_exit_code_2() {
    let golden = golden();
    for arguments in [
        &["run", "-m", &golden, "hello", "--temp", "-1"][..],
        &["run", "-m", &golden, "hello", "--kernels", "abacus"],
        &["run", "-m", &golden, "hello", "--kv-type", "int3"],
        &["run", "-m", &golden, "--prompt-tokens", "1,two"],
        &["run", "-m", &golden, "--prompt-tokens", "1,99999"],
        &["run", "-m", &golden, "hello", "--logit-bias", "600+1"],
        &["bench", "-m", &golden, "-r", "0"],
        &["dance"],
        &[],
    ] {
        let (code, message) = failure(arguments);
        assert_eq!(code, 2, "{arguments:?}: {message}");
        assert!(!message.is_empty(), "{arguments:?}");
    }
}

#[cfg(not(feature = "built-in-model"))]
#[test]
fn without_a_model_the_error_says_how_to_get_one() {
    let (code, message) = failure(&["run", "hello"]);
    assert_eq!(code, 2);
    assert!(
        message.contains("huggingface.co/microsoft/bitnet-b1.58-2B-4T-gguf"),
        "{message}"
    );
}

#[cfg(feature = "built-in-model")]
#[test]
fn the_built_in_model_tells_a_story() {
    let story = output(&["run", "Once upon a time", "-s", "1", "-n", "80"]);
    assert!(
        story.starts_with("Once upon a time") && story.split_whitespace().count() > 40,
        "{story}"
    );
    assert_eq!(
        story,
        output(&[
            "run",
            "Once upon a time",
            "-s",
            "1",
            "-n",
            "80",
            "-t",
            "1",
            "--kernels",
            "scalar"
        ])
    );
    let ids = json(&["tokenize", "Once upon a time", "--json"])["tokens"].clone();
    assert_eq!(
        ids,
        json(&["run", "Once upon a time", "-n", "1", "--json"])["prompt_tokens"]
    );
    let told = bitnet_with_input(
        &["chat", "-s", "1", "-n", "20"],
        "Once upon a time\n/quit\n",
    );
    assert!(
        text(&told.stdout).starts_with("Once upon a time"),
        "{}",
        text(&told.stdout)
    );
}

#[test]
fn other_failures_are_exit_code_1_and_one_line() {
    let golden = golden();
    let folder = tempfile::tempdir().expect("a folder");
    let broken = folder.path().join("broken.gguf").display().to_string();
    let whole = std::fs::read(&golden).expect("the file");
    std::fs::write(&broken, &whole[..whole.len() - 1]).expect("a file");
    let long = vec!["1"; 600].join(",");
    for (arguments, said) in [
        (
            &["run", "-m", "nowhere.gguf", "hello"][..],
            &["nowhere.gguf"][..],
        ),
        (&["run", "-m", &broken, "hello"], &["broken.gguf", "bytes"]),
        (
            &["run", "-m", &golden, "-f", "nowhere.txt"],
            &["nowhere.txt"],
        ),
        (
            &["run", "-m", &golden, "--prompt-tokens", &long],
            &["context", "600", "512"],
        ),
        (
            &["run", "-m", &golden, "hello", "-n", "5000"],
            &["context", "5000", "512"],
        ),
        (
            &["run", "-m", &golden, "hello", "-c", "4"],
            &["context", "4"],
        ),
        (
            &[
                "logits",
                "-m",
                &golden,
                "--tokens",
                "1",
                "-o",
                "/nowhere/at/all.npy",
            ],
            &["/nowhere/at/all.npy"],
        ),
        (&["chat", "-m", &golden], &["chat template"]),
    ] {
        let (code, message) = failure(arguments);
        assert_eq!(code, 1, "{arguments:?}: {message}");
        assert_eq!(message.lines().count(), 1, "{message}");
        assert!(
            said.iter().all(|word| message.contains(word)),
            "{arguments:?}: {message}"
        );
    }
}

#[test]
fn completions_and_manual_pages_are_printed() {
    for shell in ["bash", "zsh", "fish", "powershell", "elvish"] {
        assert!(
            output(&["completions", shell]).contains("bitnet"),
            "{shell}"
        );
    }
    assert!(output(&["man"]).contains(".TH bitnet"));
    assert!(output(&["man", "run"]).contains("prompt"));
}

#[test]
fn run_uses_the_kernels_that_tune_found() {
    let cache = tempfile::tempdir().expect("a folder");
    let golden = golden();
    let run = |arguments: &[&str]| {
        let result = bitnet_with_cache(cache.path(), arguments, "");
        assert!(
            result.status.success(),
            "{arguments:?}: {}",
            text(&result.stderr)
        );
        (
            serde_json::from_str::<Value>(&text(&result.stdout)).expect("one JSON object"),
            text(&result.stderr),
        )
    };
    let (report, _) = run(&["tune", "-m", &golden, "-t", "1", "--json"]);
    let shapes = report["shapes"].as_array().expect("a list");
    assert!(shapes.iter().all(|shape| {
        let times = ["i2s_us", "tl1_us", "tl2_us"].map(|key| shape[key].as_f64().expect("a time"));
        let least = times.iter().fold(f64::MAX, |least, time| least.min(*time));
        shape[format!("{}_us", shape["fastest"].as_str().expect("a name"))] == least && least > 0.0
    }));

    // Make TL2 the fastest packing in the file.
    let path = cache.path().join("bitnet/tuning.json");
    assert_eq!(report["path"].as_str(), path.to_str());
    let mut tuning: Value =
        serde_json::from_slice(&std::fs::read(&path).expect("the file")).expect("JSON");
    for shape in tuning["machines"][0]["shapes"]
        .as_array_mut()
        .expect("a list")
    {
        shape["fastest"] = "tl2".into();
    }
    std::fs::write(&path, tuning.to_string()).expect("the file");
    let answer = |options: &[&str]| {
        run(&[&["run", "-m", &golden, "ab", "-n", "20", "--json"], options].concat())
    };
    let tokens = |options: &[&str]| answer(options).0["tokens"].clone();
    assert_eq!(answer(&["-t", "1"]).0["packing"], "tl2");
    for (options, not_followed) in [
        (["-t", "2"].as_slice(), "another number of threads"),
        (
            &["-t", "1", "--kernels", "scalar"],
            "another instruction set",
        ),
        (
            &["-t", "1", "--packing", "i2s"],
            "another packing asked for",
        ),
        (&["-t", "1", "--packing", "2"], "another packing asked for"),
    ] {
        assert_ne!(answer(options).0["packing"], "tl2", "{not_followed}");
    }
    assert_eq!(answer(&["-t", "1", "--packing", "tl1"]).0["packing"], "tl1");
    let seed = ["-t", "1", "-s", "3"];
    assert_eq!(
        tokens(&seed),
        tokens(&[&seed[..], &["--packing", "i2s"]].concat())
    );

    std::fs::write(&path, "{").expect("the file");
    let (answer, warning) = answer(&["-t", "1"]);
    assert_ne!(answer["packing"], "tl2");
    assert!(
        warning.starts_with("warning: ") && warning.contains("tuning.json is damaged"),
        "{warning}"
    );
    run(&["tune", "-m", &golden, "-t", "1", "--json"]);
    assert_eq!(
        run(&["run", "-m", &golden, "ab", "-n", "1", "-t", "1", "--json"]).1,
        ""
    );
}

#[test]
fn models_with_group_scales_and_states_give_the_reference_text() {
    for (name, layers, state) in [
        ("qwen3-ptq1_0", 4, 0),
        (
            "qwen35-ptq1_0-rot512-part",
            8,
            6 * (8 * 64 * 64 + 3 * 12 * 64) * 4,
        ),
    ] {
        let folder = data("golden-group").join(name);
        let model = folder.join("model.gguf").display().to_string();
        let facts = json(&["inspect", &model, "--json"]);
        assert_eq!(facts["model"]["layers"], layers, "{name}");
        assert_eq!(facts["model"]["state_bytes"], state, "{name}");
        assert_eq!(facts["odd"], serde_json::json!([]), "{name}");
        let thinks = serde_json::json!(["<think>", "</think>"]);
        assert_eq!(facts["tokenizer"]["thinks"], thinks, "{name}");
        assert_eq!(
            facts["tokenizer"]["chat_template_names"],
            serde_json::json!([])
        );
        let greedy = std::fs::read(folder.join("greedy.json")).expect("greedy.json");
        let greedy: Value = serde_json::from_slice(&greedy).expect("JSON");
        let prompt = greedy["prompt"].as_array().expect("ids");
        let prompt: Vec<String> = prompt.iter().map(Value::to_string).collect();
        let run = |more: &[&str]| {
            let prompt = prompt.join(",");
            let mut arguments = vec!["run", "-m", &model, "--prompt-tokens", &prompt, "-n", "16"];
            arguments.extend(["--temp", "0", "--kv-type", "f32", "--json"]);
            arguments.extend(more);
            json(&arguments)["tokens"].clone()
        };
        assert_eq!(run(&[]), greedy["int8-32"]["continuation"], "{name}");
        assert_eq!(
            run(&["--group-inputs", "f32"]),
            greedy["continuation"],
            "{name}"
        );
        let one_thread = run(&["-t", "1", "--prefill-chunk", "7"]);
        assert_eq!(one_thread, greedy["int8-32"]["continuation"], "{name}");
    }
}

#[test]
fn a_group_model_is_converted_without_loss_or_the_tensor_is_named() {
    let folder = data("golden-group/qwen3-ptq1_0");
    let model = folder.join("model.gguf").display().to_string();
    let directory = tempfile::tempdir().expect("a folder");
    let out = directory
        .path()
        .join("converted.gguf")
        .display()
        .to_string();
    let written = json(&["convert", &model, "-o", &out, "--type", "q2_0", "--json"]);
    assert_eq!(written["scales_rounded"], 0);
    let greedy = std::fs::read(folder.join("greedy.json")).expect("greedy.json");
    let greedy: Value = serde_json::from_slice(&greedy).expect("JSON");
    let prompt = greedy["prompt"].as_array().expect("ids");
    let prompt: Vec<String> = prompt.iter().map(Value::to_string).collect();
    let prompt = prompt.join(",");
    let mut run = vec!["run", "-m", &out, "--prompt-tokens", &prompt, "-n", "16"];
    run.extend(["--temp", "0", "--kv-type", "f32", "--json"]);
    assert_eq!(json(&run)["tokens"], greedy["int8-32"]["continuation"]);

    let lost = directory.path().join("lost.gguf").display().to_string();
    let result = bitnet(&["convert", &model, "-o", &lost]);
    assert!(!result.status.success() && !Path::new(&lost).exists());
    let message = text(&result.stderr);
    assert!(
        message.contains("tensor blk.0.attn_q.weight")
            && message.contains("one scale per tensor is supported"),
        "{message}"
    );
}

#[test]
fn runs_of_group_and_hybrid_models_have_receipts_or_are_refused_before_they_run() {
    let directory = tempfile::tempdir().expect("a folder");
    let path = directory.path().join("receipt.json").display().to_string();
    for name in ["qwen3-ptq1_0", "qwen35-ptq1_0-rot512-part"] {
        let model = data("golden-group").join(name).join("model.gguf");
        let model = model.display().to_string();
        let mut run = vec!["run", "-m", &model, "--prompt-tokens", "1,2,3", "-n", "4"];
        run.extend(["--temp", "0", "--receipt", &path]);
        json(&[&run[..], &["--json"][..]].concat());
        let receipt: Value =
            serde_json::from_slice(&std::fs::read(&path).expect("a receipt")).expect("JSON");
        assert_eq!(receipt["compute_path"], "real", "{name}");
        assert_eq!(receipt["run"]["group_inputs"], "int8-32", "{name}");
        std::fs::remove_file(&path).expect("removed");
        let option: &[&str] = match name {
            "qwen3-ptq1_0" => &["--group-inputs", "f32"],
            _ => &["--draft", "2"],
        };
        let result = bitnet(&[&run[..], option].concat());
        assert_eq!(result.status.code(), Some(2), "{name}");
        let message = text(&result.stderr);
        assert!(
            message.contains("--receipt: receipts do not cover"),
            "{message}"
        );
        assert!(result.stdout.is_empty() && !Path::new(&path).exists());
    }
}

#[test]
fn embed_prints_vectors_of_texts_and_of_lines() {
    let model = data("golden-graphs/qwen3-embedding/model.gguf")
        .display()
        .to_string();
    let numbers = |line: &str| -> Vec<f32> {
        line.split(' ')
            .map(|number| number.parse().expect("a number"))
            .collect()
    };
    let arguments = ["embed", "-m", &model, "--ctx-size", "64"];
    let with = |more: &[&str], input: &str| {
        let output = bitnet_with_input(&[&arguments[..], more].concat(), input);
        assert!(output.status.success(), "{output:?}");
        String::from_utf8(output.stdout).expect("text")
    };
    let lines = with(&["one", "two"], "");
    let vectors: Vec<Vec<f32>> = lines.lines().map(numbers).collect();
    assert_eq!(vectors.iter().map(Vec::len).collect::<Vec<_>>(), [128, 128]);
    let length: f32 = vectors[0].iter().map(|value| value * value).sum();
    assert!((length - 1.0).abs() < 1e-5);
    assert_eq!(with(&["--file", "-"], "one\ntwo\n"), lines);
    let raw = numbers(with(&["--raw", "two"], "").trim_end());
    let ratio = raw[0] / vectors[1][0];
    for (raw, value) in raw.iter().zip(&vectors[1]) {
        assert!((raw - ratio * value).abs() < 1e-4);
    }
    let json: Value = serde_json::from_str(&with(&["--json", "one"], "")).expect("JSON");
    assert_eq!(
        json["data"][0]["embedding"].as_array().map(Vec::len),
        Some(128)
    );
}

#[test]
fn embed_says_what_is_missing() {
    let failure = |arguments: &[&str]| {
        let output = bitnet_with_input(arguments, "");
        assert_eq!(output.status.code(), Some(2), "{output:?}");
        String::from_utf8(output.stderr).expect("text")
    };
    let golden = golden();
    assert!(failure(&["embed", "-m", &golden]).contains("no text given"));
    assert!(failure(&["embed", "-m", &golden, "text"]).contains("--pooling"));
    let too_many = [
        "embed",
        "-m",
        &golden,
        "--pooling",
        "mean",
        "--dimensions",
        "9999",
        "text",
    ];
    assert!(failure(&too_many).contains("9999"));
}
