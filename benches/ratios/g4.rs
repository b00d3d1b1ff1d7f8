//! G4: a checkpointed job step (state, effect record and outbox in one commit) against bare redb.
//! The baseline writes the same keys and the same number of bytes into three tables of a file on the same disk, with
//! redb's default durable commit.

use std::fmt;
use std::future::Future;
use std::io;
use std::path::Path;
use std::sync::{Condvar, Mutex};
use std::time::Duration;

use novafed::clock::machine_nanos;
use novafed::store::{Medium, SharedBackend, Store, StoreError, StoreKey, StoreOptions, Table, Txn, Work};
use novafed::stored;
use novafed::types::{JobId, RegionName, RegionNumber};
use redb::backends::FileBackend;
use redb::{Database, StorageBackend, TableDefinition};
use serde::{Deserialize, Serialize};

use super::measure::{BLOCK_NANOS, Bench, Goal, quantile, rate, target};

/// Bytes of a job's state, an event and a command before they are sealed.
const STATE_BYTES: usize = 480;
const EVENT_BYTES: usize = 160;
const COMMAND_BYTES: usize = 256;
/// What sealing and versioning add to each value (`store/seal.rs`), and postcard to the state.
const SEAL_BYTES: usize = 50;
const STATE_HEAD_BYTES: usize = 2;
/// Steps of the baseline's group.
const BARE_GROUP: u64 = 100;
/// Jobs that step at once on our side.
const JOBS: u64 = 256;
/// What the slow disk adds to each sync.
const SLOW_SYNC: Duration = Duration::from_millis(5);

#[derive(Serialize, Deserialize)]
struct State {
    bytes: Vec<u8>,
}
stored!(State, b"bnst");

fn job(number: u64) -> JobId {
    JobId { region: RegionNumber(1), incarnation: 1, number }
}

fn peer() -> RegionName {
    "us".parse().expect("a name")
}

fn step(txn: &mut Txn<'_, '_>, number: u64) -> Result<(), StoreError> {
    let id = job(number);
    txn.put(Table::Jobs, &id.to_string(), &State { bytes: vec![7; STATE_BYTES] })?;
    txn.append_event(id, &[1; EVENT_BYTES])?;
    txn.enqueue(&peer(), &[2; COMMAND_BYTES])?;
    Ok(())
}

async fn our_step(store: &Store, number: u64) {
    store.transact(Work::Finish, move |txn| step(txn, number)).await.expect("a step");
}

/// The baseline: what a step writes, written by hand.
struct Bare {
    db: Database,
    sequence: u64,
}

impl Bare {
    const JOBS: TableDefinition<'static, &'static [u8], &'static [u8]> = TableDefinition::new("jobs");
    const EVENTS: TableDefinition<'static, &'static [u8], &'static [u8]> = TableDefinition::new("events");
    const OUTBOX: TableDefinition<'static, &'static [u8], &'static [u8]> = TableDefinition::new("outbox");

    fn on(backend: impl StorageBackend) -> Bare {
        let db = redb::Builder::new().set_cache_size(64 << 20).create_with_backend(backend).expect("a database");
        Bare { db, sequence: 0 }
    }

    fn at(path: &Path) -> Bare {
        Bare::on(file(path))
    }

    /// `steps` steps of different jobs in one commit.
    fn commit(&mut self, steps: u64) -> u64 {
        let txn = self.db.begin_write().expect("a transaction");
        {
            let mut jobs = txn.open_table(Bare::JOBS).expect("a table");
            let mut events = txn.open_table(Bare::EVENTS).expect("a table");
            let mut outbox = txn.open_table(Bare::OUTBOX).expect("a table");
            for number in 1..=steps {
                self.sequence += 1;
                let state = [7; STATE_BYTES + STATE_HEAD_BYTES + SEAL_BYTES];
                jobs.insert(job(number).to_string().as_bytes(), &state[..]).expect("a row");
                let mut key = [0; 28];
                key[12..20].copy_from_slice(&number.to_be_bytes());
                key[20..].copy_from_slice(&self.sequence.to_be_bytes());
                events.insert(&key[..], &[1; EVENT_BYTES + SEAL_BYTES][..]).expect("a row");
                let mut key = *b"us\0\x01________________";
                key[12..].copy_from_slice(&self.sequence.to_be_bytes());
                outbox.insert(&key[..], &[2; COMMAND_BYTES + SEAL_BYTES][..]).expect("a row");
            }
        }
        txn.commit().expect("a commit");
        steps
    }
}

/// A file whose syncs take longer.
struct SlowFile(FileBackend, Mutex<()>, Condvar);

impl fmt::Debug for SlowFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SlowFile")
    }
}

impl StorageBackend for SlowFile {
    fn len(&self) -> io::Result<u64> {
        self.0.len()
    }
    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.0.read(offset, out)
    }
    fn set_len(&self, len: u64) -> io::Result<()> {
        self.0.set_len(len)
    }
    fn sync_data(&self) -> io::Result<()> {
        self.0.sync_data()?;
        let guard = self.1.lock().map_err(|e| io::Error::other(e.to_string()))?;
        // Nobody notifies: it waits the whole time, as the caller of a slow disk does.
        let waited = self.2.wait_timeout_while(guard, SLOW_SYNC, |()| true);
        waited.map(drop).map_err(|e| io::Error::other(e.to_string()))
    }
    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.0.write(offset, data)
    }
}

fn file(path: &Path) -> FileBackend {
    let mut options = std::fs::OpenOptions::new();
    let file = options.read(true).write(true).create_new(true).open(path).expect("a new file");
    FileBackend::new(file).expect("a medium")
}

fn slow_file(path: &Path) -> SlowFile {
    SlowFile(file(path), Mutex::new(()), Condvar::new())
}

fn store_on(medium: Medium) -> Store {
    let region = "eu".parse().expect("a name");
    let options = StoreOptions::file("state.redb", region, vec![StoreKey::generate().expect("a key")]);
    Store::open(StoreOptions { medium, ..options }, 1).expect("a store").0
}

fn store_at(dir: &Path, name: &str) -> Store {
    std::fs::create_dir_all(dir.join(name)).expect("a directory");
    store_on(Medium::File(dir.join(name).join("state.redb")))
}

/// The median of how long `one` takes, in microseconds, over a block.
fn median_us<T>(mut one: impl FnMut() -> T) -> f64 {
    let (start, mut samples) = (machine_nanos(), Vec::new());
    while machine_nanos() - start < BLOCK_NANOS {
        let before = machine_nanos();
        one();
        samples.push(machine_nanos() - before);
    }
    quantile(&mut samples, 0.5) / 1e3
}

fn block_on<F: Future>(runtime: &tokio::runtime::Runtime, future: F) -> F::Output {
    runtime.block_on(future)
}

/// Steps per second of [`JOBS`] jobs, each of which waits for its step before the next.
fn many_jobs(runtime: &tokio::runtime::Runtime, store: &Store) -> f64 {
    let start = machine_nanos();
    let done: u64 = runtime.block_on(async {
        let tasks: Vec<_> = (1..=JOBS)
            .map(|number| {
                let store = store.clone();
                tokio::spawn(async move {
                    let mut done = 0;
                    while machine_nanos() - start < BLOCK_NANOS {
                        our_step(&store, number).await;
                        done += 1;
                    }
                    done
                })
            })
            .collect();
        let mut sum = 0;
        for task in tasks {
            sum += task.await.expect("a job");
        }
        sum
    });
    done as f64 * 1e9 / (machine_nanos() - start) as f64
}

/// A store with `size` jobs, of one step each.
fn filled(runtime: &tokio::runtime::Runtime, dir: &Path, size: u64) -> Store {
    let store = store_at(dir, &format!("growth-{size}"));
    for from in (1..=size).step_by(1_000) {
        let fill = move |txn: &mut Txn<'_, '_>| (from..from + 1_000).try_for_each(|number| step(txn, number));
        runtime.block_on(store.transact(Work::Finish, fill)).expect("many steps");
    }
    store
}

/// The slope of log(step time) over log(stored jobs), the sizes measured one after the other and back again.
fn growth(runtime: &tokio::runtime::Runtime, stores: &[(u64, Store)]) -> f64 {
    let points: Vec<(f64, f64)> = stores
        .iter()
        .chain(stores.iter().rev())
        .map(|(size, store)| {
            let mut number = 0;
            let took = median_us(|| {
                // All over the stored jobs.
                number = (number * 7_919 + 13) % size;
                block_on(runtime, our_step(store, number + 1));
            });
            ((*size as f64).ln(), took.ln())
        })
        .collect();
    let n = points.len() as f64;
    let (x, y) = (points.iter().map(|p| p.0).sum::<f64>() / n, points.iter().map(|p| p.1).sum::<f64>() / n);
    let over: f64 = points.iter().map(|p| (p.0 - x) * (p.1 - y)).sum();
    over / points.iter().map(|p| (p.0 - x).powi(2)).sum::<f64>()
}

/// What one durable commit of a step takes here, the bare library's, microseconds.
pub fn commit_us() -> f64 {
    let dir = tempfile::Builder::new().prefix("commit-").tempdir_in(target()).expect("a directory");
    let mut bare = Bare::at(&dir.path().join("one.redb"));
    median_us(|| bare.commit(1))
}

/// Measures G4.
pub fn register(bench: &mut Bench) {
    if !bench.wants("G4") && !bench.wants("step") {
        return;
    }
    // The checkout's disk: /tmp may be memory.
    let dir = tempfile::Builder::new().prefix("g4-").tempdir_in(target()).expect("a directory");
    let dir = dir.path();
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("a runtime");

    let store = store_at(dir, "one");
    let mut bare = Bare::at(&dir.join("one.redb"));
    let ours = || median_us(|| block_on(&runtime, our_step(&store, 1)));
    let goal = Goal::RatioAtMost(1.10);
    bench.compare("G4 job step, one job, p50", "us", goal, ours, || median_us(|| bare.commit(1)));

    let mut bare = Bare::at(&dir.join("three.redb"));
    let three = || median_us(|| (0..3).for_each(|_| block_on(&runtime, our_step(&store, 1))));
    let theirs = || median_us(|| bare.commit(1));
    bench.compare("G4 job of three steps vs one commit", "us", Goal::RatioAtMost(3.5), three, theirs);

    let many = store_at(dir, "many");
    let mut bare = Bare::at(&dir.join("many.redb"));
    let name = format!("G4 job steps, {JOBS} jobs vs 100-op group");
    let ours = || many_jobs(&runtime, &many);
    bench.compare(&name, "1/s", Goal::RatioAtLeast(0.80), ours, || rate(|| bare.commit(BARE_GROUP)));
    if let Ok(stats) = many.stats() {
        let mean = stats.writer.transactions as f64 / stats.writer.groups.max(1) as f64;
        bench.note(format!(
            "{name}: {mean:.0} transactions per group on average, {} at most",
            stats.writer.largest_group
        ));
    }

    let backend = SharedBackend::new(slow_file(&dir.join("slow-ours.redb")));
    let slow = store_on(Medium::Backend { backend, member: false });
    let mut bare = Bare::on(slow_file(&dir.join("slow-bare.redb")));
    let ours = || median_us(|| block_on(&runtime, our_step(&slow, 1)));
    let theirs = || median_us(|| bare.commit(1));
    bench.compare("G4 job step, syncs 5 ms slower", "us", Goal::RatioAtMost(1.10), ours, theirs);

    let growth_name = "G4 growth over 10^3..10^5 jobs";
    if bench.wants(growth_name) {
        let stores = [1_000, 10_000, 100_000].map(|size| (size, filled(&runtime, dir, size)));
        bench.absolute(growth_name, "slope", Goal::AtMost(0.10), || growth(&runtime, &stores));
    }
}
