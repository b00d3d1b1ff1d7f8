//! What the store does for those who use it: transactions, group commit, journals, outbox and dedup, refusals.

use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex};

use novafed::store::{
    Commits, FaultBackend, Faults, Keep, MessageId, Minted, Seen, SharedBackend, Space, Store, StoreError, StoreKey,
    StoreOptions, Table, TransactError, Txn, Work, rekey_file, stats_file, verify_file,
};
use novafed::stored;
use novafed::types::limits::{STORE_BATCH_MAX, STORE_QUEUE_MAX};
use novafed::types::{
    ApiError, ErrorCode, Incarnation, IncarnationVerdict, JobId, Lineage, RegionName, RegionNumber, WallMillis,
};
use serde::{Deserialize, Serialize};

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Note {
    text: String,
}
stored!(Note, b"note");

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct NoteV2 {
    text: String,
    pages: u32,
}
stored!(NoteV2, b"note", 2, from Note => |old| NoteV2 { text: old.text, pages: 1 });

fn note(text: &str) -> Note {
    Note { text: text.into() }
}
fn eu() -> RegionName {
    "eu".parse().unwrap()
}
fn us() -> RegionName {
    "us".parse().unwrap()
}
fn job(number: u64) -> JobId {
    JobId { region: RegionNumber(1), incarnation: 1, number }
}
fn memory() -> Store {
    Store::open(StoreOptions::memory(eu()).unwrap(), 1).unwrap().0
}
fn on(disk: &FaultBackend, keys: &[StoreKey]) -> StoreOptions {
    StoreOptions::backend(SharedBackend::new(disk.clone()), false, eu(), keys.to_vec())
}
fn files(dir: &Path) -> StoreOptions {
    let key_path = dir.join("store.key");
    if !key_path.exists() {
        StoreKey::generate().unwrap().save(&key_path).unwrap();
    }
    StoreOptions::file(dir.join("state.redb"), eu(), novafed::store::load_keys(&key_path).unwrap())
}

async fn transact<T: Send + 'static>(
    store: &Store,
    closure: impl FnOnce(&mut Txn<'_, '_>) -> Result<T, StoreError> + Send + 'static,
) -> T {
    store.transact(Work::New, closure).await.unwrap()
}

#[tokio::test]
async fn a_refused_or_panicking_transaction_leaves_nothing_and_disturbs_nobody() {
    let store = memory();
    let refused: Result<(), TransactError<String>> = store
        .transact(Work::New, |txn| {
            txn.put(Table::Vms, "a", &note("refused")).map_err(|e| e.to_string())?;
            Err("no".to_owned())
        })
        .await;
    assert!(matches!(refused, Err(TransactError::Refused(why)) if why == "no"));
    let panicked: Result<(), TransactError<StoreError>> = store
        .transact(Work::New, |txn| {
            txn.put(Table::Vms, "a", &note("panicked"))?;
            panic!("out of cheese")
        })
        .await;
    assert!(panicked.unwrap_err().to_string().contains("out of cheese"));
    assert_eq!(store.get::<Note>(Table::Vms, "a").unwrap(), None);
    transact(&store, |txn| txn.put(Table::Vms, "a", &note("kept"))).await;
    assert_eq!(store.get::<Note>(Table::Vms, "a").unwrap(), Some(note("kept")));
}

#[tokio::test]
async fn a_transaction_sees_its_own_writes_and_deletions() {
    let store = memory();
    transact(&store, |txn| {
        for key in ["a1", "a2", "a3", "b1"] {
            txn.put(Table::Vms, key, &note(key))?;
        }
        Ok(())
    })
    .await;
    let seen = transact(&store, |txn| {
        txn.delete(Table::Vms, "a2")?;
        txn.put(Table::Vms, "a4", &note("a4"))?;
        txn.put(Table::Vms, "a1", &note("again"))?;
        assert_eq!(txn.get::<Note>(Table::Vms, "a2")?, None);
        txn.scan::<Note>(Table::Vms, "a")
    })
    .await;
    assert_eq!(seen, [("a1", "again"), ("a3", "a3"), ("a4", "a4")].map(|(k, t)| (k.to_owned(), note(t))));
    assert_eq!(store.scan::<Note>(Table::Vms, "a").unwrap(), seen);
}

#[tokio::test]
async fn pages_of_a_scan_follow_each_other_without_gap() {
    let store = memory();
    transact(&store, |txn| (0..25).try_for_each(|n| txn.put(Table::Vms, &format!("v{n:02}"), &note("")))).await;
    transact(&store, |txn| txn.put(Table::Vms, "w", &note(""))).await;
    let (mut keys, mut after): (Vec<String>, Option<String>) = (Vec::new(), None);
    loop {
        let page = store.scan_page::<Note>(Table::Vms, "v", after.as_deref(), 10).unwrap();
        let Some((last, _)) = page.last() else { break };
        after = Some(last.clone());
        keys.extend(page.into_iter().map(|(key, _)| key));
    }
    assert_eq!(keys, (0..25).map(|n| format!("v{n:02}")).collect::<Vec<_>>());
    assert!(store.scan_page::<Note>(Table::Vms, "v", Some("z"), 10).unwrap().is_empty());
    assert!(store.scan_page::<Note>(Table::Vms, "v", None, 0).unwrap().is_empty());
}

/// Lets syncs through one by one.
#[derive(Default)]
struct Gate {
    open: Mutex<bool>,
    changed: Condvar,
}

impl Gate {
    fn pass(&self) {
        let mut open = self.open.lock().unwrap();
        while !*open {
            open = self.changed.wait(open).unwrap();
        }
    }
    fn set(&self, open: bool) {
        *self.open.lock().unwrap() = open;
        self.changed.notify_all();
    }
}

/// A store with a writer thread on a disk whose syncs wait at a gate.
fn gated() -> (Store, Arc<Gate>) {
    let disk = FaultBackend::default();
    let options = StoreOptions { commits: Commits::Threads, ..on(&disk, &[StoreKey::generate().unwrap()]) };
    let (store, _) = Store::open(options, 1).unwrap();
    let gate = Arc::new(Gate::default());
    let of_disk = Arc::clone(&gate);
    disk.set_faults(Faults { on_sync: Some(Arc::new(move |_| of_disk.pass())), ..Faults::default() });
    (store, gate)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn while_one_group_is_written_the_next_gathers_and_reads_go_on() {
    let (store, gate) = gated();
    let first = tokio::spawn({
        let store = store.clone();
        async move { transact(&store, |txn| txn.put(Table::Vms, "first", &note("1"))).await }
    });
    let done = Arc::new(AtomicU64::new(0));
    let others: Vec<_> = (0..100)
        .map(|n| {
            let (store, done) = (store.clone(), Arc::clone(&done));
            tokio::spawn(async move {
                transact(&store, move |txn| txn.put(Table::Vms, &format!("n{n}"), &note("n"))).await;
                done.fetch_add(1, Ordering::SeqCst);
            })
        })
        .collect();
    // Each waits, or has run in the group that is written or in the next one.
    let asked = || {
        let writer = store.stats().unwrap().writer;
        writer.transactions + writer.waiting
    };
    while asked() < 101 {
        tokio::task::yield_now().await;
    }
    assert_eq!(done.load(Ordering::SeqCst), 0, "nothing is acknowledged before its sync");
    assert_eq!(store.get::<Note>(Table::Vms, "n5").unwrap(), None, "nothing shows before its commit");
    gate.set(true);
    first.await.unwrap();
    for other in others {
        other.await.unwrap();
    }
    let stats = store.stats().unwrap();
    assert!(stats.writer.groups <= 5, "101 transactions took {} groups", stats.writer.groups);
    assert_eq!(store.scan::<Note>(Table::Vms, "n").unwrap().len(), 100);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_queue_answers_busy_at_once() {
    let (store, gate) = gated();
    let tasks: Vec<_> = (0..STORE_QUEUE_MAX + 2 * STORE_BATCH_MAX + 100)
        .map(|n| {
            let store = store.clone();
            tokio::spawn(async move {
                store.transact(Work::Finish, move |txn| txn.put(Table::Vms, &format!("{n}"), &note(""))).await
            })
        })
        .collect();
    while store.stats().unwrap().writer.refused_as_busy == 0 {
        tokio::task::yield_now().await;
    }
    gate.set(true);
    let (mut kept, mut busy) = (0, 0);
    for task in tasks {
        match task.await.unwrap() {
            Ok(()) => kept += 1,
            Err(TransactError::Store(error @ StoreError::Busy { .. })) => {
                assert_eq!(ApiError::from(error).code, ErrorCode::Busy);
                busy += 1;
            }
            Err(other) => panic!("{other}"),
        }
    }
    assert!(busy > 0);
    assert_eq!(store.scan::<Note>(Table::Vms, "").unwrap().len(), kept);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_competing_decisions_the_first_recorded_wins_and_all_hear_of_it() {
    let options = StoreOptions { commits: Commits::Threads, ..StoreOptions::memory(eu()).unwrap() };
    let (store, _) = Store::open(options, 1).unwrap();
    let tasks: Vec<_> = (0..200)
        .map(|n: u32| {
            let store = store.clone();
            tokio::spawn(async move {
                transact(&store, move |txn| match txn.get::<Note>(Table::Decisions, "vm-1-1-1")? {
                    Some(decided) => Ok(decided),
                    None => {
                        let mine = note(&format!("proposal {n}"));
                        txn.put(Table::Decisions, "vm-1-1-1", &mine)?;
                        Ok(mine)
                    }
                })
                .await
            })
        })
        .collect();
    let mut heard = Vec::new();
    for task in tasks {
        heard.push(task.await.unwrap());
    }
    heard.dedup();
    assert_eq!(heard, [store.get::<Note>(Table::Decisions, "vm-1-1-1").unwrap().unwrap()]);
}

#[tokio::test]
async fn below_the_reserve_new_work_is_refused_and_running_work_ends() {
    let free = Arc::new(AtomicU64::new(5_000));
    let options = StoreOptions::memory(eu()).unwrap();
    let options = StoreOptions { reserve_bytes: 10_000, space: Space::Given(Arc::clone(&free)), ..options };
    let (store, _) = Store::open(options, 1).unwrap();
    let put = |txn: &mut Txn<'_, '_>| txn.put(Table::Vms, "a", &note("a"));
    let error = store.transact(Work::New, put).await.unwrap_err().flatten();
    assert!(matches!(error, StoreError::NoSpace { free: 5_000, reserve: 10_000 }));
    assert!(error.to_string().contains("4.9 KiB free") && error.advice().contains("Free some"), "{error}");
    store.transact(Work::Finish, put).await.unwrap();
    free.store(20_000, Ordering::Relaxed);
    store.transact(Work::New, put).await.unwrap();
}

#[tokio::test]
async fn a_journal_goes_on_after_its_trim_and_keeps_jobs_apart() {
    let store = memory();
    transact(&store, |txn| {
        for n in 1..=5 {
            assert_eq!(txn.append_event(job(1), &[n])?, u64::from(n));
        }
        txn.append_event(job(2), b"other")
    })
    .await;
    assert_eq!(transact(&store, |txn| txn.trim(job(1))).await, 0, "nothing goes without a checkpoint");
    let trimmed = transact(&store, |txn| {
        txn.checkpoint(job(1), b"fold", 3)?;
        txn.trim(job(1))
    });
    assert_eq!(trimmed.await, 3);
    assert_eq!(store.journal(job(1)).unwrap(), [(4, vec![4]), (5, vec![5])]);
    transact(&store, |txn| {
        txn.checkpoint(job(1), b"all", 5)?;
        txn.trim(job(1))
    })
    .await;
    assert_eq!(transact(&store, |txn| txn.append_event(job(1), b"6")).await, 6);
    assert_eq!(store.checkpoint(job(1)).unwrap().map(|c| c.upto), Some(5));
    transact(&store, |txn| txn.forget_job(job(1))).await;
    assert!(store.journal(job(1)).unwrap().is_empty());
    assert_eq!(store.journal(job(2)).unwrap(), [(1, b"other".to_vec())]);
}

#[tokio::test]
async fn a_command_keeps_its_id_over_restarts_until_it_is_acknowledged() {
    let disk = FaultBackend::default();
    let keys = [StoreKey::generate().unwrap()];
    let (store, opened) = Store::open(on(&disk, &keys), 1).unwrap();
    assert!(opened.created && opened.incarnation == Incarnation { counter: 1, nonce: 1 });
    let first = transact(&store, |txn| txn.enqueue(&us(), b"one")).await;
    store.close().unwrap();
    let (store, opened) = Store::open(on(&disk, &keys), 2).unwrap();
    assert!(!opened.created && opened.incarnation == Incarnation { counter: 2, nonce: 2 });
    let second = transact(&store, |txn| txn.enqueue(&us(), b"two")).await;
    let third = transact(&store, |txn| txn.enqueue(&us(), b"three")).await;
    assert!(first < second && second < third);
    let pending = store.outbox(&us()).unwrap();
    assert_eq!(pending, [(first, b"one".to_vec()), (second, b"two".to_vec()), (third, b"three".to_vec())]);
    assert_eq!(transact(&store, move |txn| txn.acknowledge(&us(), second)).await, 2);
    assert_eq!(store.acknowledged(&us()).unwrap(), Some(second));
    assert_eq!(store.outbox(&us()).unwrap(), [(third, b"three".to_vec())]);
    assert_eq!(transact(&store, move |txn| txn.acknowledge(&us(), third)).await, 1);
    assert!(store.outbox(&us()).unwrap().is_empty());
    assert_eq!(store.acknowledged(&us()).unwrap(), Some(third));
}

#[tokio::test]
async fn a_repeated_command_has_no_second_effect_also_after_the_pruning() {
    let store = memory();
    let id = |number| MessageId { incarnation: 4, number };
    let deliver = async |number: u64| {
        transact(&store, move |txn| match txn.seen(&us(), id(number))? {
            Seen::New => {
                let count = txn.get::<NoteV2>(Table::Audit, "count")?.map_or(0, |note| note.pages);
                txn.put(Table::Audit, "count", &NoteV2 { text: String::new(), pages: count + 1 })?;
                txn.mark_seen(&us(), id(number), b"done")?;
                Ok(Seen::New)
            }
            before => Ok(before),
        })
        .await
    };
    assert_eq!(deliver(1).await, Seen::New);
    assert_eq!(deliver(1).await, Seen::Answered(b"done".to_vec()));
    assert_eq!(deliver(2).await, Seen::New);
    assert_eq!(transact(&store, move |txn| txn.prune_seen(&us(), id(1))).await, 1);
    assert_eq!(deliver(1).await, Seen::Forgotten, "what was pruned is not new");
    transact(&store, move |txn| txn.prune_seen(&us(), id(0))).await;
    assert_eq!(deliver(1).await, Seen::Forgotten, "a late, lower watermark changes nothing");
    assert_eq!(deliver(2).await, Seen::Answered(b"done".to_vec()));
    assert_eq!(store.get::<NoteV2>(Table::Audit, "count").unwrap().unwrap().pages, 2);
}

#[tokio::test]
async fn a_peer_that_presents_an_earlier_incarnation_is_refused_also_after_a_restart() {
    let disk = FaultBackend::default();
    let keys = [StoreKey::generate().unwrap()];
    let at = |counter, nonce| Lineage::from(Incarnation { counter, nonce });
    let admit = async |store: &Store, life: Lineage| transact(store, move |txn| txn.admit_peer(&us(), &life)).await;
    let (store, _) = Store::open(on(&disk, &keys), 1).unwrap();
    assert_eq!(admit(&store, at(5, 50)).await, IncarnationVerdict::Accept);
    drop(store);
    let (store, _) = Store::open(on(&disk, &keys), 2).unwrap();
    assert_eq!(admit(&store, at(3, 30)).await, IncarnationVerdict::Stale);
    assert_eq!(admit(&store, at(5, 51)).await, IncarnationVerdict::Stale, "another life of the same store");
    let copy = Lineage { before: vec![51, 40], ..at(6, 61) };
    assert_eq!(admit(&store, copy).await, IncarnationVerdict::Stale, "a life that does not descend from the known one");
    let next = Lineage { before: vec![50, 40], ..at(6, 60) };
    assert_eq!(admit(&store, next).await, IncarnationVerdict::Accept);
    assert_eq!(admit(&store, at(5, 50)).await, IncarnationVerdict::Stale);
    // A late hello of its own former life does not stand in the way of its next one.
    let after = Lineage { before: vec![60, 50, 40], ..at(7, 70) };
    assert_eq!(admit(&store, after).await, IncarnationVerdict::Accept);
}

#[tokio::test]
async fn a_copy_that_is_started_again_and_again_is_never_accepted_by_its_peers() {
    let store = memory();
    let admit = async |lives: &Lineage| {
        let lives = lives.clone();
        transact(&store, move |txn| txn.admit_peer(&us(), &lives)).await
    };
    let mut truth = Lineage::after(None, 1);
    for life in 2..=60 {
        truth = Lineage::after(Some(truth), life);
    }
    let mut copy = truth.clone();
    truth = Lineage::after(Some(truth), 61);
    assert_eq!(admit(&truth).await, IncarnationVerdict::Accept);
    for start in 0..300 {
        copy = Lineage::after(Some(copy), 1_000 + start);
        assert_eq!(admit(&copy).await, IncarnationVerdict::Stale, "start {start}");
    }
    truth = Lineage::after(Some(truth), 62);
    assert_eq!(admit(&truth).await, IncarnationVerdict::Accept, "the true one comes back");
}

#[tokio::test]
async fn a_copy_that_was_refused_never_opens_again_and_counts_no_further() {
    let disk = FaultBackend::default();
    let keys = [StoreKey::generate().unwrap()];
    let (store, opened) = Store::open(on(&disk, &keys), 1).unwrap();
    assert_eq!(store.lineage(), &Lineage::after(None, 1));
    drop(store);
    let (store, _) = Store::open(on(&disk, &keys), 2).unwrap();
    assert_eq!(store.lineage(), &Lineage::after(Some(opened.incarnation.into()), 2));
    store.refuse_for_ever("host-a".into(), Incarnation { counter: 7, nonce: 70 }).await.unwrap();
    drop(store);
    for _ in 0..3 {
        let error = Store::open(on(&disk, &keys), 3).map(|_| ()).unwrap_err();
        assert!(matches!(error, StoreError::OlderCopy { known: 7, .. }), "{error}");
        assert!(error.to_string().contains("host-a") && error.advice().contains("latest state.redb"), "{error}");
    }
}

#[tokio::test]
async fn crash_counts_outlive_the_process() {
    let disk = FaultBackend::default();
    let keys = [StoreKey::generate().unwrap()];
    for life in 1..=3 {
        let (store, _) = Store::open(on(&disk, &keys), life).unwrap();
        let now = WallMillis(life);
        let count = u32::try_from(life).unwrap();
        transact(&store, move |txn| txn.put_crashes("job-1-1-1", count, now, &"x".repeat(9000))).await;
    }
    let (store, _) = Store::open(on(&disk, &keys), 9).unwrap();
    let crashes = store.crashes().unwrap();
    assert_eq!((crashes[0].1.count, crashes[0].1.last, crashes[0].1.reason.len()), (3, WallMillis(3), 500));
    transact(&store, |txn| txn.clear_crashes("job-1-1-1")).await;
    assert!(store.crashes().unwrap().is_empty());
}

#[tokio::test]
async fn minted_numbers_are_unique_with_their_incarnation() {
    let disk = FaultBackend::default();
    let keys = [StoreKey::generate().unwrap()];
    let mut ids = Vec::new();
    for life in 1..=3 {
        let (store, opened) = Store::open(on(&disk, &keys), life).unwrap();
        for _ in 0..2 {
            let number = transact(&store, |txn| Ok(txn.mint(Minted::Vm))).await;
            ids.push((opened.incarnation.counter, number));
        }
        ids.push((opened.incarnation.counter, store.mint(Minted::Vm)));
    }
    let count = ids.len();
    ids.dedup();
    assert!(ids.is_sorted() && ids.len() == count, "{ids:?}");
}

#[tokio::test]
async fn limits_are_refused_before_anything_is_written() {
    let store = memory();
    let long = "k".repeat(600);
    for closure in [
        Box::new(move |txn: &mut Txn<'_, '_>| txn.put(Table::Vms, &long, &note("")))
            as Box<dyn FnOnce(&mut Txn<'_, '_>) -> Result<(), StoreError> + Send>,
        Box::new(|txn: &mut Txn<'_, '_>| txn.put(Table::Vms, "a", &note(&"x".repeat(2 << 20)))),
        Box::new(|txn: &mut Txn<'_, '_>| txn.append_event(job(1), &vec![0; 70_000]).map(drop)),
        Box::new(|txn: &mut Txn<'_, '_>| txn.enqueue(&us(), &vec![0; 2 << 20]).map(drop)),
    ] {
        let error = store.transact(Work::New, closure).await.unwrap_err().flatten();
        assert!(matches!(error, StoreError::TooLarge { .. }), "{error}");
        assert_eq!(ApiError::from(error).code, ErrorCode::InvalidArgument);
    }
    assert!(store.failure().is_none());
}

#[tokio::test]
async fn a_value_of_a_newer_version_is_refused_and_left_as_it_is() {
    let store = memory();
    let new = NoteV2 { text: "new".into(), pages: 9 };
    let copy = new.clone();
    transact(&store, move |txn| txn.put(Table::Vms, "a", &copy)).await;
    transact(&store, |txn| txn.put(Table::Vms, "b", &note("old"))).await;
    let error = store.get::<Note>(Table::Vms, "a").unwrap_err();
    assert!(matches!(error, StoreError::Newer { found: 2, known: 1, .. }));
    assert!(error.to_string().contains("vms/a") && error.to_string().contains("newer version v2"), "{error}");
    assert_eq!(store.get::<NoteV2>(Table::Vms, "a").unwrap(), Some(new));
    assert_eq!(store.get::<NoteV2>(Table::Vms, "b").unwrap().unwrap().pages, 1, "an older one is migrated");
}

#[tokio::test]
async fn after_close_every_handle_says_so() {
    let options = StoreOptions { commits: Commits::Threads, ..StoreOptions::memory(eu()).unwrap() };
    let (store, _) = Store::open(options, 1).unwrap();
    let other = store.clone();
    store.close().unwrap();
    assert!(matches!(other.get::<Note>(Table::Vms, "a"), Err(StoreError::Closed)));
    let late = other.transact(Work::Finish, |txn| txn.put(Table::Vms, "a", &note(""))).await;
    assert!(matches!(late, Err(TransactError::Store(StoreError::Closed))));
    assert!(store.failure().is_none() && store.close().is_ok());
}

#[tokio::test]
async fn a_second_process_is_told_who_has_the_state() {
    let dir = tempfile::tempdir().unwrap();
    let (store, _) = Store::open(files(dir.path()), 1).unwrap();
    let error = Store::open(files(dir.path()), 2).unwrap_err();
    assert!(error.to_string().contains(&format!("state in use: {}", dir.path().display())), "{error}");
    assert!(error.to_string().contains(&format!("process {}", std::process::id())), "{error}");
    assert!(matches!(verify_file(&files(dir.path())), Err(StoreError::InUse { .. })));
    drop(store);
    Store::open(files(dir.path()), 2).unwrap();
}

#[tokio::test]
async fn a_region_that_lost_its_state_is_not_started_empty() {
    let dir = tempfile::tempdir().unwrap();
    let state = dir.path().join("state.redb");
    drop(Store::open(files(dir.path()), 1).unwrap());
    let whole = std::fs::read(&state).unwrap();
    for (damage, content) in [("missing", None), ("empty", Some(&[][..])), ("cut", Some(&whole[..whole.len() / 2]))] {
        match content {
            None => std::fs::remove_file(&state).unwrap(),
            Some(bytes) => std::fs::write(&state, bytes).unwrap(),
        }
        let error = Store::open(files(dir.path()), 2).unwrap_err();
        assert!(matches!(error, StoreError::Lost { .. } | StoreError::Damaged { .. }), "{damage}: {error}");
        assert!(error.advice().contains("novafed init"), "{damage}: {}", error.advice());
        if let Some(bytes) = content {
            assert_eq!(std::fs::read(&state).unwrap(), bytes, "{damage}: it was touched");
        }
    }
    std::fs::write(&state, whole).unwrap();
    assert_eq!(Store::open(files(dir.path()), 3).unwrap().1.incarnation.counter, 2);
}

#[tokio::test]
async fn somebody_elses_state_is_refused() {
    let (here, there) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    drop(Store::open(files(here.path()), 1).unwrap());
    std::fs::copy(here.path().join("store.key"), there.path().join("store.key")).unwrap();
    drop(Store::open(files(there.path()), 1).unwrap());
    let mut other = files(here.path());
    other.region = us();
    assert!(matches!(Store::open(other, 2), Err(StoreError::Foreign { .. })));
    std::fs::copy(there.path().join("state.redb"), here.path().join("state.redb")).unwrap();
    let error = Store::open(files(here.path()), 2).unwrap_err();
    assert!(matches!(error, StoreError::Foreign { .. }), "{error}");
    let mut keyless = files(there.path());
    keyless.keys = vec![StoreKey::generate().unwrap()];
    assert!(matches!(Store::open(keyless, 2), Err(StoreError::WrongKey { .. })));
}

#[tokio::test]
async fn an_interrupted_creation_is_completed_or_begun_anew() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("state.redb.new"), b"half").unwrap();
    let (store, opened) = Store::open(files(dir.path()), 1).unwrap();
    assert!(opened.created && !dir.path().join("state.redb.new").exists());
    drop(store);
    std::fs::remove_file(dir.path().join("state.id")).unwrap();
    assert!(!Store::open(files(dir.path()), 1).unwrap().1.created);
    assert!(dir.path().join("state.id").exists(), "the identity file is written again");
}

#[tokio::test]
async fn an_older_copy_opens_with_an_incarnation_that_others_know_as_past() {
    let dir = tempfile::tempdir().unwrap();
    let state = dir.path().join("state.redb");
    drop(Store::open(files(dir.path()), 1).unwrap());
    let backup = std::fs::read(&state).unwrap();
    drop(Store::open(files(dir.path()), 2).unwrap());
    let latest = Store::open(files(dir.path()), 3).unwrap().1.incarnation;
    std::fs::write(&state, backup).unwrap();
    for start in 0..9 {
        let (copy, opened) = Store::open(files(dir.path()), 9 + start).unwrap();
        assert_eq!(opened.incarnation.counter, 2 + start);
        assert_eq!(copy.lineage().judge(Some(latest)), IncarnationVerdict::Stale, "start {start}");
    }
}

#[tokio::test]
async fn verify_and_stats_say_what_is_there() {
    let dir = tempfile::tempdir().unwrap();
    let (store, _) = Store::open(files(dir.path()), 1).unwrap();
    transact(&store, |txn| (0..50).try_for_each(|n| txn.put(Table::Vms, &format!("{n}"), &note("vm")))).await;
    let (live, stats) = (store.verify().unwrap(), store.stats().unwrap());
    let vms = stats.tables.iter().find(|table| table.table == "vms").unwrap();
    assert!(vms.rows == 50 && vms.bytes > 50 * 50 && vms.file_bytes >= vms.bytes, "{vms:?}");
    assert!(stats.file_bytes.unwrap() > 0 && stats.commits == 2 && stats.writer.transactions == 1, "{stats:?}");
    store.close().unwrap();
    let offline = verify_file(&files(dir.path())).unwrap();
    assert!(live.is_good() && !live.pages_verified && offline.is_good() && offline.pages_verified);
    assert_eq!(live.values, offline.values);
    assert_eq!(stats_file(&files(dir.path())).unwrap().tables, stats.tables);
    assert_eq!(Store::open(files(dir.path()), 2).unwrap().1.incarnation.counter, 2, "looking takes no incarnation");
    let empty = tempfile::tempdir().unwrap();
    assert!(verify_file(&files(empty.path())).is_err());
    assert!(!empty.path().join("state.redb").exists(), "looking creates nothing");
}

#[tokio::test]
async fn a_changed_key_opens_everything_and_the_old_one_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let key_path = dir.path().join("store.key");
    let (store, _) = Store::open(files(dir.path()), 1).unwrap();
    transact(&store, |txn| (0..700).try_for_each(|n| txn.put(Table::Vms, &format!("{n:04}"), &note("vm")))).await;
    store.close().unwrap();
    let old = files(dir.path());
    let report = rekey_file(files(dir.path()), &key_path, 2).await.unwrap();
    assert!(report.values >= 700);
    assert!(!dir.path().join("store.key.next").exists());
    assert!(matches!(Store::open(old, 3), Err(StoreError::WrongKey { .. })));
    let (store, opened) = Store::open(files(dir.path()), 3).unwrap();
    assert!(!opened.rekey_pending && store.verify().unwrap().is_good());
    assert_eq!(store.scan::<Note>(Table::Vms, "").unwrap().len(), 700);
}

#[tokio::test]
async fn a_crash_at_any_write_of_a_change_of_keys_leaves_all_values_readable() {
    let (old, new) = (StoreKey::generate().unwrap(), StoreKey::generate().unwrap());
    let disk = FaultBackend::default();
    let (store, _) = Store::open(on(&disk, std::slice::from_ref(&old)), 1).unwrap();
    transact(&store, |txn| (0..300).try_for_each(|n| txn.put(Table::Vms, &format!("{n:04}"), &note("vm")))).await;
    store.close().unwrap();
    let image = disk.cached_image();
    let both = [old.clone(), new.clone()];
    for at in 1.. {
        let disk = FaultBackend::holding(image.clone());
        let (store, _) = Store::open(on(&disk, std::slice::from_ref(&old)), 2).unwrap();
        disk.set_faults(Faults { crash_at_write: Some(at), ..Faults::default() });
        let done = store.rekey(new.clone()).await.is_ok();
        let keep = [Keep::None, Keep::All, Keep::Subset(at)][at as usize % 3];
        let torn = FaultBackend::holding(disk.crash_image(keep));
        let (store, _) = Store::open(on(&torn, &both), 3).unwrap();
        assert!(store.verify().unwrap().is_good(), "write {at}, {keep:?}");
        assert_eq!(store.scan::<Note>(Table::Vms, "").unwrap().len(), 300);
        store.rekey(new.clone()).await.unwrap();
        store.close().unwrap();
        let (store, opened) = Store::open(on(&torn, std::slice::from_ref(&new)), 4).unwrap();
        assert!(!opened.rekey_pending && store.verify().unwrap().is_good(), "write {at}, {keep:?}");
        if done {
            break;
        }
    }
}

/// What `tests/fixtures/v1/state.redb` was written with.
async fn write_version_1(store: &Store) {
    transact(store, |txn| {
        txn.put(Table::Vms, "vm-1-1-1", &note("written by version 1"))?;
        txn.put_crashes("job-1-1-1", 1, WallMillis(1_700_000_000_000), "index out of bounds")?;
        txn.admit_peer(&us(), &Incarnation { counter: 5, nonce: 6 }.into())?;
        for event in [b"planned", b"started"] {
            txn.append_event(job(1), event)?;
        }
        txn.checkpoint(job(1), b"fold", 1)?;
        txn.trim(job(1))?;
        let first = txn.enqueue(&us(), b"acknowledged")?;
        txn.enqueue(&us(), b"pending")?;
        txn.acknowledge(&us(), first)?;
        txn.mark_seen(&us(), MessageId { incarnation: 5, number: 1 }, b"forgotten")?;
        txn.prune_seen(&us(), MessageId { incarnation: 5, number: 1 })?;
        txn.mark_seen(&us(), MessageId { incarnation: 5, number: 2 }, b"answer")
    })
    .await;
}

#[tokio::test]
async fn a_state_file_of_version_1_opens_for_ever() {
    let fixture = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/v1/state.redb");
    let key = StoreKey::parse("a test", &format!("novafed-store-key-v1 00000001 {}", "5c".repeat(32))).unwrap();
    if !fixture.exists() && std::env::var_os("NOVAFED_WRITE_FIXTURES").is_some() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("state.redb");
        let (store, _) = Store::open(StoreOptions::file(&path, eu(), vec![key.clone()]), 11).unwrap();
        write_version_1(&store).await;
        store.close().unwrap();
        std::fs::copy(path, &fixture).unwrap();
    }
    let disk = FaultBackend::holding(std::fs::read(fixture).unwrap());
    let options = StoreOptions::backend(SharedBackend::new(disk), true, eu(), vec![key]);
    let (store, opened) = Store::open(options, 12).unwrap();
    assert_eq!(opened.incarnation, Incarnation { counter: 2, nonce: 12 });
    assert_eq!(store.get::<Note>(Table::Vms, "vm-1-1-1").unwrap(), Some(note("written by version 1")));
    assert_eq!(store.crashes().unwrap()[0].1.reason, "index out of bounds");
    assert_eq!(store.journal(job(1)).unwrap(), [(2, b"started".to_vec())]);
    assert_eq!(store.checkpoint(job(1)).unwrap().map(|c| (c.upto, c.bytes)), Some((1, b"fold".to_vec())));
    let pending: Vec<_> = store.outbox(&us()).unwrap().into_iter().map(|(_, command)| command).collect();
    assert_eq!(pending, [b"pending"]);
    assert_eq!(store.acknowledged(&us()).unwrap(), Some(MessageId { incarnation: 1, number: 1 }));
    let seen = |number| transact(&store, move |txn| txn.seen(&us(), MessageId { incarnation: 5, number }));
    assert_eq!(
        (seen(1).await, seen(2).await, seen(3).await),
        (Seen::Forgotten, Seen::Answered(b"answer".to_vec()), Seen::New)
    );
    let stale = transact(&store, |txn| txn.admit_peer(&us(), &Incarnation { counter: 4, nonce: 0 }.into())).await;
    assert_eq!(stale, IncarnationVerdict::Stale);
    assert!(store.verify().unwrap().is_good());
}
