//! Frozen bytes of stored kinds. Owns: the check that today's program reads, and for the current version writes,
//! the bytes in `tests/fixtures/v<n>/<kind>.bin`.
//! Always: a fixture is never rewritten; a new version gets a new file (`NOVAFED_WRITE_FIXTURES=1` writes missing ones).

use std::fmt::Debug;
use std::path::PathBuf;

use super::value::{Stored, from_bytes, to_bytes};

/// Holds if the fixture of `V`'s version decodes to `sample` and `sample` encodes to it.
pub(crate) fn holds<V: Stored + PartialEq + Debug>(sample: &V) {
    let kind = V::KIND.escape_ascii().to_string();
    let dir = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(format!("tests/fixtures/v{}", V::VERSION));
    let path = dir.join(format!("{kind}.bin"));
    let bytes = to_bytes(sample).unwrap();
    if !path.exists() && std::env::var_os("NOVAFED_WRITE_FIXTURES").is_some() {
        std::fs::create_dir_all(&dir).unwrap();
        std::fs::write(&path, &bytes).unwrap();
    }
    let frozen = std::fs::read(&path).unwrap_or_else(|e| {
        panic!("{}: {e}; write it once with NOVAFED_WRITE_FIXTURES=1 and commit it", path.display())
    });
    assert_eq!(&from_bytes::<V>("a fixture", &frozen).unwrap(), sample, "{}", path.display());
    assert_eq!(bytes, frozen, "{}: the format of '{kind}' changed without a new version", path.display());
}
