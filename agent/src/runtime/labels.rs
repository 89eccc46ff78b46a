//! Labels that say whose a container is, on every engine.

pub(crate) const CLUSTER: &str = "steady.cluster";
pub(crate) const INSTANCE: &str = "steady.instance";
pub(crate) const TASK: &str = "steady.task";
pub(crate) const CONTAINER: &str = "steady.container";
pub(crate) const PORTS: &str = "steady.ports";
/// GPUs that it was given.
pub(crate) const GPUS: &str = "steady.gpus";
/// The task's hard limit of CPU units.
pub(crate) const CPU: &str = "steady.cpu";
