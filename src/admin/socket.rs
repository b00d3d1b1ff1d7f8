//! The admin socket as a file. Owns: the directory and the file, their modes, and what may stand in their place.
//! Always: the directory is 0700 and ours, the socket 0600; a socket is replaced only if it is one and nobody answers;
//! a symbolic link is never followed. Not here: connections (`server.rs`).

use std::fs::{self, DirBuilder, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use tokio::net::{UnixListener, UnixStream};

use super::server::ServeError;

/// Name of the socket in its directory.
pub const SOCKET_NAME: &str = "admin.sock";
/// What the kernel takes as the path of a Unix socket, less its closing zero.
const SOCKET_PATH_BYTES_MAX: usize = 107;

/// A bound socket. Dropping it removes the file, if it is still the one that was made.
#[derive(Debug)]
pub(super) struct AdminSocket {
    pub listener: UnixListener,
    pub path: PathBuf,
    inode: u64,
}

impl Drop for AdminSocket {
    fn drop(&mut self) {
        if fs::symlink_metadata(&self.path).is_ok_and(|m| m.ino() == self.inode) {
            // A failure leaves a stale socket, which the next start replaces.
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// Binds `directory/admin.sock`, making the directory if there is none.
pub(super) async fn bind(directory: &Path) -> Result<AdminSocket, ServeError> {
    let failed = |what: &'static str, path: &Path| {
        let path = path.to_owned();
        move |source: io::Error| ServeError::Io { what, path, source }
    };
    own_directory(directory)?;
    let path = directory.join(SOCKET_NAME);
    // Bound under another name, made private, and only then given the name that clients know.
    let fresh = directory.join(format!("{SOCKET_NAME}.{}", std::process::id()));
    if fresh.as_os_str().len() > SOCKET_PATH_BYTES_MAX {
        return Err(ServeError::PathTooLong { path: fresh, bytes_max: SOCKET_PATH_BYTES_MAX });
    }
    match fs::symlink_metadata(&path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => {}
        Err(e) => return Err(failed("looking at", &path)(e)),
        Ok(found) if !found.file_type().is_socket() => return Err(ServeError::NotASocket { path }),
        Ok(_) => match UnixStream::connect(&path).await {
            Ok(_) => return Err(ServeError::InUse { path }),
            Err(e) if e.kind() == io::ErrorKind::ConnectionRefused => {}
            // Whatever else it says (no permission, a full backlog), somebody may be there.
            Err(e) => return Err(failed("asking who answers at", &path)(e)),
        },
    }
    match fs::remove_file(&fresh) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(failed("clearing", &fresh)(e)),
        _ => {}
    }
    let listener = UnixListener::bind(&fresh).map_err(failed("binding", &fresh))?;
    fs::set_permissions(&fresh, Permissions::from_mode(0o600)).map_err(failed("making private", &fresh))?;
    let inode = fs::symlink_metadata(&fresh).map_err(failed("looking at", &fresh))?.ino();
    fs::rename(&fresh, &path).map_err(failed("naming", &path))?;
    Ok(AdminSocket { listener, path, inode })
}

/// Makes sure that `directory` is a real directory of ours that nobody else can enter.
fn own_directory(directory: &Path) -> Result<(), ServeError> {
    let failed = |what: &'static str| {
        let path = directory.to_owned();
        move |source: io::Error| ServeError::Io { what, path, source }
    };
    match DirBuilder::new().mode(0o700).create(directory) {
        Err(e) if e.kind() != io::ErrorKind::AlreadyExists => return Err(failed("making")(e)),
        _ => {}
    }
    let found = fs::symlink_metadata(directory).map_err(failed("looking at"))?;
    let uid = rustix::process::geteuid().as_raw();
    if !found.file_type().is_dir() || found.uid() != uid {
        return Err(ServeError::NotOurDirectory { path: directory.to_owned(), uid });
    }
    if found.mode() & 0o777 != 0o700 {
        fs::set_permissions(directory, Permissions::from_mode(0o700)).map_err(failed("making private"))?;
    }
    Ok(())
}
