//! The table of kinds: every name that a kind goes by.

/// Kind of an object.
pub type Kind = crate::v1::kind::Value;

/// Names and scope of a [`Kind`].
pub trait KindExt: Sized {
    /// Every kind that people see, in the order in which a manifest's objects are created.
    const USER: &'static [Kind];
    /// As a manifest writes it: `TaskDefinition`.
    fn name(self) -> &'static str;
    /// As commands and store keys write it: `taskdefinitions`.
    fn plural(self) -> &'static str;
    /// Whether its objects belong to a cluster.
    fn in_cluster(self) -> bool;
    /// From a name of a command line: any case, singular, plural or short (`svc`, `td`, `ci`).
    fn parse(name: &str) -> Option<Kind>;
}

impl KindExt for Kind {
    const USER: &'static [Kind] = &[
        Kind::Cluster,
        Kind::TaskDefinition,
        Kind::CapacityProvider,
        Kind::Alarm,
        Kind::Secret,
        Kind::SecurityGroup,
        Kind::TargetGroup,
        Kind::Listener,
        Kind::Service,
        Kind::TaskSet,
        Kind::ScalableTarget,
        Kind::ScalingPolicy,
        Kind::Deployment,
        Kind::Task,
        Kind::ContainerInstance,
        Kind::Reservation,
        Kind::Event,
        Kind::Lease,
        Kind::MetricData,
    ];

    fn name(self) -> &'static str {
        self.as_str_name()
    }

    fn plural(self) -> &'static str {
        match self {
            Kind::Unspecified => "unspecified",
            Kind::Cluster => "clusters",
            Kind::TaskDefinition => "taskdefinitions",
            Kind::Service => "services",
            Kind::Deployment => "deployments",
            Kind::Task => "tasks",
            Kind::ContainerInstance => "containerinstances",
            Kind::Reservation => "reservations",
            Kind::Event => "events",
            Kind::Lease => "leases",
            Kind::Sequencer => "sequencers",
            Kind::Alarm => "alarms",
            Kind::TaskSet => "tasksets",
            Kind::Secret => "secrets",
            Kind::SecurityGroup => "securitygroups",
            Kind::TargetGroup => "targetgroups",
            Kind::Listener => "listeners",
            Kind::ScalableTarget => "scalabletargets",
            Kind::ScalingPolicy => "scalingpolicies",
            Kind::MetricData => "metricdata",
            Kind::CapacityProvider => "capacityproviders",
        }
    }

    fn in_cluster(self) -> bool {
        !matches!(self, Kind::Cluster | Kind::TaskDefinition | Kind::Lease | Kind::Sequencer)
    }

    fn parse(name: &str) -> Option<Kind> {
        let name = name.to_ascii_lowercase();
        let short = match name.as_str() {
            "svc" => Some(Kind::Service),
            "td" | "taskdef" | "taskdefs" => Some(Kind::TaskDefinition),
            "sg" => Some(Kind::SecurityGroup),
            "tg" => Some(Kind::TargetGroup),
            "cp" => Some(Kind::CapacityProvider),
            "ci" | "instance" | "instances" => Some(Kind::ContainerInstance),
            _ => None,
        };
        short.or_else(|| {
            Self::USER.iter().copied().find(|kind| name == kind.plural() || name == kind.name().to_ascii_lowercase())
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kind_is_found_under_each_of_its_names() {
        for name in ["service", "services", "Service", "svc"] {
            assert_eq!(Kind::parse(name), Some(Kind::Service), "{name}");
        }
        assert_eq!(Kind::parse("sequencers"), None);
    }
}
