//! The story: what happens in which order. Owns: the cast (regions, bystanders, the traveller) and the moves.
//! Always: what a client was told is noted at once, and looked for at the end.
//! Not here: a single move (`travel.rs`), the last look (`audit.rs`).

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use super::DemoOptions;
use super::report::{Killed, MoveReport};
use super::stage::Stage;
use crate::admin::{LinkState, LinkView, Page, VmView};
use crate::chaos::federation::{Federation, HarnessError, READY_MS_MAX, Setup};
use crate::chaos::invariants::Ledger;
use crate::chaos::plant;
use crate::chaos::process::wait_for;
use crate::chaos::relay::Impairment;
use crate::chaos::world::World;
use crate::drivers::{HostCall, HostReply};
use crate::types::units::{GIB, MIB, human_bytes};
use crate::types::{
    GuestProgram, JobId, Millis, NamespaceName, Place, RegionName, RegionNumber, Resources, VmId, VmName, VmSpec,
};

/// Region, the place of the world that it stands for, its cluster.
const REGIONS: [(&str, &str, &str); 3] =
    [("eu", "West Europe", "eu-west"), ("us", "East US", "us-east"), ("ap", "Southeast Asia", "ap-south")];
const CAPACITY: Resources = Resources { cpu: 64, memory_bytes: 256 * GIB, disk_bytes: 1024 * GIB };
const BYSTANDERS: usize = 6;
/// Seconds of the arrivals' trace that pass in one second here.
const TRACE_SPEED: u64 = 600;
/// How many moves there are.
pub const MOVES: usize = 3;

/// What must hold, and must have been looked at, when all is over.
pub const INVARIANTS: [&str; 13] = [
    "no-double-run",
    "ticks-contiguous",
    "fence-monotone",
    "every-job-ended",
    "no-acknowledged-command-lost",
    "memory-and-disk-match-the-program",
    "the-guest-is-busy",
    "killed-in-the-middle",
    "resumed-not-restarted",
    "acknowledged-not-sent-again",
    "vms-outlive-their-node",
    "moved-under-a-higher-fence",
    "nothing-left-behind",
];

/// A running demo.
pub struct Demo<'a> {
    /// The regions.
    pub fed: Federation,
    /// Where it speaks.
    pub stage: &'a mut Stage,
    /// What was checked.
    pub ledger: Ledger,
    /// What was asked for.
    pub options: DemoOptions,
    /// Where the traveller is.
    pub at: Place,
    /// The traveller.
    pub traveller: VmId,
    /// Every VM whose creation was acknowledged, with the region that did.
    pub acknowledged: BTreeMap<VmId, VmSpec>,
    /// Every migration whose start was acknowledged, with the region that coordinates it.
    pub jobs: Vec<(RegionName, JobId)>,
}

/// The places, in the order in which the traveller sees them.
fn places() -> Vec<Place> {
    let place = |(region, _, cluster): (&str, &str, &str)| format!("{region}/{cluster}").parse();
    REGIONS.into_iter().map(place).collect::<Result<_, _>>().expect("literals that match the grammar")
}

/// Names of the regions.
pub fn region_names() -> Vec<String> {
    REGIONS.iter().map(|(name, ..)| (*name).to_owned()).collect()
}

fn setup(world: &World) -> Result<Setup, HarnessError> {
    let mut distances = BTreeMap::new();
    for (a, from, _) in REGIONS {
        for (b, to, _) in REGIONS.iter().filter(|(b, ..)| *b != a) {
            let rtt = world.rtt_ms(from, to).ok_or_else(|| HarnessError::Plan(format!("no latency {from} to {to}")))?;
            // Half of it each way.
            let one_way = Millis(u64::from(rtt) / 2);
            distances.insert((name(a), name(b)), Impairment { delay: one_way, ..Impairment::default() });
        }
    }
    let federation = "demo".parse().expect("a literal that matches the grammar");
    Ok(Setup { distances, seed: 7, ..Setup::of(federation, places(), CAPACITY, "") })
}

fn name(region: &str) -> RegionName {
    region.parse().expect("a literal that matches the grammar")
}

impl<'a> Demo<'a> {
    /// Starts the regions and waits until each sees the others.
    pub async fn open(options: DemoOptions, dir: &Path, stage: &'a mut Stage) -> Result<Demo<'a>, HarnessError> {
        let world = World::embedded().map_err(|e| HarnessError::Plan(e.to_string()))?;
        stage.head("Three regions on this machine, as far from each other as the places they stand for:\n");
        let fed = Federation::start(dir, &setup(&world)?, &options.binary()?).await?;
        let places = places();
        let at = places[0].clone();
        let ledger = Ledger::expecting(&INVARIANTS);
        let traveller = VmId { region: RegionNumber(0), incarnation: 0, number: 0 };
        let acknowledged = BTreeMap::new();
        let mut demo = Demo { fed, stage, ledger, options, at, traveller, acknowledged, jobs: Vec::new() };
        for (region, place, cluster) in REGIONS {
            demo.fed.ready(&name(region)).await?;
            let pid = demo.fed.pid(&name(region)).map_or_else(String::new, |p| format!(", process {p}"));
            demo.stage.say(region, &format!("node is up in {place} with cluster {cluster}{pid}"));
        }
        demo.see_the_links().await?;
        demo.people_the_regions(&world).await?;
        Ok(demo)
    }

    async fn see_the_links(&mut self) -> Result<(), HarnessError> {
        for (region, ..) in REGIONS {
            let region_name = name(region);
            let links = wait_for("the links to the other regions", READY_MS_MAX, async || {
                let page: Page<LinkView> = self.fed.get(&region_name, "/v2/links").await.map_err(|e| e.to_string())?;
                let connected = page.items.iter().filter(|l| l.state == LinkState::Connected).count();
                if connected + 1 == REGIONS.len() { Ok(page.items) } else { Err(format!("{connected} connected")) }
            })
            .await?;
            let told: Vec<String> = links
                .iter()
                .map(|l| format!("{} {:.0} ms", l.region, l.rtt_us.unwrap_or(0) as f64 / 1_000.0))
                .collect();
            self.stage.say(region, &format!("linked, round trips: {}", told.join(", ")));
        }
        Ok(())
    }

    /// VMs of shapes that clouds sell, arriving as jobs of a real trace did, and then the traveller.
    async fn people_the_regions(&mut self, world: &World) -> Result<(), HarnessError> {
        let clock = crate::clock::Clock::start();
        let places = places();
        let first = world.arrivals.first().map_or(0, |a| a.after_s);
        for (n, arrival) in world.arrivals.iter().take(BYSTANDERS).enumerate() {
            let due = (arrival.after_s - first) * 1_000 / TRACE_SPEED;
            tokio::time::sleep(Duration::from_millis(due.saturating_sub(clock.now().0))).await;
            // Every seventh shape: neighbours in the file are sizes of one family.
            let shape = &world.shapes[n * 7 % world.shapes.len()];
            let region = &places[n % places.len()].region;
            let spec = VmSpec {
                name: vm_name(&format!("{}-{n}", shape.name.to_lowercase())),
                namespace: vm_name_space(),
                cpu: shape.cpu,
                memory_bytes: shape.memory_bytes,
                disk_bytes: 64 * MIB,
                labels: BTreeMap::from([("shape".to_owned(), format!("{} {}", shape.cloud, shape.name))]),
                program: GuestProgram {
                    seed: 100 + n as u64,
                    tick_ms: 50,
                    resident_bytes: 4 * MIB,
                    working_set_bytes: MIB,
                    dirty_bytes_per_second: 256 * 1024,
                    disk_resident_bytes: 4 * MIB,
                    disk_bytes_per_second: 64 * 1024,
                    ..GuestProgram::default()
                },
            };
            self.create(region, spec).await?;
        }
        let o = &self.options;
        let shape = &world.shapes[1];
        let program = GuestProgram {
            seed: 7,
            tick_ms: 10,
            resident_bytes: o.memory_mib * MIB,
            working_set_bytes: o.memory_mib * MIB / 2,
            dirty_bytes_per_second: o.dirty_mib_per_second * MIB,
            disk_resident_bytes: o.disk_mib * MIB,
            disk_bytes_per_second: MIB,
            ..GuestProgram::default()
        };
        let spec = VmSpec {
            name: vm_name("traveller"),
            namespace: vm_name_space(),
            cpu: shape.cpu,
            memory_bytes: shape.memory_bytes,
            disk_bytes: o.disk_mib * MIB,
            labels: BTreeMap::from([("shape".to_owned(), format!("{} {}", shape.cloud, shape.name))]),
            program,
        };
        let region = self.at.region.clone();
        self.traveller = self.create(&region, spec).await?;
        self.all_run().await
    }

    async fn create(&mut self, region: &RegionName, spec: VmSpec) -> Result<VmId, HarnessError> {
        let made = self.fed.create(region, &spec).await?;
        let vm = made.vm.ok_or_else(|| HarnessError::Plan("a VM was created and not shown".into()))?;
        let shape = spec.labels.get("shape").map_or("", String::as_str);
        self.stage.say(
            region.as_str(),
            &format!(
                "{} ({shape}: {} CPUs, {}) placed on {}: {}",
                vm.record.spec.name,
                spec.cpu,
                human_bytes(spec.memory_bytes),
                vm.place,
                made.placement.reasoning
            ),
        );
        self.acknowledged.insert(vm.record.id, spec);
        Ok(vm.record.id)
    }

    async fn all_run(&mut self) -> Result<(), HarnessError> {
        for (vm, spec) in &self.acknowledged {
            let what = format!("VM {} to run", spec.name);
            let path = format!("/v2/vms/{vm}");
            wait_for(&what, READY_MS_MAX, async || {
                let view: VmView = self.fed.get(&self.at.region, &path).await.map_err(|e| e.to_string())?;
                match view.power.word() {
                    "running" => Ok(()),
                    other => Err(other.to_owned()),
                }
            })
            .await?;
        }
        Ok(())
    }

    /// The moves: one in peace, one with its source's node killed, one with its target's.
    pub async fn play(&mut self) -> Result<Vec<MoveReport>, HarnessError> {
        let [eu, us, ap] = places().try_into().expect("three regions");
        let mut moves = Vec::new();
        for (to, killed) in [(us, None), (ap, Some(Killed::Source)), (eu, Some(Killed::Target))] {
            let before = self.fence_of_traveller()?;
            let report = self.travel(&to, killed).await?;
            let went = report.result == "completed";
            moves.push(report);
            if !went {
                break;
            }
            let after = self.fence_of_traveller()?;
            let higher = if after > before { Ok(()) } else { Err(format!("{before} before, {after} after")) };
            self.ledger.check("moved-under-a-higher-fence", higher);
            self.judge_traveller().await?;
        }
        Ok(moves)
    }

    /// The host's own measure: enough of its memory is written again and again, and enough of it is there.
    pub async fn check_that_it_is_busy(&mut self) -> Result<(), HarnessError> {
        let (rate_min, resident_min) = (self.options.dirty_mib_per_second * MIB, self.options.memory_mib * MIB);
        // The first measure after a boot or a move may have seen a part of a second only.
        let busy = wait_for("the guest to be busy", Millis(5_000), async || {
            match self.fed.observe(&self.at, HostCall::DirtyRate { vm: self.traveller }).await {
                Ok(HostReply::DirtyRate(r))
                    if r.memory_bytes_per_second * 100 >= rate_min * 95 && r.resident_bytes >= resident_min =>
                {
                    Ok(r)
                }
                other => Err(format!("{other:?}")),
            }
        })
        .await;
        if let Ok(r) = &busy {
            let text = format!(
                "traveller: {} in use, {} of disk, dirties {}/s",
                human_bytes(r.resident_bytes),
                human_bytes(r.disk_resident_bytes),
                human_bytes(r.memory_bytes_per_second)
            );
            self.stage.say(self.at.region.as_str(), &text);
        }
        self.ledger.check("the-guest-is-busy", busy.map(|_| ()).map_err(|e| e.to_string()));
        Ok(())
    }

    /// The crime of `--plant double-run`.
    pub async fn run_twice(&mut self) -> Result<(), HarnessError> {
        let elsewhere = places().into_iter().find(|p| *p != self.at).expect("three regions");
        let fence = self.fence_of_traveller()?.after_move(true);
        let spec = self.acknowledged[&self.traveller].clone();
        plant::run_twice(&self.fed, &elsewhere, CAPACITY, self.traveller, spec, fence).await?;
        self.stage.say(elsewhere.region.as_str(), "planted: a second copy of the traveller runs here as well");
        Ok(())
    }

    /// The traveller's name.
    pub fn traveller_name(&self) -> String {
        self.acknowledged.get(&self.traveller).map_or_else(String::new, |s| s.name.to_string())
    }
}

fn vm_name(text: &str) -> VmName {
    let clean: String = text.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '-' }).collect();
    clean.parse().expect("letters, digits and dashes")
}

fn vm_name_space() -> NamespaceName {
    "default".parse().expect("a literal that matches the grammar")
}
