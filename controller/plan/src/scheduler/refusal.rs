//! Why no instance takes a task, summed up for people.

use std::collections::BTreeMap;
use std::fmt;

use steady_core::v1::Demand;

/// Why one instance refuses a task.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Reason {
    Draining,
    Disconnected,
    /// CPU units that it has free.
    Cpu(i64),
    /// MiB that it has free.
    Memory(i64),
    Port(i32),
    Distinct,
    /// Its placement constraints do not select it.
    Constraint,
    /// The only instance that the task may be on is not there.
    Gone,
}

/// Refusals of one task by every instance.
#[derive(Debug)]
pub(super) struct Refusals {
    needs: Demand,
    by_class: BTreeMap<&'static str, Class>,
}

#[derive(Debug, Default)]
struct Class {
    count: usize,
    /// The instance that comes nearest, and what it has.
    nearest: Option<(i64, String)>,
}

impl Refusals {
    pub(super) fn new(needs: &Demand) -> Self {
        Refusals { needs: needs.clone(), by_class: BTreeMap::new() }
    }

    pub(super) fn add(&mut self, instance: &str, reason: Reason) {
        let (class, amount) = match reason {
            Reason::Memory(free) => ("RESOURCE:MEMORY", free),
            Reason::Cpu(free) => ("RESOURCE:CPU", free),
            Reason::Port(port) => ("RESOURCE:PORTS", port.into()),
            Reason::Distinct => ("DISTINCT", 0),
            Reason::Disconnected => ("AGENT", 0),
            Reason::Draining => ("DRAINING", 0),
            Reason::Constraint => ("MEMBEROF", 0),
            Reason::Gone => ("TARGET", 0),
        };
        let class = self.by_class.entry(class).or_default();
        class.count += 1;
        if class.nearest.as_ref().is_none_or(|(most, _)| amount > *most) {
            class.nearest = Some((amount, instance.to_owned()));
        }
    }

    /// ECS' reason of the class that most instances are in.
    pub(super) fn reason(&self) -> &'static str {
        self.by_class.iter().max_by_key(|(_, class)| class.count).map_or("NO ACTIVE INSTANCES", |(name, _)| name)
    }
}

impl fmt::Display for Refusals {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.by_class.is_empty() {
            return f.write_str(
                "No Container Instances were found in your cluster. Start an agent: steady agent --server …",
            );
        }
        for (i, (name, class)) in self.by_class.iter().enumerate() {
            let separator = if i == 0 { "" } else { "; " };
            let instances = if class.count == 1 { "instance" } else { "instances" };
            write!(f, "{separator}{} {instances}: ", class.count)?;
            let (amount, nearest) = class.nearest.clone().unwrap_or_default();
            let short = |needs: i32, unit: &str| {
                let missing = i64::from(needs) - amount;
                format!("needs {needs} {unit}; {nearest} has the most free, {amount} {unit}: {missing} {unit} missing")
            };
            match *name {
                "RESOURCE:MEMORY" => write!(f, "insufficient memory ({})", short(self.needs.memory, "MiB"))?,
                "RESOURCE:CPU" => write!(f, "insufficient CPU ({})", short(self.needs.cpu, "CPU units"))?,
                "RESOURCE:PORTS" => write!(f, "host port {amount} is in use ({nearest})")?,
                "DISTINCT" => write!(f, "has a task of the group already (distinctInstance)")?,
                "TARGET" => write!(f, "{nearest} is not there any more")?,
                "MEMBEROF" => write!(f, "MemberOf placement constraint unsatisfied ({nearest})")?,
                "AGENT" => write!(f, "agent is not connected ({nearest})")?,
                _ => write!(f, "draining ({nearest})")?,
            }
        }
        Ok(())
    }
}
