//! A service's tasks rolled from one version to the next, from the change until the old ones are gone and the rollout says it
//! is complete; beside Docker Swarm, which does the same with containers on a private Docker Engine of this machine. Steady
//! does it with hollow tasks, and with containers on the same engine.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use steady_core::v1::{
    ApplyRequest, ContainerDefinition, GetRequest, KeyValuePair, Object, Service, ServiceSpec, TaskDefinition,
    TaskDefinitionSpec,
};
use steady_core::{DEFAULT_CLUSTER, Key, Kind};
use steady_runtime::Client;
use tokio::process::{Child, Command};

use crate::args::Scale;
use crate::machine::Others;
use crate::report::Report;
use crate::sample::Sample;
use crate::store::Store;
use crate::subject::Subject;
use crate::workspace::Workspace;

const IMAGE: &str = "rollout:1";
const NAME: &str = "rollout";
/// Longest wait for a rollout.
const PATIENCE: Duration = Duration::from_secs(600);
/// Until the first version's tasks count.
const SETTLED: Duration = Duration::from_secs(12);
/// Between two looks.
const LOOK: Duration = Duration::from_millis(20);

/// Measures.
pub(crate) async fn run(workspace: &Workspace, scale: Scale) -> anyhow::Result<Report> {
    let mut report = Report::new("rollout", "rolling update", scale);
    let others = Others::watch(&[]);
    let (mut swarm, mut hollow, mut docker) = (Sample::default(), Sample::default(), Sample::default());
    for round in 1..=scale.rounds {
        let engine = Engine::start(workspace, round).await?;
        swarm.push(engine.swarm(scale.tasks).await?.as_secs_f64());
        docker.push(steady(workspace, Some(&engine), &format!("docker-{round}"), scale.tasks).await?.as_secs_f64());
        engine.stop().await?;
        hollow.push(steady(workspace, None, &format!("hollow-{round}"), scale.tasks).await?.as_secs_f64());
    }
    report.others(&others);
    report.figure("hollow over Docker Swarm", "x", hollow.median() / swarm.median());
    report.figure("containers over Docker Swarm", "x", docker.median() / swarm.median());
    report.yardstick("Docker Swarm, containers", "s", swarm);
    report.figure("Steady, hollow tasks", "s", hollow);
    report.figure("Steady, containers on the same engine", "s", docker);
    report.note(
        "Swarm: --update-parallelism 0 --update-order start-first, its monitor of 5 s a task left as it is; Steady: 100 % to \
         200 %, a task without health check counts after 10 s"
            .into(),
    );
    Ok(report)
}

/// Rolls a service of a new Steady: of containers on an engine, or of hollow tasks.
async fn steady(workspace: &Workspace, engine: Option<&Engine>, name: &str, tasks: u32) -> anyhow::Result<Duration> {
    let store = Store::start(&workspace.directory(&format!("etcd-{name}"))?, &workspace.steady).await?;
    let directory = workspace.directory(name)?;
    let data = directory.join("data").display().to_string();
    let mut args = vec!["up", "--data-dir", &data, "--etcd", &store.endpoint];
    match engine {
        Some(engine) => args.extend(["--runtime", "docker", "--docker-socket", &engine.socket]),
        None => args.extend(["--runtime", "hollow", "--instances", "4"]),
    }
    let mut subject = Subject::spawn(&workspace.steady, &directory, &args)?;
    subject.answers().await?;
    subject.instances(1).await?;
    declare(&subject.client, 1, tasks).await?;
    until_steady(&subject.client, 1).await?;
    // Tasks that have not run for ten seconds make room for nobody, and nobody waits for them.
    tokio::time::sleep(SETTLED).await;
    let began = Instant::now();
    declare(&subject.client, 2, tasks).await?;
    until_steady(&subject.client, 2).await?;
    let took = began.elapsed();
    declare(&subject.client, 2, 0).await?;
    until_steady(&subject.client, 2).await?;
    subject.stop().await?;
    store.stop().await;
    Ok(took)
}

async fn declare(client: &Client, version: u32, tasks: u32) -> anyhow::Result<()> {
    let container = ContainerDefinition {
        name: "main".into(),
        image: IMAGE.into(),
        command: vec!["sleep".into(), "100000".into()],
        memory: 16,
        stop_timeout: Some(1),
        environment: vec![KeyValuePair { name: "VERSION".into(), value: version.to_string() }],
        ..ContainerDefinition::default()
    };
    let definition = TaskDefinitionSpec {
        family: NAME.into(),
        container_definitions: vec![container],
        ..TaskDefinitionSpec::default()
    };
    let service = ServiceSpec {
        task_definition: NAME.into(),
        desired_count: Some(i32::try_from(tasks)?),
        ..ServiceSpec::default()
    };
    let objects = vec![
        Object::new("", NAME, TaskDefinition { spec: Some(definition), status: None }),
        Object::new(DEFAULT_CLUSTER, NAME, Service { spec: Some(service), status: None }),
    ];
    client.objects().apply(ApplyRequest { objects, dry_run: false }).await.context("the service was not applied")?;
    Ok(())
}

/// Waits until the service is steady as it was last declared.
async fn until_steady(client: &Client, version: u32) -> anyhow::Result<()> {
    let began = Instant::now();
    let reference = Key::new(Kind::Service, DEFAULT_CLUSTER, NAME).reference();
    loop {
        let request = GetRequest { r#ref: Some(reference.clone()) };
        let object = client.objects().get(request).await?.into_inner().object.context("no service")?;
        let (generation, service) = (object.meta().generation, object.as_service().cloned().unwrap_or_default());
        let (spec, status) = (service.spec.unwrap_or_default(), service.status.unwrap_or_default());
        let newest = spec.task_definition == format!("{NAME}:{version}");
        if newest && status.steady && status.observed_generation == generation {
            return Ok(());
        }
        if began.elapsed() > PATIENCE {
            bail!("the service is not steady after {PATIENCE:?}: {status:?}");
        }
        tokio::time::sleep(LOOK).await;
    }
}

/// A private Docker Engine.
struct Engine {
    daemon: Child,
    socket: String,
    exec_root: PathBuf,
}

impl Engine {
    async fn start(workspace: &Workspace, round: u32) -> anyhow::Result<Self> {
        let directory = workspace.directory(&format!("engine-{round}"))?;
        // Short: containerd's own sockets below it may have 108 characters.
        let exec_root = std::env::temp_dir().join(format!("steady-rollout-{}", std::process::id()));
        let socket = exec_root.with_extension("sock").display().to_string();
        let output = std::fs::File::create(directory.join("output"))?;
        let mut command = Command::new("dockerd");
        command.arg("--data-root").arg(directory.join("data")).arg("--exec-root").arg(&exec_root);
        command.arg("--pidfile").arg(directory.join("pid")).args(["-H", &format!("unix://{socket}")]);
        command.stdin(Stdio::null()).stdout(output.try_clone()?).stderr(output).kill_on_drop(true);
        let daemon =
            command.spawn().context("dockerd does not start; are docker.io, containerd and runc installed?")?;
        let engine = Engine { daemon, socket, exec_root };
        let began = Instant::now();
        while engine.docker(&["version"]).await.is_err() {
            if began.elapsed() > Duration::from_secs(60) {
                bail!("dockerd does not answer; see {}", directory.display());
            }
            tokio::time::sleep(LOOK * 5).await;
        }
        engine.image(&directory).await?;
        Ok(engine)
    }

    async fn docker(&self, args: &[&str]) -> anyhow::Result<String> {
        let host = format!("unix://{}", self.socket);
        let output = Command::new("docker").args(["-H", &host]).args(args).output().await?;
        if !output.status.success() {
            bail!("docker {args:?}: {}", String::from_utf8_lossy(&output.stderr));
        }
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// An image of Debian's `busybox-static`.
    async fn image(&self, directory: &Path) -> anyhow::Result<()> {
        let made = "set -e; mkdir -p image/bin; cp $(command -v busybox) image/bin/busybox; ln -s busybox image/bin/sleep; \
                    tar -C image -cf image.tar .";
        let made = Command::new("sh").args(["-c", made]).current_dir(directory).status().await?;
        if !made.success() {
            bail!("no image could be made; is busybox-static installed?");
        }
        self.docker(&["import", &directory.join("image.tar").display().to_string(), IMAGE]).await?;
        Ok(())
    }

    /// Removes whatever containers are left: they would outlive the engine.
    fn empty(&self) {
        let all = format!("ids=$(docker -H unix://{0} ps -aq) && docker -H unix://{0} rm -f $ids", self.socket);
        let mut command = std::process::Command::new("sh");
        command.args(["-c", &all]).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let _ = command.status();
    }

    /// How long Docker Swarm takes for the same.
    async fn swarm(&self, tasks: u32) -> anyhow::Result<Duration> {
        self.docker(&["swarm", "init", "--advertise-addr", "127.0.0.1"]).await?;
        let count = tasks.to_string();
        let create = ["service", "create", "--detach=false", "--quiet", "--no-resolve-image", "--name", NAME];
        let how = ["--replicas", &count, "--update-parallelism", "0", "--update-order", "start-first"];
        let what = ["--stop-grace-period", "1s", "--env", "VERSION=1", IMAGE, "sleep", "100000"];
        self.docker(&[&create[..], &how, &what].concat()).await?;
        let began = Instant::now();
        let update =
            ["service", "update", "--detach=false", "--quiet", "--no-resolve-image", "--env-add", "VERSION=2", NAME];
        self.docker(&update).await?;
        while self.docker(&["ps", "-q"]).await?.lines().count() != tasks as usize {
            tokio::time::sleep(LOOK).await;
        }
        let took = began.elapsed();
        self.docker(&["service", "rm", NAME]).await?;
        self.docker(&["swarm", "leave", "--force"]).await?;
        while !self.docker(&["ps", "-q"]).await?.is_empty() {
            tokio::time::sleep(LOOK * 5).await;
        }
        Ok(took)
    }

    async fn stop(mut self) -> anyhow::Result<()> {
        self.empty();
        if let Some(pid) = self.daemon.id().and_then(|pid| rustix::process::Pid::from_raw(i32::try_from(pid).ok()?)) {
            rustix::process::kill_process(pid, rustix::process::Signal::TERM)?;
        }
        tokio::time::timeout(Duration::from_secs(60), self.daemon.wait()).await.context("dockerd did not end")??;
        let _ = std::fs::remove_dir_all(&self.exec_root);
        Ok(())
    }
}

impl Drop for Engine {
    /// Of a run that failed.
    fn drop(&mut self) {
        if self.daemon.id().is_some() {
            self.empty();
        }
    }
}
