//! P7: what a call costs as the cluster grows. The yardstick is the same call on the smallest cluster of the run.

use std::time::{Duration, Instant};

use steady_core::v1::change::Change as Wire;
use steady_core::v1::{Expect, GetRequest, ListRequest, ObjectRef, PutSpec};
use steady_core::{DEFAULT_CLUSTER, Kind};
use steady_runtime::Client;

use crate::args::Scale;
use crate::machine::{self, Others};
use crate::report::{Report, Target};
use crate::sample::{Sample, millis};
use crate::store::Store;
use crate::subject::{Child, Subject};
use crate::workspace::Workspace;
use crate::write::{commit, object};

/// Calls of each sort in a round.
const CALLS: u32 = 300;
/// Registered instances, smallest first.
const SIZES: [u32; 4] = [10, 1_000, 3_000, 10_000];
/// After the last instance is connected: what was written for it is over.
const SETTLE: Duration = Duration::from_secs(5);

/// One sort of call.
#[derive(Debug, Clone, Copy)]
enum Call {
    Get,
    List,
    Commit,
}

/// Measures.
pub(crate) async fn run(workspace: &Workspace, scale: Scale) -> anyhow::Result<Report> {
    let mut report = Report::new("flat", "P7", scale);
    let calls = [(Call::Get, "Get"), (Call::List, "List, a page of 10"), (Call::Commit, "Commit")];
    let mut least = [Sample::default(), Sample::default(), Sample::default()];
    for size in SIZES {
        let store = Store::start(&workspace.directory(&format!("etcd-{size}"))?, &workspace.steady).await?;
        let directory = workspace.directory(&format!("steady-{size}"))?;
        let mut subject = Subject::spawn(&workspace.steady, &directory, &["apiserver", "--etcd", &store.endpoint])?;
        subject.answers().await?;
        let data = workspace.directory(&format!("agent-data-{size}"))?;
        let agents = Child::agents(workspace, &subject, size, &data, &format!("agent-{size}"))?;
        let controllers = Child::controllers(workspace, &subject)?;
        subject.instances(size).await?;
        tokio::time::sleep(SETTLE).await;
        let others = Others::watch(&[subject.pid, store.pid, agents.pid, controllers.pid]);
        for (index, (call, name)) in calls.into_iter().enumerate() {
            let mut sample = Sample::default();
            for _ in 0..scale.rounds {
                measure(&subject.client, call, &mut sample).await?;
            }
            report.figure(&format!("{name}, {size} instances, p50"), "ms", sample.quantile(0.5));
            let p99 = format!("{name}, {size} instances, p99");
            if size == SIZES[0] {
                report.yardstick(&p99, "ms", sample.quantile(0.99));
                least[index] = sample;
            } else {
                report.figure(&p99, "ms", sample.quantile(0.99));
                let ratio = |share: f64| sample.quantile(share) / least[index].quantile(share);
                report.figure(&format!("{name}, {size} over 10 instances, p50"), "x", ratio(0.5));
                report.goal(&format!("{name}, {size} over 10 instances, p99"), "x", ratio(0.99), Target::AtMost(1.5));
            }
        }
        report.others(&others);
        report.figure(&format!("memory of the API server, {size} instances"), "MiB", machine::resident(subject.pid));
        report.figure(
            &format!("memory of the controllers, {size} instances"),
            "MiB",
            machine::resident(controllers.pid),
        );
        for child in [agents, controllers] {
            child.kill().await?;
        }
        subject.stop().await?;
        store.stop().await;
    }
    Ok(report)
}

async fn measure(client: &Client, call: Call, sample: &mut Sample) -> anyhow::Result<()> {
    let mut objects = client.objects();
    let name = format!("bench-{call:?}-{}", sample.values().len());
    let mut revision = commit(client, vec![Wire::Create(object(&name, 0))]).await?.0;
    for n in 0..CALLS {
        let began = Instant::now();
        match call {
            Call::Get => {
                let name = format!("node-{}", n % 10 + 1);
                let kind = Kind::ContainerInstance.into();
                let r#ref = ObjectRef { kind, cluster: DEFAULT_CLUSTER.into(), name, ..ObjectRef::default() };
                objects.get(GetRequest { r#ref: Some(r#ref) }).await?;
            }
            Call::List => {
                let kind = Kind::ContainerInstance.into();
                objects.list(ListRequest { kind, limit: 10, ..ListRequest::default() }).await?;
            }
            Call::Commit => {
                let (object, expect) = (Some(object(&name, i64::from(n) + 1)), Some(Expect { revision }));
                let put = Wire::PutSpec(PutSpec { object, fields: vec![], expect });
                revision = commit(client, vec![put]).await?.0;
            }
        }
        sample.push(millis(began.elapsed()));
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    Ok(())
}
