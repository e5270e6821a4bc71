//! Outputs: only a complete output gets its name, and only files are ever replaced.

#![cfg(unix)]

use std::io::{Read, Write};
use std::os::unix::fs::{FileTypeExt, symlink};
use std::path::Path;
use std::process::Command;

use bitnet_files::{Error, Output};

fn write(path: &Path, text: &str) -> bitnet_files::Result<()> {
    let output = Output::replacing(path)?;
    output.handle()?.write_all(text.as_bytes()).expect("room");
    output.commit()
}

#[test]
fn a_file_is_replaced_also_behind_a_link() {
    let directory = tempfile::tempdir().unwrap();
    let (file, link) = (directory.path().join("file"), directory.path().join("link"));
    symlink("file", &link).unwrap();
    std::fs::write(&file, "a longer text").unwrap();
    write(&link, "first").unwrap();
    assert_eq!(std::fs::read_to_string(&file).unwrap(), "first");
    write(&file, "second").unwrap();
    assert_eq!(std::fs::read_to_string(&link).unwrap(), "second");
    assert!(std::fs::symlink_metadata(&link).unwrap().is_symlink());
    assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 2);
}

#[test]
fn an_output_that_is_not_committed_leaves_the_old_file() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("file");
    std::fs::write(&file, "old").unwrap();
    let output = Output::replacing(&file).unwrap();
    output.handle().unwrap().write_all(b"new").unwrap();
    drop(output);
    assert_eq!(std::fs::read_to_string(&file).unwrap(), "old");
    assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 1);
}

#[test]
fn a_pipe_is_written_through_and_stays_a_pipe() {
    let directory = tempfile::tempdir().unwrap();
    let (pipe, link) = (directory.path().join("pipe"), directory.path().join("link"));
    symlink("pipe", &link).unwrap();
    assert!(
        Command::new("mkfifo")
            .arg(&pipe)
            .status()
            .unwrap()
            .success()
    );
    for name in [&pipe, &link] {
        let reader = std::thread::spawn({
            let pipe = pipe.clone();
            move || {
                let mut text = String::new();
                std::fs::File::open(pipe)
                    .unwrap()
                    .read_to_string(&mut text)
                    .unwrap();
                text
            }
        });
        write(name, "through").unwrap();
        assert_eq!(reader.join().unwrap(), "through");
    }
    assert!(
        std::fs::symlink_metadata(&pipe)
            .unwrap()
            .file_type()
            .is_fifo()
    );
    assert!(std::fs::symlink_metadata(&link).unwrap().is_symlink());
}

#[test]
fn a_directory_and_a_link_to_nothing_are_refused() {
    let directory = tempfile::tempdir().unwrap();
    let error = Output::replacing(directory.path())
        .err()
        .expect("a directory");
    assert!(
        error.to_string().contains("it is a directory, not a file"),
        "{error}"
    );
    let link = directory.path().join("link");
    symlink("missing/file", &link).unwrap();
    assert!(matches!(Output::replacing(&link), Err(Error::Write { .. })));
}
