//! Files that change while they are mapped.

#![cfg(unix)]

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use bitnet_guard::{FileProblem, MappedFile, file_problems, replaced_files};
use memmap2::Mmap;

/// The list of problems belongs to the whole process, so one test runs at a time.
static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

const BYTES: usize = 1 << 20;

/// A file of ones and its mapping, watched.
fn map(folder: &tempfile::TempDir) -> (PathBuf, Mmap, MappedFile) {
    let path = folder.path().join("model");
    std::fs::write(&path, vec![1; BYTES]).expect("a file");
    let file = File::open(&path).expect("a file");
    // SAFETY: read-only; truncation of the file is the subject of these tests.
    let map = unsafe { Mmap::map(&file) }.expect("a mapping");
    let watch = MappedFile::watch(&path, file, map.as_ptr_range()).expect("a watch");
    (path, map, watch)
}

fn sum(map: &Mmap) -> usize {
    map.iter().map(|byte| usize::from(*byte)).sum()
}

fn open(path: &Path) -> File {
    OpenOptions::new().write(true).open(path).expect("a file")
}

#[test]
fn a_truncated_file_reads_as_zeros_and_is_named() {
    let _one = ONE_AT_A_TIME.lock();
    let folder = tempfile::tempdir().expect("a folder");
    let (path, map, watch) = self::map(&folder);
    assert_eq!((sum(&map), file_problems(true)), (BYTES, Vec::new()));
    open(&path).set_len(BYTES as u64 / 4).expect("a cut");
    assert_eq!(file_problems(false), Vec::new(), "no byte was missed yet");
    assert_eq!(sum(&map), BYTES / 4);
    assert_eq!(file_problems(false), [FileProblem::Cut(path.clone())]);
    assert_eq!(file_problems(true), [FileProblem::Cut(path)]);
    drop(watch);
    assert_eq!(file_problems(true), []);
}

#[test]
fn a_modified_file_is_named() {
    let _one = ONE_AT_A_TIME.lock();
    let folder = tempfile::tempdir().expect("a folder");
    let (path, _map, _watch) = map(&folder);
    let mut file = open(&path);
    file.write_all(b"other").expect("bytes");
    let later = std::time::SystemTime::now() + std::time::Duration::from_secs(2);
    file.set_modified(later).expect("a time");
    assert_eq!(file_problems(false), []);
    assert_eq!(file_problems(true), [FileProblem::Changed(path)]);
}

#[test]
fn a_replaced_or_deleted_file_is_named_and_has_no_problem() {
    let _one = ONE_AT_A_TIME.lock();
    let folder = tempfile::tempdir().expect("a folder");
    let (path, map, watch) = map(&folder);
    assert_eq!(replaced_files(), [] as [PathBuf; 0]);
    let other = folder.path().join("other");
    std::fs::write(&other, b"another model").expect("a file");
    std::fs::rename(&other, &path).expect("a new name");
    assert_eq!(
        (replaced_files(), file_problems(true)),
        (vec![path.clone()], vec![])
    );
    std::fs::remove_file(&path).expect("a file");
    assert_eq!(
        (replaced_files(), file_problems(true)),
        (vec![path], vec![])
    );
    assert_eq!(sum(&map), BYTES);
    drop(watch);
    assert_eq!(replaced_files(), [] as [PathBuf; 0]);
}
