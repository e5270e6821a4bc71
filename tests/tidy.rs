//! A linter of the tree, for rules that a compiler does not check: where files lie, which crate
//! uses which, which words do not appear.
//!
//! Each rule is a function from sources to complaints. One test runs it over the whole tree; the
//! tests in `rules` show on small inputs that it can fail. A complaint says where and what to do.

#[path = "tidy/code.rs"]
mod code;
#[path = "tidy/files.rs"]
mod files;
#[path = "tidy/manifests.rs"]
mod manifests;
#[path = "tidy/prose.rs"]
mod prose;
#[path = "tidy/rules.rs"]
mod rules;
#[path = "tidy/storeys.rs"]
mod storeys;
#[path = "tidy/tree.rs"]
mod tree;

use tree::TREE;

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
    "pyproject.toml",
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
    (
        "bitnet-wgpu",
        &["bitnet-kernels", "bitnet-models", "bitnet-quantization"],
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
            "bitnet-wgpu",
        ],
    ),
    (
        "bitnet-receipts",
        &[
            "bitnet-guard",
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
        "bitnet-python",
        &[
            "bitnet-cli",
            "bitnet-guard",
            "bitnet-hub",
            "bitnet-inference",
            "bitnet-kernels",
            "bitnet-models",
            "bitnet-receipts",
            "bitnet-server",
            "bitnet-tokenizers",
        ],
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

/// Maximum number of files of a crate that import one another in a circle.
const CIRCLE_FILES_MAX: usize = 3;

/// Maximum number of lines of a function of the programs and libraries.
const FUNCTION_LINES_MAX: usize = 70;

/// The longer functions, each with a reason; at most one in 500.
const LONG_FUNCTIONS: &[(&str, &str)] = &[
    ("crates/bitnet-kernels/src/sets/avx512/mixed.rs", "mixed"), // a loop, unrolled in its order
    (
        "crates/bitnet-kernels/src/sets/avx512/sparse.rs",
        "active_columns",
    ), // a loop over registers
    ("crates/bitnet-kernels/src/sets/segment.rs", "attend"),     // three loops over one tile
    ("crates/bitnet-kernels/src/weights/matrix.rs", "pack"),     // a case for each packing
    ("crates/bitnet-server/src/schema/normalizer.rs", "keyword"), // a table of keywords
];

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
    "crates/bitnet-kernels/src/sets/avx2/group_prompt.rs",
    "crates/bitnet-kernels/src/sets/avx2/groups.rs",
    "crates/bitnet-kernels/src/sets/avx2/prompt.rs",
    "crates/bitnet-kernels/src/sets/avx2/screen.rs",
    "crates/bitnet-kernels/src/sets/avx2/signs.rs",
    "crates/bitnet-kernels/src/sets/avx2/sparse.rs",
    "crates/bitnet-kernels/src/sets/avx2/sums.rs",
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

#[track_caller]
fn assert_none(complaints: Vec<String>) {
    assert!(complaints.is_empty(), "\n{}\n", complaints.join("\n"));
}

#[test]
fn the_root_holds_only_what_is_listed() {
    assert_none(files::root_holds_only_what_is_listed(
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
    assert_none(files::every_file_is_rust(&TREE.sources));
}

#[test]
fn every_rust_file_says_what_it_is_for() {
    assert_none(files::every_file_says_what_it_is_for(&TREE.sources));
}

#[test]
fn every_rust_file_is_reached_from_a_crate_root() {
    assert_none(files::every_file_is_reached(&TREE.sources, &TREE.manifests));
}

#[test]
fn unsafe_code_is_only_where_it_is_listed() {
    assert_none(code::unsafe_code_is_in_listed_files(&TREE.sources));
}

#[test]
fn every_unsafe_site_says_why_it_is_safe() {
    assert_none(code::unsafe_code_says_why_it_is_safe(&TREE.sources));
}

#[test]
fn functions_are_short() {
    let (num_functions, complaints) = code::functions_are_short(&TREE.sources);
    assert!(num_functions > 1000, "{num_functions} functions were found");
    assert!(
        LONG_FUNCTIONS.len() * 500 <= num_functions,
        "LONG_FUNCTIONS of tests/tidy.rs lists {} of {num_functions} functions: divide some",
        LONG_FUNCTIONS.len()
    );
    assert_none(complaints);
}

#[test]
fn nothing_in_the_tree_is_left_undone() {
    assert_none(code::nothing_is_left_undone(&TREE.sources));
}

#[test]
fn no_test_is_ignored() {
    assert_none(code::every_test_runs(&TREE.sources));
}

#[test]
fn no_lint_is_silenced_without_a_reason() {
    assert_none(code::every_silenced_lint_has_a_reason(&TREE.sources));
}

#[test]
fn only_the_programs_read_arguments_and_environment() {
    assert_none(code::only_programs_read_the_environment(&TREE.sources));
}

#[test]
fn one_name_is_one_public_type() {
    assert_none(code::no_two_public_types_share_a_name(&TREE.sources));
}

#[test]
fn dependencies_say_what_they_are_for() {
    assert_none(manifests::every_dependency_has_a_reason(&TREE.manifests));
}

#[test]
fn crates_depend_only_along_the_arrows() {
    assert_none(manifests::the_arrows_hold(&TREE.manifests));
}

#[test]
fn storeys_use_what_is_below_them() {
    for (package, _) in STOREYS {
        let imports = storeys::imports(&TREE.sources, package);
        let found: usize = imports.values().map(std::collections::BTreeSet::len).sum();
        assert!(
            imports.len() > 20 && found > 50,
            "{package}: {found} imports were found"
        );
    }
    assert_none(storeys::the_storeys_hold(&TREE.sources));
}

#[test]
fn imports_form_no_large_circles() {
    assert_none(storeys::circles_are_small(&TREE.sources));
}

#[test]
fn cargo_bench_takes_the_arguments_of_criterion() {
    assert_none(manifests::criterion_alone_benches(&TREE.manifests));
}

#[test]
fn every_package_says_what_it_is_for() {
    assert_none(manifests::every_package_has_a_readme(
        &TREE.manifests,
        &TREE.documents,
    ));
}

#[test]
fn prose_avoids_mannered_words() {
    let sources = TREE.sources.iter().map(|source| &source.file);
    let others = TREE.manifests.iter().chain(&TREE.documents);
    assert_none(prose::prose_is_plain(
        &sources.chain(others).collect::<Vec<_>>(),
    ));
}
