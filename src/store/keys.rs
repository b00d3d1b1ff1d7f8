//! Store keys. Owns: the key's text form, where it comes from (a 0600 file, or a command's output), its id.
//! Always: a key never appears in an error, a log line or a `Debug` output; a key file that others may read is refused.

use std::fmt;
use std::io::{Read, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::Path;

use super::error::StoreError;
use crate::types::Millis;

/// First word of a key's text.
const MAGIC: &str = "novafed-store-key-v1";
/// A key's text is shorter than this; more is garbage.
const TEXT_BYTES_MAX: u64 = 4096;
/// How long the key command may take.
const COMMAND_MS_MAX: Millis = Millis(30_000);

/// A key for the store's values, with an id that stands beside each value it sealed.
#[derive(Clone, PartialEq, Eq)]
pub struct StoreKey {
    id: u32,
    bytes: [u8; 32],
}

impl fmt::Debug for StoreKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "StoreKey({})", self.id_text())
    }
}

impl StoreKey {
    /// A new random key.
    ///
    /// # Errors
    /// [`StoreError::Key`] if the system gives no random bytes.
    pub fn generate() -> Result<StoreKey, StoreError> {
        let (mut id, mut bytes) = ([0; 4], [0; 32]);
        fill_random(&mut id)?;
        fill_random(&mut bytes)?;
        Ok(StoreKey { id: u32::from_le_bytes(id), bytes })
    }

    /// The key of a text as [`StoreKey::to_text`] writes it; `from` names its source in errors.
    ///
    /// # Errors
    /// [`StoreError::Key`]
    pub fn parse(from: &str, text: &str) -> Result<StoreKey, StoreError> {
        let bad = |why: &str| StoreError::Key { from: from.to_owned(), why: why.to_owned() };
        let mut words = text.split_ascii_whitespace();
        if words.next() != Some(MAGIC) {
            return Err(bad("it does not start with 'novafed-store-key-v1'"));
        }
        let id = words.next().filter(|w| w.len() == 8).and_then(|w| u32::from_str_radix(w, 16).ok());
        let id = id.ok_or_else(|| bad("the second word is not an id of 8 hex digits"))?;
        let hex = words.next().filter(|w| w.len() == 64 && w.bytes().all(|b| b.is_ascii_hexdigit()));
        let hex = hex.ok_or_else(|| bad("the third word is not a key of 64 hex digits"))?;
        if words.next().is_some() {
            return Err(bad("there is something after the key"));
        }
        let mut bytes = [0; 32];
        for (at, byte) in bytes.iter_mut().enumerate() {
            *byte = u8::from_str_radix(&hex[2 * at..2 * at + 2], 16).map_err(|_| bad("not hex"))?;
        }
        Ok(StoreKey { id, bytes })
    }

    /// The key as one line of text. Secret.
    pub fn to_text(&self) -> String {
        let hex: String = self.bytes.iter().map(|b| format!("{b:02x}")).collect();
        format!("{MAGIC} {} {hex}\n", self.id_text())
    }

    /// Reads a key file.
    ///
    /// # Errors
    /// [`StoreError::Key`] if it is missing, no key, or may be read by others than its owner.
    pub fn load(path: &Path) -> Result<StoreKey, StoreError> {
        let from = path.display().to_string();
        let bad = |why: String| StoreError::Key { from: from.clone(), why };
        let file = std::fs::File::open(path).map_err(|e| bad(e.to_string()))?;
        let meta = file.metadata().map_err(|e| bad(e.to_string()))?;
        if !meta.is_file() {
            return Err(bad("it is not a file".into()));
        }
        let mode = meta.permissions().mode() & 0o777;
        if mode & 0o077 != 0 {
            return Err(bad(format!("its mode is {mode:04o}, others may read it: run 'chmod 600 {from}'")));
        }
        let mut text = String::new();
        file.take(TEXT_BYTES_MAX).read_to_string(&mut text).map_err(|e| bad(e.to_string()))?;
        StoreKey::parse(&from, &text)
    }

    /// Writes a new key file, mode 0600, durable when it returns; never over one that is there.
    ///
    /// # Errors
    /// [`StoreError::File`]
    pub fn save(&self, path: &Path) -> Result<(), StoreError> {
        let write = || -> std::io::Result<()> {
            let mut file = std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
            file.write_all(self.to_text().as_bytes())?;
            file.sync_all()?;
            super::open::sync_dir_of(path)
        };
        write().map_err(|e| StoreError::file("writing key file", path, e))
    }

    /// Takes the key from what a command prints, within 30 s.
    ///
    /// # Errors
    /// [`StoreError::Key`] if the command can't be run, fails, takes too long or prints no key.
    pub async fn from_command(argv: &[String]) -> Result<StoreKey, StoreError> {
        let from = format!("command '{}'", argv.first().map_or("", String::as_str));
        let bad = |why: String| StoreError::Key { from: from.clone(), why };
        let (program, args) = argv.split_first().ok_or_else(|| bad("no command is given".into()))?;
        let mut command = tokio::process::Command::new(program);
        command.args(args).stdin(std::process::Stdio::null()).kill_on_drop(true);
        let output = tokio::time::timeout(COMMAND_MS_MAX.duration(), command.output())
            .await
            .map_err(|_| bad(format!("it took longer than {COMMAND_MS_MAX}")))?
            .map_err(|e| bad(e.to_string()))?;
        if !output.status.success() {
            let said: String = String::from_utf8_lossy(&output.stderr).trim().chars().take(200).collect();
            return Err(bad(format!("it ended with {}: {said}", output.status)));
        }
        StoreKey::parse(&from, &String::from_utf8_lossy(&output.stdout))
    }

    /// Its id as people see it.
    pub fn id_text(&self) -> String {
        key_id_text(self.id)
    }
    pub(super) fn id(&self) -> u32 {
        self.id
    }
    pub(super) fn bytes(&self) -> &[u8; 32] {
        &self.bytes
    }
}

pub(super) fn key_id_text(id: u32) -> String {
    format!("{id:08x}")
}

pub(super) fn fill_random(bytes: &mut [u8]) -> Result<(), StoreError> {
    getrandom::fill(bytes)
        .map_err(|e| StoreError::Key { from: "the system's random numbers".into(), why: e.to_string() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_survives_its_file_and_is_not_shown() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("store.key");
        let key = StoreKey::generate().unwrap();
        key.save(&path).unwrap();
        assert_eq!(StoreKey::load(&path).unwrap(), key);
        assert!(key.save(&path).is_err(), "an existing key file is never overwritten");
        let hex = key.to_text().split(' ').nth(2).unwrap().trim().to_owned();
        assert!(!format!("{key:?}").contains(&hex[..8]));
    }

    #[test]
    fn a_key_file_that_others_may_read_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("store.key");
        StoreKey::generate().unwrap().save(&path).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o640)).unwrap();
        let error = StoreKey::load(&path).unwrap_err().to_string();
        assert!(error.contains("0640") && error.contains("chmod 600"), "{error}");
    }

    #[test]
    fn garbage_is_not_a_key() {
        let good = StoreKey::generate().unwrap().to_text();
        let short = good[..good.len() - 3].to_owned();
        for bad in ["", "hello", MAGIC, &short, &good.replace(MAGIC, "other"), &format!("{good} more")] {
            assert!(StoreKey::parse("a test", bad).is_err(), "{bad}");
        }
    }

    #[tokio::test]
    async fn a_command_gives_the_key_or_says_why_not() {
        let argv = |script: &str| vec!["sh".to_owned(), "-c".to_owned(), script.to_owned()];
        let key = StoreKey::generate().unwrap();
        let printed = StoreKey::from_command(&argv(&format!("echo '{}'", key.to_text().trim()))).await.unwrap();
        assert_eq!(printed, key);
        let error = StoreKey::from_command(&argv("echo no such vault >&2; exit 3")).await.unwrap_err().to_string();
        assert!(error.contains("no such vault"), "{error}");
        assert!(StoreKey::from_command(&[]).await.is_err());
    }
}
