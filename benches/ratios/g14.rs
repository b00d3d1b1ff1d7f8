//! G14: bytes of a migration over a bulk stream of a [`Link`], against as many on one stream of a bare quinn connection,
//! with quinn's default settings and with ours. TLS over TCP is printed beside it. All on loopback, both ends in one
//! process.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;

use novafed::clock::machine_nanos;
use novafed::types::Millis;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::runtime::Runtime;

use crate::g2::{Bare, Pair, runtime, tls};
use crate::measure::{Bench, Goal};

const BLOCK: usize = 1 << 20;
/// As much as the demo's smallest VM: 64 MiB of memory and 128 MiB of disk.
const BLOCKS: usize = 192;
const DEADLINE: Millis = Millis(5_000);

/// The stream by itself: what a transfer can be at best.
pub fn register(bench: &mut Bench) {
    let [stream, tcp, relayed] =
        ["G14 bulk stream 192 MiB", "G14 bulk stream, bare TLS-TCP", "G14 bulk stream, through our relay"];
    if ![stream, tcp, relayed].iter().any(|name| bench.wants(name)) {
        return;
    }
    let runtime = runtime();
    let pair = runtime.block_on(Pair::connect(false));
    let bare = runtime.block_on(Bare::connect(quinn::TransportConfig::default()));
    bench.compare(stream, "MiB/s", Goal::RatioAtLeast(0.90), || ours(&runtime, &pair), || theirs(&runtime, &bare));
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

fn theirs(runtime: &Runtime, bare: &Bare) -> f64 {
    let connection = bare.connection.clone();
    let sending = async move {
        let block = vec![7; BLOCK];
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
