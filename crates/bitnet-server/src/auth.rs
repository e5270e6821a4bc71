//! [`ApiKeys`]: the keys that give access. The file holds hashes only, and looking a key up takes
//! the same time for every key.

use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};

use axum::http::HeaderMap;
use sha2::{Digest, Sha256};
use subtle::{Choice, ConditionallySelectable, ConstantTimeEq};

use crate::error::{Error, Result};

/// The keys of a file, as of its last reading.
#[derive(Clone, Debug)]
pub struct ApiKeys {
    path: PathBuf,
    keys: Arc<RwLock<Keys>>,
}

impl ApiKeys {
    /// Reads a file: lines of 64 hexadecimal digits, the SHA-256 of a key, each followed by a name
    /// for the logs, in the format that `printf %s "$KEY" | sha256sum` prints, where `-` may be
    /// replaced by the name. Empty lines and lines that begin with `#` are skipped.
    ///
    /// # Errors
    /// If the file cannot be read, a line is invalid, or there are no keys.
    pub fn read(path: &Path) -> Result<Self> {
        let keys = Keys::parse(&read(path)?)?;
        Ok(Self {
            path: path.to_owned(),
            keys: Arc::new(RwLock::new(keys)),
        })
    }

    /// Reads the file again; true if it has other keys now. On an error the former keys stay valid.
    pub(crate) fn read_again(&self) -> Result<bool> {
        let keys = Keys::parse(&read(&self.path)?)?;
        let mut known = self.keys.write().unwrap_or_else(PoisonError::into_inner);
        let is_changed = *known != keys;
        *known = keys;
        Ok(is_changed)
    }

    /// The file's path.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// The name of the owner of a request's key, sent as `Authorization: Bearer KEY`.
    pub(crate) fn owner(&self, headers: &HeaderMap) -> Option<Arc<str>> {
        self.keys
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .owner(headers)
    }
}

fn read(path: &Path) -> Result<String> {
    // Check the type before opening: opening a pipe would wait for its writer.
    if !std::fs::metadata(path)
        .map_err(Error::ApiKeyFile)?
        .is_file()
    {
        return Err(Error::ApiKeyFileKind);
    }
    std::fs::read_to_string(path).map_err(Error::ApiKeyFile)
}

/// Prefix of the names that unnamed keys get.
const UNNAMED: &str = "sha256:";
/// Number of hexadecimal digits of such a name: 64 bits distinguish any two keys of a file.
const UNNAMED_DIGITS: usize = 16;

/// The hashes of the keys, each with the name of its owner.
#[derive(Debug, PartialEq)]
struct Keys(Vec<([u8; 32], Arc<str>)>);

impl Keys {
    fn parse(text: &str) -> Result<Self> {
        let mut keys = Vec::new();
        for (index, line) in text.lines().enumerate() {
            let line = line.trim();
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            let (digits, name) = line.split_once(char::is_whitespace).unwrap_or((line, ""));
            let line = index + 1;
            let hash = parse_hash(digits).ok_or(Error::ApiKeyLine { line })?;
            let name = match name.trim() {
                // The name is derived from the key itself, so that it stays the same when other
                // lines are removed.
                "" | "-" => {
                    let digits = digits[..UNNAMED_DIGITS].to_ascii_lowercase();
                    format!("{UNNAMED}{digits}")
                }
                name if name.starts_with(UNNAMED) => {
                    let prefix = UNNAMED;
                    return Err(Error::ApiKeyName { line, prefix });
                }
                name => name.to_owned(),
            };
            keys.push((hash, name.into()));
        }
        if keys.is_empty() {
            Err(Error::NoApiKeys)
        } else {
            Ok(Self(keys))
        }
    }

    fn owner(&self, headers: &HeaderMap) -> Option<Arc<str>> {
        let value = headers.get(axum::http::header::AUTHORIZATION)?.as_bytes();
        let (scheme, key) = value.split_at_checked(b"Bearer ".len())?;
        if !scheme.eq_ignore_ascii_case(b"Bearer ") {
            return None;
        }
        let hash: [u8; 32] = Sha256::digest(key.trim_ascii()).into();
        let (mut found, mut owner) = (Choice::from(0), 0u64);
        for (index, (known, _)) in self.0.iter().enumerate() {
            let is_equal = known.ct_eq(&hash);
            owner.conditional_assign(&(index as u64), is_equal);
            found |= is_equal;
        }
        bool::from(found).then(|| Arc::clone(&self.0[owner as usize].1))
    }
}

fn parse_hash(digits: &str) -> Option<[u8; 32]> {
    if digits.len() != 64 || !digits.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return None;
    }
    let mut hash = [0; 32];
    for (byte, index) in hash.iter_mut().zip((0..64).step_by(2)) {
        *byte = u8::from_str_radix(&digits[index..index + 2], 16).ok()?;
    }
    Some(hash)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// SHA-256 of `secret` and of `other`, from sha256sum.
    const FILE: &str = "
        # keys
        2bb80d537b1da3e38bd30361aa855686bde0eacd7162fef6a25fe97bf527a25b  -
        d9298a10d1b0735837dc4bd85dac641b0f3cef27a47e5d53a54f2f3f5b2fcffa alice from accounts
    ";

    fn owner(authorization: &str) -> Option<String> {
        let keys = Keys::parse(FILE).expect("two keys");
        let value = authorization.parse().expect("a header's value");
        let headers = HeaderMap::from_iter([(axum::http::header::AUTHORIZATION, value)]);
        keys.owner(&headers).map(|name| name.to_string())
    }

    #[test]
    fn only_a_listed_key_has_an_owner() {
        assert_eq!(
            owner("Bearer secret").as_deref(),
            Some("sha256:2bb80d537b1da3e3")
        );
        assert_eq!(
            owner("bearer  other").as_deref(),
            Some("alice from accounts")
        );
        for wrong in [
            "Bearer Secret",
            "Bearer",
            "Bearer ",
            "secret",
            "Basic secret",
            "",
            "Bearer secret other",
        ] {
            assert_eq!(owner(wrong), None, "{wrong}");
        }
        assert_eq!(
            Keys::parse(FILE)
                .expect("two keys")
                .owner(&HeaderMap::new()),
            None
        );
    }

    #[test]
    fn an_unnamed_key_keeps_its_owner_when_another_line_is_removed() {
        let owner = |file: &str| {
            let value = "Bearer other".parse().expect("a header's value");
            let headers = HeaderMap::from_iter([(axum::http::header::AUTHORIZATION, value)]);
            Keys::parse(file).expect("keys").owner(&headers)
        };
        let unnamed = FILE.replace("alice from accounts", "-");
        let (_, last_line) = unnamed.split_once("  -\n").expect("two lines");
        assert_eq!(owner(&unnamed).as_deref(), Some("sha256:d9298a10d1b07358"));
        assert_eq!(owner(&unnamed), owner(last_line));
        let taken = FILE.replace("alice from accounts", "sha256:2bb80d537b1da3e3");
        assert!(matches!(
            Keys::parse(&taken),
            Err(Error::ApiKeyName { line: 4, .. })
        ));
    }

    #[test]
    fn only_a_regular_file_is_read() {
        let folder = std::env::temp_dir();
        assert!(matches!(ApiKeys::read(&folder), Err(Error::ApiKeyFileKind)));
        #[cfg(unix)]
        assert!(matches!(
            ApiKeys::read(Path::new("/dev/zero")),
            Err(Error::ApiKeyFileKind)
        ));
    }

    #[test]
    fn an_invalid_file_is_refused() {
        assert!(matches!(Keys::parse("# none\n\n"), Err(Error::NoApiKeys)));
        for wrong in ["secret", &FILE[..60], &format!("{FILE}0"), &"é".repeat(32)] {
            assert!(Keys::parse(wrong).is_err(), "{wrong}");
        }
        assert!(matches!(
            Keys::parse("\n#\nsecret"),
            Err(Error::ApiKeyLine { line: 3 })
        ));
    }
}
