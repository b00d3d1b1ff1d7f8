//! The driver conformance suite, run against the embedded driver: in this process and over the socket.

mod host_support;

use host_support::*;
use novafed::drivers::conformance::conformance;
use novafed::drivers::embedded::client::{DriverOptions, EmbeddedDriver};
use novafed::drivers::embedded::launch::{self, Launch};

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn the_embedded_host_conforms() {
    let dir = tempfile::tempdir().unwrap();
    let (a, b) = (local(&dir.path().join("a"), "a").await, local(&dir.path().join("b"), "b").await);
    conformance(&a, &b, 1).await.unwrap_or_else(|e| panic!("{e}"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn the_embedded_driver_conforms_between_two_clusters_of_one_host_process() {
    let dir = tempfile::tempdir().unwrap();
    let start = Launch {
        program: Some(env!("CARGO_BIN_EXE_novafed").into()),
        directory: dir.path().to_owned(),
        name: "h1".parse().unwrap(),
        allow_faults: false,
    };
    launch::ensure_running(&start).await.unwrap();
    let driver = |cluster: &str| {
        EmbeddedDriver::new(DriverOptions {
            directory: dir.path().to_owned(),
            region: "eu".parse().unwrap(),
            lineage: incarnation(1).into(),
            cluster: cluster.parse().unwrap(),
            capacity: capacity(),
        })
    };
    let (a, b) = (driver("c1"), driver("c2"));
    let outcome = conformance(&a, &b, 1).await;
    let again = conformance(&b, &a, 2).await;
    launch::stop(dir.path()).await.unwrap();
    outcome.and(again).unwrap_or_else(|e| panic!("{e}"));
}
