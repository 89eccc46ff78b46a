//! Checks of capacity providers.

use std::collections::BTreeSet;

use prost::Message;
use steady_proto::v1::{CapacityProviderSpec, InstancePool};

use super::common::{Faults, name};

/// Most instances of a pool.
const MAX_SIZE: i64 = 1000;
/// Bytes that a pool's list may have; with what else a provider has it is less than what is stored.
const LONGEST: usize = 180_000;
const RUNTIMES: [&str; 5] = ["", "docker", "containerd", "process", "hollow"];

pub(super) fn provider(own: &str, spec: &CapacityProviderSpec, faults: &mut Faults) {
    // Its instances have its name in theirs.
    if own.len() > 200 {
        faults.add("metadata.name", format!("has {} characters; at most 200", own.len()));
    }
    for taken in ["aws", "ecs", "fargate"] {
        if own.to_ascii_lowercase().starts_with(taken) {
            faults.add("metadata.name", format!("`{own}` begins with `{taken}`; expected another name (ECS)"));
        }
    }
    let group = spec.auto_scaling_group_provider.unwrap_or_default();
    let scaling = group.managed_scaling.unwrap_or_default();
    let path = |field: &str| format!("spec.autoScalingGroupProvider.managedScaling.{field}");
    for (field, value, from, to, unit) in [
        ("targetCapacity", scaling.target_capacity, 1, 100, "percent"),
        ("minimumScalingStepSize", scaling.minimum_scaling_step_size, 1, 10_000, "instances"),
        ("maximumScalingStepSize", scaling.maximum_scaling_step_size, 1, 10_000, "instances"),
        ("instanceWarmupPeriod", scaling.instance_warmup_period.unwrap_or(300), 0, 10_000, "seconds"),
        ("scaleInEvaluationSeconds", scaling.scale_in_evaluation_seconds, 10, 3600, "seconds"),
        ("minimumSchedulableTasks", scaling.minimum_schedulable_tasks, 0, 100_000, "tasks"),
    ] {
        faults.range(&path(field), value.into(), from, to, unit);
    }
    if scaling.minimum_scaling_step_size > scaling.maximum_scaling_step_size {
        let (min, max) = (scaling.minimum_scaling_step_size, scaling.maximum_scaling_step_size);
        faults.add(&path("maximumScalingStepSize"), format!("{max} is less than minimumScalingStepSize, {min}"));
    }
    match &spec.pool {
        Some(found) => pool(own, found, faults),
        None => faults.add("spec.pool", "is missing; expected the sizes and the template of its instances".into()),
    }
}

fn pool(own: &str, pool: &InstancePool, faults: &mut Faults) {
    faults.range("spec.pool.minSize", pool.min_size.into(), 0, MAX_SIZE, "instances");
    if pool.max_size == 0 {
        faults.add("spec.pool.maxSize", format!("is missing; expected 1 to {MAX_SIZE} instances"));
    } else {
        faults.range("spec.pool.maxSize", pool.max_size.into(), 1, MAX_SIZE, "instances");
    }
    if pool.max_size > 0 && pool.min_size > pool.max_size {
        faults.add("spec.pool.maxSize", format!("{} is less than minSize, {}", pool.max_size, pool.min_size));
    }
    let mut seen = BTreeSet::new();
    for (i, zone) in pool.availability_zones.iter().enumerate() {
        let path = format!("spec.pool.availabilityZones[{i}]");
        name(faults, &path, zone);
        if !seen.insert(zone) {
            faults.add(&path, format!("`{zone}` is given twice"));
        }
    }
    let template = pool.template.clone().unwrap_or_default();
    for (field, value, unit) in [("cpu", template.cpu, "CPU units, 1024 a core"), ("memory", template.memory, "MiB")] {
        let path = format!("spec.pool.template.{field}");
        if value == 0 {
            faults.add(&path, format!("is missing; expected 1 or more {unit}"));
        } else if value < 0 {
            faults.add(&path, format!("{value} is too little; expected 1 or more {unit}"));
        }
    }
    if !RUNTIMES.contains(&template.runtime.as_str()) {
        let message = format!("`{}` is no runtime; expected docker, containerd, process or hollow", template.runtime);
        faults.add("spec.pool.template.runtime", message);
    }
    for (key, value) in &template.attributes {
        let is_name = |text: &str| text.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_./".contains(&b));
        if key.is_empty() || key.len() > 128 || !is_name(key) || value.len() > 128 || value.contains([',', '=']) {
            let message = format!(
                "`{key}`: expected a name of 1-128 of letters, digits, `-`, `_`, `.`, `/` and a value of at most 128 characters without `,` and `=`"
            );
            faults.add("spec.pool.template.attributes", message);
        }
    }
    if template.attributes.len() > 20 {
        let count = template.attributes.len();
        faults.add("spec.pool.template.attributes", format!("{count} attributes; at most 20"));
    }
    // Each instance of the list has its own.
    let each = template.encoded_len() + own.len() + 64;
    if each * usize::try_from(pool.max_size).unwrap_or(0) > LONGEST {
        let message = format!(
            "{} instances of a template of this length are a list that is too long to be stored; lower maxSize to {}, or \
             shorten the template",
            pool.max_size,
            LONGEST / each
        );
        faults.add("spec.pool.maxSize", message);
    }
    if template.version.len() > 128 {
        faults.add("spec.pool.template.version", format!("has {} characters; at most 128", template.version.len()));
    }
    let refresh = pool.refresh.unwrap_or_default();
    faults.range("spec.pool.refresh.batchSize", refresh.batch_size.into(), 1, MAX_SIZE, "instances");
    faults.range("spec.pool.refresh.failureThreshold", refresh.failure_threshold.into(), 1, MAX_SIZE, "instances");
    let healthy = refresh.min_healthy_percentage.unwrap_or(100);
    faults.range("spec.pool.refresh.minHealthyPercentage", healthy.into(), 0, 100, "percent");
}
