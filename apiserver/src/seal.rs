//! Sealing of secrets: what is stored is of no use to whoever reads the store, a backup of it, or etcd's files.
//!
//! Envelope encryption: each value has a key of its own (XChaCha20-Poly1305), which is sealed by a key that is not in the
//! store. A sealed value is tied to the secret's path: put under another name it does not open.

use std::fs;
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

use chacha20poly1305::aead::{Aead, Generate, KeyInit, Payload};
use chacha20poly1305::{Key, XChaCha20Poly1305, XNonce};

/// First byte of what is sealed: says how.
const VERSION: u8 = 1;
/// Bytes of a nonce.
const NONCE: usize = 24;
/// Bytes of a value's key, once sealed.
const WRAPPED: usize = 32 + 16;

/// Keys that seal secrets. What they are is never shown.
#[derive(Clone)]
pub struct Keys(Vec<Key>);

impl std::fmt::Debug for Keys {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Keys({})", self.0.len())
    }
}

/// The keys of a file cannot be had.
#[derive(Debug, thiserror::Error)]
#[error("{path}: {message}")]
pub struct KeysError {
    path: String,
    message: String,
}

/// A value cannot be sealed or opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SealError {
    /// No key of this API server opens it.
    #[error("it was sealed by a key that this API server does not have (--secrets-key)")]
    NoKey,
    /// It is damaged, or under another name than it was sealed for.
    #[error("its sealed value is damaged")]
    Damaged,
}

impl Keys {
    /// Reads a file of keys: on each line 64 hexadecimal digits. The first one seals, all of them open.
    pub fn load(path: &Path) -> Result<Self, KeysError> {
        let failed = |message: String| KeysError { path: path.display().to_string(), message };
        let text = fs::read_to_string(path).map_err(|e| failed(e.to_string()))?;
        let lines = text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
        let keys: Option<Vec<Key>> = lines.map(|line| Some(Key::from(unhex(line)?))).collect();
        match keys {
            Some(keys) if !keys.is_empty() => Ok(Keys(keys)),
            _ => Err(failed(
                "expected a key of 64 hexadecimal digits on each line, such as `openssl rand -hex 32` makes".into(),
            )),
        }
    }

    /// The same; where there is no such file it is made, with a key of chance.
    pub fn load_or_make(path: &Path) -> Result<Self, KeysError> {
        let failed = |error: io::Error| KeysError { path: path.display().to_string(), message: error.to_string() };
        if !path.exists() {
            make(path).map_err(failed)?;
        }
        Self::load(path)
    }

    /// Seals a value for the object of a path.
    pub fn seal(&self, path: &str, value: &str) -> Result<Vec<u8>, SealError> {
        let own = Key::generate();
        let key = self.0.first().ok_or(SealError::NoKey)?;
        let mut sealed = vec![VERSION];
        for (key, msg) in [(key, own.as_slice()), (&own, value.as_bytes())] {
            let nonce = XNonce::generate();
            let payload = Payload { msg, aad: path.as_bytes() };
            sealed.extend_from_slice(&nonce);
            sealed.extend(XChaCha20Poly1305::new(key).encrypt(&nonce, payload).map_err(|_| SealError::Damaged)?);
        }
        Ok(sealed)
    }

    /// Whether the key that seals now has sealed it, and not one before.
    pub fn is_current(&self, path: &str, sealed: &[u8]) -> bool {
        Keys(self.0.iter().take(1).copied().collect()).open(path, sealed).is_ok()
    }

    /// Opens what was sealed for the object of a path.
    pub fn open(&self, path: &str, sealed: &[u8]) -> Result<String, SealError> {
        let open = |key: &Key, from: &[u8]| {
            let (nonce, msg) = from.split_at_checked(NONCE)?;
            let nonce = XNonce::try_from(nonce).ok()?;
            XChaCha20Poly1305::new(key).decrypt(&nonce, Payload { msg, aad: path.as_bytes() }).ok()
        };
        let rest = sealed.strip_prefix(&[VERSION]).ok_or(SealError::Damaged)?;
        let (wrapped, value) = rest.split_at_checked(NONCE + WRAPPED).ok_or(SealError::Damaged)?;
        let own = self.0.iter().find_map(|key| open(key, wrapped)).ok_or(SealError::NoKey)?;
        let own = Key::try_from(own.as_slice()).map_err(|_| SealError::Damaged)?;
        String::from_utf8(open(&own, value).ok_or(SealError::Damaged)?).map_err(|_| SealError::Damaged)
    }
}

/// Makes a file with a key of chance: whole, and on disk, before anything is sealed with it; and none over another.
fn make(path: &Path) -> io::Result<()> {
    let mut line = Key::generate().iter().fold(String::new(), |digits, byte| digits + &format!("{byte:02x}"));
    line.push('\n');
    let part = path.with_extension("part");
    let _ = fs::remove_file(&part);
    let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(0o400).open(&part)?;
    file.write_all(line.as_bytes()).and_then(|()| file.sync_all())?;
    match fs::hard_link(&part, path) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
        _ => fs::remove_file(&part)?,
    }
    let directory = path.parent().filter(|parent| !parent.as_os_str().is_empty());
    fs::File::open(directory.unwrap_or(Path::new(".")))?.sync_all()
}

fn unhex(digits: &str) -> Option<[u8; 32]> {
    if digits.len() != 64 || !digits.is_ascii() {
        return None;
    }
    let mut bytes = [0; 32];
    for (i, byte) in bytes.iter_mut().enumerate() {
        *byte = u8::from_str_radix(digits.get(2 * i..2 * i + 2)?, 16).ok()?;
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_sealed_opens_only_under_its_name_and_by_its_key() {
        let directory = tempfile::tempdir().expect("a directory");
        let file = directory.path().join("keys");
        let keys = Keys::load_or_make(&file).expect("made");
        let sealed = keys.seal("/a", "CANARY").expect("sealed");
        assert!(!sealed.windows(6).any(|window| window == b"CANARY"));
        assert_ne!(sealed, keys.seal("/a", "CANARY").expect("sealed"), "another nonce each time");
        let again = Keys::load_or_make(&file).expect("read");
        assert_eq!(again.open("/a", &sealed).as_deref(), Ok("CANARY"));
        assert_eq!(again.open("/b", &sealed), Err(SealError::NoKey));
        let mut torn = sealed.clone();
        *torn.last_mut().expect("bytes") ^= 1;
        assert_eq!(again.open("/a", &torn), Err(SealError::Damaged));
        for cut in 0..sealed.len() {
            assert!(again.open("/a", &sealed[..cut]).is_err());
        }
        let other = Keys::load_or_make(&directory.path().join("other")).expect("made");
        assert_eq!(other.open("/a", &sealed), Err(SealError::NoKey));
        // A new key in front: what the old one sealed still opens.
        let both = format!("{:0>64}\n{}", 7, fs::read_to_string(&file).expect("read"));
        let rotated = directory.path().join("both");
        fs::write(&rotated, both).expect("written");
        let rotated = Keys::load(&rotated).expect("read");
        assert_eq!(rotated.open("/a", &sealed).as_deref(), Ok("CANARY"));
        assert!(keys.is_current("/a", &sealed) && !rotated.is_current("/a", &sealed));
        assert!(keys.open("/a", &rotated.seal("/a", "x").expect("sealed")).is_err());
        assert_eq!(format!("{keys:?}"), "Keys(1)");
    }
}
