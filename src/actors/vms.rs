//! VM records, names and room, as transactions change them. Owns: that a record, its name and its room change together.
//! Always: called inside the writer's transaction; the ledgers in memory follow it there, and are rebuilt from the rows
//! at each start. Not here: hosts (`cluster.rs`), who may ask (`node/api/`).

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use super::records::{SourceJobEnded, SourceJobRecord, TransferRecord};
use super::tables::{self, ReservationRecord, VmName};
use crate::decision::migration::source::{self, Source};
use crate::decision::migration::steps::{STEPS, Step};
use crate::decision::migration::target::Target;
use crate::decision::reservations::{Commit, Ledger, Reservation, Reserve};
use crate::drivers::TransferProgress;
use crate::store::{Store, StoreError, Table, Txn};
use crate::types::{ClusterId, DesiredPower, JobId, MigrationStatus, Resources, VmId, VmRecord, VmSpec, WallMillis};

/// Room of each local cluster.
#[derive(Debug, Default)]
pub struct Ledgers(BTreeMap<ClusterId, Mutex<Ledger>>);

impl Ledgers {
    /// Read back from the rows: what VMs use, what is promised.
    ///
    /// # Errors
    /// The store's.
    pub fn load(store: &Store, capacities: BTreeMap<ClusterId, Resources>) -> Result<Ledgers, StoreError> {
        let mut ledgers: BTreeMap<ClusterId, Ledger> =
            capacities.into_iter().map(|(id, capacity)| (id, Ledger::new(capacity))).collect();
        for record in tables::vms(store)? {
            if let Some(ledger) = ledgers.get_mut(&record.cluster) {
                ledger.adopt(record.id, needs(&record.spec));
            }
        }
        for (cluster, held) in tables::reservations(store)? {
            if let Some(ledger) = ledgers.get_mut(&cluster) {
                ledger.restore(held.job, Reservation { vm: held.vm, resources: held.resources });
            }
        }
        Ok(Ledgers(ledgers.into_iter().map(|(id, ledger)| (id, Mutex::new(ledger))).collect()))
    }

    /// Works on the ledger of a cluster, if it is a local one.
    pub fn with<T>(&self, cluster: &ClusterId, f: impl FnOnce(&mut Ledger) -> T) -> Option<T> {
        self.0.get(cluster).map(|ledger| f(&mut ledger.lock().unwrap_or_else(PoisonError::into_inner)))
    }
}

/// What a VM takes.
pub fn needs(spec: &VmSpec) -> Resources {
    Resources { cpu: u64::from(spec.cpu), memory_bytes: spec.memory_bytes, disk_bytes: spec.disk_bytes }
}

fn name_key(spec: &VmSpec) -> String {
    format!("{}/{}", spec.namespace, spec.name)
}

/// Which VM has this name here, if one has.
pub fn named(txn: &mut Txn<'_, '_>, spec: &VmSpec) -> Result<Option<VmId>, StoreError> {
    Ok(txn.get::<VmName>(Table::VmNames, &name_key(spec))?.map(|name| name.vm))
}

/// Reads a record inside a transaction.
pub fn get(txn: &mut Txn<'_, '_>, vm: VmId) -> Result<Option<VmRecord>, StoreError> {
    txn.get(Table::Vms, &vm.to_string())
}

/// Writes a changed record: counts its version.
pub fn put(txn: &mut Txn<'_, '_>, mut record: VmRecord) -> Result<VmRecord, StoreError> {
    record.resource_version += 1;
    txn.put(Table::Vms, &record.id.to_string(), &record)?;
    Ok(record)
}

/// Writes a new record with its name.
pub fn create(txn: &mut Txn<'_, '_>, record: VmRecord) -> Result<VmRecord, StoreError> {
    txn.put(Table::VmNames, &name_key(&record.spec), &VmName { vm: record.id })?;
    put(txn, record)
}

/// Removes a record, its name and its room.
pub fn remove(txn: &mut Txn<'_, '_>, ledgers: &Ledgers, record: &VmRecord) -> Result<(), StoreError> {
    txn.delete(Table::Vms, &record.id.to_string())?;
    if named(txn, &record.spec)? == Some(record.id) {
        txn.delete(Table::VmNames, &name_key(&record.spec))?;
    }
    ledgers.with(&record.cluster, |ledger| ledger.vacate(record.id));
    Ok(())
}

/// The job does not move this VM any more.
pub fn unlock(txn: &mut Txn<'_, '_>, vm: VmId, job: JobId) -> Result<(), StoreError> {
    if let Some(mut record) = get(txn, vm)?
        && record.job == Some(job)
    {
        record.job = None;
        put(txn, record)?;
    }
    Ok(())
}

/// The transfer is recorded: the VM leaves its cluster. Inside a region its record goes to the target at once, so that
/// it is never without one.
pub fn leave(txn: &mut Txn<'_, '_>, ledgers: &Ledgers, job: &Source, inside: bool) -> Result<(), StoreError> {
    let Some(mut record) = get(txn, job.vm)? else { return Ok(()) };
    if !inside {
        return remove(txn, ledgers, &record);
    }
    ledgers.with(&job.from.cluster, |ledger| ledger.vacate(job.vm));
    record.cluster = job.to.cluster.clone();
    record.fence = job.next_fence;
    record.attempt = job.attempt;
    record.reasoning = format!("moved from {} by {}", job.from, job.job);
    put(txn, record).map(|_| ())
}

/// The VM belongs to this region (or cluster) now: its record, name and room.
pub fn arrive(
    txn: &mut Txn<'_, '_>,
    ledgers: &Ledgers,
    job: &Target,
    now: WallMillis,
    inside: bool,
) -> Result<(), StoreError> {
    let cluster = &job.to.cluster;
    let known = tables::decisions_in(txn, job.vm)?;
    if !inside {
        tables::put_decisions(txn, job.vm, &known.arrived(job.attempt))?;
    }
    let record = match get(txn, job.vm)? {
        // Inside a region the source's transaction brought it here.
        Some(record) if record.fence >= job.offer.next_fence => record,
        Some(_) | None => VmRecord {
            id: job.vm,
            spec: job.offer.spec.clone(),
            cluster: cluster.clone(),
            desired: DesiredPower::Running,
            fence: job.offer.next_fence,
            attempt: job.attempt,
            job: Some(job.job),
            reasoning: format!("moved from {} by {}", job.from, job.job),
            resource_version: 0,
            created_at: now,
        },
    };
    create(txn, record)?;
    tables::drop_reservation(txn, cluster, job.job)?;
    ledgers.with(cluster, |ledger| {
        if ledger.commit(job.job) == Commit::Unknown {
            ledger.adopt(job.vm, needs(&job.offer.spec));
        }
    });
    Ok(())
}

/// Promises room for a VM on its way; its name too, if it is free here.
///
/// # Errors
/// Why not, in words, with the figures.
pub fn reserve(txn: &mut Txn<'_, '_>, ledgers: &Ledgers, job: &Target) -> Result<Result<(), String>, StoreError> {
    let (cluster, spec) = (&job.to.cluster, &job.offer.spec);
    match named(txn, spec)? {
        Some(other) if other != job.vm => {
            return Ok(Err(format!("{other} has the name {}/{} in {}", spec.namespace, spec.name, job.to.region)));
        }
        Some(_) | None => {}
    }
    let resources = needs(spec);
    let granted = ledgers.with(cluster, |ledger| ledger.reserve(job.job, job.vm, resources).into_result());
    match granted {
        None => Ok(Err(format!("this region has no cluster {cluster}"))),
        Some(Err(why)) => Ok(Err(why)),
        Some(Ok(())) => {
            txn.put(Table::VmNames, &name_key(spec), &VmName { vm: job.vm })?;
            tables::put_reservation(txn, cluster, &ReservationRecord { job: job.job, vm: job.vm, resources })?;
            Ok(Ok(()))
        }
    }
}

impl Reserve {
    fn into_result(self) -> Result<(), String> {
        match self {
            Reserve::Granted | Reserve::Arrived => Ok(()),
            Reserve::Clash(held) => Err(format!("the job holds a promise of another amount: {:?}", held.resources)),
            Reserve::NoRoom { short_by } => Err(format!(
                "no room: short by {} CPU, {} memory, {} disk",
                short_by.cpu,
                crate::types::human_bytes(short_by.memory_bytes),
                crate::types::human_bytes(short_by.disk_bytes)
            )),
        }
    }
}

/// The promise and the name are given back.
pub fn free_room(txn: &mut Txn<'_, '_>, ledgers: &Ledgers, job: &Target) -> Result<(), StoreError> {
    let cluster = &job.to.cluster;
    tables::drop_reservation(txn, cluster, job.job)?;
    ledgers.with(cluster, |ledger| ledger.release(job.job));
    let is_ours = named(txn, &job.offer.spec)? == Some(job.vm) && get(txn, job.vm)?.is_none();
    if is_ours {
        txn.delete(Table::VmNames, &name_key(&job.offer.spec))?;
    }
    Ok(())
}

/// How a job stands, for the API.
pub fn status_of(
    state: &Source,
    record: &SourceJobRecord,
    transfer: &TransferRecord,
    progress: &TransferProgress,
    now: WallMillis,
) -> MigrationStatus {
    let job_state = state.state();
    let ended = job_state.is_end();
    let done = if transfer.total == 0 { 0.0 } else { transfer.acknowledged as f64 / transfer.total as f64 };
    let rate = progress.bytes_per_second;
    MigrationStatus {
        id: state.job,
        plan: record.plan,
        vm: state.vm,
        source: state.from.clone(),
        target: state.to.clone(),
        state: job_state,
        status: job_state.nova_status().to_owned(),
        phase: state.phase.step().name().to_owned(),
        progress: if ended { 100.0 } else { percent(state.phase.step(), done) },
        attempt: state.attempt,
        next_fence: state.next_fence,
        bytes_total: transfer.total,
        bytes_acknowledged: transfer.acknowledged,
        bytes_sent: transfer.sent,
        bytes_sent_twice: transfer.sent_twice,
        resumed_from_bytes: transfer.resumed_from,
        resumes: transfer.resumes,
        bytes_remaining: progress.remaining_bytes,
        rate,
        dirty_rate: progress.dirty_bytes_per_second,
        // With the last one, which is sent while the guest stands still.
        iterations: if transfer.paused_at > 0 { state.rounds + 1 } else { progress.rounds },
        eta_ms: eta(progress),
        estimated_downtime_ms: if state.estimated_downtime_us > 0 {
            state.estimated_downtime_us as f64 / 1_000.0
        } else {
            record.planned_downtime_us as f64 / 1_000.0
        },
        downtime_ms: (transfer.downtime_us > 0).then_some(transfer.downtime_us as f64 / 1_000.0),
        reason: state.note.clone(),
        commands: source::person_may(state).into_iter().map(str::to_owned).collect(),
        last_heard_ms: None,
        started_at: record.started_at,
        completed_at: ended.then_some(now),
    }
}

/// How a job that is over stands.
pub fn status_of_ended(ended: &SourceJobEnded) -> MigrationStatus {
    status_of(&ended.last, &ended.record, &ended.transfer, &TransferProgress::default(), ended.ended_at)
}

/// Each step has its share of the bar; the copy fills its own by bytes. Monotone inside a step.
fn percent(step: Step, copied: f64) -> f64 {
    const COPY_FROM: f64 = 5.0;
    const COPY_TO: f64 = 90.0;
    if step == Step::Copy {
        return COPY_FROM + (COPY_TO - COPY_FROM) * copied.min(1.0);
    }
    let forward: Vec<Step> = STEPS.iter().filter(|row| row.forward).map(|row| row.step).collect();
    let copy_at = forward.iter().position(|s| *s == Step::Copy).unwrap_or(0);
    match forward.iter().position(|s| *s == step) {
        Some(at) if at < copy_at => COPY_FROM * at as f64 / copy_at as f64,
        Some(at) => COPY_TO + (100.0 - COPY_TO) * (at - copy_at) as f64 / (forward.len() - copy_at) as f64,
        None => COPY_FROM,
    }
}

fn eta(progress: &TransferProgress) -> Option<u64> {
    let net = progress.bytes_per_second.checked_sub(progress.dirty_bytes_per_second).filter(|rate| *rate > 0)?;
    Some(progress.remaining_bytes.saturating_mul(1_000) / net)
}
