//! What a table shows of each kind.

mod cells;
mod counts;
mod scaling;
mod tasks;

pub use cells::{state, yes_no};
pub use counts::{Usage, free};
pub use scaling::tells as policy_tells;
pub use tasks::{addresses, reason as task_reason, short_id, status_word, urls};

use std::collections::BTreeSet;
use std::sync::Arc;

use steady_core::{Kind, KindExt, Timestamp, condition, security, traffic};
use steady_proto::v1::target_state::Value as TargetState;
use steady_proto::v1::{Object, SecurityGroupRule};

use crate::span;
use crate::table::Cell;
use crate::world::World;

/// How a kind's objects are shown.
#[derive(Debug, Clone, Copy)]
pub struct Columns {
    kind: Kind,
    wide: bool,
    clusters: bool,
    controllers: bool,
    /// Without what takes long to work out.
    live: bool,
}

impl Columns {
    /// Columns of a kind: `wide` shows more of them, `clusters` which cluster each object is of.
    pub fn new(kind: Kind, wide: bool, clusters: bool) -> Self {
        Columns { kind, wide, clusters: clusters && kind.in_cluster(), controllers: false, live: false }
    }

    /// Leases as the controllers that hold them.
    #[must_use]
    pub fn of_controllers(self) -> Self {
        Columns { controllers: true, ..self }
    }

    /// Shown anew with every change: without what takes long to work out.
    #[must_use]
    pub fn live(self) -> Self {
        Columns { live: true, ..self }
    }

    /// Kinds without which a row cannot be told.
    pub fn companions(kind: Kind, wide: bool) -> &'static [Kind] {
        match kind {
            Kind::Cluster if wide => &[Kind::Service, Kind::Task, Kind::ContainerInstance, Kind::TaskDefinition],
            Kind::Cluster => &[Kind::Service, Kind::Task, Kind::ContainerInstance],
            Kind::ContainerInstance | Kind::TargetGroup => &[Kind::Task],
            Kind::Task => &[Kind::ContainerInstance],
            Kind::MetricData => &[Kind::MetricData],
            _ => &[],
        }
    }

    /// The object whose row may differ now that `changed` has changed, besides its own: kind and name.
    pub fn affected(kind: Kind, changed: &Object) -> Option<(String, String)> {
        match (kind, changed.kind()) {
            (Kind::ContainerInstance, Kind::Task) => {
                let instance = &changed.as_task()?.spec.as_ref()?.container_instance;
                (!instance.is_empty()).then(|| (changed.cluster().to_owned(), instance.clone()))
            }
            (Kind::TargetGroup, Kind::Task) => {
                let balancer = changed.as_task()?.spec.as_ref()?.load_balancers.first()?;
                Some((changed.cluster().to_owned(), balancer.target_group_arn.clone()))
            }
            (Kind::Cluster, Kind::Service | Kind::Task | Kind::ContainerInstance) => {
                Some((String::new(), changed.cluster().to_owned()))
            }
            _ => None,
        }
    }

    /// Heads of the columns.
    pub fn heads(&self) -> Vec<&'static str> {
        let (narrow, wide): (&[&'static str], &[&'static str]) = match self.kind {
            Kind::Service => (
                &["NAME", "STATUS", "DESIRED", "RUNNING", "PENDING", "TASK-DEFINITION", "STEADY", "AGE"],
                &["DEPLOYMENT", "MESSAGE"],
            ),
            Kind::Task => (
                &["TASK", "GROUP", "TASK-DEFINITION", "LAST-STATUS", "DESIRED", "INSTANCE", "ADDRESSES", "AGE"],
                &["HEALTH", "REASON"],
            ),
            Kind::ContainerInstance => {
                (&["NAME", "STATUS", "CONNECTED", "RUNTIME", "CPU", "MEMORY", "TASKS", "AGE"], &["ADDRESS", "VERSION"])
            }
            Kind::TaskDefinition => (&["NAME", "STATUS", "CONTAINERS", "CPU", "MEMORY", "AGE"], &["IMAGES"]),
            Kind::Deployment => (
                &["NAME", "SERVICE", "TASK-DEFINITION", "ROLE", "ROLLOUT", "DESIRED", "RUNNING", "PENDING", "AGE"],
                &["REASON"],
            ),
            Kind::Cluster if self.live => (&["NAME", "SERVICES", "TASKS", "INSTANCES"], &[]),
            Kind::Cluster => (&["NAME", "SERVICES", "TASKS", "INSTANCES"], &["SCHEDULABLE"]),
            Kind::TaskSet => (
                &[
                    "NAME",
                    "SERVICE",
                    "TASK-DEFINITION",
                    "STATUS",
                    "SCALE",
                    "DESIRED",
                    "RUNNING",
                    "PENDING",
                    "STABILITY",
                    "AGE",
                ],
                &["EXTERNAL-ID"],
            ),
            Kind::SecurityGroup => (&["NAME", "INGRESS", "EGRESS", "DESCRIPTION", "AGE"], &[]),
            Kind::TargetGroup => (&["NAME", "PROTOCOL", "HEALTHY", "TARGETS", "HEALTH-CHECK", "AGE"], &[]),
            Kind::Listener => (&["NAME", "LOAD-BALANCER", "PROTOCOL", "PORT", "RULES", "TARGET-GROUPS", "AGE"], &[]),
            Kind::Secret => (&["NAME", "LAST-CHANGED", "DESCRIPTION", "AGE"], &[]),
            Kind::Alarm => (&["NAME", "STATE", "SINCE", "REASON"], &["DESCRIPTION"]),
            Kind::CapacityProvider => (
                &["NAME", "MIN", "MAX", "IN-SERVICE", "PENDING", "LEAVING", "NEEDED", "RESERVATION", "AGE"],
                &["WAITS"],
            ),
            Kind::ScalableTarget => (&["NAME", "MIN", "MAX", "LAST-CHANGE", "AGE"], &["CAUSE", "WAITS"]),
            Kind::ScalingPolicy => (&["NAME", "SERVICE", "TYPE", "KEEPS", "AGE"], &[]),
            Kind::MetricData => (&["NAMESPACE", "METRIC", "DIMENSIONS", "VALUE", "SAMPLES", "AGE"], &["NAME"]),
            Kind::Event => (&["AGE", "SEVERITY", "ABOUT", "REASON", "MESSAGE"], &["SOURCE"]),
            Kind::Lease if self.controllers => {
                (&["CONTROLLER", "LEADER", "SINCE", "QUEUE", "LAST-ERROR"], &["COMMITS", "CONFLICTS"])
            }
            Kind::Lease => (&["NAME", "HOLDER", "TTL", "AGE"], &[]),
            _ => (&["NAME", "AGE"], &[]),
        };
        let cluster = self.clusters.then_some("CLUSTER");
        let wide = if self.wide { wide } else { &[] };
        cluster.into_iter().chain(narrow.iter().copied()).chain(wide.iter().copied()).collect()
    }

    /// One object's row.
    pub fn row(&self, object: &Object, world: &World, now: Timestamp) -> Vec<Cell> {
        let age = span::age(object.meta().created.as_ref(), now);
        let (narrow, wide) = match self.kind {
            Kind::Service => service(object, age),
            Kind::Task => tasks::row(object, world, age, self.wide),
            Kind::ContainerInstance => counts::instance(object, world, age),
            Kind::TaskDefinition => task_definition(object, age),
            Kind::Deployment => deployment(object, age),
            Kind::Cluster => {
                (counts::cluster(object, world), counts::schedulable(object, world, self.wide && !self.live))
            }
            Kind::TaskSet => task_set(object, age),
            Kind::SecurityGroup => security_group(object, age),
            Kind::TargetGroup => target_group(object, world, &age),
            Kind::Listener => listener(object, &age),
            Kind::Secret => secret(object, now, age),
            Kind::Alarm => alarm(object, now),
            Kind::CapacityProvider => scaling::provider(object, age),
            Kind::ScalableTarget => scaling::target(object, now, age),
            Kind::ScalingPolicy => scaling::policy(object, age),
            Kind::MetricData => scaling::metric(object, world, now),
            Kind::Event => event(object, now),
            Kind::Lease if self.controllers => controller(object, now),
            Kind::Lease => (lease(object, now), vec![]),
            _ => (vec![object.name().into(), age.into()], vec![]),
        };
        let cluster = self.clusters.then(|| object.cluster().into());
        let wide = if self.wide { wide } else { vec![] };
        cluster.into_iter().chain(narrow).chain(wide).collect()
    }
}

/// Cells that every table shows, and those of a wide one.
type Row = (Vec<Cell>, Vec<Cell>);

fn task_set(object: &Object, age: String) -> Row {
    let set = object.as_task_set().cloned().unwrap_or_default();
    let (spec, status) = (set.spec.unwrap_or_default(), set.status.unwrap_or_default());
    let scale = spec.scale.map_or(0.0, |scale| scale.value);
    (
        vec![
            object.name().into(),
            spec.service.into(),
            spec.task_definition.into(),
            state(cells::name(status.status().as_str_name(), "-")),
            format!("{scale}%").into(),
            status.computed_desired_count().to_string().into(),
            status.running_count().to_string().into(),
            status.pending_count().to_string().into(),
            cells::name(status.stability_status().as_str_name(), "-").into(),
            age.into(),
        ],
        vec![spec.external_id.into()],
    )
}

fn secret(object: &Object, now: Timestamp, age: String) -> Row {
    let secret = object.as_secret().cloned().unwrap_or_default();
    let changed = span::age(secret.status.and_then(|status| status.last_changed).as_ref(), now);
    (vec![object.name().into(), changed.into(), secret.spec.unwrap_or_default().description.into(), age.into()], vec![])
}

fn security_group(object: &Object, age: String) -> Row {
    let spec = object.as_security_group().and_then(|group| group.spec.clone()).unwrap_or_default();
    let rules = |rules: &[SecurityGroupRule], none: &str| {
        let shown = rules.iter().map(|rule| {
            let ports = match security::ports(rule) {
                Some((from, to)) if from != to => format!(":{from}-{to}"),
                Some((port, _)) => format!(":{port}"),
                None => String::new(),
            };
            let protocol = if rule.ip_protocol == security::ANY { "all" } else { &rule.ip_protocol };
            format!("{protocol}{ports} {}{}", rule.cidr_ipv4, rule.referenced_group)
        });
        if rules.is_empty() { none.to_owned() } else { shown.collect::<Vec<_>>().join(", ") }
    };
    let (ingress, egress) = (rules(&spec.ingress, "nothing"), rules(&spec.egress, "everything"));
    (vec![object.name().into(), ingress.into(), egress.into(), spec.description.into(), age.into()], vec![])
}

fn target_group(object: &Object, world: &World, age: &str) -> Row {
    let spec = object.as_target_group().and_then(|group| group.spec.clone()).unwrap_or_default();
    let tasks = world.view.in_cluster(Kind::Task, object.cluster()).filter_map(|task| steady_core::task::of(task));
    let targets = tasks.flat_map(|task| &task.status.targets).filter(|target| target.target_group == object.name());
    let (healthy, all) = targets
        .fold((0, 0), |(healthy, all), target| (healthy + i32::from(target.state() == TargetState::Healthy), all + 1));
    let check = if spec.health_check_enabled() {
        format!("{} {}", spec.health_check_protocol().as_str_name(), spec.health_check_path)
    } else {
        "disabled".to_owned()
    };
    let protocol = spec.protocol().as_str_name();
    let cells = [object.name(), protocol, &healthy.to_string(), &all.to_string(), check.trim(), age];
    (cells.map(|text| text.to_owned().into()).into(), vec![])
}

fn listener(object: &Object, age: &str) -> Row {
    let spec = object.as_listener().and_then(|listener| listener.spec.clone()).unwrap_or_default();
    let groups: BTreeSet<&str> = traffic::target_groups(&spec).collect();
    let groups = groups.into_iter().collect::<Vec<_>>().join(", ");
    let (port, rules) = (spec.port.to_string(), spec.rules.len().to_string());
    let protocol = spec.protocol().as_str_name();
    let cells = [object.name(), &spec.load_balancer, protocol, &port, &rules, &groups, age];
    (cells.map(|text| text.to_owned().into()).into(), vec![])
}

fn alarm(object: &Object, now: Timestamp) -> Row {
    let alarm = object.as_alarm().cloned().unwrap_or_default();
    let status = alarm.status.unwrap_or_default();
    (
        vec![
            object.name().into(),
            state(cells::name(status.state_value().as_str_name(), "INSUFFICIENT_DATA")),
            span::age(status.state_updated_at.as_ref(), now).into(),
            status.state_reason.into(),
        ],
        vec![alarm.spec.unwrap_or_default().alarm_description.into()],
    )
}

fn service(object: &Object, age: String) -> Row {
    let spec = object.as_service().and_then(|s| s.spec.clone()).unwrap_or_default();
    let status = object.as_service().and_then(|s| s.status.clone()).unwrap_or_default();
    let steady = status.steady && status.observed_generation == object.meta().generation;
    let shown = if object.is_deleting() { "DRAINING" } else { cells::name(status.status().as_str_name(), "ACTIVE") };
    let message = condition::waiting(&status.conditions).map(|c| c.message.clone()).unwrap_or_default();
    (
        vec![
            object.name().into(),
            state(shown),
            steady_core::service::desired(&spec, &status).to_string().into(),
            status.running_count().to_string().into(),
            status.pending_count().to_string().into(),
            spec.task_definition.into(),
            yes_no(steady),
            age.into(),
        ],
        vec![status.primary_deployment.into(), message.into()],
    )
}

fn task_definition(object: &Object, age: String) -> Row {
    let spec = object.as_task_definition().and_then(|d| d.spec.clone()).unwrap_or_default();
    let status = object.as_task_definition().and_then(|d| d.status).unwrap_or_default();
    let demand = steady_core::resources::demand(&spec);
    let join = |f: fn(&steady_proto::v1::ContainerDefinition) -> &str| {
        spec.container_definitions.iter().map(f).collect::<Vec<_>>().join(",")
    };
    (
        vec![
            object.name().into(),
            state(cells::name(status.status().as_str_name(), "ACTIVE")),
            join(|c| &c.name).into(),
            demand.cpu.to_string().into(),
            demand.memory.to_string().into(),
            age.into(),
        ],
        vec![join(|c| &c.image).into()],
    )
}

fn deployment(object: &Object, age: String) -> Row {
    let spec = object.as_deployment().and_then(|d| d.spec.clone()).unwrap_or_default();
    let status = object.as_deployment().and_then(|d| d.status.clone()).unwrap_or_default();
    let waits = condition::waiting(&status.conditions).map(|c| c.message.clone());
    let reason = waits.unwrap_or_else(|| status.rollout_state_reason.clone());
    (
        vec![
            object.name().into(),
            spec.service.clone().into(),
            spec.task_definition.clone().into(),
            state(cells::name(status.role().as_str_name(), "")),
            state(cells::name(status.rollout_state().as_str_name(), "")),
            status.desired_count.unwrap_or(spec.target_count).to_string().into(),
            status.running_count().to_string().into(),
            status.pending_count().to_string().into(),
            age.into(),
        ],
        vec![reason.into()],
    )
}

fn event(object: &Object, now: Timestamp) -> Row {
    let spec = object.as_event().and_then(|e| e.spec.clone()).unwrap_or_default();
    let at = spec.at.as_ref().or(object.meta().created.as_ref());
    let about = spec.about.as_ref().map(short_reference).unwrap_or_default();
    (
        vec![
            span::age(at, now).into(),
            state(cells::name(spec.severity().as_str_name(), "INFO")),
            about.into(),
            spec.reason.into(),
            spec.message.into(),
        ],
        vec![spec.source.into()],
    )
}

/// `service/web`, `task/3fa8c1d2e4b5`.
pub fn short_reference(reference: &steady_proto::v1::ObjectRef) -> String {
    match reference.kind() {
        Kind::Task => format!("task/{}", short_id(&reference.name)),
        kind => format!("{}/{}", kind.name().to_ascii_lowercase(), reference.name),
    }
}

fn lease(object: &Object, now: Timestamp) -> Vec<Cell> {
    let spec = object.as_lease().and_then(|l| l.spec.clone()).unwrap_or_default();
    let age = span::age(spec.acquired_at.as_ref().or(object.meta().created.as_ref()), now);
    vec![object.name().into(), spec.holder.into(), format!("{}s", spec.ttl_seconds).into(), age.into()]
}

/// The controller that a lease makes the leader.
fn controller(object: &Object, now: Timestamp) -> Row {
    let spec = object.as_lease().and_then(|l| l.spec.clone()).unwrap_or_default();
    let status = object.as_lease().and_then(|l| l.status.clone()).unwrap_or_default();
    let since = span::age(spec.acquired_at.as_ref(), now);
    let error = match &status.last_error_at {
        Some(at) => format!("{} ago: {}", span::age(Some(at), now), status.last_error),
        None => "-".to_owned(),
    };
    // Of the schedulers each has a lease of its own, with its holder in the name.
    let name = object.name().split('.').nth(1).unwrap_or(object.name());
    (
        vec![name.into(), spec.holder.into(), since.into(), status.queue_depth.to_string().into(), error.into()],
        vec![status.commits.to_string().into(), status.conflicts.to_string().into()],
    )
}

/// Puts objects of one kind into the order in which a person looks for them.
pub fn sort(kind: Kind, objects: &mut [Arc<Object>]) {
    let created = |object: &Object| object.meta().created.as_ref().map(Timestamp::from);
    match kind {
        Kind::Task => objects.sort_by_cached_key(|object| {
            let group = object.as_task().and_then(|t| t.spec.as_ref()).map(|s| s.group.clone());
            (object.cluster().to_owned(), group, created(object))
        }),
        Kind::Event => objects.sort_by_cached_key(|object| (at(object), object.meta().revision)),
        Kind::TaskDefinition => objects.sort_by_cached_key(|object| {
            let (family, revision) = steady_core::task::split_definition(object.name()).unwrap_or((object.name(), 0));
            (family.to_owned(), revision)
        }),
        _ => objects.sort_by_cached_key(|object| (object.cluster().to_owned(), object.name().to_owned())),
    }
}

/// When an event was.
pub fn at(object: &Object) -> Option<Timestamp> {
    let spec = object.as_event()?.spec.as_ref()?;
    spec.at.as_ref().or(object.meta().created.as_ref()).map(Timestamp::from)
}

#[cfg(test)]
mod tests {
    use super::*;
    use steady_proto::v1::{Service, ServiceSpec, ServiceStatus};

    #[test]
    fn every_kind_has_as_many_cells_as_heads() {
        let world = World::default();
        for kind in Kind::USER {
            for (wide, clusters) in [(false, false), (true, false), (true, true)] {
                let columns = Columns::new(*kind, wide, clusters);
                let row = columns.row(&Object::default(), &world, Timestamp(0));
                assert_eq!(columns.heads().len(), row.len(), "{kind:?} {wide} {clusters}");
            }
        }
    }

    #[test]
    fn a_service_is_steady_only_when_its_newest_generation_was_seen() {
        let status = ServiceStatus { steady: true, observed_generation: 1, ..Default::default() };
        let spec = ServiceSpec { desired_count: Some(2), task_definition: "web:1".into(), ..Default::default() };
        let mut object = Object::new("default", "web", Service { spec: Some(spec), status: Some(status) });
        object.meta_mut().generation = 2;
        let columns = Columns::new(Kind::Service, false, false);
        let steady = |object: &Object| columns.row(object, &World::default(), Timestamp(0))[6].text.clone();
        assert_eq!(steady(&object), "no");
        object.meta_mut().generation = 1;
        assert_eq!(steady(&object), "yes");
    }
}
