//! Transfers over links that are cut at random bytes: in memory, and over real QUIC through the relay.
//! At most one block for each cut and one percent travel twice, and nothing that the target stored is sent again.

#![allow(clippy::print_stdout, reason = "a test says how many cuts it made")]

mod host_support;
mod protocol_support;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use host_support::*;
use novafed::chaos::relay::{Impairment, Relay};
use novafed::drivers::embedded::local::LocalDriver;
use novafed::drivers::{Channel, End, HostCall, Hypervisor, SwitchKey};
use novafed::protocol::memory::Net;
use novafed::protocol::{BoxFuture, BulkOffer, Inbound, Kind, Link, PeerId, Refusal, RefusalCode, Request};
use novafed::types::*;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

const CUTS_IN_MEMORY: u64 = 200;
const CUTS_OVER_QUIC: u64 = 30;
const CUTS_PER_MOVE: u64 = 10;
/// Within so much what is on its way arrives.
const SETTLES: Duration = Duration::from_millis(20);
/// A connection that outlives this moved all there was to move: it is cut then.
const LIFE_MAX: Duration = Duration::from_millis(600);

/// The target's region: takes bulk streams for its host.
struct Target {
    host: Arc<LocalDriver>,
    key: SwitchKey,
    /// Bytes of all channels that arrived.
    arrived: Arc<AtomicU64>,
}

impl Inbound for Target {
    fn request(&self, _: PeerId, _: Request) -> BoxFuture<'static, Result<Bytes, Refusal>> {
        Box::pin(async { Err(Refusal::new(RefusalCode::NOT_FOUND, "only bulk streams are served here")) })
    }
    fn bulk(&self, _: PeerId, _: Bytes, offer: BulkOffer) -> BoxFuture<'static, ()> {
        let (host, key, arrived) = (self.host.clone(), self.key, self.arrived.clone());
        Box::pin(async move {
            let near = host.open_channel(key, Channel::Blocks, End::Target).await.unwrap();
            let Ok(far) = offer.accept().await else { return };
            let (mut near_read, mut near_write) = tokio::io::split(near);
            let (mut far_read, mut far_write) = tokio::io::split(far);
            let there = async {
                let mut buffer = vec![0; 64 * 1024];
                // Ends with an error at each cut.
                while let Ok(count @ 1..) = far_read.read(&mut buffer).await {
                    arrived.fetch_add(count as u64, Ordering::Relaxed);
                    if near_write.write_all(&buffer[..count]).await.is_err() {
                        return;
                    }
                }
            };
            tokio::select! { () = there => {}, _ = tokio::io::copy(&mut near_read, &mut far_write) => {} }
        })
    }
    fn datagram(&self, _: PeerId, _: Kind, _: Bytes) {}
    fn incarnation_seen(&self, _: RegionName, _: Lineage) -> BoxFuture<'static, IncarnationVerdict> {
        Box::pin(async { IncarnationVerdict::Accept })
    }
}

struct Pair {
    source: LocalDriver,
    target: Arc<LocalDriver>,
    key: SwitchKey,
    idle: bool,
    arrived: Arc<AtomicU64>,
    _dir: tempfile::TempDir,
}

impl Pair {
    /// Of each other seed's guest it is known to the byte what it has.
    async fn new(seed: u64) -> Pair {
        let dir = tempfile::tempdir().unwrap();
        let source = local(&dir.path().join("a"), "a").await;
        let target = Arc::new(local(&dir.path().join("b"), "b").await);
        let vm = vm(1);
        let idle = seed % 2 == 1;
        let spec = spec(GuestProgram { seed, ..if idle { host_support::idle() } else { busy() } });
        start(&source, vm, &spec).await;
        let key = key(vm, 1);
        call(target.as_ref(), HostCall::PrepareReceive { key, spec: spec.clone(), fence: fence(2) }).await;
        call(&source, HostCall::Send { key, bytes_per_second_max: None }).await;
        Pair { source, target, key, idle, arrived: Arc::default(), _dir: dir }
    }

    fn inbound(&self) -> Arc<Target> {
        Arc::new(Target { host: self.target.clone(), key: self.key, arrived: self.arrived.clone() })
    }

    /// Relays one channel over `link` until `budget` bytes went to the target or its life is over, and looks at what
    /// came of them. `stored` is what the target had before; what it has now is returned.
    async fn one_life(&self, link: &dyn Link, budget: u64, stored: u64, who: &str) -> u64 {
        let before = self.arrived.load(Ordering::Relaxed);
        self.relay(link, budget).await;
        let mut arrived = 0;
        // What was on its way is there or lost once nothing comes any more.
        loop {
            let now = self.arrived.load(Ordering::Relaxed) - before;
            if now == std::mem::replace(&mut arrived, now) {
                break;
            }
            tokio::time::sleep(SETTLES).await;
        }
        stored_but_a_block(self.target.as_ref(), self.key, stored, arrived, who).await
    }

    async fn relay(&self, link: &dyn Link, budget: u64) {
        let Ok(far) = link.open_bulk(Bytes::from_static(b"channel"), Millis(5_000)).await else { return };
        let near = self.source.open_channel(self.key, Channel::Blocks, End::Source).await.unwrap();
        let (mut near_read, mut near_write) = tokio::io::split(near);
        let (mut far_read, mut far_write) = tokio::io::split(far);
        let mut carried = 0;
        let there = async {
            let mut buffer = vec![0; 64 * 1024];
            while carried < budget {
                let most = buffer.len().min(usize::try_from(budget - carried).unwrap_or(usize::MAX));
                let Ok(count @ 1..) = near_read.read(&mut buffer[..most]).await else { return };
                if far_write.write_all(&buffer[..count]).await.is_err() {
                    return;
                }
                carried += count as u64;
            }
        };
        let back = async {
            let _ = tokio::io::copy(&mut far_read, &mut near_write).await;
        };
        let _ = tokio::time::timeout(LIFE_MAX, async {
            tokio::select! { () = there => {}, () = back => {} }
        })
        .await;
    }

    /// Pauses the guest, lets the rest through, and looks at what the cuts cost.
    async fn finish(&self, link: &dyn Link, seed: u64) {
        let key = self.key;
        let pause = HostCall::PauseForSwitch { key, fence: Fence::FIRST, deadline: Millis(60_000) };
        call(&self.source, pause).await;
        let mut near = self.source.open_channel(key, Channel::Blocks, End::Source).await.unwrap();
        let mut far = link.open_bulk(Bytes::from_static(b"channel"), Millis(5_000)).await.unwrap();
        let wire = tokio::spawn(async move { tokio::io::copy_bidirectional(&mut near, &mut far).await });
        eventually("everything arrived", async || progress(&self.source, key).await.drained).await;
        let sealed = seal(self.target.as_ref(), key).await;
        wire.abort();
        let there = progress(self.target.as_ref(), key).await;
        assert_eq!(there.sent_twice_bytes, 0, "seed {seed}: {there:?}");
        if self.idle {
            stored_once(there.acknowledged_bytes, sealed.tick, &format!("seed {seed}"));
        }
    }
}

fn budget(random: &mut fastrand::Rng) -> u64 {
    if random.bool() { random.u64(1..200_000) } else { random.u64(1..2_000_000) }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_hundred_cuts_in_memory_lose_at_most_a_block_each() {
    let (eu, us) = ("eu".parse::<RegionName>().unwrap(), "us".parse::<RegionName>().unwrap());
    let mut cuts = 0;
    for seed in 0..CUTS_IN_MEMORY / CUTS_PER_MOVE {
        let mut random = fastrand::Rng::with_seed(seed);
        let pair = Pair::new(seed).await;
        let net = Net::new(seed);
        let inbound = pair.inbound();
        net.join(eu.clone(), incarnation(1), inbound.clone());
        net.join(us.clone(), incarnation(1), inbound);
        let link = net.link(&eu, &us);
        let mut connected = link.connected();
        connected.wait_for(|up| *up).await.unwrap();
        let mut stored = 0;
        for _ in 0..CUTS_PER_MOVE {
            let budget = budget(&mut random);
            // The link itself is cut after exactly so many bytes, whatever the two ends are doing.
            net.cut_bulk_after(&eu, &us, budget);
            stored = pair.one_life(link.as_ref(), u64::MAX, stored, &format!("seed {seed}")).await;
            cuts += 1;
        }
        pair.finish(link.as_ref(), seed).await;
    }
    println!("{cuts} cuts in memory");
    assert_eq!(cuts, CUTS_IN_MEMORY);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn thirty_cuts_over_quic_through_the_relay_lose_at_most_a_block_each() {
    let mut cuts = 0;
    for seed in 0..CUTS_OVER_QUIC / CUTS_PER_MOVE {
        let mut random = fastrand::Rng::with_seed(seed);
        let pair = Pair::new(seed).await;
        let eu = protocol_support::setup("eu", 1).start();
        let mut far_side = protocol_support::setup("us", 1);
        far_side.inbound = Some(pair.inbound());
        let us = far_side.start();
        eu.trusts("us", &us.ca);
        us.trusts("eu", &eu.ca);
        let relay = Relay::start("127.0.0.1:0".parse().unwrap(), us.node.local_addr().unwrap(), seed).await.unwrap();
        relay.set_both(Impairment { delay: Millis(5), loss_permille: 2, ..Impairment::default() });
        eu.dials("us", &relay.address().to_string());
        let link = eu.link("us");
        protocol_support::until("the bulk connection", || link.state().bulk_connected).await;
        let mut stored = 0;
        for _ in 0..CUTS_PER_MOVE {
            stored = pair.one_life(link.as_ref(), budget(&mut random), stored, &format!("seed {seed}")).await;
            cuts += 1;
        }
        pair.finish(link.as_ref(), seed).await;
    }
    println!("{cuts} cuts over QUIC");
    assert_eq!(cuts, CUTS_OVER_QUIC);
}
