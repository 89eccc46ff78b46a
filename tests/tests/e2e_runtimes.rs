//! Every runtime keeps to the same suite.
#![allow(clippy::unwrap_used, missing_docs)]

use std::sync::Arc;

use steady_agent::runtime::{Docker, DockerSettings, Hollow, HollowBehaviour, Process, Runtime};
use steady_tests::docker::Engine;
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
