//! Why no instance takes a task, summed up for people.

use std::collections::BTreeMap;
use std::fmt;

use steady_core::resources::Short;
use steady_core::v1::Demand;

/// Why one instance refuses a task.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Reason {
    Draining,
    Disconnected,
    Short(Short),
    Distinct,
    /// Its placement constraints do not select it.
    Constraint,
    /// An attribute that the task requires.
    Attribute(String),
    /// It does not belong to the capacity provider that the task is for.
    Provider(String),
    /// It is kept free for a task that has waited for long.
    Held,
    /// The only instance that the task may be on is not there.
    Gone,
}

impl Reason {
    /// ECS' name of it, where it has one.
    pub(super) fn class(&self) -> &'static str {
        match self {
            Reason::Short(short) => short.reason(),
            Reason::Distinct => "DISTINCT",
            Reason::Disconnected => "AGENT",
            Reason::Draining => "DRAINING",
            Reason::Constraint => "MEMBEROF",
            Reason::Attribute(_) => "ATTRIBUTE",
            Reason::Provider(_) => "CAPACITYPROVIDER",
            Reason::Held => "HELD",
            Reason::Gone => "TARGET",
        }
    }

    /// Of what there is too little: how much there is. Nearer is more.
    fn amount(&self) -> i64 {
        match self {
            Reason::Short(Short::Memory(left) | Short::Cpu(left) | Short::Named(_, left)) => *left,
            _ => 0,
        }
    }

    /// One instance's refusal of what is needed, in words.
    pub(super) fn told(&self, needs: &Demand) -> String {
        let short = |needs: i32, left: i64, unit: &str| format!("needs {needs} {unit}, {left} are free");
        match self {
            Reason::Short(Short::Memory(left)) => short(needs.memory, *left, "MiB"),
            Reason::Short(Short::Cpu(left)) => short(needs.cpu, *left, "CPU units"),
            Reason::Short(Short::Named(name, left)) => {
                short(needs.named.get(name).copied().unwrap_or_default(), *left, name)
            }
            Reason::Short(Short::Port(port)) => format!("host port {port} is in use"),
            Reason::Distinct => "has a task of the group already (distinctInstance)".to_owned(),
            Reason::Disconnected => "its agent is not connected".to_owned(),
            Reason::Draining => "is draining".to_owned(),
            Reason::Constraint => "a memberOf constraint does not select it".to_owned(),
            Reason::Attribute(name) => format!("does not have the attribute {name}"),
            Reason::Provider(name) => format!("is not of capacity provider {name}"),
            Reason::Held => "is kept free for a task that has waited longer".to_owned(),
            Reason::Gone => "is not there any more".to_owned(),
        }
    }
}

/// Refusals of one task by every instance.
#[derive(Debug)]
pub(super) struct Refusals {
    needs: Demand,
    by_class: BTreeMap<&'static str, Class>,
}

#[derive(Debug)]
struct Class {
    count: usize,
    /// The instance that comes nearest, and why it is not near enough.
    nearest: (String, Reason),
}

impl Refusals {
    pub(super) fn new(needs: &Demand) -> Self {
        Refusals { needs: needs.clone(), by_class: BTreeMap::new() }
    }

    pub(super) fn add(&mut self, instance: &str, reason: &Reason) {
        let nearest = || (instance.to_owned(), reason.clone());
        let class = self.by_class.entry(reason.class()).or_insert_with(|| Class { count: 0, nearest: nearest() });
        class.count += 1;
        let before = (reason.amount(), std::cmp::Reverse(instance));
        if before > (class.nearest.1.amount(), std::cmp::Reverse(class.nearest.0.as_str())) {
            class.nearest = nearest();
        }
    }

    /// ECS' reason of the class that most instances are in.
    pub(super) fn reason(&self) -> &'static str {
        self.by_class.iter().max_by_key(|(_, class)| class.count).map_or("NO ACTIVE INSTANCES", |(name, _)| name)
    }

    /// Whether an instance is only too full.
    pub(super) fn is_for_room(&self) -> bool {
        self.by_class.keys().any(|class| class.starts_with("RESOURCE:"))
    }
}

impl fmt::Display for Refusals {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.by_class.is_empty() {
            return f.write_str(
                "No Container Instances were found in your cluster. Start an agent: steady agent --server …",
            );
        }
        for (i, Class { count, nearest: (nearest, reason) }) in self.by_class.values().enumerate() {
            let separator = if i == 0 { "" } else { "; " };
            let instances = if *count == 1 { "instance" } else { "instances" };
            write!(f, "{separator}{count} {instances}: ")?;
            let short = |needs: i32, left: &i64, unit: &str| {
                let missing = i64::from(needs) - left;
                format!("needs {needs} {unit}; {nearest} has the most free, {left} {unit}: {missing} {unit} missing")
            };
            match reason {
                Reason::Short(Short::Memory(left)) => {
                    write!(f, "insufficient memory ({})", short(self.needs.memory, left, "MiB"))?;
                }
                Reason::Short(Short::Cpu(left)) => {
                    write!(f, "insufficient CPU ({})", short(self.needs.cpu, left, "CPU units"))?;
                }
                Reason::Short(Short::Named(name, left)) => {
                    let needs = self.needs.named.get(name).copied().unwrap_or_default();
                    write!(f, "insufficient {name} ({})", short(needs, left, name))?;
                }
                Reason::Short(Short::Port(port)) => write!(f, "host port {port} is in use ({nearest})")?,
                Reason::Distinct => f.write_str("has a task of the group already (distinctInstance)")?,
                Reason::Gone => write!(f, "{nearest} is not there any more")?,
                Reason::Constraint => write!(f, "MemberOf placement constraint unsatisfied ({nearest})")?,
                Reason::Attribute(name) => write!(f, "missing attribute {name} ({nearest})")?,
                Reason::Provider(name) => write!(f, "not of capacity provider {name} ({nearest})")?,
                Reason::Held => write!(f, "kept free for a task that has waited longer ({nearest})")?,
                Reason::Disconnected => write!(f, "agent is not connected ({nearest})")?,
                Reason::Draining => write!(f, "draining ({nearest})")?,
            }
        }
        Ok(())
    }
}
