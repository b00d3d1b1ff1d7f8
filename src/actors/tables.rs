//! Rows of the actors in the store. Owns: which key a record has, and that a job's journal is one for both its sides.
//! Always: what belongs together is written by the caller in one transaction.

use serde::{Deserialize, Serialize};

use super::records::{
    Cleanup, RequestRecord, SourceCheckpoint, SourceJobEnded, SourceJobRecord, TargetJobEnded, TargetJobRecord,
};
use super::serve::{Exit, HandlerError};
use crate::decision::migration::source::Input as SourceInput;
use crate::decision::migration::target::Input as TargetInput;
use crate::decision::ownership::VmDecisions;
use crate::planted::{self, Bug};
use crate::protocol::bodies::AnnounceMessage;
use crate::store::{Store, StoreError, Stored, Table, TransactError, Txn, from_bytes, to_bytes};
use crate::types::{
    ClusterId, JobId, MigrationPlan, PlanId, RegionName, RequestId, Resources, VmId, VmRecord, WallMillis, limits,
};

/// An entry of a side's journal.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct JournalEntry<I> {
    /// What happened.
    pub input: I,
    /// When, for people.
    pub at: WallMillis,
}

/// An entry of a job's journal. A move inside a region has both sides in one store.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum JobEntry {
    /// Of the source's side.
    Source(JournalEntry<SourceInput>),
    /// Of the target's side.
    Target(JournalEntry<TargetInput>),
}

/// Room that is promised to a job.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReservationRecord {
    /// The job.
    pub job: JobId,
    /// The VM on its way.
    pub vm: VmId,
    /// How much.
    pub resources: Resources,
}

crate::stored!(SourceJobRecord, b"jobs");
crate::stored!(TargetJobRecord, b"jobt");
crate::stored!(SourceCheckpoint, b"ckps");
crate::stored!(SourceJobEnded, b"ends");
crate::stored!(TargetJobEnded, b"endt");
crate::stored!(Cleanup, b"clea");
crate::stored!(RequestRecord, b"reqs");
crate::stored!(JobEntry, b"jent");
crate::stored!(ReservationRecord, b"resv");
crate::stored!(VmRecord, b"vmrc");
crate::stored!(VmDecisions, b"deci");
crate::stored!(MigrationPlan, b"plan");
crate::stored!(VmName, b"name");

/// Which VM has a name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct VmName {
    /// The VM.
    pub vm: VmId,
}

/// A store that is busy or short of space is a dependency that is down, not a crash of who needs it.
pub fn store_failed(error: TransactError<StoreError>) -> HandlerError {
    match error.flatten() {
        error @ (StoreError::Busy { .. } | StoreError::NoSpace { .. }) => {
            Exit::DependencyDown(error.to_string()).into()
        }
        error => error.into(),
    }
}

fn source_key(job: JobId) -> String {
    format!("source/{job}")
}

fn target_key(job: JobId) -> String {
    format!("target/{job}")
}

// -- jobs --------------------------------------------------------------------

/// Writes an open job, source's side.
pub fn put_source_job(txn: &mut Txn<'_, '_>, record: &SourceJobRecord) -> Result<(), StoreError> {
    txn.put(Table::Jobs, &source_key(record.first.job), record)
}

/// Writes an open job, target's side.
pub fn put_target_job(txn: &mut Txn<'_, '_>, record: &TargetJobRecord) -> Result<(), StoreError> {
    txn.put(Table::Jobs, &target_key(record.first.job), record)
}

/// An open job, source's side.
pub fn source_job(store: &Store, job: JobId) -> Result<Option<SourceJobRecord>, StoreError> {
    store.get(Table::Jobs, &source_key(job))
}

/// An open job, target's side.
pub fn target_job(store: &Store, job: JobId) -> Result<Option<TargetJobRecord>, StoreError> {
    store.get(Table::Jobs, &target_key(job))
}

/// Whether a job's target side is open, inside a transaction.
pub fn target_job_in(txn: &mut Txn<'_, '_>, job: JobId) -> Result<Option<TargetJobRecord>, StoreError> {
    txn.get(Table::Jobs, &target_key(job))
}

/// A job that is over, source's side.
pub fn source_ended(store: &Store, job: JobId) -> Result<Option<SourceJobEnded>, StoreError> {
    store.get(Table::JobsEnded, &source_key(job))
}

/// A job that is over, target's side.
pub fn target_ended(store: &Store, job: JobId) -> Result<Option<TargetJobEnded>, StoreError> {
    store.get(Table::JobsEnded, &target_key(job))
}

/// The same inside a transaction.
pub fn target_ended_in(txn: &mut Txn<'_, '_>, job: JobId) -> Result<Option<TargetJobEnded>, StoreError> {
    txn.get(Table::JobsEnded, &target_key(job))
}

/// All jobs that are over here, source's side.
pub fn sources_ended(store: &Store) -> Result<Vec<SourceJobEnded>, StoreError> {
    let rows: Vec<(String, SourceJobEnded)> = store.scan(Table::JobsEnded, "source/")?;
    Ok(rows.into_iter().map(|(_, row)| row).collect())
}

/// All open jobs: those of the source's side, those of the target's.
pub fn open_jobs(store: &Store) -> Result<(Vec<SourceJobRecord>, Vec<TargetJobRecord>), StoreError> {
    let source: Vec<(String, SourceJobRecord)> = store.scan(Table::Jobs, "source/")?;
    let target: Vec<(String, TargetJobRecord)> = store.scan(Table::Jobs, "target/")?;
    Ok((source.into_iter().map(|(_, r)| r).collect(), target.into_iter().map(|(_, r)| r).collect()))
}

/// The source's side is over. The oldest one that is over is forgotten if there are too many.
pub fn end_source(txn: &mut Txn<'_, '_>, job: JobId, ended: &SourceJobEnded) -> Result<(), StoreError> {
    txn.delete(Table::Jobs, &source_key(job))?;
    txn.put(Table::JobsEnded, &source_key(job), ended)?;
    if let Some(oldest) = keep(txn, "jobs-ended", limits::JOBS_ENDED_MAX, &job.to_string())? {
        let oldest = job_in_ring(&oldest)?;
        txn.delete(Table::JobsEnded, &source_key(oldest))?;
        // Of a move inside the region the target's side may be open still: it is folded from the same journal.
        if target_job_in(txn, oldest)?.is_none() {
            txn.forget_job(oldest)?;
        }
    }
    Ok(())
}

/// The target's side is over. What came of it is kept for good: a source that was cut off may still ask, and must not
/// be taken for a new job. Its journal is forgotten as the source's is.
pub fn end_target(txn: &mut Txn<'_, '_>, job: JobId, ended: &TargetJobEnded) -> Result<(), StoreError> {
    txn.delete(Table::Jobs, &target_key(job))?;
    txn.put(Table::JobsEnded, &target_key(job), ended)?;
    if let Some(oldest) = keep(txn, "jobs-received", limits::JOBS_ENDED_MAX, &job.to_string())? {
        let oldest = job_in_ring(&oldest)?;
        let other_side: [Option<()>; 2] = [
            txn.get::<SourceJobRecord>(Table::Jobs, &source_key(oldest))?.map(|_| ()),
            txn.get::<SourceJobEnded>(Table::JobsEnded, &source_key(oldest))?.map(|_| ()),
        ];
        // Of a move inside the region the journal is the source's, too.
        if other_side.iter().all(Option::is_none) {
            txn.forget_job(oldest)?;
        }
    }
    Ok(())
}

fn job_in_ring(name: &str) -> Result<JobId, StoreError> {
    name.parse()
        .map_err(|_| StoreError::Damaged { what: "a ring of jobs".into(), detail: format!("'{name}' is no job id") })
}

/// Takes note of the newest of the `max` things of a kind that are kept, and tells the oldest, whose place it takes.
/// A ring of rows by number finds that without a scan; `max` may grow from build to build, but not shrink: rows beyond
/// it would never be found again.
fn keep(txn: &mut Txn<'_, '_>, kind: &str, max: usize, name: &str) -> Result<Option<String>, StoreError> {
    let count = format!("ring/{kind}");
    let number = txn.get::<RingCount>(Table::Meta, &count)?.map_or(0, |count| count.number) + 1;
    txn.put(Table::Meta, &count, &RingCount { number })?;
    let place = format!("ring/{kind}/{:08}", number % max as u64);
    let oldest = txn.get::<RingEntry>(Table::Meta, &place)?.map(|entry| entry.name);
    txn.put(Table::Meta, &place, &RingEntry { name: name.to_owned() })?;
    Ok(oldest.filter(|oldest| oldest != name))
}

/// How many of a kind there were so far.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
struct RingCount {
    number: u64,
}
crate::stored!(RingCount, b"rcnt");

/// Which one has a place in the ring.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct RingEntry {
    name: String,
}
crate::stored!(RingEntry, b"rent");

// -- journals ----------------------------------------------------------------

/// Appends to a job's journal.
pub fn append(txn: &mut Txn<'_, '_>, job: JobId, entry: &JobEntry) -> Result<(), StoreError> {
    let bytes = to_bytes(entry)?;
    txn.append_event(job, &bytes).map(|_| ())
}

/// A job's journal, both sides, in order.
pub fn journal(store: &Store, job: JobId) -> Result<Vec<(u64, JobEntry)>, StoreError> {
    let entries = store.journal(job)?;
    entries.into_iter().map(|(sequence, bytes)| Ok((sequence, from_bytes("journal", &bytes)?))).collect()
}

/// The source's entries of a job's journal.
pub fn source_journal(store: &Store, job: JobId) -> Result<Vec<JournalEntry<SourceInput>>, StoreError> {
    let entries = journal(store, job)?.into_iter();
    Ok(entries.filter_map(|(_, e)| if let JobEntry::Source(e) = e { Some(e) } else { None }).collect())
}

/// The target's entries of a job's journal.
pub fn target_journal(store: &Store, job: JobId) -> Result<Vec<JournalEntry<TargetInput>>, StoreError> {
    let entries = journal(store, job)?.into_iter();
    Ok(entries.filter_map(|(_, e)| if let JobEntry::Target(e) = e { Some(e) } else { None }).collect())
}

/// A source's checkpoint.
pub fn source_checkpoint(store: &Store, job: JobId) -> Result<Option<SourceCheckpoint>, StoreError> {
    let Some(checkpoint) = store.checkpoint(job)? else { return Ok(None) };
    from_bytes("checkpoints", &checkpoint.bytes).map(Some)
}

/// Writes a source's checkpoint.
pub fn put_source_checkpoint(
    txn: &mut Txn<'_, '_>,
    job: JobId,
    checkpoint: &SourceCheckpoint,
) -> Result<(), StoreError> {
    let bytes = to_bytes(checkpoint)?;
    let upto = txn.last_event(job)?;
    txn.checkpoint(job, &bytes, upto)
}

// -- VMs ---------------------------------------------------------------------

/// A VM that this region owns.
pub fn vm(store: &Store, vm: VmId) -> Result<Option<VmRecord>, StoreError> {
    store.get(Table::Vms, &vm.to_string())
}

/// All VMs that this region owns.
pub fn vms(store: &Store) -> Result<Vec<VmRecord>, StoreError> {
    Ok(store.scan(Table::Vms, "")?.into_iter().map(|(_, record)| record).collect())
}

/// What was decided about a VM.
pub fn decisions(store: &Store, vm: VmId) -> Result<VmDecisions, StoreError> {
    Ok(store.get(Table::Decisions, &vm.to_string())?.unwrap_or_default())
}

/// The same inside a transaction.
pub fn decisions_in(txn: &mut Txn<'_, '_>, vm: VmId) -> Result<VmDecisions, StoreError> {
    Ok(txn.get(Table::Decisions, &vm.to_string())?.unwrap_or_default())
}

/// Writes what was decided about a VM.
pub fn put_decisions(txn: &mut Txn<'_, '_>, vm: VmId, decisions: &VmDecisions) -> Result<(), StoreError> {
    txn.put(Table::Decisions, &vm.to_string(), decisions)
}

// -- the rest ----------------------------------------------------------------

/// A durable command to a region (this one included).
pub fn tell(txn: &mut Txn<'_, '_>, region: &RegionName, message: &AnnounceMessage) -> Result<(), StoreError> {
    // As it travels: the receiver reads the same bytes.
    let bytes = postcard::to_stdvec(message)
        .map_err(|error| StoreError::Encode { kind: "announcement".into(), why: error.to_string() })?;
    txn.enqueue(region, &bytes).map(|_| ())
}

/// One for each copy: a VM that comes back to a cluster and leaves it again leaves another one.
fn cleanup_key(cleanup: &Cleanup) -> String {
    format!("{}/{}/{}", cleanup.cluster, cleanup.vm, cleanup.fence)
}

/// Owes a clean-up.
pub fn owe(txn: &mut Txn<'_, '_>, cleanup: &Cleanup) -> Result<(), StoreError> {
    txn.put(Table::Cleanups, &cleanup_key(cleanup), cleanup)
}

/// A clean-up is done.
pub fn settle_cleanup(txn: &mut Txn<'_, '_>, cleanup: &Cleanup) -> Result<(), StoreError> {
    txn.delete(Table::Cleanups, &cleanup_key(cleanup))
}

/// Clean-ups owed at a cluster, or at all of them.
pub fn cleanups(store: &Store, cluster: Option<&ClusterId>) -> Result<Vec<Cleanup>, StoreError> {
    let prefix = cluster.map(|c| format!("{c}/")).unwrap_or_default();
    Ok(store.scan(Table::Cleanups, &prefix)?.into_iter().map(|(_, cleanup)| cleanup).collect())
}

/// Keeps a new plan, and forgets the oldest if there are too many.
pub fn put_plan(txn: &mut Txn<'_, '_>, plan: &MigrationPlan) -> Result<(), StoreError> {
    let id = plan.id.to_string();
    txn.put(Table::Plans, &id, plan)?;
    match keep(txn, "plans", limits::PLANS_MAX, &id)? {
        Some(oldest) => txn.delete(Table::Plans, &oldest),
        None => Ok(()),
    }
}

/// A plan.
pub fn plan(store: &Store, plan: PlanId) -> Result<Option<MigrationPlan>, StoreError> {
    store.get(Table::Plans, &plan.to_string())
}

/// What a client's key came to before.
///
/// # Errors
/// The store's.
pub fn request_in(txn: &mut Txn<'_, '_>, key: &str) -> Result<Option<RequestRecord>, StoreError> {
    if planted::is(Bug::DedupForgotten) {
        return Ok(None);
    }
    txn.get(Table::Requests, key)
}

/// The same outside of a transaction.
pub fn request(store: &Store, key: &str) -> Result<Option<RequestRecord>, StoreError> {
    if planted::is(Bug::DedupForgotten) {
        return Ok(None);
    }
    store.get(Table::Requests, key)
}

/// Remembers what a client's key came to, and forgets the one that is as many requests old as are kept.
pub fn put_request(txn: &mut Txn<'_, '_>, key: &str, fingerprint: u64, subject: &str) -> Result<(), StoreError> {
    txn.put(Table::Requests, key, &RequestRecord { fingerprint, subject: subject.to_owned() })?;
    match keep(txn, "requests", limits::IDEMPOTENCY_KEYS_MAX, key)? {
        Some(oldest) => txn.delete(Table::Requests, &oldest),
        None => Ok(()),
    }
}

/// Room promised to jobs, in all clusters.
pub fn reservations(store: &Store) -> Result<Vec<(ClusterId, ReservationRecord)>, StoreError> {
    let rows: Vec<(String, ReservationRecord)> = store.scan(Table::Reservations, "")?;
    Ok(rows.into_iter().filter_map(|(key, record)| Some((key.split_once('/')?.0.parse().ok()?, record))).collect())
}

/// Writes a promise.
pub fn put_reservation(
    txn: &mut Txn<'_, '_>,
    cluster: &ClusterId,
    record: &ReservationRecord,
) -> Result<(), StoreError> {
    txn.put(Table::Reservations, &format!("{cluster}/{}", record.job), record)
}

/// Forgets a promise.
pub fn drop_reservation(txn: &mut Txn<'_, '_>, cluster: &ClusterId, job: JobId) -> Result<(), StoreError> {
    txn.delete(Table::Reservations, &format!("{cluster}/{job}"))
}

// -- audit -------------------------------------------------------------------

/// Appends to the audit: ordered by time, then by request. The oldest record goes if there are too many.
pub fn put_audit<A: Stored>(
    txn: &mut Txn<'_, '_>,
    at: WallMillis,
    request: RequestId,
    record: &A,
) -> Result<(), StoreError> {
    let key = format!("{:014}/{request}", at.0);
    txn.put(Table::Audit, &key, record)?;
    match keep(txn, "audit", limits::AUDIT_MAX, &key)? {
        Some(oldest) => txn.delete(Table::Audit, &oldest),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::fixture::holds;
    use crate::store::{StoreOptions, Work};

    #[test]
    fn the_formats_are_frozen() {
        holds(&RingCount { number: 300 });
        holds(&RingEntry { name: "job-1-1-3".into() });
    }

    #[tokio::test]
    async fn the_newest_of_a_kind_are_kept_and_each_older_one_is_told_once() {
        let (store, _) = Store::open(StoreOptions::memory("eu".parse().unwrap()).unwrap(), 1).unwrap();
        let mut kept = std::collections::VecDeque::new();
        for number in 0..40 {
            let name = format!("x-{number}");
            kept.push_back(name.clone());
            let expected = if kept.len() > 7 { kept.pop_front() } else { None };
            let oldest = store.transact(Work::Finish, move |txn| keep(txn, "things", 7, &name)).await.unwrap();
            assert_eq!(oldest, expected);
        }
    }
}
