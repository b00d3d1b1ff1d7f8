//! How fast links run on the simulated network: `cargo bench --bench sim [-- part-of-a-name]`. Three regions, release
//! build, one core; prints virtual seconds per second and what a datagram costs.
#![allow(clippy::print_stdout, reason = "a benchmark talks to the terminal")]

#[path = "../tests/sim_net/mod.rs"]
mod sim_net;

use novafed::chaos::sim::udp::PathFaults;
use novafed::types::Millis;
use sim_net::*;

/// A path between continents.
const FAR: PathFaults = PathFaults { delay: Millis(40), jitter: Millis(10), ..PathFaults::NONE };
const MINUTE: u64 = 60_000;

fn measure(name: &str, scenario: impl AsyncFn(&World)) {
    let filter = std::env::args().skip(1).find(|argument| !argument.starts_with('-'));
    if filter.is_some_and(|filter| !name.contains(&filter)) {
        return;
    }
    let runs: Vec<_> = (0..3).map(|seed| once(seed, &scenario)).collect();
    let wall: f64 = runs.iter().map(|run| run.wall.as_secs_f64()).sum();
    let virtual_s = runs.iter().map(|run| run.ended).sum::<u64>() as f64 / 1_000.0;
    let datagrams: u64 = runs.iter().map(|run| run.carried.sent).sum();
    println!(
        "{name:<34} {virtual_s:>8.0} virtual s in {wall:>6.2} s: {:>7.0} x; {datagrams:>8} datagrams, {:>5.1} us each",
        virtual_s / wall,
        wall * 1e6 / datagrams as f64,
    );
}

fn main() {
    measure("connecting, 20 times", async |world| {
        world.net.set_all(FAR);
        for life in 1..=20 {
            let start = |name, peers: &[&str]| world.start(name, life, peers);
            let trio = [start("ap", &["eu", "us"]), start("eu", &["ap", "us"]), start("us", &["ap", "eu"])];
            for (a, b) in [(0, 1), (0, 2), (1, 2)] {
                world.connected(&trio[a], &trio[b]).await;
            }
            for region in trio {
                world.kill(region);
            }
        }
    });
    measure("idle", async |world| {
        world.net.set_all(FAR);
        let _trio = world.trio().await;
        world.sleep(Millis(60 * MINUTE)).await;
    });
    measure("12 requests a second", async |world| {
        world.net.set_all(FAR);
        let trio = world.trio().await.map(Some);
        let _asking = world.ask_all_the_time(&trio);
        world.sleep(Millis(10 * MINUTE)).await;
    });
    measure("12 requests a second, spoiled", async |world| {
        let faults = PathFaults { loss_permille: 50, reorder_permille: 250, duplicate_permille: 50, ..FAR };
        world.net.set_all(PathFaults { corrupt_permille: 10, ..faults });
        let trio = world.trio().await.map(Some);
        let _asking = world.ask_all_the_time(&trio);
        world.sleep(Millis(10 * MINUTE)).await;
    });
    measure("a stream of 50 MB", async |world| {
        world.net.set_all(FAR);
        let [_ap, eu, us] = world.trio().await;
        world.stream(&eu, &us, 50_000_000).await;
    });
    measure("all peers cut off", async |world| {
        world.net.set_all(FAR);
        let _trio = world.trio().await;
        world.net.set_all(PathFaults { cut: true, ..FAR });
        world.sleep(Millis(60 * MINUTE)).await;
    });
}
