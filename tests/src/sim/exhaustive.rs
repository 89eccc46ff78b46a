//! Exhaustive mode: a fixed story, told again and again, each time with one crash or one lost event in another place.
//!
//! Every write of every controller and agent is crashed before, after, and after its answer; every event of every
//! controller is skipped and frozen. Each story has to end as it does without any of it.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use steady_core::v1::deployment_strategy::Value as Strategy;
use steady_core::v1::instance_state::Value as InstanceState;

use super::life::{Life, Moment, lock};
use super::matrix::{self, Cell};
use super::net::FrameFate;
use super::pool::PoolWish;
use super::process::Role;
use super::users::{Breaker, Users, Wish};
use super::{Ended, Settings, World, end, run_with};

/// How long a frozen watch says nothing.
const FROZEN: Duration = Duration::from_secs(12);

/// A story.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Script {
    FirstDeploy,
    RollingUpdate,
    BlueGreen,
    Rollback,
    ScaleIn,
    Drain,
    InstanceLoss,
    Delete,
    /// Tasks bring instances.
    Grow,
    /// Instances are replaced by others.
    Replace,
    /// Of the matrix; not among all of them.
    Matrix(Cell),
}

impl Script {
    /// All of them.
    pub const ALL: [Script; 10] = [
        Script::FirstDeploy,
        Script::RollingUpdate,
        Script::BlueGreen,
        Script::Rollback,
        Script::ScaleIn,
        Script::Drain,
        Script::InstanceLoss,
        Script::Delete,
        Script::Grow,
        Script::Replace,
    ];

    /// Whether its service is on instances that come and go.
    pub(crate) fn has_pool(self) -> bool {
        matches!(self, Script::Grow | Script::Replace)
    }

    /// What users do in it. Everything before the probe is armed is its beginning.
    pub(crate) async fn play(self, users: &Users) {
        if let Script::Matrix(cell) = self {
            return matrix::play(cell, users).await;
        }
        let world = &users.world;
        // On instances that come and go, each task has one of its own.
        let wish = if self.has_pool() { Wish { memory: 3000, ..Wish::simple(2) } } else { Wish::simple(3) };
        if self.has_pool() {
            users.apply_pool(PoolWish::simple(1)).await;
        }
        if !matches!(self, Script::FirstDeploy | Script::Grow) {
            users.apply("s0", &wish).await;
            settle(world).await;
        }
        lock(&world.probe).armed = true;
        match self {
            Script::FirstDeploy | Script::Grow => users.apply("s0", &wish).await,
            Script::RollingUpdate => users.apply("s0", &Wish { version: 2, ..wish }).await,
            Script::BlueGreen => {
                users.apply("s0", &Wish { version: 2, strategy: Strategy::BlueGreen, ..wish }).await;
            }
            Script::Rollback => {
                let bad = Wish { version: 2, image: "never-starts", breaker: Breaker::RollsBack, ..wish };
                users.apply("s0", &bad).await;
            }
            Script::ScaleIn => users.apply("s0", &Wish { desired: 1, ..wish }).await,
            Script::Matrix(_) => {}
            Script::Delete => users.delete("s0").await,
            Script::Replace => users.apply_pool(PoolWish::simple(2)).await,
            Script::Drain => {
                users.set_state("node-0", InstanceState::Draining).await;
                users.apply("s0", &Wish { version: 2, ..wish }).await;
            }
            Script::InstanceLoss => {
                let agent = world.lives().into_iter().find(|(_, role, _)| *role == Role::Agent(0));
                if let Some((_, _, life)) = agent {
                    life.pause(Duration::from_secs(80));
                    tokio::time::sleep(Duration::from_secs(82)).await;
                }
            }
        }
        settle(world).await;
    }
}

pub(crate) async fn settle(world: &World) {
    let settled = async {
        while !end::problems(world).is_empty() {
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    };
    let _ = tokio::time::timeout(Duration::from_secs(60), settled).await;
    tokio::time::sleep(Duration::from_secs(1)).await;
}

/// What goes wrong, once.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum What {
    Crash(Moment),
    Skip,
    Freeze,
}

/// What goes wrong, and where.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Perturbation {
    /// `service`, `scheduler`, …, `agent`.
    pub role: String,
    /// In which write or event of the role, from 1.
    pub number: u32,
    pub what: What,
}

impl fmt::Display for Perturbation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let what = match self.what {
            What::Crash(Moment::Before) => "crash before write",
            What::Crash(Moment::After) => "crash after write, unanswered,",
            What::Crash(Moment::Answered) => "crash after the answer to write",
            What::Skip => "skip event",
            What::Freeze => "freeze at event",
        };
        write!(f, "{}: {what} {}", self.role, self.number)
    }
}

/// Writes and events of each role.
#[derive(Debug, Clone, Default)]
pub struct Counts {
    pub writes: BTreeMap<String, u32>,
    pub events: BTreeMap<String, u32>,
}

/// What counts writes and events, and makes one of them go wrong.
#[derive(Debug, Default)]
pub struct Probe {
    want: Option<Perturbation>,
    armed: bool,
    pub counts: Counts,
}

impl Probe {
    pub fn new(want: Option<Perturbation>) -> Self {
        Probe { want, ..Probe::default() }
    }

    fn wanted(&self, role: &str, number: u32) -> Option<&What> {
        self.want.as_ref().filter(|want| want.role == role && want.number == number).map(|want| &want.what)
    }
}

fn role(life: &Life) -> &str {
    life.name.rsplit_once('-').map_or("", |(role, _)| role)
}

/// A process writes: where in it it is to crash.
pub(super) fn write(world: &World, life: &Life) -> Option<Moment> {
    let mut probe = lock(&world.probe);
    if !probe.armed || life.is_dead() || role(life).is_empty() {
        return None;
    }
    let count = probe.counts.writes.entry(role(life).to_owned()).or_default();
    *count += 1;
    let number = *count;
    match probe.wanted(role(life), number) {
        Some(What::Crash(moment)) => Some(*moment),
        _ => None,
    }
}

/// A controller is told something by its watch: what becomes of it.
pub(super) fn event(world: &World, life: &Life) -> Option<FrameFate> {
    let mut probe = lock(&world.probe);
    if !probe.armed {
        return None;
    }
    let count = probe.counts.events.entry(role(life).to_owned()).or_default();
    *count += 1;
    let number = *count;
    match probe.wanted(role(life), number) {
        Some(What::Skip) => Some(FrameFate::Dropped),
        Some(What::Freeze) => Some(FrameFate::Delayed(FROZEN)),
        _ => None,
    }
}

/// Everything that can go wrong in a story that was told once without.
pub fn perturbations(counts: &Counts) -> Vec<Perturbation> {
    let mut all = Vec::new();
    let mut add = |role: &String, count: u32, whats: &[What]| {
        for number in 1..=count {
            all.extend(whats.iter().map(|what| Perturbation { role: role.clone(), number, what: what.clone() }));
        }
    };
    let crashes = [Moment::Before, Moment::After, Moment::Answered].map(What::Crash);
    for (role, count) in &counts.writes {
        add(role, *count, &crashes);
    }
    for (role, count) in &counts.events {
        add(role, *count, &[What::Skip, What::Freeze]);
    }
    all
}

/// Tells a story with something going wrong; why it did not end as it should, if it did not.
pub fn check(script: Script, perturbation: &Perturbation, expected: &Ended) -> Result<(), String> {
    let ended = run_with(Settings::scripted(script), None, Some(perturbation.clone()));
    if let Some(reason) = ended.broken {
        return Err(format!("{script:?}, {perturbation}: {reason}"));
    }
    if ended.digest != expected.digest {
        return Err(format!("{script:?}, {perturbation}: ended as {:?}, not {:?}", ended.digest, expected.digest));
    }
    Ok(())
}
