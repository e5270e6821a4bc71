//! [`ApiKeys`]: the keys that give access. The file holds hashes only, and looking a key up takes
//! the same time for every key.

use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};

use axum::http::HeaderMap;
use axum::http::header::AUTHORIZATION;
use sha2::{Digest, Sha256};
use subtle::{Choice, ConditionallySelectable, ConstantTimeEq};

use crate::error::{Error, Result};

/// The keys of a file, as of its last reading, and keys that the program was given.
#[derive(Clone, Debug)]
pub struct ApiKeys {
    path: Option<PathBuf>,
    given: Keys,
    keys: Arc<RwLock<Keys>>,
}

impl ApiKeys {
    /// Takes keys as texts, and reads a file of hashes: lines of 64 hexadecimal digits, the SHA-256
    /// of a key, each followed by a name for the logs, in the format that
    /// `printf %s "$KEY" | sha256sum` prints, where `-` may be replaced by the name. Empty lines and
    /// lines that begin with `#` are skipped.
    ///
    /// # Errors
    /// If a given key is not one to 1024 visible ASCII characters, if the file cannot be read, a
    /// line is invalid, or there are no keys in it.
    pub fn new(given: &[String], file: Option<&Path>) -> Result<Self> {
        let given = Keys::given(given)?;
        let in_file = match file {
            Some(path) => Keys::parse(&read(path)?)?,
            None => Keys(Vec::new()),
        };
        Ok(Self {
            path: file.map(Path::to_owned),
            given,
            keys: Arc::new(RwLock::new(in_file)),
        })
    }

    /// Reads the file again; true if it has other keys now. On an error the former keys stay valid.
    pub(crate) fn read_again(&self) -> Result<bool> {
        let Some(path) = &self.path else {
            return Ok(false);
        };
        let keys = Keys::parse(&read(path)?)?;
        let mut known = self.keys.write().unwrap_or_else(PoisonError::into_inner);
        let is_changed = *known != keys;
        *known = keys;
        Ok(is_changed)
    }

    /// The file's path.
    pub(crate) fn path(&self) -> Option<&Path> {
        self.path.as_deref()
    }

    /// The name of the owner of a request's key, sent as `Authorization: Bearer KEY` or, as
    /// Anthropic's clients do, as `x-api-key: KEY`.
    pub(crate) fn owner(&self, headers: &HeaderMap) -> Option<Arc<str>> {
        let keys = self.keys.read().unwrap_or_else(PoisonError::into_inner);
        // Both are looked up, so that the time does not tell which of them has the key.
        let (given, in_file) = (self.given.owner(headers), keys.owner(headers));
        given.or(in_file)
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

/// Maximum number of characters of a key that is given as a text.
const GIVEN_CHARS_MAX: usize = 1024;

/// The hashes of the keys, each with the name of its owner.
#[derive(Clone, Debug, PartialEq)]
struct Keys(Vec<([u8; 32], Arc<str>)>);

impl Keys {
    /// The hashes of keys as texts, under the names that keys without a name get.
    fn given(keys: &[String]) -> Result<Self> {
        let key = |(index, key): (usize, &String)| {
            let is_key = |key: &str| key.bytes().all(|byte| byte.is_ascii_graphic());
            if !(1..=GIVEN_CHARS_MAX).contains(&key.len()) || !is_key(key) {
                return Err(Error::ApiKeyText { number: index + 1 });
            }
            let hash: [u8; 32] = Sha256::digest(key.as_bytes()).into();
            let digits = hash[..UNNAMED_DIGITS / 2].iter();
            let digits: String = digits.map(|byte| format!("{byte:02x}")).collect();
            Ok((hash, format!("{UNNAMED}{digits}").into()))
        };
        keys.iter()
            .enumerate()
            .map(key)
            .collect::<Result<_>>()
            .map(Self)
    }

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
        let hash: [u8; 32] = Sha256::digest(key_of(headers)?.trim_ascii()).into();
        let (mut found, mut owner) = (Choice::from(0), 0u64);
        for (index, (known, _)) in self.0.iter().enumerate() {
            let is_equal = known.ct_eq(&hash);
            owner.conditional_assign(&(index as u64), is_equal);
            found |= is_equal;
        }
        bool::from(found).then(|| Arc::clone(&self.0[owner as usize].1))
    }
}

/// The key that a request brings.
fn key_of(headers: &HeaderMap) -> Option<&[u8]> {
    let Some(value) = headers.get(AUTHORIZATION) else {
        return Some(headers.get("x-api-key")?.as_bytes());
    };
    let (scheme, key) = value.as_bytes().split_at_checked(b"Bearer ".len())?;
    scheme.eq_ignore_ascii_case(b"Bearer ").then_some(key)
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
        let headers = HeaderMap::from_iter([(AUTHORIZATION, value)]);
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
        let keys = Keys::parse(FILE).expect("two keys");
        assert_eq!(keys.owner(&HeaderMap::new()), None);
        let by_name = |name: &'static str, value: &str| {
            let value = value.parse().expect("a header's value");
            let name = axum::http::HeaderName::from_static(name);
            keys.owner(&HeaderMap::from_iter([(name, value)]))
        };
        assert!(by_name("x-api-key", "secret").is_some());
        assert_eq!(by_name("x-api-key", "Bearer secret"), None);
        assert_eq!(by_name("api-key", "secret"), None);
    }

    #[test]
    fn an_unnamed_key_keeps_its_owner_when_another_line_is_removed() {
        let owner = |file: &str| {
            let value = "Bearer other".parse().expect("a header's value");
            let headers = HeaderMap::from_iter([(AUTHORIZATION, value)]);
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
    fn a_key_that_is_given_as_a_text_is_valid() {
        let keys = ApiKeys::new(&["secret".to_owned()], None).expect("a key");
        let value = "Bearer secret".parse().expect("a header's value");
        let headers = HeaderMap::from_iter([(AUTHORIZATION, value)]);
        // The owner is the one that a file would give to the key.
        let owner = keys.owner(&headers);
        assert_eq!(owner.as_deref(), Some("sha256:2bb80d537b1da3e3"));
        assert_eq!(keys.owner(&HeaderMap::new()), None);
        for wrong in ["", "a b", "a\n", "é", &"x".repeat(1025)] {
            let keys = ApiKeys::new(&["a".to_owned(), wrong.to_owned()], None);
            assert!(
                matches!(keys, Err(Error::ApiKeyText { number: 2 })),
                "{wrong}"
            );
        }
    }

    #[test]
    fn only_a_regular_file_is_read() {
        let folder = std::env::temp_dir();
        assert!(matches!(
            ApiKeys::new(&[], Some(&folder)),
            Err(Error::ApiKeyFileKind)
        ));
        #[cfg(unix)]
        assert!(matches!(
            ApiKeys::new(&[], Some(Path::new("/dev/zero"))),
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
