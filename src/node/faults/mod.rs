//! Faults that a person injects into the running region. Owns: how each is done and undone, and what keeps the time.
//! Always: it is there only if the configuration allows it; a fault ends at its time even if nobody looks; what a fault
//! changes outside of the board is set by what the board says, so that it can be set again at any time.
//! Not here: what is active when (`decision/chaos.rs`), who may ask (`node/api/chaos.rs`).

mod link;
mod stream;
mod ways;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use tokio::task::JoinHandle;

pub use link::{FaultyInbound, FaultyLink};
pub use ways::{Asked, Ways};

use crate::actors::context::Context;
use crate::actors::{Supervisor, kill};
use crate::config::ClusterConfig;
use crate::decision::chaos::{Gone, Refusal};
use crate::drivers::embedded::faults::{CallKind, Fault};
use crate::drivers::{HostError, Hypervisor};
use crate::types::*;

/// How often a link that is cut is looked at: a connection may have come about while it was being cut.
const SEVER_EVERY: Duration = Duration::from_millis(200);
/// How often a host that does not answer is asked to be well again.
const CLEAR_EVERY: Duration = Duration::from_secs(1);
/// How often in all: a host that says nothing for so long is dead, and its plans with it.
const CLEAR_MAX: u32 = 120;
/// How long a node that dies by request gives its answer.
const ANSWER: Duration = Duration::from_millis(100);
/// Why a fault is over whose time is over.
const IN_TIME: &str = "its time is over";

/// What is done to a host.
#[derive(Debug, Clone, Copy)]
pub struct HostFault {
    /// Which calls go wrong.
    pub call: CallKind,
    /// How.
    pub how: Fault,
    /// How many of them.
    pub times: u32,
}

/// The faults of one region.
pub struct Faults {
    ctx: Arc<Context>,
    ways: Arc<Ways>,
    groups: BTreeMap<&'static str, Supervisor>,
    hosts: BTreeMap<ClusterId, HostName>,
    /// The request whose record in the audit is the last thing that the node does.
    last_words: Mutex<Option<RequestId>>,
    keeper: Mutex<Option<JoinHandle<()>>>,
}

impl Drop for Faults {
    fn drop(&mut self) {
        if let Some(keeper) = self.keeper.lock().unwrap_or_else(PoisonError::into_inner).take() {
            keeper.abort();
        }
    }
}

impl Faults {
    /// Of the region of `ctx`, whose links pass `ways`.
    pub fn start(
        ctx: Arc<Context>,
        ways: Arc<Ways>,
        groups: BTreeMap<&'static str, Supervisor>,
        clusters: &[ClusterConfig],
    ) -> Arc<Faults> {
        let hosts = clusters.iter().map(|cluster| (cluster.id.clone(), cluster.host())).collect();
        let (last_words, keeper) = (Mutex::default(), Mutex::default());
        let faults = Arc::new(Faults { ctx, ways, groups, hosts, last_words, keeper });
        let keeping = tokio::spawn(keep_time(faults.ways.clone(), Arc::downgrade(&faults)));
        *faults.keeper.lock().unwrap_or_else(PoisonError::into_inner) = Some(keeping);
        faults
    }

    /// What is active.
    pub fn ways(&self) -> &Ways {
        &self.ways
    }

    /// The supervisors below the root.
    pub fn groups(&self) -> &BTreeMap<&'static str, Supervisor> {
        &self.groups
    }

    /// What only one fault may have at a time, if `spec` takes such a thing.
    pub fn takes(&self, spec: &FaultSpec) -> Option<String> {
        match spec {
            FaultSpec::Host(host) => self.hosts.get(&host.cluster).map(|of| format!("host {of} {}", host.call)),
            FaultSpec::Kill(_) => Some("kill".to_owned()),
            FaultSpec::Cut(_)
            | FaultSpec::Delay(_)
            | FaultSpec::Lose(_)
            | FaultSpec::Narrow(_)
            | FaultSpec::SlowStore(_)
            | FaultSpec::Crash(_) => None,
        }
    }

    /// Puts a fault on the board: what passes the links is changed from now on, the rest by [`Faults::perform`].
    ///
    /// # Errors
    /// Why it may not begin.
    pub fn begin(&self, id: FaultId, spec: FaultSpec, lasting: Option<Millis>, asked: Asked) -> Result<(), Refusal> {
        let takes = self.takes(&spec);
        self.ways.board(|board, now| board.begin((id, spec, takes), now, lasting, asked))
    }

    /// Does what a fault on the board is.
    ///
    /// # Errors
    /// Why it could not be done; it is off the board then.
    pub async fn perform(
        self: &Arc<Self>,
        id: FaultId,
        spec: &FaultSpec,
        host: Option<HostFault>,
    ) -> Result<(), Unable> {
        let done = match spec {
            FaultSpec::Cut(cut) => {
                if self.ways.is_apart(&cut.peer) {
                    tokio::spawn(keep_apart(self.ways.clone(), Arc::downgrade(self), cut.peer.clone()));
                }
                Ok(())
            }
            FaultSpec::Delay(_) | FaultSpec::Lose(_) | FaultSpec::Narrow(_) => Ok(()),
            FaultSpec::SlowStore(_) => {
                self.settle();
                Ok(())
            }
            FaultSpec::Host(target) => self.plan(&target.cluster, host).await,
            FaultSpec::Crash(crash) => self.crash(&crash.actor).await,
            FaultSpec::Kill(kill) => {
                self.settle();
                if kill.at.is_none() {
                    // It dies once the request stands in the audit.
                    let last = RequestId { region: id.region, incarnation: id.incarnation, number: id.number };
                    *self.last_words.lock().unwrap_or_else(PoisonError::into_inner) = Some(last);
                }
                Ok(())
            }
        };
        match &done {
            Err(unable) => drop(self.end(id, &format!("it could not be done: {unable}"))),
            Ok(()) => {
                self.ctx.events.note(self.ctx.clock.wall(), "chaos.began", id, spec.to_string());
                tracing::warn!(fault = %id, what = %spec, "a fault is injected");
                if matches!(spec, FaultSpec::Crash(_)) {
                    self.end(id, "it is done");
                }
            }
        }
        done
    }

    /// Ends a fault before its time. False if it is not on the board.
    pub fn end(self: &Arc<Self>, id: FaultId, why: &str) -> bool {
        let gone = self.ways.board(|board, now| board.end(id, now, why).cloned());
        let Some(gone) = gone else { return false };
        self.undo(&gone);
        true
    }

    /// Ends all, because the node stops.
    pub async fn end_all(self: &Arc<Self>, why: &str) {
        let ids: Vec<FaultId> = self.ways.board(|board, now| board.active(now).map(|entry| entry.id).collect());
        for id in ids {
            let fault = self.ways.board(|board, _| board.find(id).map(|entry| entry.spec.clone()));
            if !self.end(id, why) {
                continue;
            }
            // The process does not live to ask again.
            if let Some(FaultSpec::Host(host)) = fault
                && let (Some(driver), Some(call)) = (self.ctx.driver(&host.cluster), call_named(&host.call))
            {
                let _ = tokio::time::timeout(CLEAR_EVERY, driver.plan_fault(call, Fault::Refuses, 0)).await;
            }
        }
    }

    /// The record of `request` was written into the audit: the node dies if that was to be its last.
    pub fn audited(&self, request: RequestId) {
        let mut last = self.last_words.lock().unwrap_or_else(PoisonError::into_inner);
        if last.take_if(|last| *last == request).is_some() {
            tokio::spawn(async {
                tokio::time::sleep(ANSWER).await;
                kill::die()
            });
        }
    }

    /// Sets what stands outside of the board by what it says.
    fn settle(&self) {
        let (delay, point) = self
            .ways
            .board(|board, now| (board.commit_delay(now), board.kill_point(now).and_then(|point| point.parse().ok())));
        self.ctx.store.slow_commits(delay);
        self.ctx.kill.arm(point);
    }

    fn undo(self: &Arc<Self>, gone: &Gone<Asked>) {
        let entry = &gone.entry;
        self.settle();
        if let FaultSpec::Host(host) = &entry.spec
            && let (Some(driver), Some(call)) = (self.ctx.driver(&host.cluster), call_named(&host.call))
        {
            tokio::spawn(make_well(self.ways.clone(), driver, call, entry.takes.clone().unwrap_or_default()));
        }
        let text = format!("{}: {}", gone.entry.spec, gone.why);
        self.ctx.events.note(self.ctx.clock.wall(), "chaos.ended", entry.id, text);
        tracing::warn!(fault = %entry.id, what = %entry.spec, why = gone.why, "an injected fault is over");
    }

    async fn plan(&self, cluster: &ClusterId, fault: Option<HostFault>) -> Result<(), Unable> {
        let (Some(driver), Some(fault)) = (self.ctx.driver(cluster), fault) else {
            return Err(Unable::Unknown(format!("cluster {cluster} is not served here")));
        };
        Ok(driver.plan_fault(fault.call, fault.how, fault.times).await?)
    }

    async fn crash(&self, actor: &str) -> Result<(), Unable> {
        let named = actor.split_once('/').and_then(|(group, child)| Some((self.groups.get(group)?, child)));
        let Some((group, child)) = named else { return Err(Unable::Unknown(format!("there is no actor {actor}"))) };
        match group.crash_child(child).await {
            Ok(true) => Ok(()),
            Ok(false) => Err(Unable::NotRunning(actor.to_owned())),
            Err(error) => Err(Unable::Unknown(error.to_string())),
        }
    }
}

/// Why a fault could not be done.
#[derive(Debug, thiserror::Error)]
pub enum Unable {
    /// The host said no, or nothing.
    #[error("{0}")]
    Host(#[from] HostError),
    /// The actor is being restarted, or is parked.
    #[error("{0} does not run now")]
    NotRunning(String),
    /// It went away since it was asked for.
    #[error("{0}")]
    Unknown(String),
}

/// The kind of call that a request names.
pub fn call_named(name: &str) -> Option<CallKind> {
    CallKind::ALL.into_iter().find(|kind| kind.name() == name)
}

/// Ends each fault at its time.
async fn keep_time(ways: Arc<Ways>, faults: Weak<Faults>) {
    let mut changes = ways.changes();
    loop {
        let next = ways.board_quietly(|board, now| board.next_end().map(|end| end.since(now)));
        let over = async {
            match next {
                Some(left) => tokio::time::sleep(left.duration()).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            biased;
            _ = changes.changed() => {}
            () = over => {}
        }
        let Some(faults) = faults.upgrade() else { return };
        for id in ways.board_quietly(|board, now| board.due(now)) {
            faults.end(id, IN_TIME);
        }
    }
}

/// Breaks a peer's connections as long as nothing may pass.
async fn keep_apart(ways: Arc<Ways>, faults: Weak<Faults>, peer: RegionName) {
    while ways.is_apart(&peer) {
        let Some(link) = faults.upgrade().and_then(|faults| faults.ctx.link(&peer)) else { return };
        link.sever();
        drop(link);
        tokio::time::sleep(SEVER_EVERY).await;
    }
}

/// Takes back what was planned at a host, unless somebody has planned the same again. A host that has died has
/// forgotten it.
async fn make_well(ways: Arc<Ways>, driver: Arc<dyn Hypervisor>, call: CallKind, takes: String) {
    for _ in 0..CLEAR_MAX {
        if ways.board_quietly(|board, now| board.is_taken(&takes, now)) {
            return;
        }
        match driver.plan_fault(call, Fault::Refuses, 0).await {
            Ok(()) | Err(HostError::Refused { .. } | HostError::Unsupported { .. }) => return,
            Err(error) => tracing::debug!(?call, %error, "a host was not told that it is well again; once more"),
        }
        tokio::time::sleep(CLEAR_EVERY).await;
    }
    tracing::warn!(?call, takes, "a host was not told that it is well again: it does not answer");
}

#[cfg(test)]
mod tests;
