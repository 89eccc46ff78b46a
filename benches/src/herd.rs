//! Instances that all lose their API server at once, and then all their agents: how long until every one is back, and how
//! many looked dead meanwhile.

use std::time::{Duration, Instant};

use steady_core::Kind;
use steady_core::v1::ListRequest;

use crate::args::Scale;
use crate::machine::{self, Others};
use crate::report::{Report, Target};
use crate::sample::{Sample, millis};
use crate::store::Store;
use crate::subject::{Child, Subject};
use crate::workspace::Workspace;

/// After all are connected: what was written for it is over.
const SETTLE: Duration = Duration::from_secs(12);

/// Measures.
pub(crate) async fn run(workspace: &Workspace, scale: Scale) -> anyhow::Result<Report> {
    let store = Store::start(&workspace.directory("etcd")?, &workspace.steady).await?;
    let mut subject = Subject::apiserver(workspace, &store).await?;
    let listen = subject.address.trim_start_matches("http://").to_owned();
    let data = workspace.directory("agent-data")?;
    let mut agent = Child::agents(workspace, &subject, scale.instances, &data, "agent")?;
    let controller = Child::controllers(workspace, &subject)?;
    subject.instances(scale.instances).await?;
    tokio::time::sleep(SETTLE).await;
    let others = Others::watch(&[subject.pid, store.pid, agent.pid, controller.pid]);
    let (mut api, mut all) = (Sample::default(), Sample::default());
    let (mut api_silent, mut all_silent) = (Sample::default(), Sample::default());
    for round in 0..scale.rounds {
        let before = disconnections(&subject).await?;
        let began = Instant::now();
        subject = subject.restarted(workspace, &store, &listen, round).await?;
        subject.sessions(scale.instances).await?;
        api.push(millis(began.elapsed()));
        tokio::time::sleep(SETTLE).await;
        api_silent.push(disconnections(&subject).await? - before);

        let before = disconnections(&subject).await?;
        let began = Instant::now();
        agent.kill().await?;
        subject.no_session().await?;
        agent = Child::agents(workspace, &subject, scale.instances, &data, &format!("agent-{round}"))?;
        subject.sessions(scale.instances).await?;
        all.push(millis(began.elapsed()));
        tokio::time::sleep(SETTLE).await;
        all_silent.push(disconnections(&subject).await? - before);
    }
    let mut report = Report::new("herd", "M14", scale);
    report.others(&others);
    let minute = Target::AtMost(60_000.0);
    report.goal("API server killed and started again, to all leases held", "ms", api, minute);
    report.goal("instances that looked dead meanwhile", "instances", api_silent, Target::AtMost(0.0));
    report.goal("agents killed and started again, to all leases held", "ms", all, minute);
    report.goal("instances that looked dead meanwhile (agents)", "instances", all_silent, Target::AtMost(0.0));
    report.figure("memory of the API server", "MiB", machine::resident(subject.pid));
    report.figure("memory of the agents' process", "MiB", machine::resident(agent.pid));
    for child in [agent, controller] {
        child.kill().await?;
    }
    subject.stop().await?;
    store.stop().await;
    Ok(report)
}

/// How often an instance was told to be silent, ever.
async fn disconnections(subject: &Subject) -> anyhow::Result<f64> {
    let mut found = 0;
    let mut after = String::new();
    loop {
        let request = ListRequest { kind: Kind::Event.into(), after: after.clone(), ..ListRequest::default() };
        let page = subject.client.objects().list(request).await?.into_inner();
        let silent = |object: &&steady_core::v1::Object| {
            object.as_event().and_then(|e| e.spec.as_ref()).is_some_and(|spec| spec.reason == "AGENT_DISCONNECTED")
        };
        found += page.items.iter().filter(silent).count();
        after = page.next;
        if after.is_empty() {
            return Ok(found as f64);
        }
    }
}
