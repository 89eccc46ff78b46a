//! Figures of the agents of a process: their tasks, and what containers take of the machine.

use std::sync::{Arc, Mutex, PoisonError};

use futures::{StreamExt as _, stream};
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::{Registry, Unit};
use tokio::sync::{mpsc, oneshot};

use crate::engine::Input;
use crate::runtime::{ContainerId, Runtime, Usage};

/// Containers that are looked at at once.
const AT_ONCE: usize = 16;

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfStatus {
    cluster: String,
    instance: String,
    /// ECS' `lastStatus`.
    status: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfContainer {
    cluster: String,
    instance: String,
    /// Empty: of no service.
    service: String,
    task: String,
    container: String,
}

/// A task as an agent has it.
#[derive(Debug, Clone)]
pub(crate) struct TaskFigures {
    pub(crate) service: String,
    pub(crate) status: &'static str,
    /// Containers that run.
    pub(crate) running: Vec<ContainerId>,
}

/// An agent that can be asked.
struct Seat {
    cluster: String,
    instance: String,
    engine: mpsc::UnboundedSender<Input>,
    runtime: Arc<dyn Runtime>,
}

/// Where the agents of a process say what there is to know.
#[derive(Clone, Default)]
pub struct Figures(Arc<Mutex<Vec<Arc<Seat>>>>);

impl std::fmt::Debug for Figures {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Figures").finish_non_exhaustive()
    }
}

impl Figures {
    pub(crate) fn join(
        &self,
        cluster: String,
        instance: String,
        engine: mpsc::UnboundedSender<Input>,
        runtime: Arc<dyn Runtime>,
    ) {
        let mut seats = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        seats.retain(|seat| !seat.engine.is_closed());
        seats.push(Arc::new(Seat { cluster, instance, engine, runtime }));
    }

    /// All of it as of now, in `OpenMetrics`' words. Containers are looked at one after the other, a few at once.
    pub async fn text(&self) -> String {
        let seats = self.0.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let tasks = Family::<OfStatus, Gauge>::default();
        let mut containers = Vec::new();
        for seat in seats {
            let (answer, answered) = oneshot::channel();
            let _ = seat.engine.send(Input::Counted { answer });
            for (task, figures) in answered.await.unwrap_or_default() {
                let (cluster, instance) = (seat.cluster.clone(), seat.instance.clone());
                let of = OfStatus { cluster, instance, status: figures.status.to_owned() };
                tasks.get_or_create(&of).inc();
                containers.extend(figures.running.into_iter().map(|id| {
                    let (cluster, instance) = (seat.cluster.clone(), seat.instance.clone());
                    let (service, container) = (figures.service.clone(), id.name.clone());
                    (Arc::clone(&seat), id, OfContainer { cluster, instance, service, task: task.clone(), container })
                }));
            }
        }
        let looked = stream::iter(containers).map(|(seat, id, of)| async move {
            let usage = seat.runtime.usage(&id).await.ok()?;
            Some((of, usage))
        });
        let all: Vec<(OfContainer, Usage)> =
            looked.buffer_unordered(AT_ONCE).filter_map(std::future::ready).collect().await;
        written(tasks, &all)
    }
}

fn written(tasks: Family<OfStatus, Gauge>, containers: &[(OfContainer, Usage)]) -> String {
    let mut registry = Registry::with_prefix("steady");
    registry.register("agent_tasks", "Tasks by status", tasks);
    let mut gauge = |name: &str, help: &str, unit: Option<Unit>, value: &dyn Fn(&Usage) -> Option<u64>| {
        let family = Family::<OfContainer, Gauge>::default();
        for (of, usage) in containers {
            if let Some(value) = value(usage) {
                family.get_or_create(of).set(i64::try_from(value).unwrap_or(i64::MAX));
            }
        }
        match unit {
            Some(unit) => registry.register_with_unit(name, help, unit, family),
            None => registry.register(name, help, family),
        }
    };
    gauge("container_memory", "Memory, without what the kernel would give back", Some(Unit::Bytes), &|u| {
        Some(u.memory_bytes)
    });
    gauge("container_memory_limit", "Its limit", Some(Unit::Bytes), &|u| u.memory_limit_bytes);
    gauge("container_processes", "Processes", None, &|u| Some(u.processes));
    let mut counter = |name: &str, help: &str, value: &dyn Fn(&Usage) -> u64| {
        let family = Family::<OfContainer, Counter>::default();
        for (of, usage) in containers {
            family.get_or_create(of).inc_by(value(usage));
        }
        registry.register_with_unit(name, help, Unit::Bytes, family);
    };
    counter("container_received", "From the network", &|u| u.received_bytes);
    counter("container_sent", "To the network", &|u| u.sent_bytes);
    counter("container_read", "From disks", &|u| u.read_bytes);
    counter("container_written", "To disks", &|u| u.written_bytes);
    let cpu = Family::<OfContainer, Counter<f64, std::sync::atomic::AtomicU64>>::default();
    for (of, usage) in containers {
        cpu.get_or_create(of).inc_by(usage.cpu_nanoseconds as f64 / 1e9);
    }
    registry.register_with_unit("container_cpu", "Time of all cores together", Unit::Seconds, cpu);
    steady_runtime::metrics::written(&registry)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_containers_take_is_told_by_service_and_task() {
        let tasks = Family::<OfStatus, Gauge>::default();
        let of = OfStatus { cluster: "default".into(), instance: "m".into(), status: "RUNNING".into() };
        tasks.get_or_create(&of).inc();
        let of = OfContainer {
            cluster: "default".into(),
            instance: "m".into(),
            service: "web".into(),
            task: "t1".into(),
            container: "main".into(),
        };
        let usage = Usage { cpu_nanoseconds: 1_500_000_000, memory_bytes: 7, processes: 2, ..Usage::default() };
        let text = written(tasks, &[(of, usage)]);
        let labels = r#"{cluster="default",instance="m",service="web",task="t1",container="main"}"#;
        for line in [
            r#"steady_agent_tasks{cluster="default",instance="m",status="RUNNING"} 1"#.to_owned(),
            format!("steady_container_cpu_seconds_total{labels} 1.5"),
            format!("steady_container_memory_bytes{labels} 7"),
            format!("steady_container_processes{labels} 2"),
            format!("steady_container_received_bytes_total{labels} 0"),
        ] {
            assert!(text.contains(&line), "{line}\n{text}");
        }
        assert!(!text.contains("memory_limit_bytes{"), "no limit is no figure");
    }
}
