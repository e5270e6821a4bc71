//! Downloads from a server in this process that drops connections, serves wrong bytes and makes
//! false claims.

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bitnet_hub::{Cache, Error, Hub, ModelName, Proxies, PullPhase, pull};
use sha2::{Digest, Sha256};

const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";
const REPO: &str = "org/model-1.58";

/// A received request.
#[derive(Clone, Debug)]
struct Request {
    method: String,
    path: String,
    headers: BTreeMap<String, String>,
}

impl Request {
    fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(String::as_str)
    }

    /// The first byte of the requested range.
    fn start(&self) -> usize {
        let range = self
            .header("range")
            .and_then(|range| range.strip_prefix("bytes=")?.strip_suffix('-'));
        range.map_or(0, |start| start.parse().expect("a number"))
    }
}

/// An answer; of its body only the first `sent` bytes go out before the connection is dropped.
#[derive(Clone, Default)]
struct Reply {
    status: u16,
    headers: Vec<(&'static str, String)>,
    body: Vec<u8>,
    sent: Option<usize>,
}

type Answer = dyn Fn(&Request, usize) -> Reply + Send + Sync;

/// A server that gives one scripted reply per connection. The closure gets the number of earlier
/// requests.
struct Server {
    endpoint: String,
    log: Arc<Mutex<Vec<Request>>>,
}

impl Server {
    fn start(answer: impl Fn(&Request, usize) -> Reply + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let endpoint = format!("http://{}", listener.local_addr().expect("an address"));
        let log = Arc::new(Mutex::new(Vec::new()));
        let (shared_log, answer): (_, Arc<Answer>) = (Arc::clone(&log), Arc::new(answer));
        std::thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                let (log, answer) = (Arc::clone(&shared_log), Arc::clone(&answer));
                std::thread::spawn(move || serve(&stream, &log, &*answer));
            }
        });
        Self { endpoint, log }
    }

    fn requests(&self) -> Vec<Request> {
        self.log.lock().expect("the log").clone()
    }

    /// The GETs of file contents.
    fn downloads(&self) -> Vec<Request> {
        let requests = self.requests().into_iter();
        requests
            .filter(|request| request.method == "GET" && request.path.contains("/resolve/"))
            .collect()
    }

    fn hub(&self) -> Hub {
        Hub::new(
            &self.endpoint,
            Some("secret".into()),
            None,
            Proxies::default(),
        )
        .expect("a hub")
    }
}

/// Answers one request. Errors are ignored, since a client may hang up early.
fn serve(stream: &TcpStream, log: &Mutex<Vec<Request>>, answer: &Answer) -> Option<()> {
    let mut lines = BufReader::new(stream).lines().map_while(Result::ok);
    let first = lines.next()?;
    let mut words = first.split(' ');
    let (method, path) = (words.next()?.to_owned(), words.next()?.to_owned());
    let headers = lines.take_while(|line| !line.is_empty());
    let headers = headers
        .filter_map(|line| {
            line.split_once(": ")
                .map(|(k, v)| (k.to_lowercase(), v.to_owned()))
        })
        .collect();
    let request = Request {
        method,
        path,
        headers,
    };
    let count = {
        let mut log = log.lock().ok()?;
        log.push(request.clone());
        log.len() - 1
    };
    let Reply {
        status,
        headers,
        body,
        sent,
    } = answer(&request, count);
    let mut head = format!(
        "HTTP/1.1 {status} OK\r\nconnection: close\r\ncontent-length: {}\r\n",
        body.len()
    );
    for (name, value) in headers {
        head.push_str(&format!("{name}: {value}\r\n"));
    }
    head.push_str("\r\n");
    let mut stream = stream;
    stream.write_all(head.as_bytes()).ok()?;
    if request.method != "HEAD" {
        stream.write_all(&body[..sent.unwrap_or(body.len())]).ok()?;
    }
    stream.flush().ok()
}

fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes)
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect()
}

/// Bytes in which every byte differs from its neighbours.
fn content(len: usize) -> Vec<u8> {
    (0..len as u64)
        .map(|i| (i.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 56) as u8)
        .collect()
}

fn description(commit: &str, files: &[&str]) -> Reply {
    let siblings: Vec<_> = files
        .iter()
        .map(|file| serde_json::json!({"rfilename": file}))
        .collect();
    let body = serde_json::json!({"sha": commit, "siblings": siblings})
        .to_string()
        .into_bytes();
    Reply {
        status: 200,
        body,
        ..Reply::default()
    }
}

/// The Hub's reply for a large file: the whole file or the requested range.
fn large(request: &Request, bytes: &[u8]) -> Reply {
    let start = request.start();
    let mut headers = vec![
        ("x-linked-etag", format!("\"{}\"", sha256(bytes))),
        ("x-linked-size", bytes.len().to_string()),
    ];
    if start > 0 {
        headers.push((
            "content-range",
            format!("bytes {start}-{}/{}", bytes.len() - 1, bytes.len()),
        ));
    }
    Reply {
        status: if start > 0 { 206 } else { 200 },
        headers,
        body: bytes[start..].to_vec(),
        sent: None,
    }
}

fn not_found() -> Reply {
    Reply {
        status: 404,
        ..Reply::default()
    }
}

/// One GGUF file of these bytes.
fn one_file(bytes: Vec<u8>) -> Server {
    Server::start(move |request, _| match &*request.path {
        path if path.starts_with("/api/models/") => {
            description(COMMIT, &["README.md", "model.gguf"])
        }
        path if path.ends_with("/model.gguf") => large(request, &bytes),
        _ => not_found(),
    })
}

/// A cache in its own temporary folder.
struct Place {
    folder: tempfile::TempDir,
    cache: Cache,
}

impl Place {
    fn new() -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let cache = Cache::new(folder.path().join("hub"));
        Self { folder, cache }
    }

    fn pull(&self, server: &Server, name: &str) -> Result<PathBuf, Error> {
        let name: ModelName = name.parse()?;
        pull(
            &server.hub(),
            &self.cache,
            &name,
            Duration::ZERO,
            &mut |_| ControlFlow::Continue(()),
        )
    }

    /// A path in the repository's folder.
    fn at(&self, path: &str) -> PathBuf {
        self.cache.root().join("models--org--model-1.58").join(path)
    }

    /// All files of the folder, as paths from it.
    fn files(&self) -> Vec<String> {
        fn walk(folder: &Path, prefix: &str, out: &mut Vec<String>) {
            for entry in fs::read_dir(folder)
                .expect("a folder")
                .map(|entry| entry.expect("an entry"))
            {
                let name = format!("{prefix}{}", entry.file_name().to_string_lossy());
                match entry.file_type().expect("a type").is_dir() {
                    true => walk(&entry.path(), &format!("{name}/"), out),
                    false => out.push(name),
                }
            }
        }
        let mut out = Vec::new();
        walk(self.folder.path(), "", &mut out);
        out.retain(|name| !name.ends_with(".lock"));
        out.sort();
        out
    }
}

#[test]
fn a_pulled_model_has_the_cache_layout_of_hugging_faces_tools() {
    let bytes = content(700_000);
    let (server, place, hash) = (one_file(bytes.clone()), Place::new(), sha256(&bytes));
    let path = place.pull(&server, REPO).expect("a path");
    assert_eq!(fs::read(&path).expect("the file"), bytes);
    let repo = "hub/models--org--model-1.58";
    let blob = format!("{repo}/blobs/{hash}");
    assert_eq!(
        place.files(),
        [
            blob,
            format!("{repo}/refs/main"),
            format!("{repo}/snapshots/{COMMIT}/model.gguf")
        ]
    );
    assert_eq!(
        fs::read_to_string(place.at("refs/main")).expect("a commit"),
        COMMIT
    );
    #[cfg(unix)]
    assert_eq!(
        fs::read_link(&path).expect("a link"),
        PathBuf::from(format!("../../blobs/{hash}"))
    );
    assert!(
        place
            .cache
            .root()
            .join(format!(".locks/models--org--model-1.58/{hash}.lock"))
            .exists()
    );

    for name in [
        REPO,
        &format!("{REPO}:model.gguf"),
        &format!("{REPO}@{COMMIT}"),
    ] {
        assert_eq!(
            place
                .cache
                .find(&name.parse().expect("a name"))
                .expect("it is there"),
            path,
            "{name}"
        );
    }
    let listed = place.cache.list().expect("a list");
    assert_eq!(listed.len(), 1);
    let found = (
        &*listed[0].name,
        listed[0].bytes,
        &*listed[0].commit,
        listed[0].is_complete,
    );
    assert_eq!(found, ("org/model-1.58:model.gguf", 700_000, COMMIT, true));

    assert_eq!(place.pull(&server, REPO).expect("a path"), path);
    assert_eq!(
        server.downloads().len(),
        1,
        "complete files are not downloaded again"
    );
    assert_eq!(
        place
            .cache
            .remove(&listed[0].name.parse().expect("a name"))
            .expect("it was there"),
        700_000 + hash_link(&hash)
    );
    assert!(place.files().is_empty() && place.cache.list().expect("a list").is_empty());
    let gone = place.cache.find(&REPO.parse().expect("a name"));
    assert!(matches!(gone, Err(Error::NotPulled { .. })), "{gone:?}");
}

/// Bytes that a link to a blob and a reference take.
fn hash_link(hash: &str) -> u64 {
    let link = if cfg!(unix) {
        "../../blobs/".len() + hash.len()
    } else {
        700_000
    };
    (link + COMMIT.len()) as u64
}

#[cfg(unix)]
#[test]
fn a_pipe_in_place_of_a_file_is_refused() {
    let bytes = content(1000);
    let server = one_file(bytes.clone());
    for end in ["", ".incomplete"] {
        let place = Place::new();
        fs::create_dir_all(place.at("blobs")).expect("a folder");
        let path = place.at(&format!("blobs/{}{end}", sha256(&bytes)));
        let made = std::process::Command::new("mkfifo").arg(&path).status();
        assert!(made.expect("mkfifo runs").success());
        let refused = place.pull(&server, REPO).expect_err("a pipe").to_string();
        assert!(refused.contains(&sha256(&bytes)), "{refused}");
    }
}

#[test]
fn a_broken_download_continues() {
    let bytes = content(1_000_000);
    let (served, place) = (bytes.clone(), Place::new());
    // The server sends some hundred thousand bytes at a time, then nothing, then an error.
    let server = Server::start(move |request, count| match &*request.path {
        path if path.starts_with("/api/") && count == 0 => Reply {
            status: 503,
            ..Reply::default()
        },
        path if path.starts_with("/api/") => description(COMMIT, &["model.gguf"]),
        _ if request.method == "HEAD" => large(request, &served),
        _ if count % 4 == 1 => Reply {
            status: 500,
            ..Reply::default()
        },
        _ if count % 4 == 3 => Reply {
            sent: Some(0),
            ..large(request, &served)
        },
        _ => {
            let reply = large(request, &served);
            Reply {
                sent: Some(reply.body.len().min(110_003 + count)),
                ..reply
            }
        }
    });
    let path = place.pull(&server, REPO).expect("a path");
    assert!(fs::read(path).expect("the file") == bytes);
    let starts: Vec<usize> = server.downloads().iter().map(Request::start).collect();
    assert!(starts.len() > 9 && starts.is_sorted(), "{starts:?}");
    assert!(
        starts.iter().filter(|start| **start > 0).count() >= 9,
        "it never restarts at 0: {starts:?}"
    );
}

#[test]
fn a_pull_without_progress_fails_and_keeps_its_bytes() {
    let bytes = content(300_000);
    let (served, place) = (bytes.clone(), Place::new());
    let server = Server::start(move |request, _| match &*request.path {
        path if path.starts_with("/api/") => description(COMMIT, &["model.gguf"]),
        _ if request.method == "HEAD" || request.start() == 0 => Reply {
            sent: Some(100_000),
            ..large(request, &served)
        },
        _ => Reply {
            sent: Some(0),
            ..large(request, &served)
        },
    });
    let error = place.pull(&server, REPO).unwrap_err();
    assert!(matches!(error, Error::Network { .. }), "{error}");
    let blob = format!("blobs/{}", sha256(&bytes));
    assert_eq!(
        fs::read(place.at(&format!("{blob}.incomplete")))
            .expect("the part")
            .len(),
        100_000
    );
    assert!(!place.at(&blob).exists() && !place.at("refs").exists());
    let listed = place.cache.list().expect("a list");
    assert_eq!(
        (&*listed[0].name, listed[0].bytes, listed[0].is_complete),
        (REPO, 100_000, false)
    );

    let server = one_file(bytes.clone());
    assert!(fs::read(place.pull(&server, REPO).expect("a path")).expect("the file") == bytes);
    assert_eq!(
        server
            .downloads()
            .iter()
            .map(Request::start)
            .collect::<Vec<_>>(),
        [100_000]
    );
    assert!(
        !place
            .files()
            .iter()
            .any(|name| name.ends_with(".incomplete"))
    );
}

#[test]
fn wrong_bytes_never_get_a_name() {
    let bytes = content(500_000);
    let (mut wrong, right, place) = (bytes.clone(), bytes.clone(), Place::new());
    wrong[321_000] ^= 1;
    let server = Server::start(move |request, _| match &*request.path {
        path if path.starts_with("/api/") => description(COMMIT, &["model.gguf"]),
        _ if request.method == "HEAD" => large(request, &right),
        _ => large(request, &wrong),
    });
    let error = place.pull(&server, REPO).unwrap_err();
    assert!(
        matches!(&error, Error::WrongBytes { expected, .. } if *expected == sha256(&bytes)),
        "{error}"
    );
    assert!(place.files().is_empty(), "{:?}", place.files());
    assert_eq!(server.downloads().len(), 1);
    let path = place.pull(&one_file(bytes.clone()), REPO).expect("a path");

    // A blob that is damaged on the disk, and a partial file that belongs to another blob.
    let mut rotten = bytes.clone();
    rotten[7] ^= 0x40;
    fs::write(fs::canonicalize(&path).expect("the blob"), rotten).expect("a file");
    let server = one_file(bytes.clone());
    assert!(fs::read(place.pull(&server, REPO).expect("a path")).expect("the file") == bytes);
    assert_eq!(server.downloads().len(), 1);
    let place = Place::new();
    for stale in [vec![1; 200_000], vec![2; 500_001]] {
        fs::create_dir_all(place.at("blobs")).expect("a folder");
        fs::write(
            place.at(&format!("blobs/{}.incomplete", sha256(&bytes))),
            &stale,
        )
        .expect("a file");
        let server = one_file(bytes.clone());
        assert!(fs::read(place.pull(&server, REPO).expect("a path")).expect("the file") == bytes);
        assert_eq!(
            server.downloads().last().map(Request::start),
            Some(0),
            "from the start in the end"
        );
        place
            .cache
            .remove(&REPO.parse().expect("a name"))
            .expect("it was there");
    }
}

#[test]
fn a_server_without_ranges_restarts_the_download() {
    let bytes = content(400_000);
    let (served, place) = (bytes.clone(), Place::new());
    let server = Server::start(move |request, count| match &*request.path {
        path if path.starts_with("/api/") => description(COMMIT, &["model.gguf"]),
        _ => {
            let whole = Request {
                headers: BTreeMap::new(),
                ..request.clone()
            };
            Reply {
                sent: (count < 3).then_some(150_000),
                ..large(&whole, &served)
            }
        }
    });
    assert!(fs::read(place.pull(&server, REPO).expect("a path")).expect("the file") == bytes);
    assert_eq!(server.downloads().len(), 2);
}

#[test]
fn an_interrupted_pull_continues_where_it_stopped() {
    let bytes = content(3_000_000);
    let (server, place) = (one_file(bytes.clone()), Place::new());
    let name: ModelName = REPO.parse().expect("a name");
    let mut phases = Vec::new();
    let result = pull(
        &server.hub(),
        &place.cache,
        &name,
        Duration::ZERO,
        &mut |now| {
            phases.push(now.phase);
            if now.bytes_done > 1_000_000 {
                ControlFlow::Break(())
            } else {
                ControlFlow::Continue(())
            }
        },
    );
    assert!(matches!(result, Err(Error::Interrupted)), "{result:?}");
    assert!(matches!(
        place.cache.find(&name),
        Err(Error::NotPulled { .. })
    ));
    assert!(fs::read(place.pull(&server, REPO).expect("a path")).expect("the file") == bytes);
    let starts: Vec<usize> = server.downloads().iter().map(Request::start).collect();
    assert!(starts.len() == 2 && starts[1] > 1_000_000, "{starts:?}");
    assert!(phases.iter().all(|phase| *phase == PullPhase::Downloading));
}

#[test]
fn a_directory_has_its_small_files_and_a_reference_once_complete() {
    let shards = [content(200_000), content(100_000)];
    let index = serde_json::json!({"weight_map": {
        "a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}});
    let small: BTreeMap<&str, Vec<u8>> = BTreeMap::from([
        ("config.json", b"{}".to_vec()),
        ("tokenizer.json", b"{\"a\": 1}".to_vec()),
        (
            "model.safetensors.index.json",
            index.to_string().into_bytes(),
        ),
    ]);
    let files = [
        "config.json",
        "model-00001-of-00002.safetensors",
        "model-00002-of-00002.safetensors",
        "model.safetensors.index.json",
        "tokenizer.json",
        "README.md",
        "original/model.safetensors",
        "pytorch_model.bin",
    ];
    let is_down = Arc::new(Mutex::new(true));
    let switch = Arc::clone(&is_down);
    let place = Place::new();
    let server = Server::start(move |request, _| {
        let file = request.path.rsplit('/').next().unwrap_or_default();
        match file {
            "main" => description(COMMIT, &files),
            "model-00001-of-00002.safetensors" => large(request, &shards[0]),
            "model-00002-of-00002.safetensors" if *switch.lock().expect("a switch") => Reply {
                status: 403,
                ..Reply::default()
            },
            "model-00002-of-00002.safetensors" => large(request, &shards[1]),
            _ => match small.get(file) {
                // The Hub serves small files itself, with git's hash.
                Some(bytes) => Reply {
                    status: 200,
                    headers: vec![("etag", format!("\"{}\"", git_sha1(bytes)))],
                    body: bytes.clone(),
                    sent: None,
                },
                None => not_found(),
            },
        }
    });
    let error = place.pull(&server, REPO).unwrap_err();
    assert!(
        error.to_string().contains("403") && error.to_string().contains("HF_TOKEN"),
        "{error}"
    );
    assert!(
        place.cache.find(&REPO.parse().expect("a name")).is_err(),
        "not all of it is there"
    );
    let listed = place.cache.list().expect("a list");
    assert!(listed.iter().all(|model| !model.is_complete), "{listed:?}");
    *is_down.lock().expect("a switch") = false;
    let path = place.pull(&server, REPO).expect("a path");
    assert_eq!(path, place.at(&format!("snapshots/{COMMIT}")));
    let mut names: Vec<_> = fs::read_dir(&path)
        .expect("a folder")
        .map(|e| e.expect("an entry").file_name())
        .collect();
    names.sort();
    assert_eq!(names, files[..5]);
    assert_eq!(fs::read(path.join("config.json")).expect("a file"), b"{}");
    let fetched = |name: &str| {
        server
            .downloads()
            .iter()
            .filter(|request| request.path.ends_with(name))
            .count()
    };
    assert_eq!(
        (
            fetched("00001-of-00002.safetensors"),
            fetched("config.json"),
            fetched("README.md")
        ),
        (1, 1, 0)
    );
    let listed = place.cache.list().expect("a list");
    assert_eq!(
        (&*listed[0].name, listed[0].is_complete, listed.len()),
        (REPO, true, 1)
    );
}

fn git_sha1(bytes: &[u8]) -> String {
    let hash = sha1::Sha1::new_with_prefix(format!("blob {}\0", bytes.len()))
        .chain_update(bytes)
        .finalize();
    hash.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[test]
fn names_that_lead_out_of_the_cache_are_refused() {
    let bytes = content(1000);
    let evil = [
        "../../../evil.gguf",
        "/etc/evil.gguf",
        "a/../../evil.gguf",
        "..\\evil.gguf",
        "C:evil.gguf",
        "a//evil.gguf",
    ];
    for name in evil {
        let place = Place::new();
        let server = Server::start(move |_, _| description(COMMIT, &[name]));
        let error = place.pull(&server, REPO).unwrap_err();
        assert!(matches!(error, Error::UnsafePath { .. }), "{name}: {error}");
        assert!(place.files().is_empty(), "{name}");
    }
    let lies: [(&'static str, &'static str); 3] = [
        ("../../../../evil", "x"),
        (COMMIT, "../../../evil"),
        (COMMIT, ""),
    ];
    for (commit, etag) in lies {
        let (place, bytes) = (Place::new(), bytes.clone());
        let server = Server::start(move |request, _| match request.path.starts_with("/api/") {
            true => description(commit, &["model.gguf"]),
            false => Reply {
                status: 200,
                headers: vec![("etag", etag.to_owned())],
                body: bytes.clone(),
                sent: None,
            },
        });
        let error = place.pull(&server, REPO).unwrap_err();
        assert!(
            matches!(error, Error::Answer { .. }),
            "{commit} {etag}: {error}"
        );
        assert!(place.files().is_empty());
    }
    // A reference in the cache that another program wrote.
    let place = Place::new();
    fs::create_dir_all(place.at("refs")).expect("a folder");
    fs::write(place.at("refs/main"), "../../../../etc").expect("a file");
    assert!(matches!(
        place.cache.find(&REPO.parse().expect("a name")),
        Err(Error::NotPulled { .. })
    ));
}

#[test]
fn only_the_hub_gets_the_token() {
    let bytes = content(50_000);
    let served = bytes.clone();
    let storage = Server::start(move |request, _| large(request, &served));
    let (signed, etag, size) = (
        format!("{}/blob?signature=abc", storage.endpoint),
        sha256(&bytes),
        bytes.len(),
    );
    let renamed = "/org/new-name/resolve/x/model.gguf";
    let server = Server::start(move |request, _| match &*request.path {
        path if path.starts_with("/api/") => description(COMMIT, &["model.gguf"]),
        path if path == renamed => {
            let headers = vec![
                ("location", signed.clone()),
                ("x-linked-etag", etag.clone()),
                ("x-linked-size", size.to_string()),
            ];
            Reply {
                status: 302,
                headers,
                ..Reply::default()
            }
        }
        _ => Reply {
            status: 307,
            headers: vec![("location", renamed.to_owned())],
            ..Reply::default()
        },
    });
    let place = Place::new();
    assert!(fs::read(place.pull(&server, REPO).expect("a path")).expect("the file") == bytes);
    assert!(
        server
            .requests()
            .iter()
            .all(|request| request.header("authorization") == Some("Bearer secret"))
    );
    assert!(
        storage
            .requests()
            .iter()
            .all(|request| request.header("authorization").is_none())
    );
    assert_eq!(storage.requests().len(), 1);
}

#[test]
fn a_pull_holds_the_lock_of_its_blob() {
    let bytes = content(10_000);
    let (server, place) = (one_file(bytes.clone()), Place::new());
    let lock = place.cache.root().join(format!(
        ".locks/models--org--model-1.58/{}.lock",
        sha256(&bytes)
    ));
    fs::create_dir_all(lock.parent().expect("a folder")).expect("a folder");
    let held = fs::File::create(&lock).expect("a file");
    held.lock().expect("a lock");
    assert!(matches!(place.pull(&server, REPO), Err(Error::Busy { .. })));
    drop(held);
    place.pull(&server, REPO).expect("a path");
    let held = fs::File::open(&lock).expect("a file");
    held.lock().expect("a lock");
    assert!(matches!(
        place.cache.remove(&REPO.parse().expect("a name")),
        Err(Error::Busy { .. })
    ));
}

#[test]
fn removing_a_snapshot_keeps_the_blobs_of_others() {
    let bytes = content(20_000);
    let served = bytes.clone();
    let place = Place::new();
    let other = "f".repeat(40);
    let commit = other.clone();
    let server = Server::start(move |request, _| match &*request.path {
        path if path.ends_with("/revision/v1") => description(&commit, &["a.gguf", "b.gguf"]),
        path if path.starts_with("/api/") => description(COMMIT, &["a.gguf", "b.gguf"]),
        _ => large(request, &served),
    });
    let choice = place.pull(&server, REPO).unwrap_err().to_string();
    assert!(
        choice.contains("org/model-1.58:FILE: a.gguf, b.gguf"),
        "{choice}"
    );
    let kept = place
        .pull(&server, &format!("{REPO}@v1:b.gguf"))
        .expect("a path");
    place
        .pull(&server, &format!("{REPO}:a.gguf"))
        .expect("a path");
    let names: Vec<String> = place
        .cache
        .list()
        .expect("a list")
        .into_iter()
        .map(|model| model.name)
        .collect();
    assert_eq!(names, ["org/model-1.58:a.gguf", "org/model-1.58@v1:b.gguf"]);
    place
        .cache
        .remove(&format!("{REPO}:a.gguf").parse().expect("a name"))
        .expect("it was there");
    assert!(fs::read(kept).expect("the file") == bytes);
    assert!(matches!(
        place
            .cache
            .remove(&format!("{REPO}:a.gguf").parse().expect("a name")),
        Err(Error::NotPulled { .. })
    ));
    place
        .cache
        .remove(&REPO.parse().expect("a name"))
        .expect("it was there");
    assert!(place.files().is_empty());
}

#[test]
fn a_revision_can_be_removed_alone() {
    let (bytes, other) = (content(20_000), "f".repeat(40));
    let (served, commit) = (bytes.clone(), other.clone());
    let server = Server::start(move |request, _| match &*request.path {
        path if path.ends_with("/revision/v1") || path.ends_with("/revision/v2") => {
            description(&commit, &["b.gguf"])
        }
        path if path.starts_with("/api/") => description(COMMIT, &["a.gguf"]),
        path if path.contains("a.gguf") => large(request, &served),
        _ => large(request, &served[1..]),
    });
    let place = Place::new();
    let names = || {
        place
            .cache
            .list()
            .expect("a list")
            .into_iter()
            .map(|model| model.name)
            .collect::<Vec<_>>()
    };
    let remove = |name: &str| {
        place
            .cache
            .remove(&format!("{REPO}{name}").parse().expect("a name"))
    };
    for name in ["", "@v1", "@v2"] {
        place
            .pull(&server, &format!("{REPO}{name}"))
            .expect("a path");
    }
    assert!(matches!(remove("@v3"), Err(Error::NotPulled { .. })));
    assert_eq!(
        remove("@v1").expect("it was there"),
        40,
        "of a file that v2 has, too, only the name"
    );
    assert_eq!(
        names(),
        ["org/model-1.58:a.gguf", "org/model-1.58@v2:b.gguf"]
    );
    assert!(remove("@v2").expect("it was there") > 19_999);
    assert_eq!(names(), ["org/model-1.58:a.gguf"]);
    place.pull(&server, &format!("{REPO}@v1")).expect("a path");
    remove(&format!("@{COMMIT}")).expect("it was there");
    assert_eq!(names(), ["org/model-1.58@v1:b.gguf"]);
    assert!(matches!(
        remove("@main:a.gguf"),
        Err(Error::NotPulled { .. })
    ));
    remove("@v1").expect("it was there");
    assert!(place.files().is_empty());
}

#[test]
fn removing_a_model_keeps_partial_downloads_of_other_files() {
    let (server, place) = (one_file(content(10_000)), Place::new());
    place.pull(&server, REPO).expect("a path");
    let begun = place
        .at("blobs")
        .join(format!("{}.incomplete", "c".repeat(64)));
    fs::write(&begun, "half").expect("a file");
    place
        .cache
        .remove(&format!("{REPO}:model.gguf").parse().expect("a name"))
        .expect("it was there");
    assert!(begun.is_file());
    assert!(place.cache.find(&REPO.parse().expect("a name")).is_err());
    place
        .cache
        .remove(&REPO.parse().expect("a name"))
        .expect("it was there");
    assert!(!begun.exists());
}

#[test]
fn refusals_give_a_hint() {
    let place = Place::new();
    for (status, said) in [(401, "HF_TOKEN"), (404, "no such repository")] {
        let server = Server::start(move |_, _| Reply {
            status,
            ..Reply::default()
        });
        let error = place.pull(&server, REPO).unwrap_err().to_string();
        assert!(
            error.contains(&status.to_string()) && error.contains(said),
            "{error}"
        );
        assert_eq!(
            server.requests().len(),
            1,
            "permanent errors are not retried"
        );
    }
    let server = Server::start(|_, _| Reply {
        status: 503,
        ..Reply::default()
    });
    assert!(matches!(
        place.pull(&server, REPO),
        Err(Error::Status { status: 503, .. })
    ));
    assert_eq!(server.requests().len(), 5);
    assert!(Hub::new("ftp://example.org", None, None, Proxies::default()).is_err());
    assert!(
        Hub::new(
            "https://example.org/",
            None,
            Some(b"no certificates"),
            Proxies::default()
        )
        .is_err()
    );
}
