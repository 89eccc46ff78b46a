//! The matrix: every kind of deployment, of services of several sizes, with everything that usually goes wrong with one.
//!
//! No faults; two versions of a service, the second of which is in trouble. While it is, floor and ceiling hold (the judge
//! sees to that); then everything ends as it should, and nothing more is written.

use std::fmt;
use std::time::Duration;

use steady_core::v1::deployment_strategy::Value as Strategy;

use super::exhaustive::Script;
use super::users::{Breaker, Users, Wish};
use super::{Ended, Settings, exhaustive, run};

/// What is wrong with the second version.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Trouble {
    /// Its tasks do not start: it is rolled back.
    FailingImage,
    /// Its tasks are healthy and unhealthy in turn, until there is a third version.
    FlappingHealth,
    /// Its tasks take twenty seconds to start.
    SlowStart,
    /// No instance has room for one of its tasks, until there is a third version.
    NoCapacity,
}

/// A cell of the matrix.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Cell {
    /// Tasks of the service.
    pub desired: i32,
    /// minimumHealthyPercent.
    pub least: i32,
    /// maximumPercent.
    pub most: i32,
    /// How the second version takes the place of the first.
    pub strategy: Strategy,
    /// What is wrong with it.
    pub trouble: Trouble,
}

impl fmt::Display for Cell {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Cell { desired, least, most, strategy, trouble } = self;
        write!(f, "{desired} tasks, {least} to {most} %, {}, {trouble:?}", strategy.as_str_name())
    }
}

/// Every cell.
pub fn cells() -> Vec<Cell> {
    let mut cells = Vec::new();
    for desired in [1, 2, 3, 10] {
        for (least, most) in [(100, 200), (50, 200), (50, 100), (0, 100), (100, 150)] {
            for strategy in [Strategy::Rolling, Strategy::BlueGreen, Strategy::Linear, Strategy::Canary] {
                for trouble in [Trouble::FailingImage, Trouble::FlappingHealth, Trouble::SlowStart, Trouble::NoCapacity]
                {
                    let cell = Cell { desired, least, most, strategy, trouble };
                    // What can never progress is refused.
                    let (floor, ceiling) = ((desired * least + 99) / 100, desired * most / 100);
                    if floor < desired || ceiling > desired {
                        cells.push(cell);
                    }
                }
            }
        }
    }
    cells
}

/// Plays a cell.
pub fn check(cell: Cell) -> Ended {
    run(Settings { size: 8192, ..Settings::scripted(Script::Matrix(cell)) })
}

/// What users do in a cell.
pub(crate) async fn play(cell: Cell, users: &Users) {
    let world = &users.world;
    let good = Wish {
        least: cell.least,
        most: cell.most,
        strategy: cell.strategy,
        breaker: Breaker::RollsBack,
        ..Wish::simple(cell.desired)
    };
    users.apply("s0", &good).await;
    exhaustive::settle(world).await;
    let bad = Wish { version: 2, ..good.clone() };
    match cell.trouble {
        Trouble::FailingImage => users.apply("s0", &Wish { image: "never-starts", ..bad }).await,
        Trouble::SlowStart => users.apply("s0", &Wish { image: "slow", ..bad }).await,
        Trouble::FlappingHealth => users.apply("s0", &Wish { image: "flaps", ..bad }).await,
        Trouble::NoCapacity => users.apply("s0", &Wish { memory: world.settings.size + 1, ..bad }).await,
    }
    if matches!(cell.trouble, Trouble::FlappingHealth | Trouble::NoCapacity) {
        tokio::time::sleep(Duration::from_secs(120)).await;
        users.apply("s0", &Wish { version: 3, ..good }).await;
    } else {
        // Ten tasks one after the other, ten seconds each, or twenty that are slow.
        tokio::time::sleep(Duration::from_secs(400)).await;
    }
    exhaustive::settle(world).await;
}
