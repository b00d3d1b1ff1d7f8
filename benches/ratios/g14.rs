//! G14: a guest's memory moved by a transfer (resumable, checksummed, verified) over a bulk stream of a [`Link`], against
//! as many bytes on one stream of a bare quinn connection with default settings, kept in memory at the other end, too.
//! Shown beside it: the bulk stream by itself, TLS over TCP, and the stream through our relay. All on loopback, both
//! ends in one process.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use novafed::clock::{Clock, machine_nanos};
use novafed::drivers::SwitchKey;
use novafed::drivers::embedded::console::Console;
use novafed::drivers::embedded::disk::Disk;
use novafed::drivers::embedded::guest::Guest;
use novafed::drivers::embedded::program::Plan;
use novafed::drivers::embedded::scheduler::GuestCell;
use novafed::drivers::embedded::transfer::{Offer, Receipt, serve_source};
use novafed::types::{Attempt, Fence, GuestProgram, Millis};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::runtime::Runtime;

use crate::g2::{Bare, KEEP, KEEP_BYTES, Pair, runtime, tls};
use crate::measure::{Bench, Goal};

const BLOCK: usize = 1 << 20;
/// As much as the demo's smallest VM: 64 MiB of memory and 128 MiB of disk.
const BLOCKS: usize = KEEP_BYTES / BLOCK;
const DEADLINE: Millis = Millis(5_000);

/// A whole transfer, and the stream by itself: what a transfer can be at best.
pub fn register(bench: &mut Bench) {
    let [transfer, stream, tcp, relayed] = [
        "G14 transfer of 192 MiB of memory",
        "G14 bulk stream 192 MiB",
        "G14 bulk stream, bare TLS-TCP",
        "G14 bulk stream, through our relay",
    ];
    if ![transfer, stream, tcp, relayed].iter().any(|name| bench.wants(name)) {
        return;
    }
    let runtime = runtime();
    let pair = runtime.block_on(Pair::connect(false));
    let bare = runtime.block_on(Bare::connect(quinn::TransportConfig::default()));
    if bench.wants(transfer) {
        let moving = Moving::boot();
        let goal = Goal::RatioAtLeast(0.90);
        bench.compare(transfer, "MiB/s", goal, || moving.transfer(&runtime, &pair), || theirs(&runtime, &bare, KEEP));
    }
    bench.compare(stream, "MiB/s", Goal::None, || ours(&runtime, &pair), || theirs(&runtime, &bare, b""));
    bench.compare(tcp, "MiB/s", Goal::None, || ours(&runtime, &pair), tls_tcp);
    let through = runtime.block_on(Pair::connect(true));
    bench.compare(relayed, "MiB/s", Goal::None, || ours(&runtime, &through), || ours(&runtime, &pair));
    runtime.block_on(through.close());
    runtime.block_on(pair.close());
}

fn speed(start: u64) -> f64 {
    (BLOCKS * BLOCK) as f64 / (1 << 20) as f64 * 1e9 / (machine_nanos() - start) as f64
}

fn check(answer: &[u8]) {
    assert_eq!(answer, ((BLOCKS * BLOCK) as u64).to_be_bytes(), "bytes are missing");
}

fn ours(runtime: &Runtime, pair: &Pair) -> f64 {
    let link = Arc::clone(&pair.link);
    let sending = async move {
        let block = vec![7; BLOCK];
        let start = machine_nanos();
        let mut stream = link.open_bulk("bench".into(), DEADLINE).await.expect("it is open");
        for _ in 0..BLOCKS {
            stream.write_all(&block).await.expect("it is open");
        }
        stream.shutdown().await.expect("it is open");
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).await.expect("it is answered");
        check(&answer);
        speed(start)
    };
    runtime.block_on(async { tokio::spawn(sending).await.expect("it does not panic") })
}

fn theirs(runtime: &Runtime, bare: &Bare, begin: &'static [u8]) -> f64 {
    let connection = bare.connection.clone();
    let sending = async move {
        let mut block = vec![7; BLOCK];
        block[..begin.len()].copy_from_slice(begin);
        let start = machine_nanos();
        let (mut send, mut recv) = connection.open_bi().await.expect("it is open");
        for _ in 0..BLOCKS {
            send.write_all(&block).await.expect("it is open");
        }
        send.finish().expect("it is open");
        check(&recv.read_to_end(8).await.expect("it is answered"));
        speed(start)
    };
    runtime.block_on(async { tokio::spawn(sending).await.expect("it does not panic") })
}

/// A guest that stands still, whose memory is moved again and again.
struct Moving {
    dir: tempfile::TempDir,
    clock: Clock,
    plan: Plan,
    cell: Arc<GuestCell>,
    next: AtomicU32,
}

impl Moving {
    fn boot() -> Moving {
        let dir = tempfile::tempdir().expect("a directory");
        let bytes = (BLOCKS * BLOCK) as u64;
        let program = GuestProgram { resident_bytes: bytes, disk_resident_bytes: 0, ..GuestProgram::default() };
        let plan = Plan::new(&program, bytes, BLOCK as u64);
        let disk = Disk::create(&dir.path().join("source"), plan.blocks).expect("a disk");
        let guest = Guest::boot(plan.clone(), disk, 1).expect("it boots");
        let host = "bench".parse().expect("a name");
        let console = Console::open(&dir.path().join("console"), &host).expect("a console");
        let cell = GuestCell::new("vm-1-1-1".parse().expect("an id"), guest, console, Fence::FIRST);
        Moving { dir, clock: Clock::start(), plan, cell, next: AtomicU32::new(1) }
    }

    /// Memory as a migration sends it: versions, checksums, acknowledgements, stored at the target, verified as a whole.
    fn transfer(&self, runtime: &Runtime, pair: &Pair) -> f64 {
        let attempt = Attempt(self.next.fetch_add(1, Ordering::Relaxed));
        let key = SwitchKey { vm: self.cell.vm, job: "job-1-1-1".parse().expect("an id"), attempt };
        let disk = Disk::create(&self.dir.path().join(format!("target-{attempt}")), self.plan.blocks);
        let receipt = Receipt::new(self.clock.clone(), key, self.plan.clone(), disk.expect("a disk"), false);
        *pair.expected.lock().expect("no panic") = Some((key, Arc::clone(&receipt)));
        let offer = Offer::new(self.clock.clone(), key, Arc::clone(&self.cell), None, None);
        let link = Arc::clone(&pair.link);
        let sending = async move {
            let start = machine_nanos();
            let stream = link.open_bulk("bench".into(), DEADLINE).await.expect("it is open");
            let serving = tokio::spawn(serve_source(Arc::clone(&offer), stream));
            while !offer.progress().drained {
                tokio::time::sleep(Millis(1).duration()).await;
            }
            let speed = speed(start);
            offer.stop();
            receipt.close();
            // It was stopped, which it says.
            let _ = serving.await;
            speed
        };
        runtime.block_on(async { tokio::spawn(sending).await.expect("it does not panic") })
    }
}

/// The same bytes over TLS 1.3 on TCP, blocking, one thread at each end.
fn tls_tcp() -> f64 {
    let (server, client) = tls();
    let listener = TcpListener::bind("127.0.0.1:0").expect("a socket");
    let address = listener.local_addr().expect("an address");
    let receiving = std::thread::spawn(move || {
        let (tcp, _) = listener.accept().expect("a connection");
        let session = rustls::ServerConnection::new(Arc::new(server)).expect("TLS 1.3");
        let mut stream = rustls::StreamOwned::new(session, tcp);
        let (mut buffer, mut total) = (vec![0; 256 * 1024], 0);
        while total < BLOCKS * BLOCK {
            total += stream.read(&mut buffer).expect("it is open");
        }
        stream.write_all(&(total as u64).to_be_bytes()).expect("it is open");
    });
    let session = rustls::ClientConnection::new(Arc::new(client), "us.bench".try_into().expect("a name"));
    let tcp = TcpStream::connect(address).expect("a connection");
    let mut stream = rustls::StreamOwned::new(session.expect("TLS 1.3"), tcp);
    let block = vec![7; BLOCK];
    let start = machine_nanos();
    for _ in 0..BLOCKS {
        stream.write_all(&block).expect("it is open");
    }
    let mut answer = [0; 8];
    stream.read_exact(&mut answer).expect("it is answered");
    check(&answer);
    let speed = speed(start);
    receiving.join().expect("it does not panic");
    speed
}
