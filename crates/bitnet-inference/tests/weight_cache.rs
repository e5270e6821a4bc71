//! The cache of packed weights: a second start maps what the first one wrote, anything else that is
//! found in the folder is replaced, and no fault of the folder keeps a model from loading.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bitnet_files::CacheFile;
use bitnet_inference::{
    CacheUse, Device, Engine, EngineOptions, Event, Loaded, Request, SamplingParams, WeightCache,
    load_with,
};
use bitnet_kernels::{KernelSet, Packing};
use bitnet_models::LoadOptions;
use bitnet_tokenizers::TokenId;

/// A folder with a model and an empty cache.
struct Place {
    folder: tempfile::TempDir,
    model: PathBuf,
    cache: WeightCache,
}

fn place() -> Place {
    let folder = tempfile::tempdir().expect("a folder");
    let model = folder.path().join("model one.gguf");
    fs::copy(golden("model-i2_s.gguf"), &model).expect("a copy");
    let cache = WeightCache {
        folder: folder.path().join("cache/weights"),
        bytes_min: 0,
        bytes_max: 1 << 30,
        program: "test 1".into(),
    };
    Place {
        folder,
        model,
        cache,
    }
}

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../../tests/data/golden/strict-b158")
        .join(name)
}

impl Place {
    fn start_with(&self, options: &LoadOptions, device: Device) -> Loaded {
        load_with(&self.model, options, device, Some(&self.cache)).expect("the model loads")
    }

    fn start(&self) -> Loaded {
        self.start_with(&LoadOptions::default(), Device::cpu(2))
    }

    /// Starts, and checks that the answer is the one without a cache.
    fn cache_use(&self) -> CacheUse {
        let loaded = self.start();
        let cache_use = loaded.cache_use.clone();
        let device = Device::cpu(2);
        let without = load_with(&self.model, &LoadOptions::default(), device, None);
        assert_eq!(answer(loaded), answer(without.expect("the model loads")));
        cache_use
    }

    /// The names in the cache, sorted.
    fn names(&self) -> Vec<String> {
        let entries = fs::read_dir(&self.cache.folder).expect("a readable folder");
        let name = |entry: fs::DirEntry| entry.file_name().into_string().expect("UTF-8");
        let mut names: Vec<String> = entries
            .map(|entry| name(entry.expect("an entry")))
            .collect();
        names.sort();
        names
    }
}

/// The tokens that a model answers with.
fn answer(loaded: Loaded) -> Vec<TokenId> {
    let options = EngineOptions {
        context: 64,
        cache: 64,
        ..EngineOptions::default()
    };
    let mut engine =
        Engine::new(loaded.model, None, Device::cpu(2), options).expect("memory for the cache");
    let request = Request {
        prompt: [5, 200, 31].map(TokenId).to_vec(),
        sampling: SamplingParams {
            seed: 7,
            ..SamplingParams::default()
        },
        max_tokens: Some(24),
        ..Request::default()
    };
    engine.submit(request).expect("a right request");
    let mut events = Vec::new();
    while engine.is_busy() {
        engine.step(&mut events);
    }
    let token = |event: &Event| match event {
        Event::Token { token, .. } => Some(*token),
        _ => None,
    };
    let tokens: Vec<TokenId> = events.iter().filter_map(token).collect();
    assert_eq!(tokens.len(), 24);
    tokens
}

/// The file that was written, and what was wrong with the one before.
fn written(cache_use: CacheUse) -> (PathBuf, Option<String>) {
    match cache_use {
        CacheUse::Written { file, replaced } => (file.path, replaced),
        other => panic!("{other:?}"),
    }
}

fn assert_mapped(cache_use: CacheUse) {
    assert!(matches!(cache_use, CacheUse::Mapped(_)), "{cache_use:?}");
}

fn failure(cache_use: CacheUse) -> String {
    match cache_use {
        CacheUse::Failed(problem) => problem,
        other => panic!("{other:?}"),
    }
}

#[test]
fn the_second_start_maps_what_the_first_one_wrote() {
    let place = place();
    let (path, replaced) = written(place.cache_use());
    assert_eq!(replaced, None);
    let name = path.file_name().expect("a name").to_str().expect("UTF-8");
    assert!(
        name.starts_with("model_one-") && name.ends_with(".weights"),
        "{name}"
    );
    assert_eq!(place.names(), [name]);
    assert_mapped(place.cache_use());
    assert_mapped(place.cache_use());
    assert_eq!(place.names(), [name]);
}

#[test]
fn directories_are_cached_too() {
    let mut place = place();
    let directory = fs::read_dir(golden("")).expect("a readable folder");
    let mut directory = directory.map(|entry| entry.expect("an entry").path());
    place.model = directory
        .find(|path| path.join("config.json").exists())
        .expect("a directory in Hugging Face's form");
    written(place.cache_use());
    assert_mapped(place.cache_use());
}

#[test]
fn a_changed_bit_anywhere_makes_the_next_start_pack_again() {
    let place = place();
    let (path, _) = written(place.cache_use());
    let good = fs::read(&path).expect("it can be read");
    let piece = |index: usize| {
        let file = CacheFile::open(&path).expect("it opens");
        file.pieces()[index].offset()
    };
    for at in [0, 9, 17, 70, piece(0), piece(5) + 9, good.len() - 1] {
        let mut changed = good.clone();
        changed[at] ^= 0x10;
        fs::write(&path, &changed).expect("it is written");
        let (same_path, replaced) = written(place.cache_use());
        assert_eq!(same_path, path);
        let problem = replaced.expect("a problem");
        assert!(problem.contains("model_one-"), "byte {at}: {problem}");
        assert!(fs::read(&path).expect("it can be read") == good);
        assert_mapped(place.cache_use());
    }
}

#[test]
fn files_that_end_early_and_foreign_files_are_replaced() {
    let place = place();
    let (path, _) = written(place.cache_use());
    let good = fs::read(&path).expect("it can be read");
    let foreign = b"These are no weights.";
    for bytes in [&good[..good.len() - 1], &good[..50], b"", foreign] {
        fs::write(&path, bytes).expect("it is written");
        let (_, replaced) = written(place.cache_use());
        assert!(replaced.is_some(), "{} bytes", bytes.len());
    }
    assert_mapped(place.cache_use());
}

#[test]
fn weights_of_an_earlier_state_of_the_model_are_not_used() {
    let place = place();
    written(place.cache_use());
    let file = File::options().write(true).open(&place.model);
    let earlier = SystemTime::now() - Duration::from_secs(1000);
    file.and_then(|file| file.set_modified(earlier))
        .expect("its time can be set");
    let (_, replaced) = written(place.cache_use());
    let problem = replaced.expect("a problem");
    assert!(
        problem.contains("an earlier state of the model"),
        "{problem}"
    );
    // Another file of the same size and time under the same name.
    let (copy, time) = (place.folder.path().join("copy"), earlier);
    fs::copy(&place.model, &copy).expect("a copy");
    File::options()
        .write(true)
        .open(&copy)
        .and_then(|file| file.set_modified(time))
        .expect("its time can be set");
    fs::rename(&copy, &place.model).expect("it is replaced");
    if cfg!(unix) {
        written(place.cache_use());
    }
    assert_mapped(place.cache_use());
}

#[test]
fn weights_of_another_program_are_not_used() {
    let mut place = place();
    let (path, _) = written(place.cache_use());
    place.cache.program = "test 2".into();
    let (same_path, replaced) = written(place.cache_use());
    assert_eq!(path, same_path, "it takes the place of the old file");
    let problem = replaced.expect("a problem");
    assert!(
        problem.contains("another version of this program"),
        "{problem}"
    );
    assert_mapped(place.cache_use());
}

#[test]
fn other_kernels_and_packings_have_files_of_their_own() {
    let place = place();
    let mut starts = 0;
    for _ in 0..2 {
        for set in KernelSet::available() {
            for packing in Packing::ALL {
                let options = LoadOptions {
                    packing: Some(packing),
                    ..LoadOptions::default()
                };
                let loaded = place.start_with(&options, Device::with_kernels(set, 2));
                match starts < KernelSet::available().count() * Packing::ALL.len() {
                    true => assert_eq!(written(loaded.cache_use).1, None),
                    false => assert_mapped(loaded.cache_use),
                }
                starts += 1;
            }
        }
    }
    assert_eq!(place.names().len() * 2, starts);
}

#[test]
fn how_inputs_are_rounded_does_not_decide_which_file_is_used() {
    let place = place();
    written(place.cache_use());
    let options = LoadOptions {
        group_inputs: bitnet_models::InputRounding::None,
        ..LoadOptions::default()
    };
    assert_mapped(place.start_with(&options, Device::cpu(1)).cache_use);
}

#[test]
fn small_models_are_not_cached() {
    let mut place = place();
    place.cache.bytes_min = 1 << 30;
    assert_eq!(place.cache_use(), CacheUse::Small);
    assert!(!place.cache.folder.exists());
}

#[test]
fn the_files_that_were_not_used_for_the_longest_time_are_removed_first() {
    let mut place = place();
    let model = |place: &mut Place, name: &str| {
        place.model = place.folder.path().join(name);
        fs::copy(golden("model-i2_s.gguf"), &place.model).expect("a copy");
    };
    let mut paths = Vec::new();
    for (name, age) in [("a.gguf", 300), ("b.gguf", 200), ("c.gguf", 100)] {
        model(&mut place, name);
        let (path, _) = written(place.cache_use());
        let then = SystemTime::now() - Duration::from_secs(age);
        let times = fs::FileTimes::new().set_accessed(then).set_modified(then);
        let file = File::options().write(true).open(&path);
        file.and_then(|file| file.set_times(times))
            .expect("its times can be set");
        paths.push(path);
    }
    let entries = place.cache.entries().expect("a readable folder");
    let order: Vec<&PathBuf> = entries.iter().map(|entry| &entry.file.path).collect();
    assert_eq!(order, [&paths[2], &paths[1], &paths[0]]);
    // The oldest is used again; then there is room for two beside a new one.
    place.model = place.folder.path().join("a.gguf");
    assert_mapped(place.cache_use());
    place.cache.bytes_max = entries[0].file.bytes * 3 + 4096;
    model(&mut place, "d.gguf");
    let (new, _) = written(place.cache_use());
    let is_there = |path: &PathBuf| path.exists();
    assert_eq!(
        [&paths[0], &paths[1], &paths[2], &new].map(is_there),
        [true, false, true, true]
    );
    place.cache.bytes_max = 1000;
    model(&mut place, "e.gguf");
    let problem = failure(place.cache_use());
    assert!(problem.contains("at most 1000 are kept"), "{problem}");
    assert_eq!(place.names().len(), 3, "nothing is removed in vain");
}

#[test]
fn all_files_can_be_listed_and_removed() {
    let place = place();
    assert!(place.cache.entries().expect("no folder").is_empty());
    assert!(place.cache.clear().expect("no folder").is_empty());
    let (path, _) = written(place.cache_use());
    let broken = place.cache.folder.join("broken.weights");
    fs::write(&broken, "no weights").expect("it is written");
    let other = place.cache.folder.join("notes.txt");
    fs::write(&other, "mine").expect("it is written");
    let entries = place.cache.entries().expect("a readable folder");
    let entry = |path| {
        let found = entries.iter().find(|entry| entry.file.path == path);
        &found.expect("it is listed").weights
    };
    let (model, kernels) = entry(path.clone()).as_ref().expect("it is intact");
    let real = place.model.canonicalize().expect("it is there");
    assert_eq!((model, &**kernels), (&real, KernelSet::detect().name));
    assert!(entry(broken).is_err());
    // A process that uses the file keeps it.
    let loaded = place.start();
    assert_eq!(place.cache.clear().expect("it is removed").len(), 2);
    assert_eq!(place.names(), ["notes.txt"]);
    let without = load_with(&place.model, &LoadOptions::default(), Device::cpu(2), None);
    assert_eq!(answer(loaded), answer(without.expect("the model loads")));
}

#[test]
fn a_folder_that_cannot_be_made_only_costs_the_cache() {
    let mut place = place();
    let file = place.folder.path().join("file");
    fs::write(&file, "").expect("it is written");
    place.cache.folder = file.join("weights");
    let problem = failure(place.cache_use());
    assert!(
        problem.contains("file/weights") || cfg!(windows),
        "{problem}"
    );
}

/// A device that is always full stands where the file should be.
#[cfg(target_os = "linux")]
#[test]
fn a_full_disk_only_costs_the_cache() {
    let place = place();
    let (path, _) = written(place.cache_use());
    fs::remove_file(&path).expect("it is removed");
    std::os::unix::fs::symlink("/dev/full", &path).expect("a link");
    let problem = failure(place.cache_use());
    assert!(problem.contains("No space left on device"), "{problem}");
}

#[test]
fn starts_at_the_same_time_all_succeed_and_leave_one_file() {
    let place = Arc::new(place());
    let starts: Vec<_> = (0..4)
        .map(|_| {
            let place = Arc::clone(&place);
            std::thread::spawn(move || place.cache_use())
        })
        .collect();
    for start in starts {
        let cache_use = start.join().expect("no panic");
        assert!(
            !matches!(cache_use, CacheUse::Failed(_) | CacheUse::Small),
            "{cache_use:?}"
        );
    }
    assert_mapped(place.cache_use());
    assert_eq!(place.names().len(), 1);
}

#[test]
fn what_a_killed_writer_left_is_removed_but_not_what_is_being_written() {
    let place = place();
    fs::create_dir_all(&place.cache.folder).expect("a folder");
    let (left, busy) = (".left.weights.partial", ".busy.weights.partial");
    fs::write(place.cache.folder.join(left), "half").expect("it is written");
    let file = File::create(place.cache.folder.join(busy)).expect("it is made");
    file.lock().expect("it can be locked");
    let (path, _) = written(place.cache_use());
    let name = path.file_name().expect("a name").to_str().expect("UTF-8");
    assert_eq!(place.names(), [busy, name]);
    // Another process writes the same file: this one goes on without.
    fs::remove_file(&path).expect("it is removed");
    let partial = place.cache.folder.join(format!(".{name}.partial"));
    let file = File::create(&partial).expect("it is made");
    file.lock().expect("it can be locked");
    assert_eq!(place.cache_use(), CacheUse::None);
    drop(file);
    written(place.cache_use());
    assert_mapped(place.cache_use());
}
