//! What a history is: everything that is not left to its seed's chance while it runs.

use fastrand::Rng;
use steady_core::v1::deployment_strategy::Value as Strategy;

use super::exhaustive::Script;
use super::users::Breaker;

/// A history's settings.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Where its chance begins.
    pub seed: u64,
    /// API servers.
    pub apis: usize,
    /// Each controller is a process of its own; else each process runs all of them. Always two of each.
    pub split: bool,
    /// Container instances.
    pub instances: usize,
    /// Services there may be.
    pub services: usize,
    /// CPU units and MiB of an instance.
    pub size: i32,
    /// Changes get lost on their way from the store to an API server.
    pub drops: bool,
    /// Seconds of faults.
    pub turmoil: usize,
    /// How likely it is that a call or a message goes wrong.
    pub unrest: f64,
    /// Controllers hear late of everything, and containers end often: decisions are old when they land.
    pub stale: bool,
    /// Writes are committed in groups.
    pub grouped: bool,
    /// How deployments that fail end.
    pub breaker: Breaker,
    /// How new tasks take the place of old ones.
    pub strategy: Strategy,
    /// The first service is a DAEMON.
    pub daemon: bool,
    /// Services have priorities, and tasks of some of them may be stopped for others.
    pub priorities: bool,
    /// Services are behind load balancers.
    pub balanced: bool,
    /// Some services are on instances that come and go.
    pub pool: bool,
    /// The last service has as many tasks as there is to do.
    pub scaled: bool,
    /// No faults at all.
    pub is_calm: bool,
    /// What is done instead of what chance says.
    pub script: Option<Script>,
    /// Print what happens.
    pub trace: bool,
}

impl Settings {
    /// The settings of a seed.
    pub fn of_seed(seed: u64) -> Self {
        let mut rng = Rng::with_seed(seed ^ 0x5eed);
        Settings {
            seed,
            apis: rng.usize(1..=3),
            split: rng.u8(0..4) == 0,
            instances: rng.usize(2..=5),
            services: rng.usize(1..=3),
            size: [1024, 2048, 4096][rng.usize(0..3)],
            drops: rng.u8(0..4) == 0,
            turmoil: if rng.u8(0..4) == 0 { rng.usize(100..200) } else { rng.usize(20..80) },
            unrest: [0.002, 0.01, 0.03][rng.usize(0..3)],
            stale: rng.u8(0..3) == 0,
            grouped: rng.u8(0..3) == 0,
            breaker: [Breaker::Never, Breaker::GivesUp, Breaker::RollsBack][rng.usize(0..3)],
            strategy: [Strategy::Rolling, Strategy::BlueGreen, Strategy::Linear, Strategy::Canary]
                [rng.usize(0..6).saturating_sub(2)],
            daemon: rng.u8(0..4) == 0,
            priorities: rng.u8(0..3) == 0,
            balanced: rng.u8(0..3) == 0,
            pool: rng.u8(0..4) == 0,
            scaled: rng.u8(0..4) == 0,
            is_calm: false,
            script: None,
            trace: false,
        }
    }

    /// A world without faults in which a script is played.
    pub fn scripted(script: Script) -> Self {
        Settings {
            seed: 1,
            apis: 1,
            split: true,
            instances: 3,
            services: 1,
            size: 4096,
            drops: false,
            turmoil: 0,
            unrest: 0.0,
            stale: false,
            grouped: false,
            breaker: Breaker::Never,
            strategy: Strategy::Rolling,
            daemon: false,
            priorities: false,
            balanced: false,
            pool: script.has_pool(),
            scaled: false,
            is_calm: true,
            script: Some(script),
            trace: false,
        }
    }
}
