//! Who is let in: each impostor is refused before any frame of its is read, counted by reason, and the node goes on
//! serving its good peers.

mod protocol_support;

use std::sync::Arc;
use std::time::Duration;

use novafed::clock::Clock;
use novafed::protocol::trust::{LEAF_LIFE_MAX, Leaf, RegionCa, SetClock, region_dns, region_uri};
use novafed::protocol::{Kind, LinkError, Request};
use novafed::types::{FederationName, Millis, RegionName, WallMillis};
use protocol_support::*;
use rcgen::{CertificateParams, ExtendedKeyUsagePurpose, Issuer, KeyPair, PKCS_ED25519, SanType};

const HOUR: Millis = Millis(3_600_000);
const CONTROL: &[u8] = b"novafed-ctl/1";

fn now() -> WallMillis {
    Clock::start().wall()
}

fn ca(name: &str) -> RegionCa {
    RegionCa::create(&federation(), &region(name), now()).unwrap()
}

/// A leaf that `ca` signs for any URI and DNS name: what a region can do that does not keep to the rules.
fn forge(ca: &RegionCa, uri: &str, dns: &str, life: Millis) -> Leaf {
    let dir = tempfile::tempdir().unwrap();
    ca.save(dir.path()).unwrap();
    let key = KeyPair::from_pem(&std::fs::read_to_string(dir.path().join("ca.key")).unwrap()).unwrap();
    let issuer = Issuer::from_ca_cert_pem(ca.certificate_pem(), key).unwrap();
    let mut params = CertificateParams::default();
    let seconds = |at: WallMillis| rcgen::date_time_ymd(1970, 1, 1) + Duration::from_secs(at.0 / 1000);
    params.not_before = seconds(now());
    params.not_after = seconds(WallMillis(now().0 + life.0));
    params.subject_alt_names = vec![SanType::URI(uri.try_into().unwrap()), SanType::DnsName(dns.try_into().unwrap())];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    let key = KeyPair::generate_for(&PKCS_ED25519).unwrap();
    let certificate = params.signed_by(&key, &issuer).unwrap();
    Leaf::from_pem(&format!("{}{}", certificate.pem(), key.serialize_pem())).unwrap()
}

fn names(federation: &FederationName, region: &RegionName) -> (String, String) {
    (region_uri(federation, region), region_dns(federation, region))
}

async fn still_serves(good: &Region, to: &str) {
    let link = connected(good, to).await;
    let request = Request::query(Kind::API, "x", "still here", DEADLINE);
    assert_eq!(link.request(request).await.unwrap(), "still here");
}

#[tokio::test]
async fn every_wrong_certificate_is_refused_by_name_and_the_node_goes_on() {
    let (eu, us) = (setup("eu", 1).start(), setup("us", 1).start());
    introduce(("eu", &eu), ("us", &us));
    // `us` trusts the real `ap`, which never shows up here.
    let ap_ca = ca("ap");
    us.trusts("ap", &ap_ca);
    let other: FederationName = "evil".parse().unwrap();
    let real = |name: &str| names(&federation(), &region(name));
    let old = RegionCa::create(&federation(), &region("ap"), now()).unwrap();
    let cases = [
        ("impostor", forge(&eu.ca, &real("ap").0, &real("ap").1, HOUR)),
        ("foreign-ca", ca("ap").issue_leaf(now(), HOUR).unwrap()),
        ("foreign-ca", old.issue_leaf(now(), HOUR).unwrap()),
        ("expired", ap_ca.issue_leaf(WallMillis(now().0 - 2 * HOUR.0), HOUR).unwrap()),
        ("not-yet-valid", ap_ca.issue_leaf(WallMillis(now().0 + 2 * HOUR.0), HOUR).unwrap()),
        ("unknown-region", ca("mx").issue_leaf(now(), HOUR).unwrap()),
        ("wrong-federation", forge(&ap_ca, &names(&other, &region("ap")).0, &real("ap").1, HOUR)),
        ("lives-too-long", forge(&ap_ca, &real("ap").0, &real("ap").1, LEAF_LIFE_MAX.times(2))),
        ("certificate-malformed", forge(&ap_ca, &real("ap").0, &real("eu").1, HOUR)),
        ("certificate-malformed", forge(&ap_ca, "spiffe://acme/region/ap/extra", &real("ap").1, HOUR)),
        ("certificate-malformed", forge(&ap_ca, "spiffe://acme/region/AP", &real("ap").1, HOUR)),
    ];
    let stranger = stranger::endpoint();
    for (reason, leaf) in cases {
        let before = us.refused(reason);
        let config = stranger::config(Some(leaf.certified()), CONTROL);
        let dialled = stranger::dial(&stranger, config, &us.address(), "us.acme").await;
        assert!(dialled.is_err(), "{reason} was let in");
        until(reason, || us.refused(reason) > before).await;
    }
    still_serves(&eu, "us").await;
}

#[tokio::test]
async fn no_certificate_no_protocol_and_wrong_names_are_refused() {
    let (eu, us) = (setup("eu", 1).start(), setup("us", 1).start());
    introduce(("eu", &eu), ("us", &us));
    let leaf = eu.identity.certified();
    let stranger = stranger::endpoint();
    let cases: [(&str, Option<_>, &[u8], &str); 4] = [
        ("no-certificate", None, CONTROL, "us.acme"),
        ("wrong-protocol", Some(leaf.clone()), b"novafed-ctl/9", "us.acme"),
        ("wrong-name-dialled", Some(leaf.clone()), CONTROL, "eu.acme"),
        ("wrong-name-dialled", Some(leaf), CONTROL, "us.evil"),
    ];
    for (reason, leaf, alpn, name) in cases {
        let before = us.refused(reason);
        let dialled = stranger::dial(&stranger, stranger::config(leaf, alpn), &us.address(), name).await;
        assert!(dialled.is_err(), "{reason} was let in");
        until(reason, || us.refused(reason) > before).await;
    }
    still_serves(&eu, "us").await;
}

#[tokio::test]
async fn a_dialler_believes_only_the_region_that_it_dialled() {
    let (eu, us, ap) = (setup("eu", 1).start(), setup("us", 1).start(), setup("ap", 1).start());
    introduce(("eu", &eu), ("us", &us));
    introduce(("eu", &eu), ("ap", &ap));
    ap.node.set_address(&region("eu"), None);
    // The address of `ap` leads to `us`, for instance by a wrong DNS record.
    eu.dials("ap", &us.address());
    until("the wrong name is noticed there", || us.refused("wrong-name-dialled") > 0).await;
    let request = Request::query(Kind::API, "x", "secret", DEADLINE);
    assert!(matches!(eu.link("ap").request(request).await, Err(LinkError::NotSent { .. })));
    until("the dialler knows why", || eu.link("ap").state().last_error.is_some()).await;
    still_serves(&eu, "us").await;
    eu.dials("ap", &ap.address());
    still_serves(&eu, "ap").await;
}

#[tokio::test]
async fn a_node_that_answers_with_anothers_certificate_is_not_believed() {
    // The thief has `us`'s name and address, but not its CA.
    let (eu, us, thief) = (setup("eu", 1).start(), setup("us", 1).start(), setup("us", 1).start());
    eu.trusts("us", &us.ca);
    thief.trusts("eu", &eu.ca);
    eu.dials("us", &thief.address());
    until("the foreign CA is noticed", || eu.refused("foreign-ca") > 0).await;
    assert!(!eu.link("us").state().connected);
}

#[tokio::test]
async fn the_sender_in_a_hello_or_frame_is_not_believed_against_the_certificate() {
    let (eu, us) = (setup("eu", 1).start(), setup("us", 1).start());
    us.trusts("eu", &eu.ca);
    let stranger = stranger::endpoint();
    let config = || stranger::config(Some(eu.identity.certified()), CONTROL);
    let connection = stranger::dial(&stranger, config(), &us.address(), "us.acme").await.unwrap();
    assert!(stranger::say_hello(&connection, &peer("ap", 1), (1, 1)).await.is_none());
    until("the lie is counted", || us.refused("identity") == 1).await;
    // A copy of this very region is not a peer of it, whatever its incarnation.
    us.trusts("us", &us.ca);
    let twin = stranger::config(Some(us.identity.certified()), CONTROL);
    let connection = stranger::dial(&stranger, twin, &us.address(), "us.acme").await.unwrap();
    assert!(stranger::say_hello(&connection, &peer("us", 9), (1, 1)).await.is_none());
    until("the twin is counted", || us.refused("identity") == 2).await;
    let connection = stranger::dial(&stranger, config(), &us.address(), "us.acme").await.unwrap();
    assert!(stranger::say_hello(&connection, &peer("eu", 1), (1, 1)).await.is_some());
    let request = Request::query(Kind::API, "x", "from another", DEADLINE);
    let frame = novafed::protocol::envelope::frame(&request.head(&peer("ap", 1)), &request.body);
    let (mut send, mut recv) = connection.open_bi().await.unwrap();
    send.write_all(&frame).await.unwrap();
    send.finish().unwrap();
    let reply = recv.read_to_end(1000).await.unwrap();
    assert_eq!(u16::from_be_bytes([reply[6], reply[7]]), novafed::protocol::RefusalCode::IDENTITY.0);
    assert!(us.answers.requests.lock().unwrap().is_empty());
}

#[tokio::test]
async fn a_version_that_is_not_spoken_or_below_the_floor_is_refused() {
    let us = setup("us", 1).start();
    let eu_ca = ca("eu");
    us.trusts("eu", &eu_ca);
    let leaf = eu_ca.issue_leaf(now(), HOUR).unwrap();
    let stranger = stranger::endpoint();
    for versions in [(2, 9), (0, 0)] {
        let before = us.refused("version");
        let config = stranger::config(Some(leaf.certified()), CONTROL);
        let connection = stranger::dial(&stranger, config, &us.address(), "us.acme").await.unwrap();
        assert!(stranger::say_hello(&connection, &peer("eu", 1), versions).await.is_none());
        until("the version is counted", || us.refused("version") > before).await;
    }
    // Two that share no version never connect, and say why.
    let (mut ap, mut eu) = (setup("ap", 1), setup("eu", 1));
    ap.floor = 7;
    eu.ca = Some(eu_ca);
    let (ap, eu) = (ap.start(), eu.start());
    introduce(("ap", &ap), ("eu", &eu));
    until("both know why", || {
        let states = [ap.link("eu").state(), eu.link("ap").state()];
        states.iter().any(|state| state.refusals.contains_key("version")) && states.iter().all(|s| !s.connected)
    })
    .await;
}

#[tokio::test]
async fn a_stale_copy_of_a_store_is_refused() {
    let (eu, us) = (setup("eu", 5).start(), setup("us", 1).start());
    introduce(("eu", &eu), ("us", &us));
    still_serves(&us, "eu").await;
    let ca_dir = tempfile::tempdir().unwrap();
    eu.ca.save(ca_dir.path()).unwrap();
    eu.node.close().await;
    // An older copy of the same region comes back: same CA, earlier incarnation.
    let mut stale = setup("eu", 4);
    stale.ca = Some(RegionCa::load(ca_dir.path(), &federation(), &region("eu")).unwrap());
    let stale = stale.start();
    introduce(("eu", &stale), ("us", &us));
    let refused = |region: &Region, to: &str| region.link(to).state().refusals.contains_key("stale-incarnation");
    until("the stale copy is told", || refused(&stale, "us")).await;
    let request = Request::query(Kind::API, "x", "as if nothing had happened", DEADLINE);
    assert!(stale.link("us").request(request).await.is_err());
    assert!(!us.link("eu").state().connected);
}

#[tokio::test]
async fn revoking_a_region_closes_its_open_connections_at_once() {
    let (eu, us, ap) = (setup("eu", 1).start(), setup("us", 1).start(), setup("ap", 1).start());
    introduce(("eu", &eu), ("us", &us));
    introduce(("ap", &ap), ("us", &us));
    let (link, other) = (connected(&eu, "us").await, connected(&ap, "us").await);
    let hang = Request::query(Kind::API, "x", "hang", DEADLINE);
    let clock = Clock::start();
    let asking = tokio::spawn(async move { link.request(hang).await });
    until("it is asked", || !us.answers.requests.lock().unwrap().is_empty()).await;
    us.trust.remove(&region("eu"));
    assert!(matches!(asking.await.unwrap(), Err(LinkError::Unknown { .. })));
    assert!(clock.now().0 < 2_000, "a revoked peer was served for {} ms", clock.now().0);
    until("the link is down", || !us.link("eu").state().connected).await;
    until("it stays out", || us.refused("unknown-region") > 0).await;
    assert!(other.state().connected);
    us.trusts("eu", &eu.ca);
    still_serves(&eu, "us").await;
}

#[tokio::test]
async fn a_connection_ends_with_its_certificates() {
    let wall = Arc::new(SetClock::at(now()));
    let mut us = setup("us", 1);
    us.wall = wall.clone();
    let (eu, us) = (setup("eu", 1).start(), us.start());
    introduce(("eu", &eu), ("us", &us));
    still_serves(&eu, "us").await;
    // Nobody renewed anything for two hours.
    wall.set(WallMillis(now().0 + 2 * HOUR.0));
    until("the connection is closed", || !eu.link("us").state().connected).await;
    until("it is counted", || us.link("eu").state().refusals.contains_key("expired")).await;
    until("and not let in again", || us.refused("expired") > 0).await;
    wall.set(now());
    still_serves(&eu, "us").await;
}

#[tokio::test]
async fn a_renewed_leaf_takes_over_without_a_dropped_request_or_stream() {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let (eu, us) = (setup("eu", 1).start(), setup("us", 1).start());
    introduce(("eu", &eu), ("us", &us));
    let link = connected(&eu, "us").await;
    let mut stream = link.open_bulk("echo".into(), DEADLINE).await.unwrap();
    for round in 1..4u8 {
        for renewing in [&eu, &us] {
            renewing.identity.replace(renewing.ca.issue_leaf(now(), HOUR.times(u64::from(round) + 1)).unwrap());
            for _ in 0..20 {
                let body = vec![round; 3000];
                let request = Request::query(Kind::API, "x", body.clone(), DEADLINE);
                assert_eq!(link.request(request).await.unwrap(), body);
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            let mut back = [0; 1000];
            stream.write_all(&[round; 1000]).await.unwrap();
            stream.read_exact(&mut back).await.unwrap();
            assert_eq!(back, [round; 1000]);
        }
    }
    until("the new leaves are used", || link.state().reconnects >= 1).await;
    still_serves(&us, "eu").await;
}

#[tokio::test(start_paused = true)]
async fn a_leaf_is_renewed_after_two_thirds_of_its_life() {
    use novafed::protocol::trust::{Identity, keep_renewed};
    use tokio_util::sync::CancellationToken;
    let start = now();
    let wall = Arc::new(SetClock::at(start));
    let ca = ca("eu");
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("leaf.pem");
    let identity = Arc::new(Identity::new(ca.issue_leaf(start, HOUR).unwrap()));
    let (first, due) = (identity.not_after(), identity.renew_at());
    assert!((start.0 + HOUR.0 / 2..start.0 + HOUR.0 * 2 / 3).contains(&due.0));
    let stop = CancellationToken::new();
    let clock: Arc<SetClock> = wall.clone();
    let renewing = tokio::spawn(keep_renewed(identity.clone(), ca, clock, HOUR, Some(path.clone()), stop.clone()));
    wall.set(WallMillis(due.0 - 1_000));
    tokio::time::sleep(Duration::from_secs(600)).await;
    assert_eq!(identity.not_after(), first);
    wall.set(WallMillis(due.0 + 1_000));
    tokio::time::sleep(Duration::from_secs(120)).await;
    assert!(identity.not_after() > first);
    assert_eq!(Leaf::load(&path).unwrap().not_after, identity.not_after());
    stop.cancel();
    renewing.await.unwrap();
}
