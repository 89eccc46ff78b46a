//! Which container has which GPU of the instance: each one container's alone (ECS).

use std::collections::{BTreeMap, BTreeSet};

use steady_core::v1::ContainerDefinition;

/// What a GPU is called in `resourceRequirements`, and among an instance's resources.
const GPU: &str = "GPU";

/// The GPUs of an instance: 0, 1, … as the machine's driver numbers them.
#[derive(Debug, Default)]
pub(super) struct Gpus {
    count: u32,
    taken: BTreeMap<String, BTreeSet<u32>>,
}

/// How many a container wants.
fn wanted(definition: &ContainerDefinition) -> usize {
    let of = definition.resource_requirements.iter().filter(|asked| asked.r#type == GPU);
    of.filter_map(|asked| asked.value.parse::<usize>().ok()).sum()
}

impl Gpus {
    /// Those that the instance registers.
    pub(super) fn of(resources: &BTreeMap<String, i32>) -> Self {
        let count = resources.get(GPU).and_then(|count| u32::try_from(*count).ok()).unwrap_or(0);
        Gpus { count, taken: BTreeMap::new() }
    }

    /// Whether the instance has any.
    pub(super) fn is_any(&self) -> bool {
        self.count > 0
    }

    /// Gives a task's container as many as it wants; `None` where there are too few left.
    pub(super) fn give(&mut self, task: &str, definition: &ContainerDefinition) -> Option<Vec<u32>> {
        let free = (0..self.count).filter(|gpu| !self.taken.values().any(|taken| taken.contains(gpu)));
        let (wanted, given) = (wanted(definition), free.take(wanted(definition)).collect::<Vec<_>>());
        (given.len() == wanted).then(|| {
            self.take(task, &given);
            given
        })
    }

    /// They are a task's already.
    pub(super) fn take(&mut self, task: &str, gpus: &[u32]) {
        if !gpus.is_empty() {
            self.taken.entry(task.to_owned()).or_default().extend(gpus);
        }
    }

    /// A task is over.
    pub(super) fn release(&mut self, task: &str) {
        self.taken.remove(task);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use steady_core::v1::ResourceRequirement;

    #[test]
    fn a_gpu_is_one_container_s_until_its_task_is_over() {
        let wants = |count: u32| ContainerDefinition {
            resource_requirements: vec![ResourceRequirement { r#type: GPU.into(), value: count.to_string() }],
            ..ContainerDefinition::default()
        };
        let mut gpus = Gpus::of(&[(GPU.to_owned(), 3)].into());
        assert_eq!(gpus.give("a", &ContainerDefinition::default()), Some(vec![]));
        assert_eq!((gpus.give("a", &wants(1)), gpus.give("a", &wants(1))), (Some(vec![0]), Some(vec![1])));
        assert_eq!(gpus.give("b", &wants(2)), None, "one is left, and stays");
        gpus.release("a");
        gpus.take("c", &[1]);
        assert_eq!(gpus.give("b", &wants(2)), Some(vec![0, 2]));
    }
}
