//! Accessors that treat objects of every kind alike.

use crate::Kind;
use crate::v1::{Condition, Meta, Object, ObjectRef, object};

/// Ties each kind's message to its place in [`object::Kind`].
macro_rules! kinds {
    ($(($kind:ident, $field:ident)),* $(,)?) => {
        impl Object {
            /// The kind, [`Kind::Unspecified`] for an empty object.
            pub fn kind(&self) -> Kind {
                match &self.kind {
                    $(Some(object::Kind::$kind(_)) => Kind::$kind,)*
                    None => Kind::Unspecified,
                }
            }
        }
        $(
            impl From<crate::v1::$kind> for object::Kind {
                fn from(value: crate::v1::$kind) -> Self {
                    object::Kind::$kind(value)
                }
            }
            impl Object {
                #[doc = concat!("The ", stringify!($kind), ", if it is one.")]
                pub fn $field(&self) -> Option<&crate::v1::$kind> {
                    match &self.kind {
                        Some(object::Kind::$kind(value)) => Some(value),
                        _ => None,
                    }
                }
            }
        )*
    };
}

kinds!(
    (Cluster, as_cluster),
    (TaskDefinition, as_task_definition),
    (Service, as_service),
    (Deployment, as_deployment),
    (Task, as_task),
    (ContainerInstance, as_container_instance),
    (Reservation, as_reservation),
    (Event, as_event),
    (Lease, as_lease),
    (Sequencer, as_sequencer),
    (Alarm, as_alarm),
    (TaskSet, as_task_set),
    (Secret, as_secret),
    (SecurityGroup, as_security_group),
    (TargetGroup, as_target_group),
    (Listener, as_listener),
    (ScalableTarget, as_scalable_target),
    (ScalingPolicy, as_scaling_policy),
    (MetricData, as_metric_data),
    (CapacityProvider, as_capacity_provider),
);

impl Object {
    /// An object of this kind with only its name and cluster set.
    pub fn new(cluster: &str, name: &str, kind: impl Into<object::Kind>) -> Self {
        let meta = Meta { name: name.to_owned(), cluster: cluster.to_owned(), ..Meta::default() };
        Object { meta: Some(meta), kind: Some(kind.into()) }
    }

    /// Its metadata; the default one where it has none.
    pub fn meta(&self) -> &Meta {
        static NONE: std::sync::LazyLock<Meta> = std::sync::LazyLock::new(Meta::default);
        self.meta.as_ref().unwrap_or(&NONE)
    }

    /// Its metadata, made where it has none.
    pub fn meta_mut(&mut self) -> &mut Meta {
        self.meta.get_or_insert_with(Meta::default)
    }

    /// `metadata.name`.
    pub fn name(&self) -> &str {
        &self.meta().name
    }

    /// `metadata.cluster`.
    pub fn cluster(&self) -> &str {
        &self.meta().cluster
    }

    /// Whether a deletion was asked for.
    pub fn is_deleting(&self) -> bool {
        self.meta().deleting.is_some()
    }

    /// A reference to this very object, uid and all.
    pub fn reference(&self) -> ObjectRef {
        let meta = self.meta();
        ObjectRef {
            kind: self.kind().into(),
            cluster: meta.cluster.clone(),
            name: meta.name.clone(),
            uid: meta.uid.clone(),
        }
    }

    /// Conditions in its status; none for kinds without.
    pub fn conditions(&self) -> &[Condition] {
        match &self.kind {
            Some(object::Kind::Service(s)) => s.status.as_ref().map_or(&[], |s| &s.conditions),
            Some(object::Kind::Deployment(s)) => s.status.as_ref().map_or(&[], |s| &s.conditions),
            Some(object::Kind::Task(s)) => s.status.as_ref().map_or(&[], |s| &s.conditions),
            Some(object::Kind::ContainerInstance(s)) => s.status.as_ref().map_or(&[], |s| &s.conditions),
            Some(object::Kind::ScalableTarget(s)) => s.status.as_ref().map_or(&[], |s| &s.conditions),
            Some(object::Kind::CapacityProvider(s)) => s.status.as_ref().map_or(&[], |s| &s.conditions),
            _ => &[],
        }
    }

    /// The same, to change.
    pub fn conditions_mut(&mut self) -> Option<&mut Vec<Condition>> {
        match &mut self.kind {
            Some(object::Kind::Service(s)) => Some(&mut s.status.get_or_insert_default().conditions),
            Some(object::Kind::Deployment(s)) => Some(&mut s.status.get_or_insert_default().conditions),
            Some(object::Kind::Task(s)) => Some(&mut s.status.get_or_insert_default().conditions),
            Some(object::Kind::ContainerInstance(s)) => Some(&mut s.status.get_or_insert_default().conditions),
            Some(object::Kind::ScalableTarget(s)) => Some(&mut s.status.get_or_insert_default().conditions),
            Some(object::Kind::CapacityProvider(s)) => Some(&mut s.status.get_or_insert_default().conditions),
            _ => None,
        }
    }
}

impl std::fmt::Display for ObjectRef {
    /// `service/web`; with its cluster when that is not `default`: `service/prod/web`.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/", self.kind().as_str_name().to_ascii_lowercase())?;
        if !self.cluster.is_empty() && self.cluster != crate::DEFAULT_CLUSTER {
            write!(f, "{}/", self.cluster)?;
        }
        f.write_str(&self.name)
    }
}
