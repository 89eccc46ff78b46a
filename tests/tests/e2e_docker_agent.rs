//! What may happen to an agent and its machine, on real engines: killed at any moment, its notes lost, its disk full, its images
//! broken on the way.
#![allow(clippy::unwrap_used, missing_docs)]

use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use steady_agent::runtime::{Containerd, ContainerdSettings, Docker, DockerSettings, Pulled, Runtime};
use steady_tests::containerd::Daemon;
use steady_tests::docker::Engine;
use steady_tests::faulty::{Fault, registry};
use steady_tests::{Place, Running, eventually, free_port, ids, steady_binary, text};

const BOX: &str = "
apiVersion: steady/v1
kind: TaskDefinition
metadata: {name: box}
spec:
  containerDefinitions:
    - {name: first, image: 'box:1', memory: 16, stopTimeout: 1, essential: false, command: [sh, -c, 'echo begin']}
    - {name: main, image: 'box:1', memory: 16, stopTimeout: 1, command: [sh, -c, 'echo begin; sleep 1000'],
       dependsOn: [{containerName: first, condition: COMPLETE}], portMappings: [{containerPort: 80}]}
    - {name: side, image: 'box:1', memory: 16, stopTimeout: 1, command: [sh, -c, 'echo begin; sleep 1000'],
       dependsOn: [{containerName: main, condition: START}],
       restartPolicy: {enabled: true, restartAttemptPeriod: 60}}
---
apiVersion: steady/v1
kind: Service
metadata: {name: box}
spec: {taskDefinition: box, desiredCount: 3, deploymentConfiguration: {minimumHealthyPercent: 0}}
";

/// Kills the agent again and again while tasks come and go, then looks.
fn is_killed_at_every_step(place: &Place, args: &[&str], containers: &dyn Fn() -> usize) {
    let _control_plane = place.control_plane();
    let directory = place.path("agent").display().to_string();
    let start = || {
        let all = ["agent", "--name", "a", "--data-dir", &directory, "--without-live-restore"];
        Running::start(place.command(&[&all[..], args].concat()), &place.path("agent.log"))
    };
    let mut agent = start();
    eventually("applied", Duration::from_secs(30), || {
        let path = place.path("box.yaml");
        std::fs::write(&path, BOX).unwrap();
        place.steady(&["apply", "-f", path.to_str().unwrap()]).status.success().then_some(())
    });
    // From the first moment of a launch until long after it: each time a little later.
    for round in 0..14_u64 {
        std::thread::sleep(Duration::from_millis(60 + round * round * 9));
        agent.kill();
        let count = (2 + (round % 3)).to_string();
        place.ok(&["scale", "service/box", &count]);
        agent = start();
    }
    place.ok(&["scale", "service/box", "3"]);
    eventually("steady", Duration::from_secs(90), || {
        place.steady(&["wait", "service/box", "--for", "steady", "--timeout", "5s"]).status.success().then_some(())
    });
    let tasks = place.running();
    assert_eq!(tasks.len(), 3, "{}", place.story());
    eventually("nothing but these tasks' containers is there", Duration::from_secs(40), || {
        (containers() == 9).then_some(())
    });
    for task in ids(&tasks) {
        for container in ["first", "main", "side"] {
            let said = place.ok(&["logs", &format!("task/{task}"), "--container", container]);
            assert_eq!(said.matches("begin").count(), 1, "{container} ran once: {said}\n{}", place.story());
        }
    }
    for task in &tasks {
        let all = task["status"]["containers"].as_array().unwrap();
        let main = all.iter().find(|container| container["name"] == "main").unwrap();
        let port = main["networkBindings"][0]["hostPort"].as_u64().unwrap();
        let rules = Command::new("iptables").args(["-t", "nat", "-S"]).output().unwrap();
        assert!(text(&rules).contains(&format!("--dport {port} ")), "{port} leads to it: {}", text(&rules));
    }
    place.ok(&["delete", "service/box"]);
    eventually("nothing is left", Duration::from_secs(40), || (containers() == 0).then_some(()));
}

#[test]
fn an_agent_killed_at_every_step_runs_nothing_twice_and_loses_nothing_on_docker() {
    let place = Place::new();
    let engine = Engine::start(&place);
    engine.busybox("box:1");
    let args = ["--runtime", "docker", "--docker-socket", &engine.socket];
    is_killed_at_every_step(&place, &args, &|| engine.containers().len());
}

#[test]
fn an_agent_killed_at_every_step_runs_nothing_twice_and_loses_nothing_on_containerd() {
    let place = Place::new();
    let daemon = Daemon::start(&place);
    daemon.busybox(&place, "box:1");
    let args = ["--runtime", "containerd", "--containerd-socket", daemon.socket.to_str().unwrap()];
    is_killed_at_every_step(&place, &args, &|| daemon.ctr(&["containers", "list", "-q"]).lines().count());
}

#[test]
fn tasks_whose_records_are_lost_or_broken_go_on_and_keep_their_restart_policy() {
    let place = Place::new();
    let engine = Engine::start(&place);
    engine.busybox("box:1");
    let args = ["--runtime", "docker", "--docker-socket", &engine.socket];
    let mut up = place.up(&args);
    place.apply("box", BOX);
    place.wait_steady("service/box");
    let before = ids(&place.running());
    up.kill();
    let found = Command::new("find").arg(place.path("")).args(["-path", "*/tasks/*.json"]).output().unwrap();
    let found = text(&found);
    let records: Vec<&Path> = found.lines().map(Path::new).collect();
    assert_eq!(records.len(), 3, "{records:?}");
    std::fs::write(records[0], "{ this is no record").unwrap();
    std::fs::write(records[1], "").unwrap();
    std::fs::remove_file(records[2]).unwrap();
    let mut up = place.up(&args);
    place.wait_steady("service/box");
    std::thread::sleep(Duration::from_secs(2));
    assert_eq!(ids(&place.running()), before, "{}", place.story());
    assert_eq!(engine.containers().len(), 9);
    // What the definition says counts again; its period is measured by the engine's own clock.
    let restarted = |task: &str| {
        let task = place.json(&["get", &format!("task/{task}")]);
        let containers = task["status"]["containers"].as_array().unwrap().clone();
        containers.iter().any(|c| c["name"] == "side" && c["restartCount"] == 1)
    };
    let ran = std::time::Instant::now();
    while ran.elapsed() < Duration::from_secs(62) {
        std::thread::sleep(Duration::from_secs(1));
    }
    for task in &before {
        engine.docker(&["kill", &format!("steady-{task}-side")]);
        eventually("it is started again in its task", Duration::from_secs(20), || restarted(task).then_some(()));
    }
    assert_eq!(ids(&place.running()), before, "{}", place.story());
    up.kill();
}

/// A directory with room for little, which is gone with the test.
struct Small(std::path::PathBuf);

impl Small {
    fn mount(path: std::path::PathBuf) -> Self {
        std::fs::create_dir_all(&path).unwrap();
        let made = Command::new("mount").args(["-t", "tmpfs", "-o", "size=1m", "tmpfs"]).arg(&path).output().unwrap();
        assert!(made.status.success(), "{made:?}");
        Small(path)
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

#[test]
fn an_agent_whose_disk_is_full_starts_nothing_that_it_cannot_remember_and_stops_nothing() {
    let place = Place::new();
    let engine = Engine::start(&place);
    engine.busybox("box:1");
    let _control_plane = place.control_plane();
    let small = Small::mount(place.path("small"));
    let directory = small.0.display().to_string();
    let args = ["agent", "--name", "a", "--data-dir", &directory, "--without-live-restore", "--runtime", "docker"];
    let agent = place.command(&[&args[..], &["--docker-socket", &engine.socket]].concat());
    let _agent = Running::start(agent, &place.path("agent.log"));
    place.apply("box", BOX);
    place.wait_steady("service/box");
    let before = ids(&place.running());
    let fill = small.0.join("fill");
    let _ = std::fs::write(&fill, vec![0; 2 << 20]);
    assert!(std::fs::write(small.0.join("more"), [0; 4096]).is_err(), "it is full");
    place.ok(&["scale", "service/box", "4"]);
    let said = eventually("it is said", Duration::from_secs(30), || {
        let all = place.ok(&["get", "tasks", "--all", "-o", "json"]);
        all.contains("the agent cannot remember it").then_some(all)
    });
    assert!(said.contains("No space left on device"), "{said}");
    assert_eq!(ids(&place.running()).iter().filter(|id| before.contains(id)).count(), 3, "{}", place.story());
    assert_eq!(engine.containers().len(), 9, "what cannot be remembered is not made");
    std::fs::remove_file(&fill).unwrap();
    place.wait_steady("service/box");
    assert_eq!(place.running().len(), 4, "{}", place.story());
    place.ok(&["delete", "service/box"]);
    eventually("nothing is left", Duration::from_secs(20), || engine.containers().is_empty().then_some(()));
}

#[test]
fn an_image_that_no_task_uses_any_more_is_removed_and_a_gpu_is_one_container_s_alone() {
    let place = Place::new();
    let engine = Engine::with(&place, &["--add-runtime", "nvidia=/usr/sbin/runc"]);
    let (_registry, at) = steady_tests::docker::registry(&place, None);
    let image = format!("{at}/gone:1");
    engine.busybox(&image);
    engine.docker(&["push", &image]);
    engine.docker(&["rmi", &image]);
    engine.busybox("mine:1");
    let _control_plane = place.control_plane();
    let directory = place.path("agent").display().to_string();
    let start = || {
        let args = ["agent", "--name", "a", "--data-dir", &directory, "--without-live-restore", "--runtime", "docker"];
        let more = ["--resource", "GPU=2", "--image-cleanup-interval", "1", "--image-minimum-cleanup-age", "3"];
        let args = [&args[..], &more, &["--docker-socket", &engine.socket]].concat();
        Running::start(place.command(&args), &place.path("agent.log"))
    };
    let mut agent = start();
    let manifest = |name: &str, image: &str| {
        format!(
            "apiVersion: steady/v1\nkind: TaskDefinition\nmetadata: {{name: {name}}}\nspec:\n  containerDefinitions:\n    - \
             {{name: main, image: '{image}', memory: 16, stopTimeout: 1, command: [sleep, '1000'], resourceRequirements: [{{type: GPU, \
             value: '1'}}]}}\n---\napiVersion: steady/v1\nkind: Service\nmetadata: {{name: {name}}}\nspec: {{taskDefinition: {name}, \
             desiredCount: 1}}\n"
        )
    };
    // An agent that was started again has no session for a moment.
    let gpu = |name: &str| {
        let args = ["exec", &format!("service/{name}"), "--", "sh", "-c", "echo $NVIDIA_VISIBLE_DEVICES"];
        eventually("the container says which GPU it has", Duration::from_secs(30), || {
            let output = place.steady(&args);
            output.status.success().then(|| String::from_utf8_lossy(&output.stdout).into_owned())
        })
    };
    eventually("connected", Duration::from_secs(30), || {
        place.steady(&["get", "instances/a"]).status.success().then_some(())
    });
    for (name, image) in [("gone", image.as_str()), ("mine", "mine:1")] {
        place.apply(name, &manifest(name, image));
        place.wait_steady(&format!("service/{name}"));
    }
    let both = std::collections::BTreeSet::from([gpu("gone"), gpu("mine")]);
    assert_eq!(both, ["0\n", "1\n"].map(str::to_owned).into(), "each has its own");
    let names = engine.containers();
    assert!(
        names.iter().all(|name| engine.docker(&["inspect", "-f", "{{.HostConfig.Runtime}}", name]).trim() == "nvidia")
    );
    // Another agent knows which are taken.
    agent.kill();
    let _agent = start();
    place.apply("third", &manifest("third", "mine:1"));
    let said = eventually("it says why", Duration::from_secs(30), || {
        let said = place.ok(&["describe", "service/third"]);
        said.contains("GPU").then_some(said)
    });
    assert!(said.contains("insufficient GPU") || said.contains("RESOURCE:GPU"), "{said}");
    let (left, own) = (gpu("gone"), gpu("mine"));
    place.ok(&["delete", "service/gone"]);
    place.wait_steady("service/third");
    assert_eq!((gpu("third"), gpu("mine")), (left, own));

    // The image goes, and the one that was made here stays.
    let images = || engine.docker(&["images", "--format", "{{.Repository}}:{{.Tag}}"]);
    eventually("the image is gone", Duration::from_secs(30), || (!images().contains("gone:1")).then_some(()));
    place.ok(&["delete", "service/third"]);
    place.ok(&["delete", "service/mine"]);
    eventually("no container is left", Duration::from_secs(20), || engine.containers().is_empty().then_some(()));
    std::thread::sleep(Duration::from_secs(6));
    assert!(images().contains("mine:1"), "it could not be had again: {}", images());
    // And it is pulled again when it is needed.
    place.apply("gone", &manifest("gone", &image));
    place.wait_steady("service/gone");
    assert!(images().contains("gone:1"));
    place.ok(&["delete", "service/gone"]);
    eventually("no container is left", Duration::from_secs(20), || engine.containers().is_empty().then_some(()));
}

/// Pulls an image whose layer fails.
async fn pulled(runtime: &dyn Runtime, fault: Fault) -> (Result<Pulled, String>, usize) {
    let (address, asked) = registry(fault);
    let image = format!("{address}/box:1");
    let pulled = runtime.pull(&image, None).await.map_err(|error| error.to_string());
    (pulled, asked.load(Ordering::SeqCst))
}

async fn broken_pulls_are_told_from_slow_ones(runtime: Arc<dyn Runtime>, final_ones: &[Fault]) {
    let (slow, asked) = pulled(&*runtime, Fault::Slow).await;
    assert!(slow.as_ref().is_ok_and(|slow| slow.is_new && slow.digest.is_some()), "{slow:?}");
    assert_eq!(asked, 1);
    let (once, asked) = pulled(&*runtime, Fault::OnceTruncated).await;
    assert!(once.is_ok() && asked >= 2, "tried again: {once:?} {asked}");
    for fault in final_ones.iter().copied() {
        let (refused, asked) = pulled(&*runtime, fault).await;
        let error = refused.expect_err("it is broken");
        assert!(error.starts_with("CannotPullContainerError: 127.0.0.1:"), "{fault:?}: {error}");
        assert!((2..40).contains(&asked), "{fault:?}: tried again, and not for ever: {asked}");
    }
    let gone = runtime.pull(&format!("127.0.0.1:{}/box:1", free_port()), None).await;
    assert!(gone.expect_err("nobody there").to_string().contains("refused"));
}

#[tokio::test(flavor = "multi_thread")]
async fn broken_pulls_are_told_from_slow_ones_on_docker() {
    let place = Place::new();
    let engine = Engine::start(&place);
    let settings = DockerSettings { socket: Some(engine.socket.clone()), ..DockerSettings::default() };
    // Docker itself tries a layer again for minutes.
    broken_pulls_are_told_from_slow_ones(Arc::new(Docker::connect(settings).await.unwrap()), &[]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn broken_pulls_are_told_from_slow_ones_on_containerd() {
    let place = Place::new();
    let daemon = Daemon::start(&place);
    let settings = ContainerdSettings {
        socket: Some(daemon.socket.clone()),
        base: place.path("containers"),
        program: steady_binary(),
        ..ContainerdSettings::default()
    };
    let all = [Fault::Truncated, Fault::Wrong];
    broken_pulls_are_told_from_slow_ones(Arc::new(Containerd::connect(settings).await.unwrap()), &all).await;
    assert!(!daemon.ctr(&["content", "active"]).contains("steady"), "nothing half is left");
}
