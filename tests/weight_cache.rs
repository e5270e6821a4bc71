//! The cache of packed weights, with the real program: what it says, and that no end of a process
//! leaves anything that changes the next one.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use serde_json::Value;

/// A folder for packed weights; the model is a golden one, smaller than those that are kept unless
/// asked for.
struct Place {
    folder: tempfile::TempDir,
}

impl Place {
    fn new() -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        Self { folder }
    }

    fn cache(&self) -> PathBuf {
        self.folder.path().join("weights")
    }

    /// A command of the program, or of a shell that starts it with `"$@"`.
    fn command(&self, shell: Option<&str>, arguments: &[&str]) -> Command {
        let program = env!("CARGO_BIN_EXE_bitnet");
        let mut command = match shell {
            None => Command::new(program),
            Some(script) => {
                let mut command = Command::new("sh");
                command.args(["-c", script, "sh", program]);
                command
            }
        };
        command
            .args(arguments)
            .env("XDG_CACHE_HOME", self.folder.path())
            .env("BITNET_WEIGHT_CACHE", self.cache())
            .env("BITNET_WEIGHT_CACHE_MIN", "0")
            .env_remove("BITNET_WEIGHT_CACHE_MAX")
            .env_remove("BITNET_SEED")
            .env_remove("BITNET_DETERMINISTIC")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        command
    }

    fn output(&self, arguments: &[&str]) -> Output {
        let result = self.command(None, arguments).output();
        let result = result.expect("the program starts");
        let error = text(&result.stderr);
        assert!(result.status.success(), "{arguments:?}: {error}");
        result
    }

    /// The tokens of a run, and what it says on standard error.
    fn run(&self, more: &[&str]) -> (Value, String) {
        answer(self.output(&[&run()[..], more].concat()))
    }

    fn json(&self, arguments: &[&str]) -> Value {
        let output = self.output(arguments);
        assert_eq!(text(&output.stderr), "");
        serde_json::from_slice(&output.stdout).expect("JSON")
    }

    /// The names in the cache.
    fn names(&self) -> Vec<String> {
        let Ok(entries) = fs::read_dir(self.cache()) else {
            return Vec::new();
        };
        let name = |entry: fs::DirEntry| entry.file_name().into_string().expect("UTF-8");
        entries
            .map(|entry| name(entry.expect("an entry")))
            .collect()
    }
}

const MODEL: &str = concat!(
    env!("CARGO_MANIFEST_DIR"),
    "/../../tests/data/golden/strict-b158/model-i2_s.gguf"
);

/// The arguments of a run.
fn run() -> Vec<&'static str> {
    let prompt = ["run", "--json", "--prompt-tokens", "5,200,31"];
    let rest = ["-n", "16", "--seed", "7", "-t", "2", "-m", MODEL];
    [&prompt[..], &rest].concat()
}

fn answer(output: Output) -> (Value, String) {
    let error = text(&output.stderr);
    assert!(output.status.success(), "{error}");
    let object: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert_eq!(object["tokens"].as_array().map(Vec::len), Some(16));
    (object["tokens"].clone(), error)
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).expect("UTF-8")
}

#[test]
fn the_first_start_says_what_it_writes_and_the_second_says_nothing() {
    let place = Place::new();
    let (tokens, error) = place.run(&["--no-weight-cache"]);
    assert_eq!(error, "");
    assert!(place.names().is_empty());
    let (first, error) = place.run(&[]);
    assert!(
        error.contains("GB written to") && error.lines().count() == 1,
        "{error}"
    );
    let (second, error) = place.run(&[]);
    assert_eq!(error, "");
    assert_eq!([&first, &second], [&tokens, &tokens]);
}

#[test]
fn packed_weights_are_listed_and_removed() {
    let place = Place::new();
    assert_eq!(
        place.json(&["cache", "list", "--json"])["files"],
        Value::Array(vec![])
    );
    place.run(&[]);
    let [name] = &place.names()[..] else {
        panic!("one file")
    };
    let listed = place.json(&["cache", "list", "--json"]);
    let file = &listed["files"][0];
    let path = place.cache().join(name);
    assert_eq!(file["path"], Value::from(path.to_str()));
    let bytes = fs::metadata(&path).expect("it is there").len();
    assert_eq!(file["bytes"], Value::from(bytes));
    let model = Path::new(MODEL).canonicalize().expect("it is there");
    assert_eq!(file["model"], Value::from(model.to_str()));
    assert_eq!(file["problem"], Value::Null);
    let table = text(&place.output(&["cache", "list"]).stdout);
    assert!(table.contains("model-i2_s.gguf"), "{table}");
    let removed = place.json(&["cache", "clear", "--json"]);
    assert_eq!(removed["bytes"], Value::from(bytes));
    assert!(place.names().is_empty());
    let folder = place.folder.path().join("elsewhere");
    let folder = folder.to_str().expect("UTF-8");
    place.run(&["--weight-cache", folder]);
    assert!(place.names().is_empty());
    let listed = place.json(&["cache", "list", "--json", "--weight-cache", folder]);
    assert_eq!(listed["files"].as_array().map(Vec::len), Some(1));
}

#[test]
fn bench_uses_the_cache_only_if_a_folder_is_named() {
    let place = Place::new();
    let bench = [
        "bench", "-m", MODEL, "-p", "4", "-n", "2", "-r", "1", "--json",
    ];
    let unnamed = |arguments: &[&str]| {
        let mut command = place.command(None, arguments);
        let result = command.env_remove("BITNET_WEIGHT_CACHE").output();
        assert!(result.expect("the program starts").status.success());
        place.folder.path().join("bitnet/weights").exists()
    };
    assert!(!unnamed(&bench));
    assert!(unnamed(&run()));
    place.output(&bench);
    assert_eq!(place.names().len(), 1);
}

#[test]
fn every_command_that_loads_a_model_takes_the_option() {
    for command in ["run", "chat", "serve", "bench", "logits", "perplexity"] {
        let help = text(&Place::new().output(&[command, "--help"]).stdout);
        for option in [
            "--no-weight-cache",
            "--weight-cache <",
            "--weight-cache-max",
        ] {
            assert!(help.contains(option), "{command} {option}");
        }
    }
}

/// The system ends a process that writes a file past its limit, in the middle of the write.
#[cfg(unix)]
#[test]
fn a_process_that_is_killed_while_it_writes_leaves_nothing_that_is_used() {
    let place = Place::new();
    let (tokens, _) = place.run(&["--no-weight-cache"]);
    let killed = place
        .command(Some("ulimit -c 0; ulimit -f 16; exec \"$@\""), &run())
        .output()
        .expect("the program starts");
    assert!(!killed.status.success());
    let [partial] = &place.names()[..] else {
        panic!("one file")
    };
    assert!(partial.ends_with(".weights.partial"), "{partial}");
    let (found, error) = place.run(&[]);
    assert_eq!(found, tokens);
    assert!(error.contains("GB written to"), "{error}");
    assert_eq!(
        place.names(),
        [&partial[1..partial.len() - ".partial".len()]]
    );
    assert_eq!(place.run(&[]), (tokens, String::new()));
}

/// The same limit with its signal ignored fails the write, as a full disk does.
#[cfg(unix)]
#[test]
fn a_process_that_cannot_write_all_goes_on_and_says_so_once() {
    let place = Place::new();
    let (tokens, _) = place.run(&["--no-weight-cache"]);
    let script = "trap '' XFSZ; ulimit -f 16; exec \"$@\"";
    let output = place.command(Some(script), &run()).output();
    let (found, error) = answer(output.expect("the program starts"));
    assert_eq!(found, tokens);
    assert!(
        error.contains("the packed weights") && error.contains("are not kept"),
        "{error}"
    );
    assert_eq!(error.lines().count(), 1, "{error}");
    assert!(place.names().is_empty());
}

#[test]
fn processes_that_start_at_the_same_time_answer_alike() {
    let place = Place::new();
    let (tokens, _) = place.run(&["--no-weight-cache"]);
    for _ in 0..3 {
        let children: Vec<_> = (0..3)
            .map(|_| place.command(None, &run()).spawn().expect("it starts"))
            .collect();
        for child in children {
            let output = child.wait_with_output().expect("it ends");
            let (found, error) = answer(output);
            assert_eq!(found, tokens);
            assert!(!error.contains("warning"), "{error}");
        }
        assert_eq!(place.names().len(), 1, "{:?}", place.names());
        place.output(&["cache", "clear"]);
    }
}
