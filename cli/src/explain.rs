//! `steady explain`: how the scheduler sees a task: which instances take it, how good each is, why the others do not.
//!
//! It is worked out here, by the scheduler's own code, from what the API server says now.

use clap::Args;
use steady_core::{Kind, task};
use steady_plan::scheduler::{Explanation, explain};
use steady_proto::v1::Selector;

use crate::args::Global;
use crate::columns::{short_id, status_word};
use crate::failure::Failure;
use crate::out::Out;
use crate::span;
use crate::table::Table;
use crate::target;
use crate::world::{World, now};

/// Instances that are shown of those that take a task, and of those that do not for each reason, unless all are asked for.
const SHOWN: usize = 10;

/// Arguments of `steady explain`.
#[derive(Debug, Args)]
#[command(
    after_long_help = "Each instance is asked, as the scheduler asks it: whether it takes tasks, its capacity provider, attributes and placement
constraints, then room for the task's CPU, memory, host ports and other resources, then what is there already. Those that take it are in order of the task's strategies; less is better.

Examples:
  steady explain task/3fa8c1
  steady explain task/3fa8c1 --all            every instance"
)]
pub struct Explain {
    /// Task: task/ID or ID.
    #[arg(value_name = "TASK")]
    pub task: String,
    /// Every instance, not the first ten of each sort.
    #[arg(long)]
    pub all: bool,
}

/// `steady explain`.
pub async fn run(args: Explain, global: &Global, out: &mut Out) -> Result<(), Failure> {
    let client = global.connect().await?;
    let name = target::name_of(Kind::Task, &args.task)?;
    let key = target::task(&client, &global.cluster, &name).await?;
    let mut world = World::list(&client, &[Kind::Task, Kind::ContainerInstance, Kind::Service], &key.cluster).await?;
    world.add(client.list(Kind::TaskDefinition, Selector::default()).await?);
    let explained = explain(&world.view, &key, now());
    let (Some(explained), Some(object)) = (explained, world.view.get(&key)) else {
        return Err(Failure::failed(format!("there is no {key}; `steady get tasks --all` lists what there is")));
    };
    let Some(task) = task::of(object) else { return Ok(()) };
    out.line(&format!("task/{} of {}, {}", short_id(object.name()), task.spec.group, task.spec.task_definition))?;
    out.line(&format!("needs       {}", explained.needs.join(", ")))?;
    out.line(&format!("strategies  {}", explained.steps.join(", then ")))?;
    out.line(&format!("now         {}", state(&explained, &task)))?;
    let most = if args.all { usize::MAX } else { SHOWN };
    takes(&explained, most, out)?;
    refuses(&explained, most, out)
}

/// Where the task is, or what it waits for.
fn state(explained: &Explanation, task: &task::View<'_>) -> String {
    let place = &task.spec.container_instance;
    let Some(since) = explained.waits_since else {
        let status = status_word(task.status.last_status());
        return if place.is_empty() {
            format!("{status}; it was never placed")
        } else {
            format!("{status} on {place}; below it is judged as one more task like it would be")
        };
    };
    let mut words = vec![format!("waits for a place for {}", span::age(Some(&since.into()), now()))];
    let scheduler = &task.spec.scheduler_name;
    if !scheduler.is_empty() && scheduler != steady_plan::scheduler::NAME {
        words.push(format!("the scheduler `{scheduler}` places it, below is what Steady's own would do"));
    } else if explained.before > 0 {
        words.push(format!("{} waiting tasks come before it", explained.before));
    }
    if let Some(kept) = &explained.kept {
        words.push(format!("{kept} is kept free for it"));
    }
    if !explained.victims.is_empty() {
        let victims: Vec<String> =
            explained.victims.iter().map(|(task, on)| format!("task/{} on {on}", short_id(task))).collect();
        words.push(format!("these make room for it: {}", victims.join(", ")));
    }
    words.join("; ")
}

fn takes(explained: &Explanation, most: usize, out: &mut Out) -> Result<(), Failure> {
    let count = explained.candidates.len();
    out.line(&format!("\n{count} {} it{}", takers(count), if count == 0 { "" } else { ", the best first:" }))?;
    if count == 0 {
        return Ok(());
    }
    let mut table = Table::new(&["INSTANCE", "SCORES"], out.is_colored());
    for candidate in explained.candidates.iter().take(most) {
        let scores = explained.steps.iter().zip(&candidate.scores);
        let scores: Vec<String> = scores.map(|(step, score)| format!("{step}: {score}")).collect();
        table.push(vec![candidate.instance.as_str().into(), scores.join(", ").into()]);
    }
    out.text(&table.render())?;
    more(count, most, out)
}

fn takers(count: usize) -> &'static str {
    if count == 1 { "instance takes" } else { "instances take" }
}

fn refuses(explained: &Explanation, most: usize, out: &mut Out) -> Result<(), Failure> {
    let count: usize = explained.refused.values().map(Vec::len).sum();
    if count == 0 {
        return Ok(());
    }
    let verb = if count == 1 { "instance does" } else { "instances do" };
    out.line(&format!("\n{count} {verb} not:"))?;
    let mut table = Table::new(&["REASON", "INSTANCE", "WHY"], out.is_colored());
    for (reason, instances) in &explained.refused {
        for (instance, why) in instances.iter().take(most) {
            table.push(vec![(*reason).into(), instance.as_str().into(), why.as_str().into()]);
        }
    }
    out.text(&table.render())?;
    let hidden = explained.refused.values().map(|instances| instances.len().min(most)).sum();
    more(count, hidden, out)
}

fn more(count: usize, shown: usize, out: &mut Out) -> Result<(), Failure> {
    if count > shown {
        out.line(&format!("and {} more; --all shows them", count - shown))?;
    }
    Ok(())
}
