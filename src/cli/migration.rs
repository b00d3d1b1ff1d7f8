//! `migration`.

use std::time::Duration;

use super::args::{MigrationVerb, MoveArgs, SteerArgs};
use super::output::{Output, Progress, ending, note, rate, span, word};
use super::vm::{all, find, given, with_query};
use super::{CliError, own};
use crate::admin::client::{Ask, Client, ClientError};
use crate::admin::{EventView, Page, PlanRequest, StartMigration, Steer, SteerRequest};
use crate::types::limits::API_PAGE_MAX;
use crate::types::units::human_bytes;
use crate::types::{
    ApiError, CheckStatus, ErrorCode, JobId, JobState, MigrationOptions, MigrationPlan, MigrationStatus, Millis,
    PlanId, Severity,
};

/// Between two looks at a job that is followed.
const LOOK: Duration = Duration::from_millis(200);
/// How long a node that does not answer is waited for while a job of it is followed.
const PATIENCE: Millis = Millis(120_000);

pub(super) async fn migration(client: &Client, out: &mut Output, verb: MigrationVerb) -> Result<u8, CliError> {
    match verb {
        MigrationVerb::Plan { vm, to } => {
            let plan = plan(client, &vm, to).await?;
            show_plan(out, &plan)?;
            return Ok(if plan.executable { 0 } else { ErrorCode::PreconditionFailed.exit_code() });
        }
        MigrationVerb::Start { vm, to, plan: planned, max_downtime, switch_deadline, bandwidth, watch } => {
            let planned = match (planned, vm, to) {
                (Some(id), ..) => id,
                (None, Some(vm), Some(to)) => {
                    executable(plan(client, &vm, MoveArgs { to, max_downtime, switch_deadline, bandwidth }).await?)?
                }
                // Refused by clap before it comes to this.
                _ => return Err(own(ErrorCode::InvalidArgument, "say which VM goes where, or which plan to start")),
            };
            let job: MigrationStatus =
                client.typed(Ask::post("/v2/migrations").body(&StartMigration { plan: planned })).await?;
            if watch {
                return follow(client, out, job.id).await;
            }
            if out.json() {
                out.document(&job)?;
            } else {
                out.line(&format!("{} moves {} from {} to {}", job.id, job.vm, job.source, job.target))?;
                note(&format!("follow it with: novafed migration watch {}", job.id));
            }
        }
        MigrationVerb::List { vm, state, status } => {
            let vm = match vm {
                Some(name) => Some(find(client, &name).await?),
                None => None,
            };
            let query = [("vm", given(&vm)), ("state", state), ("status", status)];
            list(out, all(client, "/v2/migrations", &query).await?)?;
        }
        MigrationVerb::Show { job } => show(client, out, job).await?,
        MigrationVerb::Watch { job } => return follow(client, out, job).await,
        MigrationVerb::Cancel(args) => steer(client, out, args, Steer::Cancel).await?,
        MigrationVerb::Retry(args) => steer(client, out, args, Steer::Retry).await?,
        MigrationVerb::Probe(args) => steer(client, out, args, Steer::Probe).await?,
        MigrationVerb::Undo(args) => steer(client, out, args, Steer::Undo).await?,
        MigrationVerb::Abandon(args) => steer(client, out, args, Steer::Abandon).await?,
    }
    Ok(0)
}

async fn plan(client: &Client, vm: &str, to: MoveArgs) -> Result<MigrationPlan, CliError> {
    let request = PlanRequest {
        vm: find(client, vm).await?,
        target: to.to,
        source: None,
        options: MigrationOptions {
            bandwidth_limit_bytes_per_second: to.bandwidth,
            max_downtime_ms: to.max_downtime.map(|ms| ms.0),
            switch_deadline_ms: to.switch_deadline.map(|ms| ms.0),
        },
    };
    Ok(client.typed(Ask::post("/v2/migration-plans").body(&request)).await?)
}

/// The plan's id, or why it can't be started.
fn executable(plan: MigrationPlan) -> Result<PlanId, CliError> {
    if plan.executable {
        return Ok(plan.id);
    }
    let blocking = plan.checks.iter().filter(|c| c.status == CheckStatus::Failed && c.severity == Severity::Blocking);
    let why: Vec<_> = blocking.map(|check| format!("{}: {}", check.id, check.message)).collect();
    let text = format!("{} can't be moved to {}: {}", plan.vm, plan.target, why.join("; "));
    Err(CliError::Own(
        ApiError::new(ErrorCode::PreconditionFailed, text).hint("novafed migration plan shows the whole assessment"),
    ))
}

fn show_plan(out: &mut Output, plan: &MigrationPlan) -> Result<(), CliError> {
    if out.json() {
        return Ok(out.document(plan)?);
    }
    out.fields(&[
        ("plan", format!("{}, good until {}", plan.id, plan.expires_at)),
        ("moves", format!("{} from {} to {}", plan.vm, plan.source, plan.target)),
        ("takes", span(Millis(plan.estimated_duration_ms as u64))),
        ("stands still", format!("{:.1} ms", plan.estimated_downtime_ms)),
        ("sends", human_bytes(plan.estimated_bytes)),
    ])?;
    let row = |check: &crate::types::Check| vec![word(&check.status), check.name.clone(), check.message.clone()];
    out.table(&["check", "of", "finding"], plan.checks.iter().map(row).collect(), "Nothing was checked.")?;
    for change in &plan.storage_changes {
        out.line(&format!("storage: {} ({})", change.description, human_bytes(change.bytes)))?;
    }
    for change in &plan.network_changes {
        out.line(&format!("network: {}", change.description))?;
    }
    for risk in &plan.risks {
        out.line(&format!("risk ({}): {}", word(&risk.severity), risk.description))?;
    }
    out.line(&match plan.executable {
        true => format!("Start it with: novafed migration start --plan {}", plan.id),
        false => "It can't be started as things are: see the failed checks.".to_owned(),
    })?;
    Ok(())
}

fn list(out: &mut Output, page: Page<MigrationStatus>) -> Result<(), CliError> {
    if out.json() {
        return Ok(out.document(&page)?);
    }
    let row = |job: &MigrationStatus| {
        vec![
            job.id.to_string(),
            job.vm.to_string(),
            job.source.to_string(),
            job.target.to_string(),
            word(&job.state),
            format!("{:.0} %", job.progress),
            job.downtime_ms.map(|ms| format!("{ms:.1} ms")).unwrap_or_default(),
            job.reason.clone().unwrap_or_default(),
        ]
    };
    let head = ["id", "vm", "from", "to", "state", "done", "stood still", "reason"];
    let nothing = "No migrations began in this region. Start one: novafed migration start VM --to REGION/CLUSTER";
    Ok(out.table(&head, page.items.iter().map(row).collect(), nothing)?)
}

async fn show(client: &Client, out: &mut Output, id: JobId) -> Result<(), CliError> {
    let job: MigrationStatus = client.get(&format!("/v2/migrations/{id}")).await?;
    if out.json() {
        return Ok(out.document(&job)?);
    }
    out.fields(&[
        ("job", job.id.to_string()),
        ("moves", format!("{} from {} to {}", job.vm, job.source, job.target)),
        ("state", format!("{}, at step {}", word(&job.state), job.phase)),
        ("done", format!("{:.0} %", job.progress)),
        ("attempt", job.attempt.to_string()),
        ("acknowledged", format!("{} of {}", human_bytes(job.bytes_acknowledged), human_bytes(job.bytes_total))),
        ("sent", format!("{}, {} of it twice", human_bytes(job.bytes_sent), human_bytes(job.bytes_sent_twice))),
        ("rate", format!("{}, dirtying {}", rate(job.rate), rate(job.dirty_rate))),
        ("rounds", job.iterations.to_string()),
        (
            "resumed",
            match job.resumes {
                0 => String::new(),
                n => format!("{n} times, last from {}", human_bytes(job.resumed_from_bytes)),
            },
        ),
        ("time left", job.eta_ms.map(|ms| span(Millis(ms))).unwrap_or_default()),
        (
            "stood still",
            match job.downtime_ms {
                Some(ms) => format!("{ms:.1} ms, estimated {:.1} ms", job.estimated_downtime_ms),
                None => String::new(),
            },
        ),
        ("other side", job.last_heard_ms.map(|ms| format!("heard {} ago", span(ms))).unwrap_or_default()),
        ("reason", job.reason.clone().unwrap_or_default()),
        ("you can", job.commands.join(", ")),
        ("began", job.started_at.to_string()),
        ("ended", given(&job.completed_at).unwrap_or_default()),
    ])?;
    let mut rows = Vec::new();
    let mut after = Some("0".to_owned());
    while let Some(from) = after {
        let query = [("after", Some(from)), ("limit", Some(API_PAGE_MAX.to_string()))];
        let page: Page<EventView> = client.get(&with_query(&format!("/v2/migrations/{id}/events"), &query)).await?;
        rows.extend(page.items.iter().map(|e| {
            let of = |what: &str| e.data[what].as_str().map_or_else(|| e.data[what].to_string(), str::to_owned);
            let (side, attempt) = (of("side"), of("attempt"));
            vec![e.sequence.to_string(), e.at.to_string(), side, attempt, e.kind.clone(), e.message.clone()]
        }));
        after = page.next;
    }
    Ok(out.table(&["entry", "at", "side", "attempt", "kind", "what"], rows, "Its journal is empty.")?)
}

async fn steer(client: &Client, out: &mut Output, args: SteerArgs, steer: Steer) -> Result<(), CliError> {
    let path = format!("/v2/migrations/{}/{}", args.job, steer.word());
    let job: MigrationStatus = client.typed(Ask::post(path).body(&SteerRequest { reason: args.reason })).await?;
    if out.json() {
        return Ok(out.document(&job)?);
    }
    if steer == Steer::Cancel && !job.state.is_end() {
        return Ok(out.line(&format!("{} is being cancelled, at step {}", job.id, job.phase))?);
    }
    Ok(out.line(&ending(&job))?)
}

/// Follows a job to its end, also over the death and return of the node. 0 if it completed.
async fn follow(client: &Client, out: &mut Output, id: JobId) -> Result<u8, CliError> {
    let mut progress = Progress::new();
    let path = format!("/v2/migrations/{id}");
    let clock = crate::clock::Clock::start();
    let mut heard = clock.now();
    let job = loop {
        match client.get::<MigrationStatus>(&path).await {
            Ok(job) => {
                heard = clock.now();
                progress.show(&job);
                if job.state.is_end() || job.state == JobState::Parked {
                    break job;
                }
            }
            Err(e) => {
                let away = matches!(e, ClientError::NoNode { .. } | ClientError::Unknown { .. })
                    || matches!(e.code(), ErrorCode::Unavailable | ErrorCode::DeadlineExceeded | ErrorCode::Busy);
                if !away || clock.now().since(heard) > PATIENCE {
                    progress.done();
                    return Err(e.into());
                }
                progress.waiting("the node does not answer; the job goes on when it is back");
            }
        }
        tokio::time::sleep(LOOK).await;
    };
    progress.done();
    if out.json() {
        out.document(&job)?;
    } else {
        out.line(&ending(&job))?;
        if job.state == JobState::Parked {
            note(&format!("you can: {}", job.commands.join(", ")));
        }
    }
    Ok(if job.state == JobState::Completed { 0 } else { 1 })
}
