//! The command lines in Markdown files: code blocks and code spans that run one of our programs.

use std::fs;
use std::path::Path;

/// A command line of one of our programs, without the program's name.
#[derive(Debug, PartialEq)]
pub struct CommandLine {
    /// `README.md:12`
    pub at: String,
    pub is_xtask: bool,
    pub words: Vec<String>,
}

/// The documentation's Markdown files, relative to the root.
pub fn files(root: &Path) -> Vec<String> {
    let mut files: Vec<String> = [
        "README.md",
        "ARCHITECTURE.md",
        "CONTRIBUTING.md",
        "SECURITY.md",
    ]
    .map(str::to_owned)
    .into();
    for folder in ["docs", "benchmarks", "models/stories"] {
        let entries = fs::read_dir(root.join(folder)).expect("the folder can be listed");
        let names = entries.map(|entry| entry.expect("an entry").file_name());
        let names = names.map(|name| format!("{folder}/{}", name.to_str().expect("UTF-8")));
        files.extend(names.filter(|name| name.ends_with(".md")));
    }
    files.sort();
    files
}

/// All command lines in the repository's documentation.
pub fn documented(root: &Path) -> Vec<CommandLine> {
    let read = |file: &String| fs::read_to_string(root.join(file)).expect("the file can be read");
    files(root)
        .iter()
        .flat_map(|file| in_text(file, &read(file)))
        .collect()
}

/// The command lines in one Markdown text.
pub fn in_text(file: &str, text: &str) -> Vec<CommandLine> {
    let (mut out, mut is_block, mut pending) = (Vec::new(), false, String::new());
    for (index, line) in text.lines().enumerate() {
        let at = format!("{file}:{}", index + 1);
        if line.trim_start().starts_with("```") {
            is_block = !is_block;
        } else if is_block {
            let line = line.split("  #").next().unwrap_or(line);
            match line.strip_suffix('\\') {
                Some(line) => pending += line,
                None => {
                    let whole = std::mem::take(&mut pending) + line;
                    out.extend(whole.split("&&").filter_map(|line| parse(&at, line)));
                }
            }
        } else {
            let spans = line.split('`').skip(1).step_by(2);
            out.extend(spans.filter_map(|span| parse(&at, span)));
        }
    }
    out
}

fn parse(at: &str, line: &str) -> Option<CommandLine> {
    let words: Vec<String> = words(line);
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let (is_xtask, words) = match words[..] {
        ["bitnet", ref rest @ ..] => (false, rest),
        ["xtask", ref rest @ ..] => (true, rest),
        ["cargo", "run", ref rest @ ..] => {
            let dashes = rest.iter().position(|word| *word == "--")?;
            (rest[..dashes].contains(&"xtask"), &rest[dashes + 1..])
        }
        _ => return None,
    };
    (!words.is_empty()).then(|| CommandLine {
        at: at.to_owned(),
        is_xtask,
        words: words.iter().map(|word| (*word).to_owned()).collect(),
    })
}

/// The words of a line. A quoted part belongs to one word; brackets around optional parts are
/// dropped.
fn words(line: &str) -> Vec<String> {
    let (mut out, mut word, mut quote) = (Vec::new(), String::new(), None);
    for c in line.chars() {
        match (quote, c) {
            (Some(open), _) if c == open => quote = None,
            (Some(_), _) => word.push(if c == '-' { '_' } else { c }),
            (None, '"' | '\'') => quote = Some(c),
            (None, '[' | ']' | ' ') => out.push(std::mem::take(&mut word)),
            (None, _) => word.push(c),
        }
    }
    out.push(word);
    out.retain(|word| !word.is_empty());
    out
}

/// Complaints about a command line: subcommands and options that the program's help does not list.
/// `help` gives the help text of a list of subcommands, or `None` if there is no such command.
pub fn complaints(line: &CommandLine, help: &dyn Fn(&[&str]) -> Option<String>) -> Vec<String> {
    let words: Vec<&str> = line.words.iter().map(String::as_str).collect();
    let is_word = |word: &&&str| word.chars().all(|c| c.is_ascii_lowercase() || c == '-');
    let is_option = |word: &str| word.starts_with('-') && word.len() > 1;
    let depth = match words[0] {
        "bench" | "receipt" | "check" | "model" if line.is_xtask => 2,
        _ => 1,
    };
    let subcommand: Vec<&str> = words
        .iter()
        .take(depth)
        .take_while(|word| !is_option(word))
        .filter(is_word)
        .copied()
        .collect();
    if subcommand.is_empty() {
        return Vec::new();
    }
    let at = &line.at;
    let Some(help) = help(&subcommand) else {
        return vec![format!(
            "{at}: there is no command {}",
            subcommand.join(" ")
        )];
    };
    let listed: Vec<&str> = help
        .split(|c: char| !(c.is_ascii_alphanumeric() || "-_.".contains(c)))
        .collect();
    words
        .iter()
        .filter(|word| is_option(word))
        .map(|word| word.split(['=', '…', ',']).next().unwrap_or(word))
        .filter(|option| !listed.contains(option) && *option != "--help")
        .map(|option| format!("{at}: {} has no option {option}", subcommand.join(" ")))
        .collect()
}
