//! Figures of whoever makes instances.

use steady_core::v1::CapacityProviderStatus;
use steady_core::v1::pool_instance_state::Value as State;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;
use steady_runtime::metrics;

const STATES: [State; 4] = [State::Pending, State::InService, State::Draining, State::Terminating];

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfProvider {
    capacity_provider: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Listed {
    capacity_provider: String,
    state: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Refused {
    capacity_provider: String,
    reason: &'static str,
}

/// What is counted of the providers that are served here. A process that serves none, because another one does, tells of none.
#[derive(Debug, Clone, Default)]
pub(crate) struct Figures {
    there: Family<OfProvider, Gauge>,
    listed: Family<Listed, Gauge>,
    refused: Family<Refused, Counter>,
}

impl Figures {
    /// A provider was looked at: so many instances are there.
    pub(crate) fn looked_at(&self, provider: &str, there: usize, status: &CapacityProviderStatus) {
        let of = OfProvider { capacity_provider: provider.to_owned() };
        self.there.get_or_create(&of).set(number(there));
        for state in STATES {
            let of = Listed { capacity_provider: provider.to_owned(), state: state.as_str_name() };
            let count = status.instances.iter().filter(|instance| instance.state() == state).count();
            self.listed.get_or_create(&of).set(number(count));
        }
    }

    /// Somebody else serves a provider, or it is gone.
    pub(crate) fn forget(&self, provider: &str) {
        self.there.remove(&OfProvider { capacity_provider: provider.to_owned() });
        for state in STATES {
            self.listed.remove(&Listed { capacity_provider: provider.to_owned(), state: state.as_str_name() });
        }
    }

    /// Something could not be done, by the reason of its event.
    pub(crate) fn refused(&self, provider: &str, reason: &'static str) {
        self.refused.get_or_create(&Refused { capacity_provider: provider.to_owned(), reason }).inc();
    }

    pub(crate) fn text(&self) -> String {
        let mut registry = Registry::with_prefix("steady_pool");
        registry.register("instances", "Instances that are there", self.there.clone());
        registry.register("listed_instances", "Instances that there are to be, by state", self.listed.clone());
        registry.register("refusals", "What could not be done", self.refused.clone());
        metrics::written(&registry)
    }
}

fn number(count: usize) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use steady_core::v1::PoolInstance;

    #[test]
    fn what_is_there_and_what_is_to_be_are_told_apart_until_somebody_else_serves_it() {
        let figures = Figures::default();
        let pending = PoolInstance { state: State::Pending.into(), ..PoolInstance::default() };
        let status = CapacityProviderStatus { instances: vec![pending], ..CapacityProviderStatus::default() };
        figures.looked_at("edge", 0, &status);
        figures.refused("edge", "POOL_GROW_FAILED");
        let text = figures.text();
        for line in [
            r#"steady_pool_instances{capacity_provider="edge"} 0"#,
            r#"steady_pool_listed_instances{capacity_provider="edge",state="PENDING"} 1"#,
            r#"steady_pool_refusals_total{capacity_provider="edge",reason="POOL_GROW_FAILED"} 1"#,
        ] {
            assert!(text.contains(line), "{line}\n{text}");
        }
        figures.forget("edge");
        assert!(!figures.text().contains("steady_pool_instances{"), "{}", figures.text());
    }
}
