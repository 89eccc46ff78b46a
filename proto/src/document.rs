//! The form in which people read and write objects: `apiVersion`, `kind`, `metadata`, `spec`, `status`.

use serde::ser::{Serialize, SerializeMap, Serializer};

use crate::v1::{Object, object};
use crate::{API_VERSION, KindExt};

/// Shows an object as a document: `serde_json::to_string(&Document(&object))`.
#[derive(Debug, Clone, Copy)]
pub struct Document<'a>(pub &'a Object);

impl Serialize for Document<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        map.serialize_entry("apiVersion", API_VERSION)?;
        map.serialize_entry("kind", self.0.kind().name())?;
        map.serialize_entry("metadata", self.0.meta())?;
        macro_rules! both {
            ($value:expr) => {{
                if let Some(spec) = &$value.spec {
                    map.serialize_entry("spec", spec)?;
                }
                if let Some(status) = &$value.status {
                    map.serialize_entry("status", status)?;
                }
            }};
        }
        macro_rules! spec {
            ($value:expr) => {
                if let Some(spec) = &$value.spec {
                    map.serialize_entry("spec", spec)?;
                }
            };
        }
        match &self.0.kind {
            Some(object::Kind::Cluster(v)) => both!(v),
            Some(object::Kind::TaskDefinition(v)) => both!(v),
            Some(object::Kind::Service(v)) => both!(v),
            Some(object::Kind::Deployment(v)) => both!(v),
            Some(object::Kind::Task(v)) => both!(v),
            Some(object::Kind::ContainerInstance(v)) => both!(v),
            Some(object::Kind::Alarm(v)) => both!(v),
            Some(object::Kind::TaskSet(v)) => both!(v),
            Some(object::Kind::Secret(v)) => both!(v),
            Some(object::Kind::SecurityGroup(v)) => spec!(v),
            Some(object::Kind::TargetGroup(v)) => spec!(v),
            Some(object::Kind::Listener(v)) => spec!(v),
            Some(object::Kind::ScalableTarget(v)) => both!(v),
            Some(object::Kind::ScalingPolicy(v)) => both!(v),
            Some(object::Kind::MetricData(v)) => spec!(v),
            Some(object::Kind::CapacityProvider(v)) => both!(v),
            Some(object::Kind::Reservation(v)) => spec!(v),
            Some(object::Kind::Event(v)) => spec!(v),
            Some(object::Kind::Lease(v)) => spec!(v),
            Some(object::Kind::Sequencer(v)) => map.serialize_entry("spec", v)?,
            None => {}
        }
        map.end()
    }
}

/// The object as YAML, one document without its marker.
///
/// # Errors
/// Never for an object that was decoded; the serializer's error otherwise.
pub fn to_yaml(object: &Object) -> Result<String, String> {
    serde_saphyr::to_string(&Document(object)).map_err(|e| e.to_string())
}

/// The object as JSON, over several lines.
///
/// # Errors
/// Never for an object that was decoded; the serializer's error otherwise.
pub fn to_json(object: &Object) -> Result<String, String> {
    serde_json::to_string_pretty(&Document(object)).map_err(|e| e.to_string())
}
