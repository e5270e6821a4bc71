//! A linter of the tree, for rules that a compiler does not check: where files lie, which crate uses
//! which, which words do not appear.
//!
//! Each rule is a function from sources to complaints. One test runs it over the whole tree; the
//! tests in `rules` show on small inputs that it can fail. A complaint says where and what to do.

#[path = "tidy/prose.rs"]
mod prose;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Component, Path, PathBuf};
use std::sync::LazyLock;

use proc_macro2::{Delimiter, TokenStream, TokenTree};

/// The entries of the repository's root, besides the ignored ones.
const ROOT: &[&str] = &[
    ".ci",
    ".git",
    ".gitattributes",
    ".github",
    ".gitignore",
    "ARCHITECTURE.md",
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    "Cargo.lock",
    "Cargo.toml",
    "LICENSE-APACHE",
    "LICENSE-MIT",
    "README.md",
    "SECURITY.md",
    "benchmarks",
    "crates",
    "deny.toml",
    "docs",
    "examples",
    "findings",
    "fuzz",
    "models",
    "rustfmt.toml",
    "tests",
    "xtask",
];

/// The crates, each with the crates of ours that its code may use (its tests may use any). `xtask`
/// and `fuzz` may use all, and nothing uses them.
const ARROWS: &[(&str, &[&str])] = &[
    ("bitnet-guard", &[]),
    ("bitnet-kernels", &[]),
    ("bitnet-quantization", &["bitnet-kernels"]),
    ("bitnet-files", &["bitnet-guard", "bitnet-quantization"]),
    (
        "bitnet-models",
        &["bitnet-files", "bitnet-kernels", "bitnet-quantization"],
    ),
    ("bitnet-tokenizers", &[]),
    ("bitnet-hub", &[]),
    (
        "bitnet-inference",
        &[
            "bitnet-files",
            "bitnet-guard",
            "bitnet-kernels",
            "bitnet-models",
            "bitnet-tokenizers",
        ],
    ),
    (
        "bitnet-receipts",
        &[
            "bitnet-inference",
            "bitnet-kernels",
            "bitnet-models",
            "bitnet-tokenizers",
        ],
    ),
    (
        "bitnet-server",
        &["bitnet-guard", "bitnet-inference", "bitnet-tokenizers"],
    ),
    (
        "bitnet-cli",
        &[
            "bitnet-files",
            "bitnet-guard",
            "bitnet-hub",
            "bitnet-inference",
            "bitnet-kernels",
            "bitnet-models",
            "bitnet-quantization",
            "bitnet-receipts",
            "bitnet-server",
            "bitnet-tokenizers",
        ],
    ),
];

/// Crates with storeys, the lowest first: a file uses its own storey and lower ones.
const STOREYS: &[(&str, &[&str])] = &[(
    "bitnet-kernels",
    &["layout", "threads", "weights", "sets", "ops"],
)];

/// Maximum number of files of such a crate that import one another in a circle.
const CIRCLE_FILES_MAX: usize = 3;

/// The files that may say `unsafe`.
const UNSAFE: &[&str] = &[
    "crates/bitnet-files/src/mmap.rs",
    "crates/bitnet-guard/src/mapped.rs",
    "crates/bitnet-guard/src/memory.rs",
    "crates/bitnet-guard/tests/mapped.rs",
    "crates/bitnet-inference/tests/allocations.rs",
    "crates/bitnet-kernels/src/ops/attention.rs",
    "crates/bitnet-kernels/src/ops/cpu.rs",
    "crates/bitnet-kernels/src/ops/groups.rs",
    "crates/bitnet-kernels/src/ops/lookup.rs",
    "crates/bitnet-kernels/src/ops/probe.rs",
    "crates/bitnet-kernels/src/ops/recurrent.rs",
    "crates/bitnet-kernels/src/ops/rows.rs",
    "crates/bitnet-kernels/src/ops/screen.rs",
    "crates/bitnet-kernels/src/ops/sparse.rs",
    "crates/bitnet-kernels/src/sets/avx2.rs",
    "crates/bitnet-kernels/src/sets/avx2/attention.rs",
    "crates/bitnet-kernels/src/sets/avx2/groups.rs",
    "crates/bitnet-kernels/src/sets/avx2/screen.rs",
    "crates/bitnet-kernels/src/sets/avx2/signs.rs",
    "crates/bitnet-kernels/src/sets/avx2/sparse.rs",
    "crates/bitnet-kernels/src/sets/avx2/ternary.rs",
    "crates/bitnet-kernels/src/sets/avx2/tl.rs",
    "crates/bitnet-kernels/src/sets/avx2/vector.rs",
    "crates/bitnet-kernels/src/sets/avx512.rs",
    "crates/bitnet-kernels/src/sets/avx512/attention.rs",
    "crates/bitnet-kernels/src/sets/avx512/groups.rs",
    "crates/bitnet-kernels/src/sets/avx512/mixed.rs",
    "crates/bitnet-kernels/src/sets/avx512/screen.rs",
    "crates/bitnet-kernels/src/sets/avx512/sparse.rs",
    "crates/bitnet-kernels/src/sets/avx512/ternary.rs",
    "crates/bitnet-kernels/src/sets/avx512/tl.rs",
    "crates/bitnet-kernels/src/sets/avx512/vector.rs",
    "crates/bitnet-kernels/src/sets/checked.rs",
    "crates/bitnet-kernels/src/sets/compiled.rs",
    "crates/bitnet-kernels/src/sets/groups.rs",
    "crates/bitnet-kernels/src/sets/lookup.rs",
    "crates/bitnet-kernels/src/sets/neon.rs",
    "crates/bitnet-kernels/src/sets/neon/attention.rs",
    "crates/bitnet-kernels/src/sets/neon/groups.rs",
    "crates/bitnet-kernels/src/sets/neon/screen.rs",
    "crates/bitnet-kernels/src/sets/neon/signs.rs",
    "crates/bitnet-kernels/src/sets/neon/sparse.rs",
    "crates/bitnet-kernels/src/sets/neon/ternary.rs",
    "crates/bitnet-kernels/src/sets/neon/tl.rs",
    "crates/bitnet-kernels/src/sets/neon/vector.rs",
    "crates/bitnet-kernels/src/sets/output.rs",
    "crates/bitnet-kernels/src/sets/scalar.rs",
    "crates/bitnet-kernels/src/sets/scalar/groups.rs",
    "crates/bitnet-kernels/src/sets/segment.rs",
    "crates/bitnet-kernels/src/sets/sparse.rs",
    "crates/bitnet-kernels/src/sets/table.rs",
    "crates/bitnet-kernels/src/threads/disjoint.rs",
    "crates/bitnet-kernels/src/threads/memory.rs",
    "crates/bitnet-kernels/src/threads/pool.rs",
    "crates/bitnet-kernels/src/weights/columns.rs",
    "crates/bitnet-kernels/src/weights/groups.rs",
    "crates/bitnet-kernels/src/weights/matrix.rs",
];

/// Public names that every library may have.
const SHARED_TYPES: &[&str] = &["Error", "Result"];

// ---- the tree ----

/// A file with its path from the root, `/` between the parts.
struct File {
    path: String,
    text: String,
}

/// A Rust file as tokens, without comments.
struct Source {
    file: File,
    /// `Err` if the text is not Rust.
    words: Result<Vec<Word>, String>,
}

/// A token: an identifier, a literal, a sign or a bracket.
#[derive(Debug)]
struct Word {
    text: String,
    line: usize,
}

impl Source {
    fn new(path: &str, text: &str) -> Self {
        let words = match text.parse() {
            Ok(tokens) => {
                let mut words = Vec::new();
                flatten(tokens, &mut words);
                Ok(words)
            }
            Err(error) => Err(error.to_string()),
        };
        Self {
            file: File {
                path: path.to_owned(),
                text: text.to_owned(),
            },
            words,
        }
    }

    fn words(&self) -> &[Word] {
        self.words.as_deref().unwrap_or_default()
    }

    /// The tokens before the unit tests, which come last.
    fn program_words(&self) -> &[Word] {
        let tests = self
            .sequences(&["#", "[", "cfg", "(", "test", ")", "]", "mod"])
            .next();
        &self.words()[..tests.unwrap_or(self.words().len())]
    }

    /// The indices where a sequence of tokens begins.
    fn sequences<'a>(&'a self, sequence: &'a [&str]) -> impl Iterator<Item = usize> + 'a {
        let words = self.words().windows(sequence.len()).enumerate();
        words
            .filter(move |(_, words)| {
                words
                    .iter()
                    .zip(sequence)
                    .all(|(word, text)| word.text == *text)
            })
            .map(|(at, _)| at)
    }

    /// The tokens of each `#[…]` and `#![…]`, without the brackets.
    fn attributes(&self) -> impl Iterator<Item = &[Word]> {
        let words = self.words();
        words
            .iter()
            .enumerate()
            .filter(|(_, word)| word.text == "#")
            .filter_map(|(at, _)| {
                let open = at + 1 + usize::from(words.get(at + 1)?.text == "!");
                (words.get(open)?.text == "[").then(|| &words[open + 1..closing(words, open)])
            })
    }

    fn at(&self, word: &Word) -> String {
        format!("{}:{}", self.file.path, word.line)
    }
}

fn flatten(tokens: TokenStream, words: &mut Vec<Word>) {
    for token in tokens {
        let line = token.span().start().line;
        match token {
            TokenTree::Group(group) => {
                let (open, close) = match group.delimiter() {
                    Delimiter::Parenthesis => ("(", ")"),
                    Delimiter::Brace => ("{", "}"),
                    Delimiter::Bracket => ("[", "]"),
                    Delimiter::None => ("", ""),
                };
                words.push(Word {
                    text: open.to_owned(),
                    line,
                });
                flatten(group.stream(), words);
                words.push(Word {
                    text: close.to_owned(),
                    line: group.span_close().start().line,
                });
            }
            token => words.push(Word {
                text: token.to_string(),
                line,
            }),
        }
    }
}

/// The index of the bracket that closes the one at `open`.
fn closing(words: &[Word], open: usize) -> usize {
    let mut depth = 0usize;
    for (at, word) in words.iter().enumerate().skip(open) {
        match &*word.text {
            "(" | "[" | "{" => depth += 1,
            ")" | "]" | "}" => depth -= 1,
            _ => {}
        }
        if depth == 0 {
            return at;
        }
    }
    words.len()
}

/// The files of the repository that the rules read.
struct Tree {
    sources: Vec<Source>,
    manifests: Vec<File>,
    /// Other text: documentation and scripts.
    documents: Vec<File>,
    root_entries: Vec<String>,
    ignored: Vec<String>,
}

static TREE: LazyLock<Tree> = LazyLock::new(|| {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let gitignore =
        std::fs::read_to_string(root.join(".gitignore")).expect(".gitignore can be read");
    let ignored: Vec<_> = gitignore
        .lines()
        .map(|line| line.trim_matches('/').to_owned())
        .collect();
    let mut tree = Tree {
        sources: vec![],
        manifests: vec![],
        documents: vec![],
        root_entries: list(&root),
        ignored,
    };
    read(&mut tree, &root, "");
    tree
});

fn list(folder: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(folder).expect("the folder can be listed");
    let name = |entry: std::io::Result<std::fs::DirEntry>| entry.expect("an entry").file_name();
    let mut names: Vec<_> = entries
        .map(|entry| name(entry).into_string().expect("a name in UTF-8"))
        .collect();
    names.sort();
    names
}

fn read(tree: &mut Tree, folder: &Path, prefix: &str) {
    for name in list(folder) {
        let (path, on_disk) = (format!("{prefix}{name}"), folder.join(&name));
        if name == ".git" || tree.ignored.contains(&path) || tree.ignored.contains(&name) {
            continue;
        }
        if on_disk.is_dir() {
            read(tree, &on_disk, &format!("{path}/"));
        } else if prose::has_prose(&path) {
            let text = std::fs::read_to_string(&on_disk).expect("the file can be read");
            match &*name {
                "Cargo.toml" => tree.manifests.push(File { path, text }),
                name if name.ends_with(".rs") => tree.sources.push(Source::new(&path, &text)),
                _ => tree.documents.push(File { path, text }),
            }
        }
    }
}

// ---- the rules ----

fn root_holds_only_what_is_listed(entries: &[String], ignored: &[String]) -> Vec<String> {
    let known = |entry: &&String| ROOT.contains(&&***entry) || ignored.contains(entry);
    let stray = entries.iter().filter(|entry| !known(entry));
    stray
        .map(|entry| format!("{entry}: move it into a folder, or list it in ROOT of tests/tidy.rs"))
        .collect()
}

fn every_file_is_rust(sources: &[Source]) -> Vec<String> {
    let error = |source: &Source| {
        source
            .words
            .as_ref()
            .err()
            .map(|error| format!("{}: {error}", source.file.path))
    };
    sources.iter().filter_map(error).collect()
}

fn every_file_says_what_it_is_for(sources: &[Source]) -> Vec<String> {
    let bare = sources
        .iter()
        .filter(|source| !source.file.text.starts_with("//!"));
    bare.map(|source| {
        format!(
            "{}: begin it with `//!` and what it is for",
            source.file.path
        )
    })
    .collect()
}

fn every_file_is_reached(sources: &[Source], manifests: &[File]) -> Vec<String> {
    let by_path: BTreeMap<_, _> = sources
        .iter()
        .map(|source| (&*source.file.path, source))
        .collect();
    let roots: BTreeSet<String> = manifests
        .iter()
        .flat_map(|manifest| crate_roots(manifest, sources))
        .collect();
    let mut reached = BTreeSet::new();
    let mut open: Vec<String> = roots.iter().cloned().collect();
    while let Some(path) = open.pop() {
        if let Some(source) = by_path.get(&*path)
            && reached.insert(path.clone())
        {
            open.extend(modules(source, roots.contains(&path)));
        }
    }
    let lost = by_path.keys().filter(|path| !reached.contains(**path));
    lost.map(|path| {
        format!(
            "{path}: no crate root reaches it: add a `mod` or a `path` in Cargo.toml, or delete it"
        )
    })
    .collect()
}

/// The crate roots that Cargo finds by itself, and the ones that the manifest names.
fn crate_roots(manifest: &File, sources: &[Source]) -> Vec<String> {
    let package = manifest
        .path
        .strip_suffix("Cargo.toml")
        .expect("a manifest's path");
    let found = sources
        .iter()
        .map(|source| &source.file.path)
        .filter(|path| {
            let inside = path.strip_prefix(package).filter(|_| !package.is_empty());
            let parts: Vec<_> = inside
                .into_iter()
                .flat_map(|inside| inside.split('/'))
                .collect();
            matches!(
                parts[..],
                ["build.rs"]
                    | ["src", "lib.rs" | "main.rs"]
                    | ["src", "bin", _]
                    | ["src", "bin", _, "main.rs"]
                    | ["tests" | "benches" | "examples", _]
                    | ["tests" | "benches" | "examples", _, "main.rs"]
            )
        });
    let mut target = false;
    let named = manifest.text.lines().filter_map(|line| {
        if line.starts_with('[') {
            target =
                ["[lib]", "[[bin]]", "[[test]]", "[[bench]]", "[[example]]"].contains(&line.trim());
        }
        let path = line
            .strip_prefix("path = \"")
            .filter(|_| target)?
            .split('"')
            .next()?;
        Some(joined(package, path))
    });
    found.cloned().chain(named).collect()
}

/// `path` from `folder`, with its `..` resolved.
fn joined(folder: &str, path: &str) -> String {
    let mut out = PathBuf::new();
    for part in Path::new(folder).join(path).components() {
        match part {
            Component::ParentDir => drop(out.pop()),
            part => out.push(part),
        }
    }
    out.to_str().expect("made of strings").to_owned()
}

/// The files that `mod name;` in a file can refer to.
fn modules(source: &Source, is_root: bool) -> Vec<String> {
    let (folder, name) = source
        .file
        .path
        .rsplit_once('/')
        .unwrap_or(("", &source.file.path));
    let home = match is_root || name == "mod.rs" {
        true => folder.to_owned(),
        false => source.file.path.trim_end_matches(".rs").to_owned(),
    };
    let (mut depth, mut inline, mut out) = (0, Vec::<(usize, &str)>::new(), Vec::new());
    for (at, words) in source.words().windows(3).enumerate() {
        match [&*words[0].text, &words[1].text, &words[2].text] {
            ["mod", name, "{"] => inline.push((depth, name)),
            ["mod", name, ";"] => {
                let inside: String = inline.iter().map(|(_, name)| format!("{name}/")).collect();
                out.push(format!("{home}/{inside}{name}.rs"));
                out.push(format!("{home}/{inside}{name}/mod.rs"));
                // `#[path = "…"] mod name;`, from the file's folder.
                if let ["path", "=", path, "]"] = source.words()[at.saturating_sub(4)..at]
                    .iter()
                    .map(|word| &*word.text)
                    .collect::<Vec<_>>()[..]
                {
                    out.push(joined(folder, path.trim_matches('"')));
                }
            }
            ["{", ..] => depth += 1,
            ["}", ..] => {
                depth -= 1;
                inline.pop_if(|(outside, _)| *outside == depth);
            }
            _ => {}
        }
    }
    out
}

fn unsafe_code_is_in_listed_files(sources: &[Source]) -> Vec<String> {
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

fn unsafe_code_says_why_it_is_safe(sources: &[Source]) -> Vec<String> {
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

fn nothing_is_left_undone(sources: &[Source]) -> Vec<String> {
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

fn every_test_runs(sources: &[Source]) -> Vec<String> {
    let mut out = Vec::new();
    for source in sources {
        let ignored = source
            .attributes()
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

fn every_silenced_lint_has_a_reason(sources: &[Source]) -> Vec<String> {
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

fn only_programs_read_the_environment(sources: &[Source]) -> Vec<String> {
    let mut out = Vec::new();
    for source in sources {
        let path = &source.file.path;
        let is_program = ["crates/bitnet-cli/", "xtask/", "fuzz/"]
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

fn no_two_public_types_share_a_name(sources: &[Source]) -> Vec<String> {
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

/// A dependency in a manifest.
struct Dependency<'a> {
    line: usize,
    /// `dev-dependencies`, for instance.
    section: &'a str,
    name: &'a str,
    /// Whether it has a comment beside or above it, or needs none because the crate is ours or the
    /// workspace has the comment.
    has_reason: bool,
}

fn dependencies(manifest: &File) -> Vec<Dependency<'_>> {
    let (mut out, mut section, mut open, mut comment_above) = (Vec::new(), "", 0, false);
    for (index, line) in manifest.text.lines().enumerate() {
        let line = line.trim();
        if open == 0 && line.starts_with('[') {
            section = line.trim_matches(['[', ']']);
        } else if let (0, Some((key, value)), true) = (
            open,
            line.split_once('='),
            section.ends_with("dependencies"),
        ) {
            let name = key.trim().split('.').next().unwrap_or_default();
            let inherited = key.contains(".workspace") || value.contains("workspace = true");
            let has_reason =
                comment_above || inherited || value.contains("# ") || value.contains("path = ");
            out.push(Dependency {
                line: index + 1,
                section,
                name,
                has_reason,
            });
        }
        let code = line.split('#').next().unwrap_or_default();
        open += code.matches(['[', '{']).count();
        open -= code.matches([']', '}']).count();
        comment_above = line.starts_with('#');
    }
    out
}

fn every_dependency_has_a_reason(manifests: &[File]) -> Vec<String> {
    let mut out = Vec::new();
    for manifest in manifests {
        for Dependency { line, name, .. } in dependencies(manifest)
            .iter()
            .filter(|dependency| !dependency.has_reason)
        {
            out.push(format!(
                "{}:{line}: say in a comment what {name} is for",
                manifest.path
            ));
        }
        for line in manifest
            .text
            .lines()
            .filter(|line| line.starts_with('[') && line.contains("dependencies."))
        {
            out.push(format!(
                "{}: {line}: write the dependency on one line, with its reason",
                manifest.path
            ));
        }
    }
    out
}

fn the_arrows_hold(manifests: &[File]) -> Vec<String> {
    let mut out = Vec::new();
    for manifest in manifests {
        let Some(package) = manifest
            .path
            .strip_prefix("crates/")
            .and_then(|path| path.strip_suffix("/Cargo.toml"))
        else {
            continue;
        };
        let Some((_, may_use)) = ARROWS.iter().find(|(name, _)| *name == package) else {
            out.push(format!(
                "{}: {package} is not on the map: use a crate that is, or draw it (ARROWS)",
                manifest.path
            ));
            continue;
        };
        for Dependency {
            line,
            section,
            name,
            ..
        } in dependencies(manifest)
        {
            let ours = name.starts_with("bitnet-")
                && !section.contains("dev-dependencies")
                && !may_use.contains(&name);
            if ours || name == "xtask" {
                let at = format!("{}:{line}", manifest.path);
                out.push(format!(
                    "{at}: {package} may not use {name}: move the code to where the arrows allow it"
                ));
            }
        }
    }
    out
}

/// For each file of a package's `src`, the files of `src` that it imports.
fn imports<'a>(sources: &'a [Source], package: &str) -> BTreeMap<&'a str, BTreeSet<&'a str>> {
    let src = format!("crates/{package}/src/");
    let inside: Vec<(Vec<&str>, &Source)> = sources
        .iter()
        .filter_map(|source| Some((source.file.path.strip_prefix(&*src)?, source)))
        .map(|(path, source)| (module_path(path), source))
        .collect();
    let by_module: BTreeMap<&[&str], &str> = inside
        .iter()
        .map(|(module, source)| (&**module, &*source.file.path))
        .collect();
    let of_file = |(module, source): &(Vec<&'a str>, &'a Source)| {
        let used = used_paths(source.program_words(), module, &by_module);
        let files = used.iter().filter_map(|path| {
            (0..=path.len())
                .rev()
                .find_map(|len| by_module.get(&path[..len]))
                .copied()
        });
        let others = files.filter(|file| *file != source.file.path);
        (&*source.file.path, others.collect())
    };
    inside.iter().map(of_file).collect()
}

/// The module path of a file of `src`: `a::b` for `a/b.rs` and `a/b/mod.rs`.
fn module_path(path: &str) -> Vec<&str> {
    let mut parts: Vec<_> = path.trim_end_matches(".rs").split('/').collect();
    parts.pop_if(|last| ["mod", "lib", "main"].contains(last));
    parts
}

/// The paths that begin with `crate`, `super` or a child of this module, relative to the crate's root.
fn used_paths<'a>(
    words: &'a [Word],
    module: &[&'a str],
    modules: &BTreeMap<&[&'a str], &str>,
) -> Vec<Vec<&'a str>> {
    let mut out = Vec::new();
    for (at, word) in words.iter().enumerate() {
        let is = |at: usize, text: &str| words.get(at).is_some_and(|word| word.text == text);
        let begins_a_path = is(at + 1, ":") && is(at + 2, ":") && !(at > 0 && is(at - 1, ":"));
        let child = [module, &[&*word.text]].concat();
        let base = match &*word.text {
            _ if !begins_a_path => continue,
            "crate" => vec![],
            "super" => module[..module.len().saturating_sub(1)].to_vec(),
            _ if modules.contains_key(&*child) => child,
            _ => continue,
        };
        expand(&words[at + 3..], base, &mut out);
    }
    out
}

/// Follows a path, and the braces of a `use`, from the word after its first `::`.
fn expand<'a>(words: &'a [Word], mut path: Vec<&'a str>, out: &mut Vec<Vec<&'a str>>) {
    let Some(first) = words.first() else { return };
    if first.text == "{" {
        let end = closing(words, 0);
        let mut at = 1;
        while at < end {
            expand(&words[at..end], path.clone(), out);
            let mut depth = 0;
            while at < end && !(depth == 0 && words[at].text == ",") {
                depth += i32::from(words[at].text == "{") - i32::from(words[at].text == "}");
                at += 1;
            }
            at += 1;
        }
        return;
    }
    match &*first.text {
        "super" => drop(path.pop()),
        "self" => {}
        name => path.push(name),
    }
    match words {
        [_, a, b, rest @ ..] if a.text == ":" && b.text == ":" => expand(rest, path, out),
        _ => out.push(path),
    }
}

fn the_storeys_hold(sources: &[Source]) -> Vec<String> {
    let mut out = Vec::new();
    for (package, storeys) in STOREYS {
        let src = format!("crates/{package}/src/");
        let storey_of = |file: &str| {
            let inside = file.strip_prefix(&*src)?;
            storeys.iter().position(|storey| {
                inside
                    .strip_prefix(storey)
                    .is_some_and(|rest| rest.starts_with('/'))
            })
        };
        let imports = imports(sources, package);
        for (file, used) in &imports {
            for used in used {
                if let (Some(own), Some(other)) = (storey_of(file), storey_of(used))
                    && other > own
                {
                    out.push(format!(
                        "{file}: uses {used}, a storey above it: move the code up or what it uses down"
                    ));
                }
            }
        }
        for circle in circles(&imports) {
            if circle.len() > CIRCLE_FILES_MAX {
                let files: Vec<_> = circle.into_iter().collect();
                out.push(format!(
                    "{}: {} files import one another in a circle: move what they share to a file below them",
                    files.join(", "),
                    files.len()
                ));
            }
        }
    }
    out
}

/// The sets of two or more files that reach each other by imports.
fn circles<'a>(imports: &BTreeMap<&'a str, BTreeSet<&'a str>>) -> BTreeSet<BTreeSet<&'a str>> {
    let reach = |from: &'a str| {
        let (mut reached, mut open) = (BTreeSet::new(), vec![from]);
        while let Some(file) = open.pop() {
            for next in imports.get(file).into_iter().flatten() {
                if reached.insert(*next) {
                    open.push(next);
                }
            }
        }
        reached
    };
    let reached: BTreeMap<_, _> = imports.keys().map(|file| (*file, reach(file))).collect();
    let circle_of = |(file, reached_from): (&&'a str, &BTreeSet<&'a str>)| {
        let back = |other: &&&str| reached.get(**other).is_some_and(|set| set.contains(file));
        reached_from
            .iter()
            .filter(back)
            .copied()
            .collect::<BTreeSet<_>>()
    };
    reached
        .iter()
        .map(circle_of)
        .filter(|circle| circle.len() > 1)
        .collect()
}

/// `cargo bench` also runs every library and program without `bench = false`, with Cargo's own
/// harness, which rejects Criterion's arguments.
fn criterion_alone_benches(manifests: &[File]) -> Vec<String> {
    let crates = manifests
        .iter()
        .filter(|manifest| manifest.path.starts_with("crates/"));
    let broken =
        crates.filter(|manifest| !manifest.text.lines().any(|line| line == "bench = false"));
    broken
        .map(|manifest| {
            format!(
                "{}: say bench = false below [lib] or [[bin]]",
                manifest.path
            )
        })
        .collect()
}

fn every_package_has_a_readme(manifests: &[File], documents: &[File]) -> Vec<String> {
    let folders = manifests.iter().filter_map(|manifest| {
        let folder = manifest.path.strip_suffix("Cargo.toml")?;
        (!folder.is_empty()).then_some(folder)
    });
    let has_readme = |folder: &&str| {
        let readme = format!("{folder}README.md");
        documents.iter().any(|file| file.path == readme)
    };
    folders
        .filter(|folder| !has_readme(folder))
        .map(|folder| format!("{folder}README.md: say what the package is for, with an example"))
        .collect()
}

fn prose_is_plain(files: &[&File]) -> Vec<String> {
    let plain = files.iter().filter(|file| prose::is_plain(&file.path));
    plain
        .flat_map(|file| prose::mannered_words(&file.path, &file.text))
        .collect()
}

// ---- the rules, run over the tree ----

#[track_caller]
fn assert_none(complaints: Vec<String>) {
    assert!(complaints.is_empty(), "\n{}\n", complaints.join("\n"));
}

#[test]
fn the_root_holds_only_what_is_listed() {
    assert_none(root_holds_only_what_is_listed(
        &TREE.root_entries,
        &TREE.ignored,
    ));
}

#[test]
fn every_rust_file_can_be_read() {
    assert!(
        TREE.sources.len() > 50 && TREE.manifests.len() > 7,
        "the tree was not found"
    );
    assert_none(every_file_is_rust(&TREE.sources));
}

#[test]
fn every_rust_file_says_what_it_is_for() {
    assert_none(every_file_says_what_it_is_for(&TREE.sources));
}

#[test]
fn every_rust_file_is_reached_from_a_crate_root() {
    assert_none(every_file_is_reached(&TREE.sources, &TREE.manifests));
}

#[test]
fn unsafe_code_is_only_where_it_is_listed() {
    assert_none(unsafe_code_is_in_listed_files(&TREE.sources));
}

#[test]
fn every_unsafe_site_says_why_it_is_safe() {
    assert_none(unsafe_code_says_why_it_is_safe(&TREE.sources));
}

#[test]
fn nothing_in_the_tree_is_left_undone() {
    assert_none(nothing_is_left_undone(&TREE.sources));
}

#[test]
fn no_test_is_ignored() {
    assert_none(every_test_runs(&TREE.sources));
}

#[test]
fn no_lint_is_silenced_without_a_reason() {
    assert_none(every_silenced_lint_has_a_reason(&TREE.sources));
}

#[test]
fn only_the_programs_read_arguments_and_environment() {
    assert_none(only_programs_read_the_environment(&TREE.sources));
}

#[test]
fn one_name_is_one_public_type() {
    assert_none(no_two_public_types_share_a_name(&TREE.sources));
}

#[test]
fn dependencies_say_what_they_are_for() {
    assert_none(every_dependency_has_a_reason(&TREE.manifests));
}

#[test]
fn crates_depend_only_along_the_arrows() {
    assert_none(the_arrows_hold(&TREE.manifests));
}

#[test]
fn storeys_use_what_is_below_them() {
    for (package, _) in STOREYS {
        let imports = imports(&TREE.sources, package);
        let found: usize = imports.values().map(BTreeSet::len).sum();
        assert!(
            imports.len() > 20 && found > 50,
            "{package}: {found} imports were found"
        );
    }
    assert_none(the_storeys_hold(&TREE.sources));
}

#[test]
fn cargo_bench_takes_the_arguments_of_criterion() {
    assert_none(criterion_alone_benches(&TREE.manifests));
}

#[test]
fn every_package_says_what_it_is_for() {
    assert_none(every_package_has_a_readme(&TREE.manifests, &TREE.documents));
}

#[test]
fn prose_avoids_mannered_words() {
    let sources = TREE.sources.iter().map(|source| &source.file);
    let others = TREE.manifests.iter().chain(&TREE.documents);
    assert_none(prose_is_plain(&sources.chain(others).collect::<Vec<_>>()));
}

/// Each rule on texts that follow it and on texts that break it.
mod rules {
    use super::*;

    const LIB: &str = "crates/bitnet-models/src/lib.rs";
    const MANIFEST: &str = "crates/bitnet-models/Cargo.toml";

    /// Holds a rule against one file at a time.
    #[track_caller]
    fn check(rule: fn(&[Source]) -> Vec<String>, kept: &[&str], broken: &[&str]) {
        for text in kept {
            assert_eq!(rule(&[Source::new(LIB, text)]), [""; 0], "{text}");
        }
        for text in broken {
            let complaints = rule(&[Source::new(LIB, text)]);
            assert!(
                complaints.len() == 1 && complaints[0].contains(LIB),
                "{text}: {complaints:?}"
            );
        }
    }

    #[track_caller]
    fn check_manifest(rule: fn(&[File]) -> Vec<String>, kept: &[&str], broken: &[&str]) {
        let complaints = |text: &str| {
            rule(&[File {
                path: MANIFEST.to_owned(),
                text: text.to_owned(),
            }])
        };
        kept.iter()
            .for_each(|text| assert_eq!(complaints(text), [""; 0], "{text}"));
        broken
            .iter()
            .for_each(|text| assert_eq!(complaints(text).len(), 1, "{text}"));
    }

    /// The files that no crate root reaches.
    fn lost(files: &[(&str, &str)], manifest: &str) -> Vec<String> {
        let sources: Vec<_> = files
            .iter()
            .map(|(path, text)| Source::new(path, text))
            .collect();
        let complaints = every_file_is_reached(
            &sources,
            &[File {
                path: MANIFEST.to_owned(),
                text: manifest.to_owned(),
            }],
        );
        complaints
            .iter()
            .map(|complaint| complaint.split(": ").next().unwrap_or_default().to_owned())
            .collect()
    }

    #[test]
    fn a_stray_root_entry_is_found() {
        let entries = ["README.md", "target", "notes.txt"].map(str::to_owned);
        let complaints = root_holds_only_what_is_listed(&entries, &["target".to_owned()]);
        assert!(
            complaints.len() == 1 && complaints[0].starts_with("notes.txt: "),
            "{complaints:?}"
        );
    }

    #[test]
    fn a_text_that_is_no_rust_is_found() {
        check(every_file_is_rust, &["fn f() {}"], &["fn f() {"]);
    }

    #[test]
    fn a_file_without_a_purpose_is_found() {
        check(
            every_file_says_what_it_is_for,
            &["//! Tensors."],
            &["// Tensors.", "use a;\n//! Tensors.", ""],
        );
    }

    #[test]
    fn an_unreached_file_is_found() {
        let inside = |path: &'static str| format!("crates/bitnet-models/{path}");
        let (a, b, c, test) = (
            inside("src/a.rs"),
            inside("src/b/mod.rs"),
            inside("src/b/c/d.rs"),
            inside("tests/t.rs"),
        );
        let reached = [
            (LIB, "mod a; mod b;"),
            (&a, ""),
            (&b, "mod c { fn f() {} mod d; }"),
            (&c, ""),
            (&test, ""),
        ];
        assert_eq!(lost(&reached, ""), [""; 0]);
        let cut = [
            (LIB, "mod a;"),
            (&a, "// mod b;"),
            (&b, "mod c { mod d; }"),
            (&c, ""),
            (&test, ""),
        ];
        assert_eq!(lost(&cut, ""), [&*c, &*b]);
        let elsewhere = [
            ("tests/cli.rs", "#[path = \"data/x.rs\"] mod y;"),
            ("tests/data/x.rs", ""),
            ("tests/z.rs", ""),
        ];
        let manifest = "[[test]]\nname = \"cli\"\npath = \"../../tests/cli.rs\"\n";
        assert_eq!(lost(&elsewhere, manifest), ["tests/z.rs"]);
    }

    #[test]
    fn unsafe_code_in_another_file_is_found() {
        let kept = [
            "#![forbid(unsafe_code)]",
            "// unsafe {}",
            "const A: &str = \"unsafe\";",
        ];
        check(
            unsafe_code_is_in_listed_files,
            &kept,
            &["fn f() { unsafe { g() } }", "unsafe impl Sync for A {}"],
        );
        assert_eq!(
            unsafe_code_is_in_listed_files(&[Source::new(UNSAFE[0], "unsafe fn f() {}")]),
            [""; 0]
        );
    }

    #[test]
    fn an_unsafe_site_without_a_note_is_found() {
        let kept = [
            "fn f() {\n// SAFETY: g is.\nunsafe { g() } }",
            "type F = unsafe fn();",
        ];
        let broken = [
            "fn f() { unsafe { g() } }",
            "// SAFETY: one.\nunsafe impl Sync for A {}\nunsafe impl Send for A {}",
        ];
        check(unsafe_code_says_why_it_is_safe, &kept, &broken);
    }

    #[test]
    fn unfinished_work_is_found() {
        let kept = [
            "fn f() -> bool { todo != 1 }",
            "const A: &str = \"dbg!(x)\";",
            "// todo!() is not written",
        ];
        let marks = [
            concat!("// FIX", "ME later"),
            concat!("//! TO", "DO"),
            concat!("/// ``", "`ignore"),
        ];
        check(
            nothing_is_left_undone,
            &kept,
            &[
                "fn f() { todo!() }",
                "fn f() { unimplemented!(\"x\") }",
                "fn f() { dbg![x]; }",
            ],
        );
        check(nothing_is_left_undone, &[], &marks);
    }

    #[test]
    fn an_ignored_test_is_found() {
        let broken = [
            "#[test]\n#[ignore = \"slow\"]\nfn t() {}",
            "#[cfg_attr(debug_assertions, ignore)]\nfn t() {}",
        ];
        check(
            every_test_runs,
            &["#[test]\nfn ignore() {}", "/// `#[ignore]`\nfn t() {}"],
            &broken,
        );
    }

    #[test]
    fn a_silenced_lint_is_found() {
        let kept = [
            "#[expect(dead_code, reason = \"a C struct\")]\nstruct A;",
            "fn f() { x.expect(\"y\") }",
        ];
        let broken = [
            "#[allow(dead_code)]\nstruct A;",
            "#![expect(unused)]",
            "#[cfg_attr(test, allow(unused))]\nfn f() {}",
        ];
        check(every_silenced_lint_has_a_reason, &kept, &broken);
    }

    #[test]
    fn a_library_that_reads_the_environment_is_found() {
        let kept = [
            "const A: &str = env!(\"PATH\");",
            "fn f(env: u8) {}\n#[cfg(test)]\nmod tests { use std::env; }",
        ];
        let broken = [
            "use std::env;",
            "fn f() { std::env::temp_dir(); }",
            "fn f() { env::args(); }",
        ];
        check(only_programs_read_the_environment, &kept, &broken);
        let program = Source::new("crates/bitnet-cli/src/main.rs", broken[1]);
        assert_eq!(only_programs_read_the_environment(&[program]), [""; 0]);
    }

    #[test]
    fn two_types_of_one_name_are_found() {
        let twice = |first: &str, second: &str| {
            no_two_public_types_share_a_name(&[
                Source::new(LIB, first),
                Source::new("crates/bitnet-cli/src/main.rs", second),
            ])
        };
        assert_eq!(twice("pub struct A;", "pub enum A {}").len(), 1);
        for (first, second) in [
            ("pub enum Error {}", "pub enum Error {}"),
            ("pub struct A;", "struct A;"),
            ("pub struct A;", ""),
        ] {
            assert_eq!(twice(first, second), [""; 0]);
        }
    }

    #[test]
    fn a_dependency_without_a_reason_is_found() {
        let kept = [
            "[package]\nname = \"a\"\n[dependencies]\nhalf = \"2\" # f16\nserde.workspace = true\nx = { path = \"../x\" }",
            "[dev-dependencies]\n# Two lines,\n# one reason.\nhalf = { version = \"2\", features = [\n  \"std\",\n] }",
        ];
        let broken = [
            "[dependencies]\nhalf = \"2\"",
            "[workspace.dependencies]\n# f16\nhalf = \"2\"\nserde = \"1\"",
            "[target.'cfg(unix)'.dev-dependencies]\nlibc = { version = \"0.2\" }",
            "[dependencies.half]\nversion = \"2\"",
        ];
        check_manifest(every_dependency_has_a_reason, &kept, &broken);
    }

    #[test]
    fn a_library_with_the_harness_of_cargo_is_found() {
        check_manifest(
            criterion_alone_benches,
            &["[lib]\nbench = false\n"],
            &["[lib]\n", "[[bench]]\nharness = false\n"],
        );
    }

    /// The complaints about files of the kernels' `src`.
    fn storeys(files: &[(&str, &str)]) -> Vec<String> {
        let source = |(path, text): &(&str, &str)| {
            Source::new(&format!("crates/bitnet-kernels/src/{path}"), text)
        };
        the_storeys_hold(&files.iter().map(source).collect::<Vec<_>>())
    }

    #[test]
    fn an_import_from_a_storey_above_is_found() {
        let set = ("sets/avx2.rs", "");
        for kept in [
            "use crate::layout::lines;",
            "#[cfg(test)]\nmod tests { use crate::ops::cpu::Cpu; }",
            "// crate::ops::cpu::Cpu\nuse super::rows::B;",
        ] {
            let files = [
                ("weights/a.rs", kept),
                ("ops/cpu.rs", ""),
                ("layout/lines.rs", ""),
                set,
            ];
            assert_eq!(storeys(&files), [""; 0], "{kept}");
        }
        for broken in [
            "use crate::ops::cpu::Cpu;",
            "use crate::{layout::lines::A, ops::{cpu::{self, Cpu}}};",
            "fn f() { crate::sets::avx2::g() }",
            "use super::super::sets::avx2;",
            "macro_rules! a { () => { $crate::ops::cpu::b() } }",
        ] {
            let files = [
                ("weights/a.rs", broken),
                ("ops/cpu.rs", ""),
                ("layout/lines.rs", ""),
                set,
            ];
            let complaints = storeys(&files);
            assert!(
                complaints.len() == 1 && complaints[0].contains("weights/a.rs: uses "),
                "{broken}: {complaints:?}"
            );
        }
    }

    #[test]
    fn a_large_import_circle_is_found() {
        let three = [
            ("sets/a.rs", "mod b; use b::x;"),
            ("sets/a/b.rs", "use crate::sets::c::{D, E};"),
            ("sets/c.rs", "use super::a::F;"),
        ];
        assert_eq!(storeys(&three), [""; 0]);
        let four = [
            three[0],
            three[1],
            ("sets/c.rs", "fn f() { super::d::g() }"),
            ("sets/d.rs", "use crate::{sets::a::F};"),
        ];
        let complaints = storeys(&four);
        assert!(
            complaints.len() == 1 && complaints[0].contains("4 files"),
            "{complaints:?}"
        );
    }

    #[test]
    fn a_package_without_a_readme_is_found() {
        let file = |path: &str| File {
            path: path.to_owned(),
            text: String::new(),
        };
        let manifests = ["Cargo.toml", "a/Cargo.toml", "b/Cargo.toml"].map(file);
        let documents = ["README.md", "a/README.md"].map(file);
        let complaints = every_package_has_a_readme(&manifests, &documents);
        assert!(
            complaints.len() == 1 && complaints[0].starts_with("b/README.md: "),
            "{complaints:?}"
        );
    }

    #[test]
    fn mannered_prose_is_found_where_the_rule_holds() {
        let file = |path: &str| File {
            path: path.to_owned(),
            text: "Whoever reads this".to_owned(),
        };
        let (plain, other) = (file("README.md"), file("notes/README.md"));
        assert_eq!(prose_is_plain(&[&plain, &other]).len(), 1);
    }

    #[test]
    fn an_arrow_against_the_map_is_found() {
        let kept = [
            "[dependencies]\nbitnet-kernels.workspace = true\n[dev-dependencies]\nbitnet-tokenizers.workspace = true",
        ];
        let broken = [
            "[dependencies]\nbitnet-inference.workspace = true",
            "[build-dependencies]\nbitnet-tokenizers = { path = \"../bitnet-tokenizers\" }",
            "[dev-dependencies]\nxtask = { path = \"../../xtask\" }",
        ];
        check_manifest(the_arrows_hold, &kept, &broken);
        let stranger = File {
            path: "crates/bitnet-common/Cargo.toml".to_owned(),
            text: String::new(),
        };
        assert_eq!(the_arrows_hold(&[stranger]).len(), 1);
    }
}
