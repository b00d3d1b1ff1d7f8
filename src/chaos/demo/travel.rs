//! One move of the traveller, with or without a death on the way. Owns: planning, starting, watching, killing,
//! restarting, measuring. Always: figures of a move come from the survivor and from the guest's console.
//! Not here: which moves there are (`scenario.rs`).

use serde_json::json;

use super::report::{Killed, MoveReport};
use super::scenario::Demo;
use super::stage::Progress;
use crate::chaos::federation::HarnessError;
use crate::chaos::process::{LOOK_AGAIN, wait_for};
use crate::clock::Clock;
use crate::drivers::{HostCall, HostReply, SwitchKey, TransferProgress};
use crate::types::limits::BLOCK_BYTES_MAX;
use crate::types::units::{MIB, human_bytes};
use crate::types::{CheckStatus, JobState, MigrationPlan, MigrationStatus, Millis, Place};

/// A move takes a few seconds; a job that is not at its end by then is not going to be.
const MOVE_MS_MAX: Millis = Millis(60_000);
/// A node that was restarted answers within a second or two, also on a busy machine.
const SETTLED_MS_MAX: Millis = Millis(10_000);
/// Round the world a switch takes some round trips of 200 ms each.
const DOWNTIME_MS_MAX: u64 = 2_000;
/// A cap as an operator would set it, so that a move is long enough to be watched, and interrupted.
const BYTES_PER_SECOND_MAX: u64 = 64 * MIB;
/// Of the first round's bytes: kill once so much is acknowledged. The window that must be hit is 30 to 70 percent.
const KILL_AT_PERCENT: u64 = 40;

impl Demo<'_> {
    /// Moves the traveller to `to`; `killed` says whose node dies in the middle.
    pub async fn travel(&mut self, to: &Place, killed: Option<Killed>) -> Result<MoveReport, HarnessError> {
        let from = self.at.clone();
        self.check_that_it_is_busy().await?;
        let plan = self.plan(to).await?;
        let body = json!({ "planID": plan.id });
        let job: MigrationStatus = self.fed.post(&from.region, "/v2/migrations", &body).await?;
        let path = format!("/v2/migrations/{}", job.id);
        self.jobs.push((from.region.clone(), job.id));
        let title = format!("{} > {}", from.region, to.region);
        self.stage.begin(&title);

        let mut death = Death::default();
        let clock = Clock::start();
        let ended = loop {
            let status: MigrationStatus = self.fed.get(&from.region, &path).await?;
            self.stage.progress(&title, progress_of(&status));
            if status.state.is_end() || status.state == JobState::Parked {
                break status;
            }
            if clock.now().0 > MOVE_MS_MAX.0 {
                break status;
            }
            let middle = status.bytes_acknowledged * 100 >= status.bytes_total * KILL_AT_PERCENT;
            if let Some(side) = killed
                && death.happened.is_none()
                && status.state == JobState::Transferring
                && status.bytes_total > 0
                && middle
            {
                death = self.kill_and_restart(side, &from, to, &status).await?;
            }
            tokio::time::sleep(LOOK_AGAIN).await;
        };
        self.stage.end();
        self.at = if ended.state == JobState::Completed { to.clone() } else { from.clone() };
        let downtime_ms = self.gap_of(&ended)?;
        let reason = ended.reason.as_deref().map(|r| format!(" ({r})")).unwrap_or_default();
        self.stage.say(
            &title,
            &format!(
                "{}{reason}: {} in {} rounds, guest stood still for {downtime_ms:.0} ms (estimated {:.0})",
                ended.state.nova_status(),
                human_bytes(ended.bytes_sent),
                ended.iterations,
                ended.estimated_downtime_ms,
            ),
        );
        let report = MoveReport {
            id: job.id,
            vm: self.traveller_name(),
            from: from.to_string(),
            to: to.to_string(),
            result: word(ended.state),
            killed: death.happened,
            resumed_from_bytes: if killed.is_some() { ended.resumed_from_bytes } else { 0 },
            acknowledged_at_kill: death.acknowledged,
            bytes_total: ended.bytes_total,
            bytes_sent_twice: ended.bytes_sent_twice,
            rounds: ended.iterations,
            downtime_ms,
            estimated_downtime_ms: ended.estimated_downtime_ms,
        };
        self.check_move(&report, killed, ended.resumes);
        Ok(report)
    }

    async fn plan(&mut self, to: &Place) -> Result<MigrationPlan, HarnessError> {
        let body = json!({
            "vmID": self.traveller,
            "targetClusterID": to,
            "options": { "maxDowntimeMs": DOWNTIME_MS_MAX, "bandwidthLimitBytesPerSecond": BYTES_PER_SECOND_MAX },
        });
        let plan: MigrationPlan = self.fed.post(&self.at.region, "/v2/migration-plans", &body).await?;
        if !plan.executable {
            let failed: Vec<&str> =
                plan.checks.iter().filter(|c| c.status == CheckStatus::Failed).map(|c| c.message.as_str()).collect();
            return Err(HarnessError::Plan(format!("the move to {to} can't start: {}", failed.join("; "))));
        }
        let checks = plan.checks.len();
        self.stage.say(
            &format!("{} > {}", self.at.region, to.region),
            &format!(
                "planned: {} checks passed, about {} in {:.1} s, the guest to stand still for about {:.0} ms",
                checks,
                human_bytes(plan.estimated_bytes),
                plan.estimated_duration_ms / 1_000.0,
                plan.estimated_downtime_ms
            ),
        );
        Ok(plan)
    }

    /// SIGKILL in the middle, a look at what the survivor has on record, and a restart.
    async fn kill_and_restart(
        &mut self,
        side: Killed,
        from: &Place,
        to: &Place,
        status: &MigrationStatus,
    ) -> Result<Death, HarnessError> {
        let (victim, survivor) = match side {
            Killed::Source => (from, to),
            Killed::Target => (to, from),
        };
        let ticks_before = self.ticks_on(victim)?;
        self.fed.kill_node(&victim.region).await?;
        let key = SwitchKey { vm: status.vm, job: status.id, attempt: status.attempt };
        let record = self.settled(survivor, key).await?;
        let percent = (record.acknowledged_bytes * 100).checked_div(status.bytes_total).unwrap_or(0);
        let middle = if (30..=70).contains(&percent) { Ok(()) } else { Err(format!("killed at {percent} %")) };
        self.ledger.check("killed-in-the-middle", middle);
        self.stage.say(
            victim.region.as_str(),
            &format!(
                "SIGKILL for the {} node at {percent} %: {} are safe at the target; its VMs go on",
                word(side),
                human_bytes(record.acknowledged_bytes)
            ),
        );
        self.its_vms_go_on(victim, ticks_before).await?;
        self.fed.start_node(&victim.region).await?;
        self.fed.ready(&victim.region).await?;
        self.stage.say(victim.region.as_str(), "node is back, has found its host and VMs, and takes the job up again");
        Ok(Death { happened: Some(side), acknowledged: record.acknowledged_bytes })
    }

    /// The survivor's record of the transfer, once nothing changes in it any more.
    async fn settled(&self, survivor: &Place, key: SwitchKey) -> Result<TransferProgress, HarnessError> {
        let mut before = None;
        Ok(wait_for("the survivor's record of the transfer to stand still", SETTLED_MS_MAX, async || {
            match self.fed.observe(survivor, HostCall::Progress { key }).await {
                Ok(HostReply::Progress(now)) if !now.connected && before == Some(now.acknowledged_bytes) => Ok(now),
                Ok(HostReply::Progress(now)) => {
                    before = Some(now.acknowledged_bytes);
                    Err(format!("{now:?}"))
                }
                other => Err(format!("{other:?}")),
            }
        })
        .await?)
    }

    async fn its_vms_go_on(&mut self, place: &Place, before: u64) -> Result<(), HarnessError> {
        let went_on =
            wait_for("VMs to tick while their node is dead", SETTLED_MS_MAX, async || match self.ticks_on(place) {
                Ok(now) if now > before => Ok(()),
                Ok(now) => Err(format!("{now} ticks, as before")),
                Err(error) => Err(error.to_string()),
            })
            .await;
        self.ledger.check("vms-outlive-their-node", went_on.map_err(|e| e.to_string()));
        Ok(())
    }

    fn check_move(&mut self, m: &MoveReport, killed: Option<Killed>, resumes: u32) {
        let block = BLOCK_BYTES_MAX as u64;
        if killed.is_some() {
            let kept = m.resumed_from_bytes + block >= m.acknowledged_at_kill && m.acknowledged_at_kill > 0;
            let resumed = killed == m.killed && resumes > 0 && kept;
            let seen = || {
                format!(
                    "{}: resumed {resumes} times, from {} after {} were acknowledged",
                    m.id, m.resumed_from_bytes, m.acknowledged_at_kill
                )
            };
            self.ledger.check("resumed-not-restarted", if resumed { Ok(()) } else { Err(seen()) });
        }
        let twice_max = block + m.bytes_total / 100;
        let once = m.bytes_sent_twice <= twice_max;
        let seen = || format!("{}: {} sent twice, at most {}", m.id, m.bytes_sent_twice, twice_max);
        self.ledger.check("acknowledged-not-sent-again", if once { Ok(()) } else { Err(seen()) });
    }
}

#[derive(Debug, Default)]
struct Death {
    happened: Option<Killed>,
    acknowledged: u64,
}

/// The word that stands for `value` in JSON.
pub fn word(value: impl serde::Serialize) -> String {
    let json = serde_json::to_value(value).ok();
    json.as_ref().and_then(|v| v.as_str()).unwrap_or("?").to_owned()
}

fn progress_of(status: &MigrationStatus) -> Progress {
    Progress {
        total: status.bytes_total,
        acknowledged: status.bytes_acknowledged,
        rate: status.rate,
        rounds: status.iterations,
    }
}
