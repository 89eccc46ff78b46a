//! Capacity providers: pools of instances, and which of them the next task goes to.

use std::collections::BTreeMap;

use steady_proto::v1::managed::Value as Managed;
use steady_proto::v1::{CapacityProviderSpec, CapacityProviderStrategyItem, ManagedScaling};

/// Name of the lease that says that somebody makes the instances of a provider; without a name, of every provider.
pub fn pool_lease(cluster: &str, provider: &str) -> String {
    format!("pool.{cluster}.{}", if provider.is_empty() { "all" } else { provider })
}

/// The capacity provider of the next task, given how many tasks each has: the one whose base is not filled, else the one
/// whose weight it is behind most, the first of those alike (ECS capacity provider strategy). `None` without a strategy.
pub fn next_provider<'a>(
    strategy: &'a [CapacityProviderStrategyItem],
    have: &BTreeMap<String, i64>,
) -> Option<&'a str> {
    let count = |item: &CapacityProviderStrategyItem| have.get(&item.capacity_provider).copied().unwrap_or(0);
    let unfilled = strategy.iter().find(|item| count(item) < i64::from(item.base));
    let item = unfilled.or_else(|| {
        // (tasks beyond the base + 1) / weight, compared without a division.
        let load = |item: &CapacityProviderStrategyItem| i128::from(count(item) - i64::from(item.base) + 1);
        let weighted = strategy.iter().filter(|item| item.weight > 0);
        weighted.reduce(|best, item| {
            let behind = load(item) * i128::from(best.weight) < load(best) * i128::from(item.weight);
            if behind { item } else { best }
        })
    });
    item.map(|item| item.capacity_provider.as_str())
}

/// Whether something is managed: it is, unless it is said that it is not.
pub fn is_enabled(managed: Managed) -> bool {
    managed != Managed::Disabled
}

/// The settings of managed scaling, filled in.
pub fn scaling(spec: &CapacityProviderSpec) -> ManagedScaling {
    let given = spec.auto_scaling_group_provider.as_ref().and_then(|group| group.managed_scaling);
    let mut scaling = given.unwrap_or_default();
    fill_scaling(&mut scaling);
    scaling
}

fn fill_scaling(scaling: &mut ManagedScaling) {
    let or = |value: &mut i32, default: i32| *value = if *value == 0 { default } else { *value };
    if scaling.status() == Managed::Unspecified {
        scaling.set_status(Managed::Enabled);
    }
    or(&mut scaling.target_capacity, 100);
    or(&mut scaling.minimum_scaling_step_size, 1);
    or(&mut scaling.maximum_scaling_step_size, 10_000);
    or(&mut scaling.scale_in_evaluation_seconds, 900);
    scaling.instance_warmup_period.get_or_insert(300);
}

/// Fills in a capacity provider.
pub(crate) fn fill(spec: &mut CapacityProviderSpec) {
    let group = spec.auto_scaling_group_provider.get_or_insert_default();
    fill_scaling(group.managed_scaling.get_or_insert_default());
    if group.managed_termination_protection() == Managed::Unspecified {
        group.set_managed_termination_protection(Managed::Enabled);
    }
    if group.managed_draining() == Managed::Unspecified {
        group.set_managed_draining(Managed::Enabled);
    }
    if let Some(pool) = &mut spec.pool {
        pool.template.get_or_insert_default();
        let refresh = pool.refresh.get_or_insert_default();
        refresh.min_healthy_percentage.get_or_insert(100);
        refresh.batch_size = refresh.batch_size.max(i32::from(refresh.batch_size == 0));
        if refresh.failure_threshold == 0 {
            refresh.failure_threshold = 2;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn item(name: &str, base: i32, weight: i32) -> CapacityProviderStrategyItem {
        CapacityProviderStrategyItem { capacity_provider: name.into(), weight, base }
    }

    fn shares(strategy: &[CapacityProviderStrategyItem], count: usize) -> BTreeMap<String, i64> {
        let mut have = BTreeMap::new();
        for _ in 0..count {
            let next = next_provider(strategy, &have).expect("a provider").to_owned();
            *have.entry(next).or_default() += 1;
        }
        have
    }

    #[test]
    fn the_base_comes_first_and_the_rest_by_weight() {
        let strategy = [item("steady", 2, 1), item("spot", 0, 3)];
        assert_eq!(shares(&strategy, 2), [("steady".into(), 2)].into());
        assert_eq!(shares(&strategy, 10), [("steady".into(), 4), ("spot".into(), 6)].into());
        assert_eq!(shares(&strategy, 42), [("steady".into(), 12), ("spot".into(), 30)].into());
    }

    #[test]
    fn without_weight_there_is_nothing_beyond_the_base() {
        assert_eq!(shares(&[item("a", 3, 0), item("b", 0, 1)], 5), [("a".into(), 3), ("b".into(), 2)].into());
        assert_eq!(next_provider(&[], &BTreeMap::new()), None);
    }
}
