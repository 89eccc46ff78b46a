//! P11: a process of controllers that leads is killed, or asked to end: how long until another one acts. There is no
//! yardstick: the time to live of a lease is 5 s, and after a kill nobody may act before that is over.

use std::time::{Duration, Instant};

use anyhow::Context as _;
use steady_core::Kind;
use steady_core::v1::{ListRequest, Object};

use crate::args::Scale;
use crate::machine::Others;
use crate::report::{Report, Target};
use crate::sample::{Sample, millis};
use crate::store::Store;
use crate::subject::{Child, Subject};
use crate::tasks::{self, Tasks};
use crate::workspace::Workspace;

/// Between two kills: the one that was started again stands by.
const REST: Duration = Duration::from_secs(2);

/// Measures.
pub(crate) async fn run(workspace: &Workspace, scale: Scale) -> anyhow::Result<Report> {
    let store = Store::start(&workspace.directory("etcd")?, &workspace.steady).await?;
    let subject = Subject::apiserver(workspace, &store).await?;
    let spawn = |name: &str, args: &[&str]| {
        let args = [args, &["--server", &subject.address]].concat();
        Child::spawn(&workspace.steady, &workspace.directory(name)?, &args)
    };
    let data = workspace.directory("agent-data")?.display().to_string();
    let instances = scale.instances.to_string();
    let agent = ["agent", "--name", "n", "--data-dir", &data, "--runtime", "hollow", "--instances", &instances];
    let agent = spawn("agent", &agent)?;
    let mut controllers = vec![spawn("controllers-0", &["controller"])?, spawn("controllers-1", &["controller"])?];
    subject.instances(scale.instances).await?;
    tasks::define(&subject.client).await?;
    let mut watch = Tasks::follow(&subject.client).await?;
    watch.up(&subject.client, "failover", 1).await?;
    let others = Others::watch(&[subject.pid, store.pid]);
    let (mut killed, mut asked) = (Sample::default(), Sample::default());
    for round in 0..scale.rounds * 2 {
        tokio::time::sleep(REST).await;
        let leads = leader(&subject).await?;
        let leader = controllers.iter().position(|child| leads.contains(&format!("-{}-", child.pid)));
        let leader = leader.with_context(|| format!("nobody of ours leads, but {leads}"))?;
        let began = Instant::now();
        let (gone, taken) = (controllers.remove(leader), if round % 2 == 0 { &mut killed } else { &mut asked });
        if round % 2 == 0 {
            gone.kill().await?;
        } else {
            gone.end().await?;
        }
        watch.up(&subject.client, &format!("failover-{round}"), 1).await?;
        taken.push(millis(began.elapsed()));
        controllers.push(spawn(&format!("controllers-{}", round + 2), &["controller"])?);
    }
    let mut report = Report::new("failover", "P11", scale);
    report.others(&others);
    report.figure("kill -9 of what leads to a new service RUNNING, p50", "ms", killed.quantile(0.5));
    report.goal("the same, p99", "ms", killed.quantile(0.99), Target::AtMost(7000.0));
    report.figure("the same, all", "ms", killed);
    report.figure("SIGTERM of what leads to a new service RUNNING, p50", "ms", asked.quantile(0.5));
    report.figure("the same, p99", "ms", asked.quantile(0.99));
    for child in controllers.into_iter().chain([agent]) {
        child.kill().await?;
    }
    subject.stop().await?;
    store.stop().await;
    Ok(report)
}

/// Who leads the controllers; one process leads all of them.
async fn leader(subject: &Subject) -> anyhow::Result<String> {
    let request = ListRequest { kind: Kind::Lease.into(), ..ListRequest::default() };
    let leases = subject.client.objects().list(request).await?.into_inner().items;
    let holder = |lease: &Object| Some(lease.as_lease()?.spec.as_ref()?.holder.clone());
    let service = leases.iter().find(|lease| lease.name() == "controller.service");
    service.and_then(holder).context("nobody leads")
}
