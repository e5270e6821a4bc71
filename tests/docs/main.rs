//! The documentation names commands and options that exist, and figures that were measured.

mod commands;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use commands::{complaints, documented, in_text};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

/// The help of a subcommand of `bitnet`.
fn help(subcommand: &[&str]) -> Option<String> {
    let mut command = Command::new(env!("CARGO_BIN_EXE_bitnet"));
    let output = command.args(subcommand).arg("--help").output();
    let output = output.expect("bitnet runs");
    let text = || String::from_utf8(output.stdout).expect("UTF-8");
    output.status.success().then(text)
}

#[test]
fn documented_commands_and_options_exist() {
    let lines: Vec<_> = documented(&root())
        .into_iter()
        .filter(|line| !line.is_xtask)
        .collect();
    let in_readme = lines.iter().filter(|line| line.at.starts_with("README.md"));
    assert!(in_readme.count() > 15, "README.md names commands");
    let found: Vec<String> = lines
        .iter()
        .flat_map(|line| complaints(line, &help))
        .collect();
    assert!(found.is_empty(), "{}", found.join("\n"));
}

#[test]
fn every_command_is_in_the_readme() {
    let text = help(&[]).expect("bitnet --help");
    let (_, commands) = text.split_once("Commands:\n").expect("a list of commands");
    let commands = commands.split("\n\n").next().unwrap_or(commands);
    let readme = fs::read_to_string(root().join("README.md")).expect("README.md");
    let names = commands.lines().filter(|line| !line.starts_with("   "));
    for command in names.filter_map(|line| line.split_whitespace().next()) {
        let named = readme.contains(&format!("`bitnet {command}"));
        assert!(
            named || command == "help",
            "README.md does not name {command}"
        );
    }
}

/// The text of all Rust files below a folder.
fn rust_below(folder: &Path) -> String {
    let entries = fs::read_dir(folder).expect("a folder");
    let paths = entries.map(|entry| entry.expect("an entry").path());
    let text = |path: PathBuf| match path.extension() {
        _ if path.is_dir() => rust_below(&path),
        Some(extension) if extension == "rs" => fs::read_to_string(&path).expect("a file"),
        _ => String::new(),
    };
    paths.map(text).collect()
}

#[test]
fn every_guard_has_a_test() {
    let table = fs::read_to_string(root().join("tests/guards.md")).expect("tests/guards.md");
    let rows: Vec<_> = table
        .lines()
        .filter_map(|line| line.strip_prefix("| ")?.rsplit_once(" | `"))
        .collect();
    assert!(rows.len() > 60, "{} rows", rows.len());
    let code = ["crates", "tests"].map(|folder| rust_below(&root().join(folder)));
    for (guard, tests) in rows {
        for test in tests
            .split(['`', ',', ' ', '|'])
            .filter(|name| !name.is_empty())
        {
            let function = format!("fn {test}(");
            let exists = code.iter().any(|code| code.contains(&function));
            assert!(exists, "{guard}: there is no test {test}");
        }
    }
}

#[test]
fn an_unknown_command_or_option_is_found() {
    let text = "`bitnet run --tempo 1`\n```\nbitnet walk\ncargo run --release -- chat -m X \\\n  --jsn  # --y\n```\n";
    let lines = in_text("a.md", text);
    let found: Vec<String> = lines
        .iter()
        .flat_map(|line| complaints(line, &help))
        .collect();
    assert_eq!(
        found,
        [
            "a.md:1: run has no option --tempo",
            "a.md:3: there is no command walk",
            "a.md:5: chat has no option --jsn"
        ]
    );
}

#[test]
fn speeds_in_the_readme_equal_the_measurements() {
    let read = |path: &str| fs::read_to_string(root().join(path)).expect("the file can be read");
    let (readme, engines) = (read("README.md"), read("benchmarks/engines.md"));
    let (_, speed) = readme.split_once("## Speed\n").expect("a section on speed");
    let rows = speed.lines().filter(|line| line.starts_with("| "));
    let rows: Vec<Vec<&str>> = rows
        .map(|line| line.trim_matches('|').split('|').map(str::trim).collect())
        .filter(|cells: &Vec<&str>| !cells[0].is_empty())
        .collect();
    assert!(rows.len() >= 5, "a table of engines");
    for cells in rows {
        let [name, prefill, decode] = cells[..] else {
            panic!("{cells:?} is not an engine with two speeds")
        };
        let measured = engines
            .lines()
            .find(|line| line.starts_with(&format!("| {name} |")));
        let measured = measured.unwrap_or_else(|| panic!("benchmarks/engines.md has no {name}"));
        let expected = [format!("| {prefill} ("), format!("| {decode} (")];
        assert!(
            expected.iter().all(|part| measured.contains(part)),
            "{measured}"
        );
    }
}

/// Folders whose paths in code spans are checked.
const FOLDERS: [&str; 8] = [
    "crates/",
    "xtask/",
    "tests/",
    "docs/",
    "benchmarks/",
    "fuzz/",
    "models/",
    ".ci/",
];

/// The paths that a Markdown text refers to, relative to the root: link targets and code spans.
fn referred_paths(file: &str, text: &str) -> Vec<String> {
    let folder = file.rsplit_once('/').map_or("", |(folder, _)| folder);
    let links = text.split("](").skip(1).filter_map(|rest| {
        let target = rest.split(')').next()?.split('#').next()?;
        let is_local = !target.is_empty() && !target.contains("://");
        is_local.then(|| format!("{folder}/{target}"))
    });
    let spans = text.split('`').skip(1).step_by(2).filter_map(|span| {
        let is_path = FOLDERS.iter().any(|folder| span.starts_with(folder));
        let is_literal = span
            .chars()
            .all(|c| c.is_ascii_alphanumeric() || "-_./".contains(c));
        let has_placeholder =
            span.contains(|c: char| c.is_ascii_uppercase()) && !span.contains(".md");
        (is_path && is_literal && !has_placeholder).then(|| span.to_owned())
    });
    links.chain(spans).collect()
}

#[test]
fn documented_paths_exist() {
    let root = root();
    // Former folders of receipts, and an optional copy of Criterion's folder.
    let absent = ["docs/baselines/", "benchmarks/baselines/"];
    let mut lost = Vec::new();
    for file in commands::files(&root) {
        let text = fs::read_to_string(root.join(&file)).expect("the file can be read");
        let paths = referred_paths(&file, &text).into_iter();
        lost.extend(
            paths
                .filter(|path| !root.join(path.trim_start_matches('/')).exists())
                .filter(|path| !absent.iter().any(|absent| path.starts_with(absent)))
                .map(|path| format!("{file}: {path} does not exist")),
        );
    }
    assert!(lost.is_empty(), "{}", lost.join("\n"));
}

#[test]
fn links_and_paths_are_found() {
    let text = "[a](b.md#c) [d](https://e) `crates/x/src/f.rs` `tests/data/NAME` `cargo test`";
    assert_eq!(
        referred_paths("docs/y.md", text),
        ["docs/b.md", "crates/x/src/f.rs"]
    );
}
