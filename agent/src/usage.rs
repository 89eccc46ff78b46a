//! What tasks take, every ten seconds: of that the control plane makes the averages that services scale by.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use futures::{StreamExt, stream};
use steady_core::v1::TaskUsage;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::Instant;

use crate::engine::Input;
use crate::runtime::{ContainerId, Runtime, Usage};

/// Between looks.
const EVERY: Duration = Duration::from_secs(10);
/// Containers that are looked at at once.
const AT_ONCE: usize = 8;
/// How long all of them may take.
const PATIENCE: Duration = Duration::from_secs(8);
/// CPU units of a core.
const CORE: f64 = 1024.0;

/// Looks at containers.
pub(crate) struct Sampler {
    pub(crate) engine: mpsc::UnboundedSender<Input>,
    pub(crate) runtime: Arc<dyn Runtime>,
}

type Looks = BTreeMap<ContainerId, (Instant, Usage)>;

impl Sampler {
    /// Tells what tasks take for as long as the agent runs.
    pub(crate) async fn run(self, told: watch::Sender<Arc<Vec<TaskUsage>>>) {
        let mut before = Looks::new();
        let mut looks = tokio::time::interval(EVERY);
        looks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            looks.tick().await;
            let (answer, answered) = oneshot::channel();
            if self.engine.send(Input::Counted { answer }).is_err() {
                return;
            }
            let Ok(tasks) = answered.await else { return };
            let containers: Vec<ContainerId> = tasks.iter().flat_map(|(_, task)| task.running.clone()).collect();
            let looked = stream::iter(containers).map(|id| async {
                let usage = self.runtime.usage(&id).await.ok()?;
                Some((id, (Instant::now(), usage)))
            });
            // What is not known in time is missing, and told as that.
            let looked = looked.buffer_unordered(AT_ONCE).take_until(tokio::time::sleep(PATIENCE));
            let now: Looks = looked.filter_map(std::future::ready).collect().await;
            let taken = tasks.iter().filter_map(|(name, task)| usage(name, &task.running, &before, &now)).collect();
            told.send_replace(Arc::new(taken));
            before = now;
        }
    }
}

/// What a task takes; `None`: not all of its containers were looked at twice.
fn usage(name: &str, running: &[ContainerId], before: &Looks, now: &Looks) -> Option<TaskUsage> {
    let mut total = TaskUsage { task: name.to_owned(), ..TaskUsage::default() };
    for id in running {
        let ((began, old), (ended, new)) = (before.get(id)?, now.get(id)?);
        let passed = ended.duration_since(*began).as_secs_f64();
        // One that was started again counts from nothing.
        let spent = new.cpu_nanoseconds.checked_sub(old.cpu_nanoseconds)?;
        total.cpu += spent as f64 / 1e9 / passed.max(0.001) * CORE;
        total.memory_bytes += new.memory_bytes;
    }
    (!running.is_empty()).then_some(total)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_task_takes_what_its_containers_take_between_two_looks() {
        let id = |name: &str| ContainerId { task: "t".into(), name: name.into() };
        let begin = Instant::now();
        let look = |seconds: u64, cpu: u64| {
            let usage = Usage { cpu_nanoseconds: cpu * 1_000_000_000, memory_bytes: 7, ..Usage::default() };
            (begin + Duration::from_secs(seconds), usage)
        };
        let before = Looks::from([(id("a"), look(0, 1)), (id("b"), look(0, 9))]);
        let now = Looks::from([(id("a"), look(10, 6)), (id("b"), look(10, 9)), (id("c"), look(10, 1))]);
        let found = usage("t", &[id("a"), id("b")], &before, &now).expect("known");
        assert!((found.cpu - 512.0).abs() < 1e-6 && found.memory_bytes == 14, "{found:?}");
        assert_eq!(usage("t", &[id("a"), id("c")], &before, &now), None, "one is new");
        let again = Looks::from([(id("a"), look(20, 0))]);
        assert_eq!(usage("t", &[id("a")], &now, &again), None, "it was started again");
    }
}
