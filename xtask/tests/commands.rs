//! The commands of `xtask` and their former names.

#[path = "../../tests/docs/commands.rs"]
mod documented;

use std::process::Command;

fn help(arguments: &[&str]) -> (Option<i32>, String) {
    let output = Command::new(env!("CARGO_BIN_EXE_xtask"))
        .args(arguments)
        .arg("--help")
        .output()
        .unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    (output.status.code(), text)
}

/// The names under `Commands:`.
fn listed(arguments: &[&str]) -> Vec<String> {
    let (_, text) = help(arguments);
    let (_, commands) = text.split_once("Commands:\n").unwrap();
    let commands = commands.split("\n\n").next().unwrap();
    commands
        .lines()
        .filter(|line| line.starts_with("  ") && !line.starts_with("   "))
        .filter_map(|line| line.split_whitespace().next())
        .map(str::to_owned)
        .collect()
}

#[test]
fn commands_are_grouped() {
    assert_eq!(
        listed(&[]),
        ["bench", "receipt", "check", "model", "ci", "help"]
    );
    assert_eq!(
        listed(&["bench"]),
        [
            "compare", "engines", "gpu", "save", "servers", "tables", "help"
        ]
    );
    assert_eq!(
        listed(&["receipt"]),
        ["make", "verify", "sign", "compare", "help"]
    );
    assert_eq!(
        listed(&["check"]),
        [
            "accuracy",
            "counter-cost",
            "determinism",
            "health-latency",
            "help"
        ]
    );
    assert_eq!(listed(&["model"]), ["make", "crossval", "help"]);
}

#[test]
fn former_names_take_the_same_options() {
    for (old, new) in [
        ("accuracy", "check accuracy"),
        ("bench-compare", "bench compare"),
        ("bench-save", "bench save"),
        ("bench-servers", "bench servers"),
        ("benchmark", "receipt make"),
        ("compare", "bench engines"),
        ("compare-receipts", "receipt compare"),
        ("counter-cost", "check counter-cost"),
        ("crossval", "model crossval"),
        ("determinism", "check determinism"),
        ("health-latency", "check health-latency"),
        ("make-model", "model make"),
        ("performance", "bench tables"),
        ("sign-receipt", "receipt sign"),
        ("verify-receipt", "receipt verify"),
    ] {
        let (code, old_help) = help(&[old]);
        let (_, new_help) = help(&new.split(' ').collect::<Vec<_>>());
        assert_eq!(code, Some(0), "{old}");
        assert_eq!(below_usage(&old_help), below_usage(&new_help), "{old}");
    }
}

/// The arguments and options in a help text.
fn below_usage(help: &str) -> &str {
    let (_, usage) = help.split_once("Usage: ").unwrap();
    usage.split_once('\n').unwrap().1
}

#[test]
fn the_help_of_ci_lists_the_steps_and_their_times() {
    let (_, text) = help(&["ci"]);
    for step in [
        ".ci/run",
        "tests/clients",
        "tests/templates",
        "determinism",
        "fuzz",
        "min",
    ] {
        assert!(text.contains(step), "{step}: {text}");
    }
}

#[test]
fn documented_commands_and_options_exist() {
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let lines: Vec<_> = documented::documented(&root)
        .into_iter()
        .filter(|line| line.is_xtask)
        .collect();
    assert!(lines.len() > 10, "{lines:?}");
    let help = |subcommand: &[&str]| match help(subcommand) {
        (Some(0), text) => Some(text),
        _ => None,
    };
    let found: Vec<String> = lines
        .iter()
        .flat_map(|line| documented::complaints(line, &help))
        .collect();
    assert!(found.is_empty(), "{}", found.join("\n"));
}
