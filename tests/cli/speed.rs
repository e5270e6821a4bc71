//! `bench` and `tune`.

use serde_json::Value;

use crate::{bitnet_with_cache, data, golden, json, output, text};

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
