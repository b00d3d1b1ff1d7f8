//! The last look. Owns: comparing what was promised with what is there, by witnesses, judge and API.
//! Always: VMs are judged by their consoles and bytes; the API only for what the API promised.
//! Not here: how consoles and bytes are read (`drivers/embedded/{witness,judge}.rs`).

use super::scenario::Demo;
use super::travel::word;
use crate::admin::VmView;
use crate::chaos::federation::HarnessError;
use crate::chaos::invariants::witnessed;
use crate::types::{Fence, MigrationStatus, Place};

impl Demo<'_> {
    /// Ticks so far on a place's consoles.
    pub fn ticks_on(&self, place: &Place) -> Result<u64, HarnessError> {
        let report = self.fed.witness_of(place)?;
        Ok(report.vms.values().map(|account| account.ticks).sum())
    }

    /// From the last tick before the move to the first after it, milliseconds; 0 if it did not move.
    pub fn gap_of(&self, status: &MigrationStatus) -> Result<f64, HarnessError> {
        let report = self.fed.witness()?;
        let moves = report.vms.get(&status.vm).map(|account| account.moves.as_slice()).unwrap_or_default();
        let gap = moves.iter().rev().find(|m| m.fence == status.next_fence).map_or(0, |m| m.gap_nanos);
        Ok(gap as f64 / 1e6)
    }

    /// The fence under which the traveller ticked last.
    pub fn fence_of_traveller(&self) -> Result<Fence, HarnessError> {
        let report = self.fed.witness()?;
        let runs = report.vms.get(&self.traveller).map(|account| account.runs.as_slice()).unwrap_or_default();
        Ok(runs.last().map(|run| run.fence).unwrap_or_default())
    }

    /// Every byte of the traveller against its program.
    pub async fn judge_traveller(&mut self) -> Result<(), HarnessError> {
        let Some(spec) = self.acknowledged.get(&self.traveller) else { return Ok(()) };
        let judged = self.fed.judge(&self.at, self.traveller, spec).await?;
        if let Ok(verdict) = &judged {
            let text =
                format!("judge: {} pages and {} blocks are as the program made them", verdict.pages, verdict.blocks);
            self.stage.say(self.at.region.as_str(), &text);
        }
        self.ledger.check("memory-and-disk-match-the-program", judged.map(|_| ()));
        Ok(())
    }

    /// Everything that was acknowledged is there, and every job is at an end.
    pub async fn audit_promises(&mut self) -> Result<(), HarnessError> {
        let home = self.at.region.clone();
        for (vm, spec) in &self.acknowledged {
            let seen: Result<VmView, _> = self.fed.get(&home, &format!("/v2/vms/{vm}")).await;
            let there = match seen {
                Ok(view) if view.power.word() == "running" && view.record.spec == *spec => Ok(()),
                Ok(view) => Err(format!("{vm} is {} at {}", view.power.word(), view.place)),
                Err(error) => Err(format!("{vm}: {error}")),
            };
            self.ledger.check("no-acknowledged-command-lost", there);
        }
        for (region, job) in &self.jobs {
            let seen: Result<MigrationStatus, _> = self.fed.get(region, &format!("/v2/migrations/{job}")).await;
            let (known, ended) = match &seen {
                Ok(s) if s.state.is_end() => (Ok(()), Ok(())),
                Ok(s) => (Ok(()), Err(format!("{job} is {} in {}", word(s.state), s.phase))),
                Err(error) => (Err(format!("{job}: {error}")), Err(format!("{job}: {error}"))),
            };
            self.ledger.check("no-acknowledged-command-lost", known);
            self.ledger.check("every-job-ended", ended);
        }
        Ok(())
    }

    /// The consoles say that every VM ran, nowhere twice and without a gap.
    pub fn audit_witnesses(&mut self) -> Result<(), HarnessError> {
        let report = self.fed.witness()?;
        witnessed(&mut self.ledger, &report);
        for vm in self.acknowledged.keys() {
            let ticked = report.vms.get(vm).is_some_and(|account| account.ticks > 0);
            let outcome = if ticked { Ok(()) } else { Err(format!("{vm} never ticked")) };
            self.ledger.check("no-acknowledged-command-lost", outcome);
        }
        Ok(())
    }
}
