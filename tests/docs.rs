//! The user guide's commands, run as they stand there, in one shell and an empty directory.

use std::net::UdpSocket;
use std::path::Path;
use std::process::{Command, Stdio};

use novafed::chaos::process::processes_of;

/// The `sh` blocks of a page, in order.
fn commands(page: &str) -> String {
    let mut script = String::new();
    let mut inside = false;
    for line in page.lines() {
        match line {
            "```sh" => inside = true,
            "```" => inside = false,
            command if inside => {
                script.push_str(command);
                script.push('\n');
            }
            _ => {}
        }
    }
    script
}

/// Ends what the shell left running if it failed half way.
struct Leftovers<'a>(&'a Path);

impl Drop for Leftovers<'_> {
    fn drop(&mut self) {
        processes_of(self.0).iter().for_each(novafed::chaos::process::Found::kill);
    }
}

#[test]
fn the_user_guide_works_as_written() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let page = std::fs::read_to_string(root.join("docs/user-guide.md")).expect("the user guide");
    let mut script = commands(&page);
    assert!(script.lines().count() > 30, "the guide has commands:\n{script}");
    // Another run of this test, or a real region, may have the guide's ports.
    let held: Vec<UdpSocket> = (0..3).map(|_| UdpSocket::bind("127.0.0.1:0").expect("a port")).collect();
    for (port, socket) in ["7443", "7444", "7445"].iter().zip(&held) {
        let free = socket.local_addr().expect("an address").port().to_string();
        assert!(script.contains(port), "the guide uses port {port}");
        script = script.replace(port, &free);
    }
    drop(held);

    let dir = tempfile::tempdir().expect("a directory");
    // The guide's relative paths would not tell whose a process is.
    let script = script.replace("--dir eu", "--dir \"$PWD/eu\"").replace("--dir us", "--dir \"$PWD/us\"");
    let script = script.replace("--dir ap", "--dir \"$PWD/ap\"").replace("NOVAFED_DIR=eu", "NOVAFED_DIR=\"$PWD/eu\"");
    let _leftovers = Leftovers(dir.path());
    let binary = Path::new(env!("CARGO_BIN_EXE_novafed")).parent().expect("a directory");
    let path = format!("{}:{}", binary.display(), std::env::var("PATH").unwrap_or_default());
    let output = Command::new("timeout")
        .args(["120", "bash", "-c", &format!("set -eux -o pipefail\n{script}")])
        .current_dir(dir.path())
        .env("PATH", path)
        .env_remove("NOVAFED_DIR")
        .stdin(Stdio::null())
        .output()
        .expect("a shell");
    let said = format!("{}\n{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(said.contains("vm-1-1-1 runs at us/us-a"), "the guide's move does not arrive:\n{said}");
    assert!(output.status.success(), "the guide fails ({}):\n{said}", output.status);
    let left: Vec<_> = std::fs::read_dir(dir.path()).expect("a directory").flatten().map(|e| e.path()).collect();
    assert!(left.is_empty(), "the guide leaves {left:?}\n{said}");
    assert!(processes_of(dir.path()).is_empty(), "the guide leaves processes\n{said}");
}
