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

/// The source's side is over.
pub fn end_source(txn: &mut Txn<'_, '_>, job: JobId, ended: &SourceJobEnded) -> Result<(), StoreError> {
    txn.delete(Table::Jobs, &source_key(job))?;
    txn.put(Table::JobsEnded, &source_key(job), ended)
}

/// The target's side is over.
pub fn end_target(txn: &mut Txn<'_, '_>, job: JobId, ended: &TargetJobEnded) -> Result<(), StoreError> {
    txn.delete(Table::Jobs, &target_key(job))?;
    txn.put(Table::JobsEnded, &target_key(job), ended)
}

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

/// A plan.
pub fn plan(store: &Store, plan: PlanId) -> Result<Option<MigrationPlan>, StoreError> {
    store.get(Table::Plans, &plan.to_string())
}

/// What a client's key came to before.
///
/// # Errors
/// The store's.
pub fn request_in(txn: &mut Txn<'_, '_>, key: &str) -> Result<Option<RequestRecord>, StoreError> {
    txn.get(Table::Requests, key)
}

/// The same outside of a transaction.
pub fn request(store: &Store, key: &str) -> Result<Option<RequestRecord>, StoreError> {
    store.get(Table::Requests, key)
}

/// Remembers what a client's key came to, and forgets the one that is as many requests old as are kept.
pub fn put_request(txn: &mut Txn<'_, '_>, key: &str, fingerprint: u64, subject: &str) -> Result<(), StoreError> {
    let number = txn.get::<RequestCount>(Table::Meta, "requests")?.map_or(0, |count| count.number) + 1;
    txn.put(Table::Meta, "requests", &RequestCount { number })?;
    txn.put(Table::Requests, key, &RequestRecord { fingerprint, subject: subject.to_owned(), number })?;
    // A ring of rows by number finds the oldest without a scan.
    let ring = format!("ring/{:08}", number % limits::IDEMPOTENCY_KEYS_MAX as u64);
    if let Some(oldest) = txn.get::<RequestAge>(Table::Meta, &ring)?
        && oldest.key != key
    {
        txn.delete(Table::Requests, &oldest.key)?;
    }
    txn.put(Table::Meta, &ring, &RequestAge { key: key.to_owned() })
}

/// How many requests were remembered so far.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct RequestCount {
    number: u64,
}
crate::stored!(RequestCount, b"rcnt");

/// Which key was used how-manieth.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RequestAge {
    key: String,
}
crate::stored!(RequestAge, b"rage");

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

/// Appends to the audit: ordered by time, then by request.
pub fn put_audit<A: Stored>(
    txn: &mut Txn<'_, '_>,
    at: WallMillis,
    request: RequestId,
    record: &A,
) -> Result<(), StoreError> {
    txn.put(Table::Audit, &format!("{:014}/{request}", at.0), record)
}
