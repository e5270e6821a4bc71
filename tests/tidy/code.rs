//! Rules about code: `unsafe`, long functions, unfinished work, silenced lints, the environment,
//! names.

use std::collections::BTreeMap;

use super::tree::{Source, Word, closing};
use super::{FUNCTION_LINES_MAX, LONG_FUNCTIONS, SHARED_TYPES, UNSAFE};

pub fn unsafe_code_is_in_listed_files(sources: &[Source]) -> Vec<String> {
    let strangers = sources
        .iter()
        .filter(|source| !UNSAFE.contains(&&*source.file.path));
    let complaint = |(source, at): (&Source, usize)| {
        let at = source.at(&source.words()[at]);
        format!("{at}: do it in safe code, or in a file that UNSAFE of tests/tidy.rs lists")
    };
    strangers
        .flat_map(|source| source.sequences(&["unsafe"]).map(move |at| (source, at)))
        .map(complaint)
        .collect()
}

pub fn unsafe_code_says_why_it_is_safe(sources: &[Source]) -> Vec<String> {
    let complaint = |source: &Source| {
        let sites = source.sequences(&["unsafe", "{"]).count()
            + source.sequences(&["unsafe", "impl"]).count();
        let notes = source.file.text.matches("// SAFETY: ").count();
        let path = &source.file.path;
        (notes < sites).then(|| {
            format!("{path}: {sites} unsafe sites, {notes} notes: put a `// SAFETY: ` above each")
        })
    };
    sources.iter().filter_map(complaint).collect()
}

/// The number of functions outside tests, and complaints about long ones and about entries of
/// `LONG_FUNCTIONS` that are not long.
pub fn functions_are_short(sources: &[Source]) -> (usize, Vec<String>) {
    let (mut num_functions, mut out) = (0, Vec::new());
    let mut long = Vec::new();
    for source in sources {
        let path = &*source.file.path;
        if path.split('/').any(|part| part == "tests") {
            continue;
        }
        for (name, lines) in functions(source.program_words()) {
            num_functions += 1;
            if lines <= FUNCTION_LINES_MAX {
                continue;
            }
            long.push((path, &*name.text));
            if !LONG_FUNCTIONS.contains(&(path, &*name.text)) {
                out.push(format!(
                    "{}: {} has {lines} lines, more than {FUNCTION_LINES_MAX}: divide it into named parts",
                    source.at(name),
                    name.text
                ));
            }
        }
    }
    let read = |path: &str| sources.iter().any(|source| source.file.path == path);
    let short = LONG_FUNCTIONS
        .iter()
        .filter(|entry| read(entry.0) && !long.contains(entry));
    out.extend(short.map(|(path, name)| {
        format!("{path}: {name} is not long: take it out of LONG_FUNCTIONS of tests/tidy.rs")
    }));
    (num_functions, out)
}

/// The names of functions with a body, and their lines from `fn` to the last brace.
fn functions(words: &[Word]) -> impl Iterator<Item = (&Word, usize)> {
    words.windows(2).enumerate().filter_map(|(at, pair)| {
        let [keyword, name] = pair else { return None };
        let is_name = name
            .text
            .starts_with(|c: char| c.is_alphabetic() || c == '_');
        if keyword.text != "fn" || !is_name {
            return None;
        }
        let mut open = at + 2;
        while words.get(open)?.text != "{" {
            open = match &*words[open].text {
                ";" => return None,
                "(" | "[" => closing(words, open) + 1,
                _ => open + 1,
            };
        }
        let end = words.get(closing(words, open))?;
        Some((name, end.line + 1 - keyword.line))
    })
}

pub fn nothing_is_left_undone(sources: &[Source]) -> Vec<String> {
    let mut out = Vec::new();
    for source in sources {
        for name in ["todo", "unimplemented", "dbg"] {
            for at in source.sequences(&[name, "!"]) {
                if source
                    .words()
                    .get(at + 2)
                    .is_some_and(|word| ["(", "[", "{"].contains(&&*word.text))
                {
                    out.push(format!(
                        "{}: finish it, or take `{name}!` out",
                        source.at(&source.words()[at])
                    ));
                }
            }
        }
        for (index, line) in source.file.text.lines().enumerate() {
            for mark in [
                concat!("FIX", "ME"),
                concat!("TO", "DO"),
                concat!("``", "`ignore"),
            ] {
                if line.contains(mark) {
                    out.push(format!(
                        "{}:{}: do it now, or take `{mark}` out",
                        source.file.path,
                        index + 1
                    ));
                }
            }
        }
    }
    out
}

pub fn every_test_runs(sources: &[Source]) -> Vec<String> {
    let mut out = Vec::new();
    for source in sources {
        let ignored = source
            .attributes()
            .filter(|words| ["ignore", "cfg_attr"].contains(&&*words[0].text))
            .filter_map(|words| words.iter().find(|word| word.text == "ignore"));
        out.extend(ignored.map(|word| {
            format!(
                "{}: make the test fast or delete it, do not ignore it",
                source.at(word)
            )
        }));
    }
    out
}

pub fn every_silenced_lint_has_a_reason(sources: &[Source]) -> Vec<String> {
    let mut out = Vec::new();
    for source in sources {
        for attribute in source.attributes() {
            let silences = attribute.windows(2).find(|words| {
                ["allow", "expect"].contains(&&*words[0].text) && words[1].text == "("
            });
            if let Some([word, _]) =
                silences.filter(|_| !attribute.iter().any(|word| word.text == "reason"))
            {
                out.push(format!(
                    "{}: write `#[expect(…, reason = \"…\")]`, or heed the lint",
                    source.at(word)
                ));
            }
        }
    }
    out
}

pub fn only_programs_read_the_environment(sources: &[Source]) -> Vec<String> {
    let mut out = Vec::new();
    for source in sources {
        let path = &source.file.path;
        let is_program = [
            "crates/bitnet-cli/",
            "crates/bitnet-python/",
            "xtask/",
            "fuzz/",
        ]
        .iter()
        .any(|program| path.starts_with(program))
            || path
                .split('/')
                .any(|part| ["tests", "benches", "examples", "build.rs"].contains(&part));
        for words in source.program_words().windows(4).filter(|_| !is_program) {
            let texts = [0, 1, 2, 3].map(|i| &*words[i].text);
            if matches!(
                texts,
                ["std", ":", ":", "env"]
                    | [
                        "env",
                        ":",
                        ":",
                        "var" | "var_os" | "vars" | "args" | "args_os"
                    ]
            ) {
                out.push(format!(
                    "{}: read it in the program and pass the value down",
                    source.at(&words[0])
                ));
            }
        }
    }
    out.dedup();
    out
}

pub fn no_two_public_types_share_a_name(sources: &[Source]) -> Vec<String> {
    let mut crates_of = BTreeMap::<&str, BTreeMap<&str, String>>::new();
    for source in sources {
        let [Some("crates"), Some(package), Some("src")] = ({
            let mut parts = source.file.path.split('/');
            [parts.next(), parts.next(), parts.next()]
        }) else {
            continue;
        };
        for words in source.program_words().windows(3) {
            let kind = &*words[1].text;
            if words[0].text == "pub"
                && ["struct", "enum", "union", "trait", "type"].contains(&kind)
            {
                crates_of
                    .entry(&words[2].text)
                    .or_default()
                    .insert(package, source.at(&words[2]));
            }
        }
    }
    let clashes = crates_of
        .iter()
        .filter(|(name, crates)| crates.len() > 1 && !SHARED_TYPES.contains(name));
    let complaint = |(name, crates): (&&str, &BTreeMap<&str, String>)| {
        let places: Vec<_> = crates.values().map(String::as_str).collect();
        format!(
            "{}: `{name}` means more than one thing: rename all but one",
            places.join(", ")
        )
    };
    clashes.map(complaint).collect()
}
