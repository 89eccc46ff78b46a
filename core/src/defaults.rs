//! What the API fills in where a person left something out, as ECS does it.

use steady_proto::v1::availability_zone_rebalancing::Value as Rebalancing;
use steady_proto::v1::deployment_strategy::Value as Strategy;
use steady_proto::v1::network_mode::Value as NetworkMode;
use steady_proto::v1::scale_unit::Value as ScaleUnit;
use steady_proto::v1::scheduling_strategy::Value as Scheduling;
use steady_proto::v1::threshold_type::Value as ThresholdType;
use steady_proto::v1::transport_protocol::Value as Protocol;
use steady_proto::v1::{
    ContainerInstanceSpec, DeploymentConfiguration, Object, TaskDefinitionSpec, instance_state, object,
};
use steady_proto::{DEFAULT_CLUSTER, KindExt};

use crate::capacity;
use crate::scaling;
use crate::service::{self, DEFAULT_PERCENT};
use crate::traffic;

/// Fills in an object that is about to be validated. Filling in twice changes nothing.
pub fn fill(object: &mut Object) {
    let kind = object.kind();
    let meta = object.meta.get_or_insert_default();
    if kind.in_cluster() {
        if meta.cluster.is_empty() {
            DEFAULT_CLUSTER.clone_into(&mut meta.cluster);
        }
    } else {
        meta.cluster.clear();
    }
    match &mut object.kind {
        Some(object::Kind::TaskDefinition(definition)) => {
            let spec = definition.spec.get_or_insert_default();
            if spec.family.is_empty() {
                meta.name.split(':').next().unwrap_or_default().clone_into(&mut spec.family);
            }
            if meta.name.is_empty() {
                meta.name.clone_from(&spec.family);
            }
            task_definition(spec);
        }
        Some(object::Kind::Service(found)) => {
            let spec = found.spec.get_or_insert_default();
            if spec.scheduling_strategy() == Scheduling::Unspecified {
                spec.set_scheduling_strategy(Scheduling::Replica);
            }
            let daemon = service::is_daemon(spec);
            if spec.availability_zone_rebalancing() == Rebalancing::Unspecified {
                spec.set_availability_zone_rebalancing(if daemon {
                    Rebalancing::Disabled
                } else {
                    Rebalancing::Enabled
                });
            }
            let settings = spec.deployment_configuration.get_or_insert(DeploymentConfiguration::default());
            let (least, most) = if daemon { (0, 100) } else { (100, 200) };
            settings.maximum_percent.get_or_insert(most);
            settings.minimum_healthy_percent.get_or_insert(least);
            if settings.strategy() == Strategy::Unspecified {
                settings.set_strategy(Strategy::Rolling);
            }
            if let Some(breaker) = &mut settings.deployment_circuit_breaker {
                breaker.reset_on_healthy_task.get_or_insert(true);
                let threshold = breaker.threshold_configuration.get_or_insert_default();
                if threshold.r#type() == ThresholdType::Unspecified {
                    threshold.set_type(ThresholdType::BoundedPercent);
                }
                if threshold.r#type() != ThresholdType::Count {
                    threshold.value.get_or_insert(DEFAULT_PERCENT);
                }
            }
            spec.health_check_grace_period_seconds.get_or_insert(0);
            traffic::fill_load_balancers(&mut spec.load_balancers);
        }
        Some(object::Kind::TaskSet(set)) => {
            traffic::fill_load_balancers(&mut set.spec.get_or_insert_default().load_balancers);
            let scale = set.spec.get_or_insert_default().scale.get_or_insert_default();
            if scale.unit() == ScaleUnit::Unspecified {
                scale.set_unit(ScaleUnit::Percent);
            }
        }
        Some(object::Kind::TargetGroup(group)) => traffic::fill_target_group(group.spec.get_or_insert_default()),
        Some(object::Kind::Listener(listener)) => traffic::fill_listener(listener.spec.get_or_insert_default()),
        Some(object::Kind::Alarm(alarm)) => scaling::fill_alarm(alarm.spec.get_or_insert_default()),
        Some(object::Kind::ScalableTarget(target)) => {
            scaling::fill_target(target.spec.get_or_insert_default(), &meta.cluster, &meta.name);
        }
        Some(object::Kind::ScalingPolicy(policy)) => {
            scaling::fill_policy(policy.spec.get_or_insert_default(), &meta.cluster);
        }
        Some(object::Kind::CapacityProvider(provider)) => capacity::fill(provider.spec.get_or_insert_default()),
        Some(object::Kind::Cluster(cluster)) => {
            cluster.spec.get_or_insert_default();
        }
        Some(object::Kind::ContainerInstance(instance)) => {
            instance_state(instance.spec.get_or_insert_default());
        }
        _ => {}
    }
}

fn instance_state(spec: &mut ContainerInstanceSpec) {
    if spec.status() == instance_state::Value::Unspecified {
        spec.set_status(instance_state::Value::Active);
    }
}

fn task_definition(spec: &mut TaskDefinitionSpec) {
    if spec.network_mode() == NetworkMode::Unspecified {
        spec.set_network_mode(NetworkMode::Bridge);
    }
    for container in &mut spec.container_definitions {
        container.essential.get_or_insert(true);
        for mapping in &mut container.port_mappings {
            if mapping.protocol() == Protocol::Unspecified {
                mapping.set_protocol(Protocol::Tcp);
            }
        }
        if let Some(check) = &mut container.health_check {
            check.interval.get_or_insert(30);
            check.timeout.get_or_insert(5);
            check.retries.get_or_insert(3);
            check.start_period.get_or_insert(0);
        }
        if let Some(policy) = &mut container.restart_policy {
            policy.restart_attempt_period.get_or_insert(300);
        }
    }
    // What `describe-task-definition` adds is the API's to say, in the name and the status.
    spec.task_definition_arn.clear();
    spec.revision = 0;
    spec.status.clear();
    spec.requires_attributes.clear();
    spec.compatibilities.clear();
    spec.registered_at.clear();
    spec.registered_by.clear();
    spec.deregistered_at.clear();
}
