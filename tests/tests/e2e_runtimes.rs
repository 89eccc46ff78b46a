//! Every runtime keeps to the same suite.
#![allow(clippy::unwrap_used, missing_docs)]

use std::sync::Arc;

use steady_agent::runtime::{
    Containerd, ContainerdSettings, Docker, DockerSettings, Hollow, HollowBehaviour, Process, Runtime,
};
use steady_tests::containerd::Daemon;
use steady_tests::docker::{Engine, registry};
use steady_tests::runtimes::Subject;
use steady_tests::{Place, steady_binary};

#[tokio::test(flavor = "multi_thread")]
async fn simulated_containers_keep_to_the_suite() {
    let hollow = Hollow::new(1, HollowBehaviour::default());
    let open = || Arc::new(hollow.clone()) as Arc<dyn Runtime>;
    Subject { open: &open, image: "any", is_real: false, limits: false }.conforms().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn plain_processes_keep_to_the_suite() {
    let place = Place::new();
    let base = place.path("containers");
    let open = || Arc::new(Process::new(base.clone(), steady_binary())) as Arc<dyn Runtime>;
    let limits = open().attributes()["steady.process.limits"] == "cgroup";
    Subject { open: &open, image: "", is_real: true, limits }.conforms().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn docker_s_containers_keep_to_the_suite() {
    let place = Place::new();
    let engine = Engine::start(&place);
    engine.busybox("box:1");
    let settings = DockerSettings {
        socket: Some(engine.socket.clone()),
        cluster: "default".into(),
        instance: "instance".into(),
        logs: place.path("logs"),
        ..DockerSettings::default()
    };
    let docker = Docker::connect(settings).await.unwrap();
    let open = || Arc::new(docker.clone()) as Arc<dyn Runtime>;
    Subject { open: &open, image: "box:1", is_real: true, limits: true }.conforms().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn containerd_s_containers_keep_to_the_suite_without_docker() {
    let place = Place::new();
    let (_registry, at) = registry(&place, None);
    let image = format!("{at}/box:1");
    {
        let engine = Engine::start(&place);
        engine.busybox(&image);
        engine.docker(&["push", &image]);
    }
    let daemon = Daemon::start(&place);
    let settings = ContainerdSettings {
        socket: Some(daemon.socket.clone()),
        cluster: "default".into(),
        instance: "instance".into(),
        base: place.path("containers"),
        program: steady_binary(),
        ..ContainerdSettings::default()
    };
    let containerd = Containerd::connect(settings).await.unwrap();
    let open = || Arc::new(containerd.clone()) as Arc<dyn Runtime>;
    Subject { open: &open, image: &image, is_real: true, limits: true }.conforms().await;
    assert_eq!(daemon.ctr(&["containers", "list", "-q"]), "", "nothing is left");
    assert_eq!(daemon.ctr(&["snapshots", "list"]).lines().filter(|line| line.contains("Active")).count(), 0);
}
