//! Shows on small inputs that each rule can fail.

use super::tree::{File, Source};
use super::{LONG_FUNCTIONS, UNSAFE, code, files, manifests, prose, storeys};

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
    let complaints = files::every_file_is_reached(
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
    let complaints = files::root_holds_only_what_is_listed(&entries, &["target".to_owned()]);
    assert!(
        complaints.len() == 1 && complaints[0].starts_with("notes.txt: "),
        "{complaints:?}"
    );
}

#[test]
fn a_text_that_is_not_rust_is_found() {
    check(files::every_file_is_rust, &["fn f() {}"], &["fn f() {"]);
}

#[test]
fn a_file_without_a_purpose_is_found() {
    check(
        files::every_file_says_what_it_is_for,
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
        code::unsafe_code_is_in_listed_files,
        &kept,
        &["fn f() { unsafe { g() } }", "unsafe impl Sync for A {}"],
    );
    assert_eq!(
        code::unsafe_code_is_in_listed_files(&[Source::new(UNSAFE[0], "unsafe fn f() {}")]),
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
    check(code::unsafe_code_says_why_it_is_safe, &kept, &broken);
}

#[test]
fn a_long_function_is_found() {
    let check = |path: &str, num_lines: usize| {
        let lines = "    1;\n".repeat(num_lines - 2);
        let text = format!("fn f<const N: usize>(_: [u8; N]) -> [u8; 2] {{\n{lines}}}\nfn g();");
        code::functions_are_short(&[Source::new(path, &text)])
    };
    assert_eq!(check("crates/a/src/b.rs", 70), (1, vec![]));
    let (_, complaints) = check("crates/a/src/b.rs", 71);
    assert!(
        complaints.len() == 1 && complaints[0].starts_with("crates/a/src/b.rs:1: f has 71 lines"),
        "{complaints:?}"
    );
    assert_eq!(check("crates/a/tests/b.rs", 71), (0, vec![]));
    let (path, name) = LONG_FUNCTIONS[0];
    let (_, complaints) = check(path, 70);
    assert!(
        complaints.len() == 1 && complaints[0].contains(&format!("{name} is not long")),
        "{complaints:?}"
    );
}

#[test]
fn unfinished_work_is_found() {
    let kept = [
        "fn f() -> bool { todo != 1 }",
        "const A: &str = \"dbg!(x)\";",
        concat!("// to", "do!() is not written"),
    ];
    let marks = [
        concat!("// FIX", "ME later"),
        concat!("//! TO", "DO"),
        concat!("/// ``", "`ignore"),
    ];
    check(
        code::nothing_is_left_undone,
        &kept,
        &[
            concat!("fn f() { to", "do!() }"),
            concat!("fn f() { unimple", "mented!(\"x\") }"),
            "fn f() { dbg![x]; }",
        ],
    );
    check(code::nothing_is_left_undone, &[], &marks);
}

#[test]
fn an_ignored_test_is_found() {
    let broken = [
        concat!("#[test]\n#[ig", "nore = \"slow\"]\nfn t() {}"),
        "#[cfg_attr(debug_assertions, ignore)]\nfn t() {}",
    ];
    check(
        code::every_test_runs,
        &[
            "#[test]\nfn ignore() {}",
            "#[schema(ignore)]\nstruct T;",
            concat!("/// `#[ig", "nore]`\nfn t() {}"),
        ],
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
    check(code::every_silenced_lint_has_a_reason, &kept, &broken);
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
    check(code::only_programs_read_the_environment, &kept, &broken);
    let program = Source::new("crates/bitnet-cli/src/main.rs", broken[1]);
    assert_eq!(
        code::only_programs_read_the_environment(&[program]),
        [""; 0]
    );
}

#[test]
fn two_types_of_one_name_are_found() {
    let twice = |first: &str, second: &str| {
        code::no_two_public_types_share_a_name(&[
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
    check_manifest(manifests::every_dependency_has_a_reason, &kept, &broken);
}

#[test]
fn a_library_with_the_harness_of_cargo_is_found() {
    check_manifest(
        manifests::criterion_alone_benches,
        &["[lib]\nbench = false\n"],
        &["[lib]\n", "[[bench]]\nharness = false\n"],
    );
}

/// The complaints about files of the kernels' `src`.
fn sources(files: &[(&str, &str)]) -> Vec<Source> {
    let source = |(path, text): &(&str, &str)| {
        Source::new(&format!("crates/bitnet-kernels/src/{path}"), text)
    };
    files.iter().map(source).collect()
}

fn storeys(files: &[(&str, &str)]) -> Vec<String> {
    storeys::the_storeys_hold(&sources(files))
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
    assert_eq!(storeys::circles_are_small(&sources(&three)), [""; 0]);
    let four = [
        three[0],
        three[1],
        ("sets/c.rs", "fn f() { super::d::g() }"),
        ("sets/d.rs", "use crate::{sets::a::F};"),
    ];
    let complaints = storeys::circles_are_small(&sources(&four));
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
    let complaints = manifests::every_package_has_a_readme(&manifests, &documents);
    assert!(
        complaints.len() == 1 && complaints[0].starts_with("b/README.md: "),
        "{complaints:?}"
    );
}

#[test]
fn mannered_prose_is_found_in_every_file() {
    let file = |text: &str| File {
        path: "docs/page.md".to_owned(),
        text: text.to_owned(),
    };
    let (mannered, plain) = (file(concat!("Who", "ever reads this")), file("The reader"));
    assert_eq!(prose::prose_is_plain(&[&mannered, &plain]).len(), 1);
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
    check_manifest(manifests::the_arrows_hold, &kept, &broken);
    let stranger = File {
        path: "crates/bitnet-common/Cargo.toml".to_owned(),
        text: String::new(),
    };
    assert_eq!(manifests::the_arrows_hold(&[stranger]).len(), 1);
}
