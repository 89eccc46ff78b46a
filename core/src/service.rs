//! Services as decisions see them.

use steady_proto::v1::{Object, Service, ServiceSpec, ServiceStatus, object};

use crate::derived_id;

/// Most tasks that may be live, and fewest that must be healthy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bounds {
    /// Tasks that must stay healthy: desired × minimumHealthyPercent, rounded up.
    pub floor: i32,
    /// Tasks that may be live, STOPPING ones too: desired × maximumPercent, rounded down.
    pub ceiling: i32,
}

/// Floor and ceiling of a service (ECS deployment configuration).
pub fn bounds(spec: &ServiceSpec) -> Bounds {
    let desired = i64::from(spec.desired_count());
    let settings = spec.deployment_configuration.unwrap_or_default();
    let least = i64::from(settings.minimum_healthy_percent.unwrap_or(100));
    let most = i64::from(settings.maximum_percent.unwrap_or(200));
    Bounds { floor: ((desired * least + 99) / 100) as i32, ceiling: (desired * most / 100) as i32 }
}

/// Digest of the fields whose change starts a deployment (ECS `UpdateService`).
pub fn revision_digest(spec: &ServiceSpec) -> String {
    derived_id(&[&spec.task_definition, &spec.force_new_deployment.to_string()])
}

/// The object with another status.
pub fn with_status(object: &Object, status: ServiceStatus) -> Object {
    let spec = object.as_service().and_then(|s| s.spec.clone());
    Object { meta: object.meta.clone(), kind: Some(object::Kind::Service(Service { spec, status: Some(status) })) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use steady_proto::v1::DeploymentConfiguration;

    fn of(desired: i32, least: i32, most: i32) -> Bounds {
        bounds(&ServiceSpec {
            desired_count: Some(desired),
            deployment_configuration: Some(DeploymentConfiguration {
                minimum_healthy_percent: Some(least),
                maximum_percent: Some(most),
            }),
            ..Default::default()
        })
    }

    #[test]
    fn the_floor_rounds_up_and_the_ceiling_down_as_in_ecs() {
        assert_eq!(of(2, 75, 200), Bounds { floor: 2, ceiling: 4 });
        assert_eq!(of(3, 100, 125), Bounds { floor: 3, ceiling: 3 });
        assert_eq!(of(0, 100, 200), Bounds { floor: 0, ceiling: 0 });
    }
}
