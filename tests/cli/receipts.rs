//! Receipts of runs.

use std::path::Path;
use std::process::{Command, Stdio};

use serde_json::Value;

use crate::{bitnet, data, failure, golden, json, output, text};

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
