//! The store's conformance suite on real etcd: Debian's, and the bundled one.
#![allow(clippy::unwrap_used, missing_docs)]

use std::sync::Arc;
use std::time::Duration;

use steady_apiserver::bundled::BundledEtcd;
use steady_apiserver::storage::{Etcd, EtcdSettings, conformance};
use steady_tests::{Place, steady_binary};

#[tokio::test(flavor = "multi_thread")]
async fn debians_etcd_conforms() {
    let place = Place::new();
    let (_etcd, client) = place.etcd("http", &[]);
    let settings = EtcdSettings { endpoints: vec![client], tls: None };
    let mut store = Etcd::connect(&settings).await;
    for _ in 0..100 {
        if store.is_ok() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
        store = Etcd::connect(&settings).await;
    }
    let store = Arc::new(store.expect("etcd answers: is the package etcd-server installed?"));
    conformance::run(|| Arc::clone(&store)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_bundled_etcd_conforms_and_keeps_what_was_written() {
    let place = Place::new();
    let guard: Vec<String> =
        [steady_binary().display().to_string(), "__guard".into(), std::process::id().to_string()].to_vec();
    let (etcd, store) = BundledEtcd::start(&place.path("data"), &guard).await.unwrap();
    let store = Arc::new(store);
    conformance::run(|| Arc::clone(&store)).await;
    let before = steady_apiserver::storage::Storage::revision(&*store).await.unwrap();
    etcd.stop().await;
    let (etcd, store) = BundledEtcd::start(&place.path("data"), &guard).await.unwrap();
    assert_eq!(steady_apiserver::storage::Storage::revision(&store).await.unwrap(), before);
    etcd.stop().await;
}

/// What a race for a port looks like to etcd: the first time it is told to listen where another etcd does.
#[tokio::test(flavor = "multi_thread")]
async fn the_bundled_etcd_chooses_other_ports_when_one_is_taken_meanwhile() {
    let place = Place::new();
    // By the time that it looks for its port the other one listens there, and answers.
    let script = format!(
        "first={}; [ -e $first ] && exec \"$@\"; touch $first; \
         port=$(echo \"$@\" | sed 's/.*listen-client-urls=http:..127.0.0.1:\\([0-9]*\\).*/\\1/'); \
         timeout 6 etcd --data-dir {} --log-level fatal --listen-client-urls http://127.0.0.1:$port \
         --advertise-client-urls http://127.0.0.1:$port --listen-peer-urls http://127.0.0.1:0 & \
         sleep 2; exec \"$@\"",
        place.path("first").display(),
        place.path("thief").display(),
    );
    let guard: Vec<String> = ["sh", "-c", &script, "guard"].map(Into::into).to_vec();
    let (etcd, store) = BundledEtcd::start(&place.path("data"), &guard).await.unwrap();
    assert!(place.path("first").exists());
    let name = store.peers().await.unwrap()[0].name.clone();
    assert!(name.starts_with("steady-"), "its own store, not {name}'s");
    etcd.stop().await;
}
