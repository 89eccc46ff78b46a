//! A target group in a table: its targets, and which of them gets a request.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use steady_core::v1::TargetGroupSpec;
use steady_core::v1::load_balancing_algorithm::Value as Algorithm;
use steady_core::v1::protocol_version::Value as Version;
use steady_core::v1::traffic_protocol::Value as Protocol;

use crate::endpoint::Endpoint;

/// Upper bounds of the latency histogram, seconds.
pub(crate) const BUCKETS: [f64; 12] = [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0];
/// The cookies by which clients come back to their target.
pub(crate) const COOKIE: &str = "STEADYLB";
pub(crate) const APP_COOKIE: &str = "STEADYLBAPP";
/// In larger groups the target with the fewest requests is looked for among so many.
const SAMPLE: usize = 16;

/// What is spoken with a target.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Spoken {
    pub(crate) tls: bool,
    pub(crate) http2: bool,
}

/// What is spoken with targets for a listener of HTTP, or for one that looks at no requests.
pub(crate) fn spoken(spec: &TargetGroupSpec, http: bool) -> Spoken {
    let tls = spec.protocol() == if http { Protocol::Https } else { Protocol::Tls };
    Spoken { tls, http2: http && matches!(spec.protocol_version(), Version::Http2 | Version::Grpc) }
}

/// Targets that share traffic alike: of a service that deploys bit by bit, all of them; else those of one deployment.
#[derive(Debug, Default)]
pub(crate) struct Pool {
    pub(crate) service: String,
    /// The one that shares its traffic; empty: all of the service's.
    pub(crate) deployment: String,
    /// Percent of production and test traffic; `None`: as many as it has targets.
    pub(crate) weights: Option<(f64, f64)>,
    /// The listener or rule whose requests are test traffic; empty: none.
    pub(crate) test_rule: String,
    pub(crate) endpoints: Vec<Arc<Endpoint>>,
}

/// What outlives a table.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    turn: AtomicUsize,
    pub(crate) requests: AtomicU64,
    /// By the first digit of the status.
    pub(crate) answers: [AtomicU64; 6],
    pub(crate) latency: [AtomicU64; BUCKETS.len() + 1],
    pub(crate) microseconds: AtomicU64,
    /// Requests that were sent to another target once more.
    pub(crate) retries: AtomicU64,
    /// Requests that nobody was there for.
    pub(crate) rejected: AtomicU64,
}

impl Counters {
    /// An answer after so long.
    pub(crate) fn answered(&self, status: u16, took: Duration) {
        self.requests.fetch_add(1, Ordering::Relaxed);
        self.answers[usize::from(status / 100).min(5)].fetch_add(1, Ordering::Relaxed);
        let seconds = took.as_secs_f64();
        let bucket = BUCKETS.iter().position(|bound| seconds <= *bound).unwrap_or(BUCKETS.len());
        self.latency[bucket].fetch_add(1, Ordering::Relaxed);
        self.microseconds.fetch_add(took.as_micros() as u64, Ordering::Relaxed);
    }
}

/// A target group.
#[derive(Debug)]
pub(crate) struct Group {
    pub(crate) name: String,
    pub(crate) spec: TargetGroupSpec,
    pub(crate) pools: Vec<Pool>,
    /// By what cookies call them.
    pub(crate) by_cookie: HashMap<u64, Arc<Endpoint>>,
    pub(crate) counters: Arc<Counters>,
}

impl Group {
    /// How long a target gets less than its share.
    pub(crate) fn slow_start(&self) -> Duration {
        Duration::from_secs(u64::from(self.spec.slow_start_seconds().unsigned_abs()))
    }

    /// Whether clients come back to the target that they were sent to.
    pub(crate) fn is_sticky(&self) -> bool {
        self.spec.stickiness.as_ref().is_some_and(|stickiness| stickiness.enabled)
    }

    /// The target that a client was sent to before, as long as that is fit.
    pub(crate) fn stuck_to(&self, cookie: u64) -> Option<&Arc<Endpoint>> {
        self.by_cookie.get(&cookie).filter(|endpoint| endpoint.is_fit())
    }

    /// The target of the next request. `weights` are the pools', of this listener and rule; `tried` were in vain. When none is
    /// fit all are (Elastic Load Balancing fails open).
    pub(crate) fn choose(&self, weights: &[f64], tried: &[u64]) -> Option<&Arc<Endpoint>> {
        let fit = |endpoint: &Endpoint| endpoint.is_fit() && !tried.contains(&endpoint.cookie);
        let open = |endpoint: &Endpoint| !endpoint.is_draining() && !tried.contains(&endpoint.cookie);
        let first = self.pool(weights);
        let turn = self.counters.turn.fetch_add(1, Ordering::Relaxed);
        let chosen = first.and_then(|pool| self.choose_in(&pool.endpoints, turn, fit));
        // Whoever has a share and nobody to serve it leaves it to the others.
        let others = || self.pools.iter().zip(weights).filter(|(_, weight)| **weight > 0.0).map(|(pool, _)| pool);
        chosen
            .or_else(|| others().find_map(|pool| self.choose_in(&pool.endpoints, turn, fit)))
            .or_else(|| first.and_then(|pool| self.choose_in(&pool.endpoints, turn, open)))
            .or_else(|| others().find_map(|pool| self.choose_in(&pool.endpoints, turn, open)))
    }

    /// A pool by its share.
    fn pool(&self, weights: &[f64]) -> Option<&Pool> {
        if let ([only], [weight]) = (self.pools.as_slice(), weights) {
            return (*weight > 0.0).then_some(only);
        }
        let total: f64 = weights.iter().sum();
        if total <= 0.0 {
            return None;
        }
        let mut at = fastrand::f64() * total;
        let found = self.pools.iter().zip(weights).find(|(_, weight)| {
            at -= **weight;
            at < 0.0
        });
        found.map(|(pool, _)| pool).or(self.pools.last())
    }

    fn choose_in<'a>(
        &self,
        all: &'a [Arc<Endpoint>],
        turn: usize,
        fits: impl Fn(&Endpoint) -> bool,
    ) -> Option<&'a Arc<Endpoint>> {
        let count = all.len();
        if count == 0 {
            return None;
        }
        let from = match self.spec.load_balancing_algorithm_type() {
            Algorithm::LeastOutstandingRequests => {
                let look = |endpoint: &&'a Arc<Endpoint>| endpoint.outstanding();
                let offset = fastrand::usize(..count);
                let around = (0..count).map(|step| &all[(offset + step) % count]).filter(|e| fits(e));
                return if count <= SAMPLE { around.min_by_key(look) } else { around.take(SAMPLE).min_by_key(look) };
            }
            Algorithm::WeightedRandom => fastrand::usize(..count),
            _ => turn % count,
        };
        let slow_start = self.slow_start();
        let mut cold = None;
        for step in 0..count {
            let endpoint = &all[(from + step) % count];
            if !fits(endpoint) {
                continue;
            }
            if slow_start.is_zero() || fastrand::f64() < endpoint.warmth(slow_start) {
                return Some(endpoint);
            }
            cold = cold.or(Some(endpoint));
        }
        cold
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::endpoint::Identity;
    use steady_core::v1::target_state::Value as State;

    fn endpoint(number: u16) -> Arc<Endpoint> {
        let address = std::net::SocketAddr::from(([127, 0, 0, 1], number));
        let identity = Identity { task: number.to_string(), group: "g".into(), container_port: 80, address };
        let endpoint = Endpoint::new(identity);
        endpoint.set_state(State::Healthy, "", String::new());
        Arc::new(endpoint)
    }

    fn group(pools: &[(Option<(f64, f64)>, u16)], algorithm: Algorithm) -> Group {
        let mut number = 0;
        let pools = pools.iter().map(|(weights, count)| {
            let endpoints = (0..*count).map(|_| {
                number += 1;
                endpoint(number)
            });
            Pool { weights: *weights, endpoints: endpoints.collect(), ..Pool::default() }
        });
        let pools = pools.collect();
        let mut spec = TargetGroupSpec::default();
        spec.set_load_balancing_algorithm_type(algorithm);
        Group { name: "g".into(), spec, pools, by_cookie: HashMap::new(), counters: Arc::default() }
    }

    fn shares(group: &Group, weights: &[f64], rounds: usize) -> HashMap<u16, usize> {
        let mut shares = HashMap::new();
        for _ in 0..rounds {
            let chosen = group.choose(weights, &[]).expect("one");
            *shares.entry(chosen.identity.address.port()).or_default() += 1;
        }
        shares
    }

    #[test]
    fn targets_take_turns_and_those_that_are_not_fit_are_passed_over() {
        let group = group(&[(None, 3)], Algorithm::RoundRobin);
        assert!(shares(&group, &[1.0], 30).values().all(|count| *count == 10));
        group.pools[0].endpoints[0].set_state(State::Unhealthy, "", String::new());
        assert_eq!(shares(&group, &[1.0], 30).get(&1), None);
        group.pools[0].endpoints[1].set_draining(1);
        assert_eq!(shares(&group, &[1.0], 30), HashMap::from([(3, 30)]));
        // When nobody is fit, everybody is who does not leave.
        group.pools[0].endpoints[2].set_state(State::Unhealthy, "", String::new());
        let open = shares(&group, &[1.0], 30);
        assert_eq!((open.get(&2), open.len()), (None, 2));
        let tried = [group.pools[0].endpoints[0].cookie, group.pools[0].endpoints[2].cookie];
        assert!(group.choose(&[1.0], &tried).is_none());
    }

    #[test]
    fn deployments_get_their_shares_and_leave_them_to_others_when_they_have_nobody() {
        let group = group(&[(Some((90.0, 0.0)), 1), (Some((10.0, 100.0)), 1)], Algorithm::RoundRobin);
        let production = shares(&group, &[90.0, 10.0], 10_000);
        assert!((800..1200).contains(&production[&2]), "{production:?}");
        assert_eq!(shares(&group, &[0.0, 100.0], 100), HashMap::from([(2, 100)]));
        group.pools[1].endpoints[0].set_draining(1);
        assert_eq!(shares(&group, &[90.0, 10.0], 100), HashMap::from([(1, 100)]));
        assert!(group.choose(&[0.0, 100.0], &[]).is_none(), "a deployment without a share gets nothing");
    }

    #[test]
    fn the_one_with_the_fewest_requests_gets_the_next() {
        let group = group(&[(None, 3)], Algorithm::LeastOutstandingRequests);
        let all = &group.pools[0].endpoints;
        let _busy = [all[0].begin(), all[0].begin(), all[1].begin()];
        assert_eq!(shares(&group, &[1.0], 10), HashMap::from([(3, 10)]));
    }

    #[test]
    fn a_target_that_starts_slowly_gets_little_at_first() {
        let mut group = group(&[(None, 2)], Algorithm::RoundRobin);
        group.spec.slow_start_seconds = Some(30);
        // Healthy for as long as this process is there, and just so.
        let shares = shares(&group, &[1.0], 200);
        assert!(shares.values().all(|count| *count > 60), "alike as long as all of them are cold: {shares:?}");
    }
}
