//! `steady top`: what the containers of running tasks take.

use std::collections::BTreeMap;
use std::time::Duration;

use clap::Args;
use steady_core::{Kind, task};
use steady_proto::v1::task_last_status::Value as Status;
use steady_proto::v1::{ContainerUsage, StatsRequest};

use crate::args::Global;
use crate::client::Client;
use crate::columns::short_id;
use crate::failure::Failure;
use crate::out::{Out, Style, note};
use crate::table::{Cell, Table};
use crate::world::World;
use crate::{target, usage};

/// Arguments of `steady top`.
#[derive(Debug, Args)]
#[command(
    after_long_help = "CPU is in hundredths of a core since the look before. Containers that take most come first.

`services`, `tasks` and `instances` show what agents said last, which they do every ten seconds, against what is reserved: CPU in units
of which a core has 1024.

Examples:
  steady top services                what services take of what their tasks reserve
  steady top instances               how full machines are
  steady top                         every running task of the cluster, again and again
  steady top service/web --once
  steady top task/3fa8c1"
)]
pub struct Top {
    /// services, tasks or instances; or service/NAME, task/ID, or the id of a task [default: every container of the cluster].
    #[arg(value_name = "WHAT")]
    pub what: Option<String>,
    /// Look once, a second long.
    #[arg(long)]
    pub once: bool,
    /// Seconds between two looks.
    #[arg(long, value_name = "SECONDS", default_value_t = 2, value_parser = clap::value_parser!(u64).range(1..=3600))]
    pub every: u64,
}

/// Tasks of one question.
const MAX_TASKS: usize = 100;

/// A container: task and name.
type Name = (String, String);

/// `steady top`.
pub async fn run(args: Top, global: &Global, out: &mut Out) -> Result<(), Failure> {
    let client = global.connect().await?;
    let once = args.once || !out.is_terminal();
    let pause = Duration::from_secs(if once { 1 } else { args.every });
    if let Some(of) = args.what.as_deref().and_then(usage::Of::parse) {
        return all(&client, of, global, (!once).then_some(pause), out).await;
    }
    let (mut before, _) = look(&client, &args, global).await?;
    loop {
        tokio::time::sleep(pause).await;
        let (now, silent) = look(&client, &args, global).await?;
        let table = table(&before, &now, out.is_colored());
        if !once {
            // From the top of the screen, and nothing of what was there.
            out.text("\x1b[H\x1b[J")?;
        }
        out.text(&table.render())?;
        if now.is_empty() && silent.is_empty() {
            note("no container runs here; `steady get tasks` tells what does");
        }
        if !silent.is_empty() {
            note(&format!(
                "no answer from {}: not connected to this API server (--server names another), or busy",
                silent.join(", ")
            ));
        }
        if once {
            return Ok(());
        }
        before = now;
    }
}

/// What all services, tasks or instances take, again and again.
async fn all(
    client: &Client,
    of: usage::Of,
    global: &Global,
    pause: Option<Duration>,
    out: &mut Out,
) -> Result<(), Failure> {
    loop {
        let (table, silent) = usage::look(client, of, global, out.is_colored()).await?;
        if pause.is_some() {
            out.text("\x1b[H\x1b[J")?;
        }
        out.text(&table.render())?;
        if silent > 0 {
            note(&format!(
                "nothing is known of {silent} running tasks: they began in the last twenty seconds, are simulated, or their agents are \
                 connected to an API server that --server does not name"
            ));
        }
        let Some(pause) = pause else { return Ok(()) };
        tokio::time::sleep(pause).await;
    }
}

/// What every container takes, and the instances that did not say.
async fn look(
    client: &Client,
    args: &Top,
    global: &Global,
) -> Result<(BTreeMap<Name, ContainerUsage>, Vec<String>), Failure> {
    let tasks = tasks(client, args, global).await?;
    let (mut found, mut silent) = (BTreeMap::new(), Vec::new());
    for some in tasks.chunks(MAX_TASKS) {
        let request = StatsRequest { cluster: global.cluster.clone(), tasks: some.to_vec() };
        let answer = client.stats(request).await?;
        found.extend(answer.containers.into_iter().map(|usage| ((usage.task.clone(), usage.container.clone()), usage)));
        silent.extend(answer.silent_instances);
    }
    silent.sort();
    silent.dedup();
    Ok((found, silent))
}

async fn tasks(client: &Client, args: &Top, global: &Global) -> Result<Vec<String>, Failure> {
    let cluster = &global.cluster;
    let service = match &args.what {
        None => None,
        Some(what) => {
            let Some(service) = target::service_of(client, cluster, what).await? else {
                let task = target::task(client, cluster, &target::name_of(Kind::Task, what)?).await?;
                return Ok(vec![task.name.to_string()]);
            };
            Some(service)
        }
    };
    let mut world = World::default();
    world.add(client.list(Kind::Task, target::in_cluster(cluster)).await?);
    let of_service = |name: &str| service.as_ref().is_none_or(|service| *service.name == *name);
    let running = world.view.in_cluster(Kind::Task, cluster).filter_map(|object| {
        let task = task::of(object)?;
        (task.status.last_status() == Status::Running && of_service(&task.spec.service))
            .then(|| object.name().to_owned())
    });
    Ok(running.collect())
}

fn table(before: &BTreeMap<Name, ContainerUsage>, now: &BTreeMap<Name, ContainerUsage>, color: bool) -> Table {
    let mut rows: Vec<(f64, Vec<Cell>)> = now
        .iter()
        .map(|(name, usage)| {
            let last = before.get(name);
            let cpu = last.map(|last| percent(last, usage));
            (cpu.unwrap_or(0.0), row(usage, last, cpu))
        })
        .collect();
    rows.sort_by(|(a, _), (b, _)| b.total_cmp(a));
    let mut table = Table::new(
        &["TASK", "CONTAINER", "INSTANCE", "CPU", "MEMORY", "OF", "NET-IN", "NET-OUT", "READ", "WRITTEN", "PIDS"],
        color,
    );
    for (_, row) in rows {
        table.push(row);
    }
    table
}

/// Hundredths of a core between two looks.
fn percent(before: &ContainerUsage, now: &ContainerUsage) -> f64 {
    let spent = now.cpu_nanoseconds.saturating_sub(before.cpu_nanoseconds) as f64;
    let passed = now.at_nanoseconds.saturating_sub(before.at_nanoseconds) as f64;
    if passed > 0.0 { spent / passed * 100.0 } else { 0.0 }
}

fn row(usage: &ContainerUsage, before: Option<&ContainerUsage>, cpu: Option<f64>) -> Vec<Cell> {
    let busy = cpu.is_some_and(|cpu| cpu >= 90.0);
    let cpu = cpu.map_or_else(String::new, |cpu| format!("{cpu:.1}%"));
    let limit = usage.memory_limit_bytes;
    let full = limit > 0 && usage.memory_bytes * 10 > limit * 9;
    let style = |warns| if warns { Style::Busy } else { Style::Plain };
    let passed = before.map_or(0.0, |b| usage.at_nanoseconds.saturating_sub(b.at_nanoseconds) as f64 / 1e9);
    let rate = |count: fn(&ContainerUsage) -> u64| match before {
        Some(before) if passed > 0.0 => {
            format!("{}/s", bytes((count(usage).saturating_sub(count(before)) as f64 / passed) as u64))
        }
        _ => String::new(),
    };
    vec![
        short_id(&usage.task).into(),
        usage.container.clone().into(),
        usage.container_instance.clone().into(),
        Cell::styled(cpu, style(busy)),
        Cell::styled(bytes(usage.memory_bytes), style(full)),
        if limit > 0 { bytes(limit).into() } else { "".into() },
        rate(|u| u.received_bytes).into(),
        rate(|u| u.sent_bytes).into(),
        rate(|u| u.read_bytes).into(),
        rate(|u| u.written_bytes).into(),
        usage.processes.to_string().into(),
    ]
}

/// In the largest unit that leaves a whole number before the point.
pub(crate) fn bytes(count: u64) -> String {
    let units = ["KiB", "MiB", "GiB", "TiB"];
    let mut value = count as f64;
    let mut unit = "B";
    for larger in units {
        if value < 1024.0 {
            break;
        }
        (value, unit) = (value / 1024.0, larger);
    }
    if unit == "B" { format!("{count} B") } else { format!("{value:.1} {unit}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cpu_is_what_was_spent_between_two_looks() {
        let usage = |cpu, at| ContainerUsage { cpu_nanoseconds: cpu, at_nanoseconds: at, ..ContainerUsage::default() };
        assert!((percent(&usage(1_000, 10_000), &usage(6_000, 20_000)) - 50.0).abs() < 1e-9);
        // A container that was restarted counts from nothing.
        assert!(percent(&usage(6_000, 10_000), &usage(0, 20_000)).abs() < 1e-9);
    }

    #[test]
    fn bytes_are_told_in_units_that_people_read() {
        assert_eq!([0, 1023, 1024, 1_572_864].map(bytes), ["0 B", "1023 B", "1.0 KiB", "1.5 MiB"]);
    }
}
