//! The links of production on a simulated network: what an application sees of each fault, and that the same seed is the
//! same run, down to each byte that is delivered.

mod sim_net;

use novafed::chaos::sim::udp::PathFaults;
use novafed::protocol::LinkError;
use novafed::types::limits::{HANDSHAKE_MS_MAX, LINK_IDLE_MS_MAX, REDIAL_MS_MAX};
use novafed::types::{Millis, WallMillis};
use sim_net::*;

/// A path between continents.
const FAR: PathFaults = PathFaults { delay: Millis(40), jitter: Millis(10), ..PathFaults::NONE };

/// What applications must not notice, all at once.
const SPOILED: PathFaults =
    PathFaults { loss_permille: 50, reorder_permille: 250, duplicate_permille: 50, corrupt_permille: 10, ..FAR };

/// When both ends know that nothing is heard any more: the idle time, and the heartbeat that began it.
const NOTICED_MS_MAX: u64 = LINK_IDLE_MS_MAX.0 + 1_500;
/// A connection that is lost is found again after a dial that was under way, a pause, and a dial.
const AGAIN_MS_MAX: u64 = 2 * HANDSHAKE_MS_MAX.0 + REDIAL_MS_MAX.0;
/// A dial on a path like [`FAR`], hello included.
const DIAL_MS_MAX: u64 = 1_500;

fn is_unknown(answer: &Result<(), LinkError>) -> bool {
    matches!(answer, Err(LinkError::Unknown { .. }))
}

fn is_not_sent(answer: &Result<(), LinkError>) -> bool {
    matches!(answer, Err(LinkError::NotSent { .. }))
}

#[test]
fn each_reply_is_right_on_a_path_that_loses_reorders_duplicates_and_corrupts() {
    for run in twice(0..20, async |world| {
        world.net.set_all(SPOILED);
        let (eu, us) = world.pair().await;
        let small = async {
            for number in 0..20 {
                world.ask(&eu, &us, &[number; 100]).await.unwrap();
            }
        };
        let large = async {
            for number in 0..20 {
                world.ask(&us, &eu, &vec![number; 30_000]).await.unwrap();
            }
        };
        tokio::join!(small, large, world.stream(&eu, &us, 300_000));
    }) {
        let carried = run.carried;
        assert!(carried.lost.min(carried.reordered).min(carried.duplicated) > 10 && carried.corrupted > 0);
        assert_eq!(run.count("is asked by"), 40, "each request was served once");
        assert_eq!(run.count("is down"), 0);
    }
}

#[test]
fn a_partition_is_noticed_and_healed_within_the_limits() {
    for run in twice(0..10, async |world| {
        world.net.set_all(FAR);
        let (eu, us) = world.pair().await;
        let began = world.now();
        world.net.cut_both(eu.address(), us.address(), true);
        let (there, back) = tokio::join!(world.ask(&eu, &us, &[1]), world.ask(&us, &eu, &[1]));
        assert!(is_unknown(&there) && is_unknown(&back), "{there:?} {back:?}");
        tokio::join!(world.wait(&eu, "us", false), world.wait(&us, "eu", false));
        let noticed = world.now() - began;
        assert!(noticed <= NOTICED_MS_MAX, "noticed after {noticed} ms");
        assert!(is_not_sent(&world.ask(&eu, &us, &[2]).await));
        world.sleep(Millis(began + 30_000 - world.now())).await;
        world.net.cut_both(eu.address(), us.address(), false);
        let healed = world.now();
        world.connected(&eu, &us).await;
        let again = world.now() - healed;
        assert!(again <= AGAIN_MS_MAX, "connected {again} ms after it was healed");
        world.ask(&eu, &us, &[3]).await.unwrap();
        world.ask(&us, &eu, &[3]).await.unwrap();
    }) {
        assert_eq!(run.count("is asked by"), 2, "what was not sent was not served");
    }
}

#[test]
fn a_one_way_cut_leaves_an_outcome_unknown_and_is_noticed_at_both_ends() {
    for run in twice(0..10, async |world| {
        world.net.set_all(FAR);
        let (eu, us) = world.pair().await;
        let began = world.now();
        world.net.cut(eu.address(), us.address(), true);
        let (there, back) = tokio::join!(world.ask(&eu, &us, &[1]), world.ask(&us, &eu, &[1]));
        assert!(is_unknown(&there) && is_unknown(&back), "{there:?} {back:?}");
        world.wait(&us, "eu", false).await;
        assert!(world.now() - began <= NOTICED_MS_MAX);
        // The other end heard from it until it gave up.
        world.wait(&eu, "us", false).await;
        assert!(world.now() - began <= NOTICED_MS_MAX + LINK_IDLE_MS_MAX.0);
        world.sleep(Millis(20_000)).await;
        assert!(is_not_sent(&world.ask(&eu, &us, &[2]).await));
        assert!(is_not_sent(&world.ask(&us, &eu, &[2]).await));
        world.net.cut(eu.address(), us.address(), false);
        let healed = world.now();
        world.connected(&eu, &us).await;
        assert!(world.now() - healed <= AGAIN_MS_MAX);
        world.ask(&eu, &us, &[3]).await.unwrap();
    }) {
        // The one that got through was served although its sender does not know.
        assert_eq!(run.count("eu is asked by us#1: 1 bytes of 1"), 1);
        assert_eq!(run.count("us is asked by eu#1: 1 bytes of 1"), 0);
    }
}

#[test]
fn a_killed_peer_returns_as_a_new_life_at_its_address_and_takes_over_at_once() {
    for run in twice(0..10, async |world| {
        world.net.set_all(FAR);
        let (eu, us) = world.pair().await;
        let asking = world.ask_later(&us, &eu, &[200]);
        world.sleep(Millis(100)).await;
        world.kill(eu);
        let eu = world.start("eu", 2, &["us"]);
        let began = world.now();
        world.connected(&eu, &us).await;
        while us.link("eu").state().incarnation.is_none_or(|life| life.counter != 2) {
            world.sleep(Millis(5)).await;
        }
        assert!(world.now() - began <= DIAL_MS_MAX, "as if the former life had to time out first");
        assert!(is_unknown(&asking.await.unwrap()), "what a former life was asked breaks off");
        world.ask(&us, &eu, &[1]).await.unwrap();
        world.ask(&eu, &us, &[2]).await.unwrap();
        // Away for longer than anybody waits.
        world.kill(us);
        world.wait(&eu, "us", false).await;
        world.sleep(Millis(60_000)).await;
        let us = world.start("us", 2, &["eu"]);
        let began = world.now();
        world.connected(&eu, &us).await;
        assert!(world.now() - began <= DIAL_MS_MAX);
        world.ask(&eu, &us, &[3]).await.unwrap();
    }) {
        assert_eq!((run.count("Stale"), run.count("NotNow")), (0, 0));
        assert_eq!(run.count("eu is asked by us#1"), 2);
    }
}

#[test]
fn an_older_life_that_comes_back_is_refused() {
    for run in twice(0..5, async |world| {
        world.net.set_all(FAR);
        let (eu, us) = (world.start("eu", 3, &["us"]), world.start("us", 1, &["eu"]));
        world.connected(&eu, &us).await;
        world.kill(eu);
        let copy = world.start("eu", 2, &["us"]);
        world.sleep(Millis(20_000)).await;
        assert!(is_not_sent(&world.ask(&copy, &us, &[1]).await));
        assert!(is_not_sent(&world.ask(&us, &copy, &[1]).await));
        assert_eq!(copy.link("us").state().refused.map(|refused| refused.by_peer), Some(true));
    }) {
        let refused = run.count("us sees eu#2: Stale");
        assert!((3..80).contains(&refused), "refused {refused} times in 20 s");
    }
}

#[test]
fn a_region_that_is_cut_off_is_nothing_to_the_others() {
    for run in twice(0..5, async |world| {
        world.net.set_all(FAR);
        let [ap, eu, us] = world.trio().await;
        for other in [&eu, &us] {
            world.net.cut_both(ap.address(), other.address(), true);
        }
        let until = world.now() + 30_000;
        while world.now() < until {
            tokio::join!(async { world.ask(&eu, &us, &[10]).await.unwrap() }, async {
                world.ask(&us, &eu, &[10]).await.unwrap()
            },);
        }
        for other in [&eu, &us] {
            assert!(is_not_sent(&world.ask(&ap, other, &[11]).await));
            world.net.cut_both(ap.address(), other.address(), false);
        }
        let healed = world.now();
        world.connected(&ap, &eu).await;
        world.connected(&ap, &us).await;
        assert!(world.now() - healed <= AGAIN_MS_MAX);
        world.ask(&ap, &eu, &[12]).await.unwrap();
        world.ask(&us, &ap, &[12]).await.unwrap();
    }) {
        assert_eq!(run.count("eu to us is down") + run.count("us to eu is down"), 0);
        assert!(run.count("ap to eu is down") == 1 && run.count("us to ap is down") == 1);
    }
}

#[test]
fn a_process_that_stands_still_for_a_moment_keeps_its_links_and_one_that_sleeps_long_gets_them_back() {
    for run in twice(0..10, async |world| {
        world.net.set_all(FAR);
        let (eu, us) = world.pair().await;
        world.net.hold(eu.address(), true);
        let asking = world.ask_later(&us, &eu, &[1]);
        world.sleep(Millis(3_000)).await;
        world.log.say("it goes on");
        world.net.hold(eu.address(), false);
        asking.await.unwrap().unwrap();
        assert_eq!(us.link("eu").state().reconnects, 0);
        world.net.hold(eu.address(), true);
        world.wait(&us, "eu", false).await;
        world.sleep(Millis(60_000)).await;
        world.net.hold(eu.address(), false);
        let began = world.now();
        world.connected(&eu, &us).await;
        assert!(world.now() - began <= AGAIN_MS_MAX);
        world.ask(&us, &eu, &[2]).await.unwrap();
        world.ask(&eu, &us, &[2]).await.unwrap();
    }) {
        assert_eq!(run.count("us to eu is down"), 1);
    }
}

#[test]
fn a_burst_of_loss_that_is_shorter_than_the_idle_time_breaks_nothing() {
    for run in twice(0..10, async |world| {
        world.net.set_all(FAR);
        let (eu, us) = world.pair().await;
        for _ in 0..5 {
            world.net.lose(eu.address(), us.address(), Millis(2_500));
            world.net.lose(us.address(), eu.address(), Millis(2_500));
            tokio::join!(async { world.ask(&eu, &us, &[1]).await.unwrap() }, async {
                world.ask(&us, &eu, &[1]).await.unwrap()
            },);
            world.sleep(Millis(1_000)).await;
        }
    }) {
        assert_eq!(run.count("is down"), 0);
        assert!(run.carried.lost > 30);
    }
}

#[test]
fn a_path_that_begins_to_swallow_long_datagrams_still_carries() {
    for run in twice(0..5, async |world| {
        world.net.set_all(FAR);
        let (eu, us) = world.pair().await;
        world.stream(&eu, &us, 200_000).await;
        let long = world.net.carried(eu.address(), us.address());
        assert!(long.sent_bytes / long.sent > 900, "datagrams grew with what the path takes: {long:?}");
        for (from, to) in [(&eu, &us), (&us, &eu)] {
            world.net.change(from.address(), to.address(), |path| path.mtu = Some(1_250));
        }
        let began = world.now();
        world.stream(&eu, &us, 200_000).await;
        world.stream(&us, &eu, 200_000).await;
        world.ask(&eu, &us, &[1; 20_000]).await.unwrap();
        let took = world.now() - began;
        assert!(took < 20_000, "it took {took} ms");
    }) {
        assert_eq!(run.count("is down"), 0);
        assert!(run.carried.too_long > 0);
    }
}

#[test]
fn a_full_slow_path_delays_neither_heartbeats_nor_requests_beyond_their_deadlines() {
    for run in twice(0..5, async |world| {
        world.net.set_all(PathFaults { rate_bytes_s: Some(64_000), queue_bytes: 32_000, ..FAR });
        let (eu, us) = world.pair().await;
        let asking = async {
            for _ in 0..10 {
                world.ask(&eu, &us, &[1; 50]).await.unwrap();
                world.ask(&us, &eu, &[1; 50]).await.unwrap();
            }
        };
        tokio::join!(asking, world.stream(&eu, &us, 500_000));
    }) {
        assert_eq!(run.count("is down"), 0);
        assert!(run.carried.overflowed > 0);
        assert!((7_800..25_000).contains(&run.ended), "500 kB at 64 kB/s took {} ms", run.ended);
    }
}

#[test]
fn renewed_leaves_move_all_links_over_without_a_break() {
    for run in twice(0..10, async |world| {
        world.net.set_all(FAR);
        let trio = world.trio().await;
        world.sleep(Millis(10_000)).await;
        for region in &trio {
            world.renew(region, WallMillis(WALL.0 + 60_000));
        }
        for _ in 0..40 {
            for (from, to) in [(0, 1), (1, 2), (2, 0)] {
                world.ask(&trio[from], &trio[to], &[1]).await.unwrap();
            }
        }
        for region in &trio {
            let links = trio.iter().filter(|to| to.name != region.name).map(|to| region.link(to.name).state());
            assert!(links.into_iter().all(|state| state.reconnects >= 1), "{} moved over", region.name);
            assert_eq!(region.node.open_connections(), 4, "and has closed what it left");
        }
    }) {
        assert_eq!(run.count("is down"), 0);
    }
}

#[test]
fn a_region_that_is_revoked_is_cut_off_at_once_and_may_come_back() {
    for run in twice(0..10, async |world| {
        world.net.set_all(FAR);
        let [ap, eu, us] = world.trio().await;
        let asking = world.ask_later(&eu, &us, &[200]);
        world.sleep(Millis(100)).await;
        let began = world.now();
        ap.trust.remove(&region("us"));
        eu.trust.remove(&region("us"));
        for (from, to) in [(&ap, "us"), (&eu, "us"), (&us, "ap"), (&us, "eu")] {
            world.wait(from, to, false).await;
        }
        assert!(world.now() - began < 200);
        assert!(is_unknown(&asking.await.unwrap()));
        world.sleep(Millis(20_000)).await;
        assert!(is_not_sent(&world.ask(&us, &eu, &[1]).await));
        world.ask(&ap, &eu, &[1]).await.unwrap();
        for region in [&ap, &eu] {
            world.trust(region, "us");
        }
        let began = world.now();
        world.connected(&us, &eu).await;
        world.connected(&us, &ap).await;
        assert!(world.now() - began <= AGAIN_MS_MAX);
        world.ask(&us, &eu, &[2]).await.unwrap();
    }) {
        assert_eq!(run.count("ap to eu is down") + run.count("eu to ap is down"), 0);
    }
}

#[test]
fn a_flapping_path_is_not_redialled_in_a_storm() {
    for run in twice(0..5, async |world| {
        world.net.set_all(FAR);
        let (eu, us) = world.pair().await;
        // Down for longer than the idle time, up for a moment.
        for _ in 0..30 {
            world.net.cut_both(eu.address(), us.address(), true);
            world.sleep(Millis(8_000)).await;
            world.net.cut_both(eu.address(), us.address(), false);
            world.sleep(Millis(2_000)).await;
        }
        let healed = world.now();
        world.connected(&eu, &us).await;
        assert!(world.now() - healed <= AGAIN_MS_MAX);
    }) {
        // Each end says hello to the other for each of two classes, at most a few times in each round.
        let hellos = run.count(" sees ");
        assert!((60..600).contains(&hellos), "{hellos} hellos in 30 rounds");
        assert!(run.carried.sent < 30 * 1_000, "{:?}", run.carried);
    }
}

#[test]
fn whatever_happens_replies_are_right_and_links_come_back() {
    for run in twice(0..40, async |world| {
        world.net.set_all(FAR);
        let mut trio = world.trio().await.map(Some);
        let mut lives = [1; 3];
        let asking = world.ask_all_the_time(&trio);
        for _ in 0..15 {
            world.mischief(&mut trio, &mut lives).await;
        }
        let trio = trio.map(|region| region.expect("it was started again"));
        world.net.set_all(FAR);
        for region in &trio {
            world.net.hold(region.address(), false);
        }
        world.log.say("all is well again");
        world.sleep(Millis(AGAIN_MS_MAX)).await;
        for (a, b) in [(0, 1), (1, 2), (2, 0)].repeat(5) {
            world.ask(&trio[a], &trio[b], &[1; 5_000]).await.unwrap();
        }
        ended_well(asking).await;
    }) {
        assert!(run.count(": answered") > 20, "seed {}: {:?}", run.seed, run.carried);
    }
}
