//! The user guide, executed: its commands, in their order, by a shell, as they stand there (on ports of this run).

use std::net::UdpSocket;
use std::path::Path;
use std::process::{Command, Stdio};

/// The shell blocks of a page, in order.
fn commands(page: &str) -> String {
    let mut script = String::new();
    let mut inside = false;
    for line in page.lines() {
        match (inside, line) {
            (false, "```sh") => inside = true,
            (true, "```") => inside = false,
            (true, line) => {
                script.push_str(line);
                script.push('\n');
            }
            (false, _) => {}
        }
    }
    script
}

fn free_ports() -> Vec<u16> {
    let held: Vec<UdpSocket> = (0..3).map(|_| UdpSocket::bind("127.0.0.1:0").unwrap()).collect();
    held.iter().map(|socket| socket.local_addr().unwrap().port()).collect()
}

#[test]
fn the_user_guide_does_what_it_says() {
    let page = include_str!("../docs/user-guide.md");
    let mut script = commands(page);
    assert!(script.matches("novafed").count() > 15, "the guide has lost its commands");
    for (written, free) in [7443, 7444, 7445].into_iter().zip(free_ports()) {
        script = script.replace(&written.to_string(), &free.to_string());
    }
    let dir = tempfile::tempdir().unwrap();
    // Whatever happens, nothing of it is left running.
    let guard = "trap 'kill $(jobs -pr) 2>/dev/null || true; for r in eu us ap; do novafed host stop --dir $r || true; done' EXIT\n";
    // The guide finds a node by its command line; here another test's node might have the same.
    let script = script.replace("pgrep -f 'novafed node --dir us$'", "pgrep -P $$ -f 'novafed node --dir us$'");
    let binary = Path::new(env!("CARGO_BIN_EXE_novafed"));
    let path = format!("{}:{}", binary.parent().unwrap().display(), std::env::var("PATH").unwrap());
    let output = Command::new("timeout")
        .args(["--kill-after=10", "240", "bash", "-euo", "pipefail", "-c", &format!("{guard}{script}")])
        .current_dir(dir.path())
        .env("PATH", path)
        .env_remove("NOVAFED_DIR")
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    let at = "the user guide does not do what it says";
    assert!(output.status.success(), "{at}: {}\n{out}\n{err}", output.status);
    assert!(out.contains("vm-1-1-1 runs at us/us-a"), "{at}\n{out}\n{err}");
    assert!(!dir.path().join("eu").exists(), "{at}: it says that it cleans up\n{out}\n{err}");
}
