//! The rule about prose: comments, documentation, messages and names avoid mannered words.

use std::ops::Range;

/// Mannered words and what to write instead.
const MANNERED: &[(&str, &str)] = &[
    ("anew", "again, new"),
    ("are told", "name the sender, or use `receive`"),
    ("is told", "name the sender, or use `receives`"),
    ("nobody", "no client, no caller, nothing"),
    ("so many", "n, this number of"),
    ("those of", "repeat the noun"),
    ("what came", "name it: the answer, the bytes"),
    ("whatever is", "name it, or use `any`"),
    ("whoever", "the client, the caller"),
];

/// Paths whose text is plain already, and so must stay plain. Add a folder when it passes; the aim
/// is the whole tree.
const PLAIN: &[&str] = &[
    ".ci/",
    ".github/",
    "CONTRIBUTING.md",
    "README.md",
    "SECURITY.md",
    "benchmarks/",
    "crates/bitnet-cli/README.md",
    "crates/bitnet-cli/benches/",
    "crates/bitnet-files/",
    "crates/bitnet-guard/",
    "crates/bitnet-hub/",
    "crates/bitnet-inference/",
    "crates/bitnet-kernels/",
    "crates/bitnet-models/README.md",
    "crates/bitnet-models/src/convert/",
    "crates/bitnet-models/src/huggingface/",
    "crates/bitnet-models/src/source/",
    "crates/bitnet-quantization/",
    "crates/bitnet-receipts/",
    "crates/bitnet-server/",
    "crates/bitnet-tokenizers/",
    "deny.toml",
    "docs/conversion.md",
    "docs/determinism.md",
    "docs/ffn-sparsity.md",
    "docs/hub.md",
    "docs/performance.md",
    "docs/quantization.md",
    "docs/receipts.md",
    "docs/screened-head.md",
    "docs/table-lookup.md",
    "findings/",
    "fuzz/",
    "models/",
    "tests/convert.rs",
    "tests/docs/",
    "tests/pull.rs",
    "tests/serve/",
    "tests/stories.rs",
    "xtask/",
];

/// Whether the rule holds for a file.
pub fn is_plain(path: &str) -> bool {
    PLAIN.iter().any(|plain| match plain.ends_with('/') {
        true => path.starts_with(plain),
        false => path == *plain,
    })
}

/// Whether a file holds prose of ours: code, documentation, scripts.
pub fn has_prose(path: &str) -> bool {
    let name = path.rsplit('/').next().unwrap_or(path);
    let is_text = match name.rsplit_once('.') {
        Some((_, extension)) => ["rs", "md", "toml", "py", "sh", "yml"].contains(&extension),
        None => path.starts_with(".ci/"),
    };
    is_text && !path.starts_with("tests/data/") && !path.starts_with("tests/tidy/")
}

/// The mannered words in a text, each as `path:line: advice`. A phrase is found across a line
/// break, and in the words of a name.
pub fn mannered_words(path: &str, text: &str) -> Vec<String> {
    let (joined, lines) = join(text);
    let mut out = Vec::new();
    for (phrase, advice) in MANNERED {
        for (at, _) in joined.match_indices(phrase) {
            if is_whole(&joined, at..at + phrase.len()) {
                let line = lines.partition_point(|start| *start <= at);
                out.push((line, format!("{path}:{line}: `{phrase}`: {advice}")));
            }
        }
    }
    out.sort();
    out.into_iter().map(|(_, complaint)| complaint).collect()
}

/// The text in lower case on one line, without the signs of comments and with a space for `_`, and
/// where each line begins.
fn join(text: &str) -> (String, Vec<usize>) {
    let (mut joined, mut starts) = (String::new(), Vec::new());
    for line in text.lines() {
        starts.push(joined.len());
        let bare = line.trim().trim_start_matches(['/', '!', '#', '*', '>']);
        joined += &bare.trim().to_lowercase().replace('_', " ");
        joined.push(' ');
    }
    (joined, starts)
}

fn is_whole(text: &str, range: Range<usize>) -> bool {
    let is_letter = |c: Option<char>| c.is_some_and(char::is_alphabetic);
    !is_letter(text[..range.start].chars().next_back())
        && !is_letter(text[range.end..].chars().next())
}

#[test]
fn a_mannered_word_is_found_in_comments_names_and_across_lines() {
    let found = |text: &str| mannered_words("a.rs", text);
    let kept = [
        "// a new one",
        "fn sonobody() {}",
        "// so much, many",
        "those",
    ];
    assert_eq!(kept.map(|text| found(text).len()), [0; 4]);
    assert_eq!(
        found("//! Fine.\n// The sizes are those\n    // of rows.\nfn nobody_waits() {}\n"),
        [
            "a.rs:2: `those of`: repeat the noun",
            "a.rs:4: `nobody`: no client, no caller, nothing"
        ]
    );
    assert_eq!(found("# Whoever asks").len(), 1);
}

#[test]
fn the_rule_holds_for_listed_folders_and_files() {
    assert!(is_plain("xtask/src/main.rs") && is_plain("README.md"));
    assert!(!is_plain("crates/other/src/lib.rs") && !is_plain("docs/README.md"));
    assert!(has_prose(".ci/run") && has_prose("docs/hub.md"));
    assert!(!has_prose("tests/data/x.md") && !has_prose("models/stories/stories.gguf"));
}
