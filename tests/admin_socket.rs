//! The admin socket under attack: wrong users, planted files, garbage, floods, slow clients; and its clean end.

mod admin_fake;

use std::fs::{self, Permissions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{FileTypeExt, PermissionsExt, symlink};
use std::os::unix::net::UnixStream as StdStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use admin_fake::*;
use novafed::admin::client::{Ask, Client, ClientError};
use novafed::admin::{ServeError, Server};
use novafed::types::limits::{API_BODY_BYTES_MAX, API_CONNECTIONS_MAX, API_READ_MS_MAX, API_WATCHES_MAX};
use novafed::types::{ErrorCode, JobState};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

struct Served {
    directory: tempfile::TempDir,
    region: Arc<FakeRegion>,
    stop: CancellationToken,
    task: JoinHandle<()>,
}

impl Served {
    async fn start() -> Served {
        let directory = tempfile::tempdir().unwrap();
        let region = fake("eu");
        let server = Server::bind(&directory.path().join("run")).await.unwrap();
        let stop = CancellationToken::new();
        let task = tokio::spawn(server.serve(api(&region), stop.clone()));
        Served { directory, region, stop, task }
    }
    fn socket(&self) -> PathBuf {
        self.directory.path().join("run/admin.sock")
    }
    fn client(&self) -> Client {
        Client::new(self.directory.path())
    }
    /// The server still does its work.
    async fn serves(&self) {
        let page: Value = self.client().get("/v2/vms").await.expect("the server answers");
        assert!(page["items"].is_array());
    }
    async fn connect(&self) -> UnixStream {
        UnixStream::connect(self.socket()).await.unwrap()
    }
    async fn ended(self) {
        self.stop.cancel();
        self.task.await.unwrap();
    }
}

async fn everything(stream: &mut UnixStream) -> String {
    let mut text = Vec::new();
    // A reset after the answer is fine: what was read counts.
    let _ = tokio::time::timeout(Duration::from_secs(20), stream.read_to_end(&mut text)).await.expect("it closes");
    String::from_utf8_lossy(&text).into_owned()
}

fn mode(path: &Path) -> u32 {
    fs::symlink_metadata(path).unwrap().permissions().mode() & 0o777
}

#[tokio::test]
async fn the_directory_is_0700_and_the_socket_0600_also_where_they_were_wider() {
    let directory = tempfile::tempdir().unwrap();
    let run = directory.path().join("run");
    fs::create_dir(&run).unwrap();
    fs::set_permissions(&run, Permissions::from_mode(0o777)).unwrap();
    let server = Server::bind(&run).await.unwrap();
    assert_eq!((mode(&run), mode(server.path())), (0o700, 0o600));
    assert_eq!(fs::read_dir(&run).unwrap().count(), 1, "no file beside the socket");
}

#[tokio::test]
async fn a_stale_socket_is_replaced_and_a_live_one_is_not() {
    let directory = tempfile::tempdir().unwrap();
    let run = directory.path().join("run");
    let first = Server::bind(&run).await.unwrap();
    assert!(matches!(Server::bind(&run).await.unwrap_err(), ServeError::InUse { .. }));
    drop(first);
    assert!(!run.join("admin.sock").exists(), "a server that ends takes its socket with it");
    // What a SIGKILL leaves: the file without its listener.
    drop(std::os::unix::net::UnixListener::bind(run.join("admin.sock")).unwrap());
    let second = Server::bind(&run).await.unwrap();
    assert!(fs::symlink_metadata(second.path()).unwrap().file_type().is_socket());
}

#[tokio::test]
async fn what_was_planted_in_its_place_is_refused_and_never_followed_or_touched() {
    let directory = tempfile::tempdir().unwrap();
    let run = directory.path().join("run");
    fs::create_dir(&run).unwrap();
    let (socket, victim) = (run.join("admin.sock"), directory.path().join("victim"));
    fs::write(&victim, "precious").unwrap();
    fs::set_permissions(&victim, Permissions::from_mode(0o644)).unwrap();
    symlink(&victim, &socket).unwrap();
    assert!(matches!(Server::bind(&run).await.unwrap_err(), ServeError::NotASocket { .. }));
    fs::remove_file(&socket).unwrap();
    // A link to a live socket of somebody else is a link all the same.
    let other = directory.path().join("other.sock");
    let _listener = std::os::unix::net::UnixListener::bind(&other).unwrap();
    symlink(&other, &socket).unwrap();
    assert!(matches!(Server::bind(&run).await.unwrap_err(), ServeError::NotASocket { .. }));
    fs::remove_file(&socket).unwrap();
    fs::write(&socket, "a file").unwrap();
    assert!(matches!(Server::bind(&run).await.unwrap_err(), ServeError::NotASocket { .. }));
    fs::remove_file(&socket).unwrap();
    // The name it binds first may be planted too.
    symlink(&victim, run.join(format!("admin.sock.{}", std::process::id()))).unwrap();
    drop(Server::bind(&run).await.unwrap());
    fs::remove_dir(&run).unwrap();
    let elsewhere = directory.path().join("elsewhere");
    fs::create_dir(&elsewhere).unwrap();
    symlink(&elsewhere, &run).unwrap();
    assert!(matches!(Server::bind(&run).await.unwrap_err(), ServeError::NotOurDirectory { .. }));
    assert_eq!((fs::read_to_string(&victim).unwrap(), mode(&victim)), ("precious".to_owned(), 0o644));
    assert_eq!(fs::read_dir(&elsewhere).unwrap().count(), 0);
}

#[tokio::test]
async fn a_path_too_long_for_a_socket_says_so() {
    let directory = tempfile::tempdir().unwrap();
    let long = directory.path().join("d".repeat(100));
    fs::create_dir(&long).unwrap();
    let error = Server::bind(&long.join("run")).await.unwrap_err();
    assert!(matches!(error, ServeError::PathTooLong { .. }) && error.to_string().contains("--dir"), "{error}");
}

/// Only root can become somebody else; without it the kernel's modes are all there is to see.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_user_is_refused_by_the_modes_and_behind_them_by_name() {
    if !rustix::process::geteuid().is_root() {
        return;
    }
    let served = Served::start().await;
    // The CLI itself, where another user can run it.
    let binary = served.directory.path().join("novafed");
    fs::copy(env!("CARGO_BIN_EXE_novafed"), &binary).unwrap();
    fs::set_permissions(&binary, Permissions::from_mode(0o755)).unwrap();
    fs::set_permissions(served.directory.path(), Permissions::from_mode(0o755)).unwrap();
    let as_nobody = || {
        let mut command = Command::new(&binary);
        command.arg("status").arg("--dir").arg(served.directory.path()).current_dir("/").uid(65534).gid(65534);
        let output = command.output().unwrap();
        (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    let (code, said) = as_nobody();
    assert!(code == Some(3) && said.contains("permission denied"), "{code:?}: {said}");
    // Somebody opened the doors: the peer's credentials are still looked at.
    fs::set_permissions(served.directory.path().join("run"), Permissions::from_mode(0o777)).unwrap();
    fs::set_permissions(served.socket(), Permissions::from_mode(0o666)).unwrap();
    let (code, said) = as_nobody();
    assert!(code == Some(3) && said.contains("user 65534 may not use"), "{code:?}: {said}");
    served.serves().await;
    served.ended().await;
}

#[tokio::test]
async fn garbage_heads_of_any_size_and_cut_requests_leave_the_server_standing() {
    let served = Served::start().await;
    let seed = 20_261_124;
    let mut random = fastrand::Rng::with_seed(seed);
    for round in 0..300 {
        let length = random.usize(1..20_000);
        let mut bytes: Vec<u8> = (0..length).map(|_| random.u8(..)).collect();
        if round % 3 == 0 {
            // Close to a request, but not one.
            let mut near = b"POST /v2/vms HTTP/1.1\r\ncontent-length: ".to_vec();
            near.append(&mut bytes);
            bytes = near;
        }
        let mut stream = served.connect().await;
        // The server may close before all of it is written.
        let _ = stream.write_all(&bytes).await;
        let _ = stream.shutdown().await;
        let answer = everything(&mut stream).await;
        assert!(!answer.starts_with("HTTP/1.1 2"), "seed {seed}, round {round}: {answer}");
    }
    for (request, status) in [
        (format!("GET /v2/vms HTTP/1.1\r\nx: {}\r\n\r\n", "a".repeat(64 * 1024)), "431"),
        (format!("GET /{} HTTP/1.1\r\n\r\n", "a".repeat(64 * 1024)), "414"),
        (format!("GET /v2/vms HTTP/1.1\r\n{}\r\n", "x: y\r\n".repeat(1000)), "431"),
        ("GET /v2/vms HTTP/9.9\r\n\r\n".to_owned(), "400"),
    ] {
        let mut stream = served.connect().await;
        let _ = stream.write_all(request.as_bytes()).await;
        let answer = everything(&mut stream).await;
        let refused = answer.starts_with(&format!("HTTP/1.1 {status}")) || answer.starts_with("HTTP/1.1 431");
        assert!(refused, "{status} expected: {}", answer.chars().take(200).collect::<String>());
    }
    served.serves().await;
    served.ended().await;
}

#[tokio::test]
async fn a_body_too_long_is_refused_whether_it_says_so_or_not() {
    let served = Served::start().await;
    let declared = format!("POST /v2/vms HTTP/1.1\r\ncontent-length: {}\r\n\r\n{{", API_BODY_BYTES_MAX + 1);
    let chunk = format!("{:x}\r\n{}\r\n", 64 * 1024, " ".repeat(64 * 1024));
    let endless = format!("POST /v2/vms HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n{}", chunk.repeat(20));
    for request in [declared, endless] {
        let mut stream = served.connect().await;
        let _ = stream.write_all(request.as_bytes()).await;
        let answer = everything(&mut stream).await;
        assert!(answer.starts_with("HTTP/1.1 400") && answer.contains("longer than 1048576 bytes"), "{answer}");
        assert!(answer.contains("\"INVALID_ARGUMENT\"") && answer.contains("requestId"), "{answer}");
    }
    served.serves().await;
    served.ended().await;
}

#[tokio::test(start_paused = true)]
async fn a_client_that_dawdles_over_its_head_or_body_is_given_up() {
    let served = Served::start().await;
    let mut streams = Vec::new();
    for start in ["", "GET /v2/vms HTTP/1.1\r\nhost: x", "POST /v2/vms HTTP/1.1\r\ncontent-length: 10\r\n\r\n{"] {
        let mut stream = served.connect().await;
        stream.write_all(start.as_bytes()).await.unwrap();
        streams.push((start, stream));
    }
    tokio::time::sleep(API_READ_MS_MAX.duration() + Duration::from_secs(1)).await;
    for (start, mut stream) in streams {
        let answer = everything(&mut stream).await;
        if start.starts_with("POST") {
            assert!(answer.contains("DEADLINE_EXCEEDED"), "{answer}");
        } else {
            assert!(!answer.starts_with("HTTP/1.1 2"), "{answer}");
        }
    }
    served.serves().await;
    served.ended().await;
}

#[tokio::test(start_paused = true)]
async fn a_connection_that_was_used_and_idles_is_closed() {
    let served = Served::start().await;
    let mut stream = served.connect().await;
    stream.write_all(b"GET /livez HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
    let answer = everything(&mut stream).await;
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    served.ended().await;
}

#[tokio::test]
async fn connections_beyond_the_limit_are_told_so_and_ten_thousand_leave_the_server_standing() {
    let served = Served::start().await;
    let mut held = Vec::new();
    for _ in 0..API_CONNECTIONS_MAX {
        held.push(served.connect().await);
    }
    let mut one_more = served.connect().await;
    one_more.write_all(b"GET /v2/vms HTTP/1.1\r\n\r\n").await.unwrap();
    one_more.shutdown().await.unwrap();
    let answer = everything(&mut one_more).await;
    assert!(answer.starts_with("HTTP/1.1 429") && answer.contains("retryAfterMs"), "{answer}");
    assert!(answer.contains("retry-after: 1\r\n"), "{answer}");
    drop(held);
    let socket = served.socket();
    let flood = tokio::task::spawn_blocking(move || {
        for _ in 0..10_000 {
            // The backlog may be full for a moment: a refused connection is as good as a dropped one.
            drop(StdStream::connect(&socket));
        }
    });
    flood.await.unwrap();
    served.serves().await;
    served.ended().await;
}

#[tokio::test]
async fn a_client_asks_again_with_its_key_after_a_lost_reply() {
    let directory = tempfile::tempdir().unwrap();
    let run = directory.path().join("run");
    fs::create_dir(&run).unwrap();
    // A node that dies with the request: it reads it, and is gone.
    let dying = std::os::unix::net::UnixListener::bind(run.join("admin.sock")).unwrap();
    let client = Client::new(directory.path());
    let asking = tokio::spawn(async move { client.typed::<Value>(Ask::post("/v2/vms").body(&vm_body("web"))).await });
    let first = tokio::task::spawn_blocking(move || -> io::Result<String> {
        let (mut stream, _) = dying.accept()?;
        let mut head = vec![0; 2048];
        let n = stream.read(&mut head)?;
        Ok(String::from_utf8_lossy(&head[..n]).into_owned())
    });
    let first = first.await.unwrap().unwrap();
    let key = first.lines().find_map(|line| line.strip_prefix("idempotency-key: ")).expect("a key").to_owned();
    assert_eq!(key.len(), 32);
    // It comes back, on what is now a stale socket.
    let region = fake("eu");
    let server = Server::bind(&run).await.unwrap();
    let stop = CancellationToken::new();
    let task = tokio::spawn(server.serve(api(&region), stop.clone()));
    let made = asking.await.unwrap().unwrap();
    assert_eq!(made["vm"]["id"], "vm-1-1-1");
    assert_eq!(region.seen.lock().unwrap()[0].idempotency_key, Some(key), "the same key");
    stop.cancel();
    task.await.unwrap();
}

#[tokio::test]
async fn a_reply_that_never_comes_is_unknown_and_a_node_that_is_not_there_is_unavailable() {
    let directory = tempfile::tempdir().unwrap();
    let client = Client::new(directory.path()).deadline(novafed::types::Millis(300));
    let error = client.get::<Value>("/v2/vms").await.unwrap_err();
    assert!(matches!(error, ClientError::NoNode { .. }) && error.hint().contains("novafed init"), "{error}");
    fs::create_dir(directory.path().join("run")).unwrap();
    let _silent = std::os::unix::net::UnixListener::bind(directory.path().join("run/admin.sock")).unwrap();
    let error = client.ask(Ask::post("/v2/vms").body(&vm_body("web"))).await.unwrap_err();
    assert_eq!(error.code(), ErrorCode::OutcomeUnknown, "{error}");
    let error = client.ask(Ask::get("/v2/vms")).await.unwrap_err();
    assert_eq!(error.code(), ErrorCode::DeadlineExceeded, "{error}");
}

#[tokio::test]
async fn a_mutation_goes_on_when_its_client_leaves_and_the_caller_is_recorded() {
    let served = Served::start().await;
    served.region.stuck.send_replace(true);
    let body = vm_body("web").to_string();
    let mut stream = served.connect().await;
    let head = format!("POST /v2/vms HTTP/1.1\r\ncontent-length: {}\r\n\r\n{body}", body.len());
    stream.write_all(head.as_bytes()).await.unwrap();
    while served.region.seen.lock().unwrap().is_empty() {
        tokio::task::yield_now().await;
    }
    drop(stream);
    tokio::task::yield_now().await;
    served.region.stuck.send_replace(false);
    while served.region.audit_records().is_empty() {
        tokio::task::yield_now().await;
    }
    let record = served.region.audit_records().remove(0);
    assert_eq!(record.status, 201);
    assert_eq!(record.caller.uid, rustix::process::geteuid().as_raw());
    assert_eq!(record.caller.pid, i32::try_from(std::process::id()).ok());
    served.ended().await;
}

#[tokio::test]
async fn events_are_streamed_as_they_happen_and_a_jobs_stream_ends_with_it() {
    let served = Served::start().await;
    let client = served.client();
    client.ask(Ask::post("/v2/vms").body(&vm_body("web"))).await.unwrap();
    let plan = json!({ "vmID": "vm-1-1-1", "targetClusterID": "us/us-a" });
    client.ask(Ask::post("/v2/migration-plans").body(&plan)).await.unwrap();
    client.ask(Ask::post("/v2/migrations").body(&json!({ "planID": "plan-1-1-1" }))).await.unwrap();
    served.region.note("copied");
    let mut stream = served.connect().await;
    let request = "GET /v2/migrations/job-1-1-1/events?watch=true HTTP/1.1\r\nconnection: close\r\n\r\n";
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut text = String::new();
    let mut buffer = [0; 4096];
    while !text.contains("event: copied") {
        let n = stream.read(&mut buffer).await.unwrap();
        text.push_str(&String::from_utf8_lossy(&buffer[..n]));
    }
    assert!(text.contains("text/event-stream") && text.contains("id: 1"), "{text}");
    served.region.note("sealed");
    served.region.set_job_state("job-1-1-1".parse().unwrap(), JobState::Completed);
    text.push_str(&everything(&mut stream).await);
    let at = |what: &str| text.find(what).unwrap_or_else(|| panic!("{what} is missing: {text}"));
    assert!(at("event: copied") < at("event: sealed") && at("event: sealed") < at("event: job"), "{text}");
    assert_eq!(text.matches("event: copied").count(), 1);
    served.ended().await;
}

#[tokio::test]
async fn a_stream_is_taken_up_after_the_last_event_seen_and_streams_are_bounded() {
    let served = Served::start().await;
    for kind in ["first", "second", "third"] {
        served.region.note(kind);
    }
    let mut streams = Vec::new();
    for _ in 0..API_WATCHES_MAX {
        let mut stream = served.connect().await;
        let request = "GET /v2/events?watch=true HTTP/1.1\r\nlast-event-id: 2\r\n\r\n";
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut text = String::new();
        let mut buffer = [0; 4096];
        while !text.contains("event: third") {
            let n = stream.read(&mut buffer).await.unwrap();
            text.push_str(&String::from_utf8_lossy(&buffer[..n]));
        }
        assert!(!text.contains("event: second"), "{text}");
        streams.push(stream);
    }
    let mut one_more = served.connect().await;
    one_more.write_all(b"GET /v2/events?watch=true HTTP/1.1\r\nconnection: close\r\n\r\n").await.unwrap();
    assert!(everything(&mut one_more).await.starts_with("HTTP/1.1 429"));
    served.serves().await;
    served.ended().await;
}

#[tokio::test]
async fn a_server_that_is_told_to_stop_finishes_what_is_under_way_and_removes_its_socket() {
    let served = Served::start().await;
    served.region.stuck.send_replace(true);
    let client = served.client();
    let asking = tokio::spawn(async move { client.ask(Ask::post("/v2/vms").body(&vm_body("web"))).await });
    while served.region.seen.lock().unwrap().is_empty() {
        tokio::task::yield_now().await;
    }
    let (socket, region) = (served.socket(), served.region.clone());
    served.stop.cancel();
    region.stuck.send_replace(false);
    assert!(asking.await.unwrap().is_ok(), "what was under way is answered");
    served.task.await.unwrap();
    assert!(!socket.exists());
}

#[test]
fn a_blocking_client_is_enough_for_curl_like_use() {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let served = runtime.block_on(Served::start());
    let mut stream = StdStream::connect(served.socket()).unwrap();
    stream.write_all(b"GET /v2/clusters HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n").unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    assert!(text.starts_with("HTTP/1.1 200") && text.contains("\"eu-a\""), "{text}");
    assert!(text.contains("content-type: application/json") && text.contains("x-request-id: req-1-1-"), "{text}");
    runtime.block_on(served.ended());
}
