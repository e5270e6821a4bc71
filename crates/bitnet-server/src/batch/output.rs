//! [`Output`]: a file with the answers of a batch.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{BufRead, BufReader, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use serde::Serialize;
use serde_json::Value;

use crate::batch::lines::{LineError, LineName, Lines, line_id};
use crate::error::{Error, Result};
use crate::requests::LocalResponse;

/// A line of the output. The id comes first, so that the beginning of a line shows which request it
/// answers.
#[derive(Serialize)]
pub(crate) struct Answer<'a> {
    id: &'a str,
    custom_id: Option<&'a str>,
    response: Option<Response<'a>>,
    error: Option<&'a LineError>,
}

#[derive(Serialize)]
struct Response<'a> {
    status_code: u16,
    request_id: &'a str,
    body: Value,
}

impl<'a> Answer<'a> {
    /// The answer to the request `name`.
    pub(crate) fn new(
        name: &'a LineName,
        answered: &'a std::result::Result<LocalResponse, LineError>,
    ) -> Self {
        let response = answered.as_ref().ok().map(|response| Response {
            status_code: response.status,
            request_id: &response.request_id,
            body: serde_json::from_slice(&response.body).unwrap_or(Value::Null),
        });
        Self {
            id: &name.id,
            custom_id: name.custom_id.as_deref(),
            response,
            error: answered.as_ref().err(),
        }
    }

    /// The body of the response.
    pub(crate) fn body(&self) -> Option<&Value> {
        self.response.as_ref().map(|response| &response.body)
    }

    /// The line, with its end.
    pub(crate) fn line(&self) -> Vec<u8> {
        // JSON can represent every answer.
        let mut line = serde_json::to_vec(self).unwrap_or_default();
        line.push(b'\n');
        line
    }
}

/// The bodies of the responses in a file with answers; null where a line has none.
pub(crate) fn bodies(path: &Path) -> Result<impl Iterator<Item = Result<Value>>> {
    let failed = |source| Error::file("read", path, source);
    let lines = BufReader::new(File::open(path).map_err(failed)?).lines();
    Ok(lines.map(move |line| {
        let mut line: Value = serde_json::from_str(&line.map_err(failed)?).unwrap_or_default();
        Ok(line["response"]["body"].take())
    }))
}

/// A file with answers. No other process writes to it at the same time.
pub(crate) struct Output {
    path: PathBuf,
    file: File,
}

impl Output {
    /// Opens the file, or creates it.
    pub(crate) fn open(path: &Path) -> Result<Self> {
        let opened = OpenOptions::new()
            .create(true)
            .truncate(false)
            .read(true)
            .write(true)
            .open(path);
        let file = opened.map_err(|source| Error::file("open", path, source))?;
        let path = path.to_owned();
        match file.try_lock() {
            Ok(()) => Ok(Self { path, file }),
            Err(TryLockError::WouldBlock) => Err(Error::OutputInUse { path }),
            Err(TryLockError::Error(source)) => Err(Error::file("lock", &path, source)),
        }
    }

    /// Writes a line.
    pub(crate) fn write(&mut self, line: &[u8]) -> Result<()> {
        // One call, so that a killed process leaves whole lines, or one part of a line at the end.
        let written = self.file.write_all(line);
        written.map_err(|source| Error::file("write", &self.path, source))
    }

    /// Returns when all lines are on the disk.
    pub(crate) fn sync(&self) -> Result<()> {
        let synced = self.file.sync_all();
        synced.map_err(|source| Error::file("write", &self.path, source))
    }

    /// Removes the file.
    pub(crate) fn remove(&self) -> Result<()> {
        let removed = std::fs::remove_file(&self.path);
        removed.map_err(|source| Error::file("remove", &self.path, source))
    }

    /// Cuts the file to `len` bytes, and goes on there.
    pub(crate) fn cut(&mut self, len: u64) -> Result<()> {
        let cut = || -> std::io::Result<()> {
            self.file.set_len(len)?;
            (&self.file).seek(SeekFrom::Start(len)).map(drop)
        };
        cut().map_err(|source| Error::file("write", &self.path, source))
    }
}

/// Reads answers from the beginning of a file.
struct Reader<'f> {
    path: &'f Path,
    reader: BufReader<&'f File>,
    /// The line behind the answers so far, with its end; empty at the end of the file.
    next: Vec<u8>,
    answered: Answered,
}

/// The answers that a file has already.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Answered {
    /// Number of requests.
    pub(crate) num_lines: usize,
    /// The end of the last answer, in bytes.
    pub(crate) bytes: u64,
}

impl<'f> Reader<'f> {
    fn new(output: &'f Output) -> Result<Self> {
        let mut reader = Self {
            path: &output.path,
            reader: BufReader::new(&output.file),
            next: Vec::new(),
            answered: Answered::default(),
        };
        reader.read()?;
        Ok(reader)
    }

    fn read(&mut self) -> Result<()> {
        self.next.clear();
        let read = self.reader.read_until(b'\n', &mut self.next);
        let path = self.path;
        read.map(drop)
            .map_err(|source| Error::file("read", path, source))
    }

    /// Takes the next line if it is whole and begins so.
    fn take(&mut self, beginning: &[u8]) -> Result<bool> {
        let is_next = self.next.ends_with(b"\n") && self.next.starts_with(beginning);
        if is_next {
            self.answered.num_lines += 1;
            self.answered.bytes += self.next.len() as u64;
            self.read()?;
        }
        Ok(is_next)
    }

    /// Whether what follows the answers is nothing, or a part of the line that begins so: a process
    /// was killed while it wrote the line.
    fn is_cut_off(&self, beginning: Option<&[u8]>) -> bool {
        let is_part = |beginning: &[u8]| {
            !self.next.ends_with(b"\n")
                && (self.next.starts_with(beginning) || beginning.starts_with(&self.next))
        };
        self.next.is_empty() || beginning.is_some_and(is_part)
    }
}

/// How far the requests of a batch are answered.
pub(crate) struct Progress<const N: usize> {
    /// In each file.
    pub(crate) answered: [Answered; N],
    /// The first file that goes on with something else than answers.
    pub(crate) other: Option<usize>,
}

/// The answers that files have already. Each answer is in one of the files, and each file has its
/// answers in the order of the requests; the first request that no file answers is the next one.
pub(crate) fn progress<const N: usize>(
    mut lines: Lines,
    outputs: [&Output; N],
) -> Result<Progress<N>> {
    let mut readers = Vec::with_capacity(N);
    for output in outputs {
        readers.push(Reader::new(output)?);
    }
    let mut next = lines.next_bytes()?.map(|line| beginning(&line_id(&line)));
    while let Some(beginning_of_line) = &next {
        let mut is_answered = false;
        for reader in &mut readers {
            is_answered = is_answered || reader.take(beginning_of_line)?;
        }
        if !is_answered {
            break;
        }
        next = lines.next_bytes()?.map(|line| beginning(&line_id(&line)));
    }
    let is_other = |reader: &Reader<'_>| !reader.is_cut_off(next.as_deref());
    Ok(Progress {
        answered: std::array::from_fn(|index| readers[index].answered),
        other: readers.iter().position(is_other),
    })
}

/// The beginning of the line that answers a request.
fn beginning(id: &str) -> Vec<u8> {
    format!("{{\"id\":\"{id}\",").into_bytes()
}
