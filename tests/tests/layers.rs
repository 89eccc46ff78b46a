//! Who may import whom.
#![allow(clippy::unwrap_used, missing_docs)]

use std::collections::{BTreeMap, BTreeSet};
use std::process::Command;

use serde_json::Value;

/// Dependencies of each package of the workspace, by name; development ones too where asked for.
fn dependencies() -> BTreeMap<String, BTreeSet<String>> {
    let output = Command::new(env!("CARGO"))
        .args(["metadata", "--no-deps", "--offline", "--format-version", "1"])
        .current_dir(steady_tests::root())
        .output()
        .unwrap();
    let metadata: Value = serde_json::from_slice(&output.stdout).unwrap();
    let name = |value: &Value| value["name"].as_str().unwrap().to_owned();
    let packages = metadata["packages"].as_array().unwrap();
    packages.iter().map(|p| (name(p), p["dependencies"].as_array().unwrap().iter().map(name).collect())).collect()
}

#[test]
fn every_crate_imports_only_what_it_may() {
    let allowed: BTreeMap<&str, &[&str]> = BTreeMap::from([
        ("steady-proto", &[][..]),
        ("steady-core", &["steady-proto"]),
        ("steady-plan", &["steady-core"]),
        ("steady-runtime", &["steady-proto", "steady-core"]),
        ("steady-apiserver", &["steady-proto", "steady-core"]),
        ("steady-controller", &["steady-core", "steady-plan", "steady-runtime"]),
        ("steady-agent", &["steady-core", "steady-runtime"]),
        ("steady-lb", &["steady-core", "steady-runtime"]),
        ("steady-dns", &["steady-core", "steady-runtime"]),
        ("steady-pool", &["steady-core", "steady-runtime"]),
    ]);
    let found = dependencies();
    for (name, allowed) in allowed {
        let own = found[name].iter().filter(|d| d.starts_with("steady"));
        for dependency in own {
            assert!(allowed.contains(&dependency.as_str()), "{name} may not import {dependency}");
        }
    }
}

#[test]
fn only_the_api_server_talks_to_etcd() {
    for (name, found) in dependencies() {
        assert!(name == "steady-apiserver" || !found.contains("etcd-client"), "{name} may not import etcd-client");
    }
}

#[test]
fn plans_know_no_clock_no_runtime_and_no_log() {
    let found = &dependencies()["steady-plan"];
    for forbidden in ["tokio", "tracing", "rand", "tonic"] {
        assert!(!found.contains(forbidden), "steady-plan may not import {forbidden}");
    }
}

#[test]
fn no_controller_names_another() {
    let names = ["deployment", "service", "scheduler", "instance", "reaper", "registrar", "autoscaler", "capacity"];
    for folder in ["controller/src", "controller/plan/src"] {
        for name in names {
            let file = steady_tests::root().join(folder).join(format!("{name}.rs"));
            let code = std::fs::read_to_string(&file).unwrap();
            for other in names.iter().filter(|other| **other != name) {
                // The service's plan reads the deployments that its tasks belong to; both are of one owner.
                let deploys = name == "service" && *other == "deployment";
                // How many instances waiting tasks need is told by whoever will place them there.
                let places = name == "capacity" && *other == "scheduler";
                let shared = (deploys || places) && folder.ends_with("plan/src");
                let imports = code.contains(&format!("crate::{other}::"));
                assert!(shared || !imports, "{} names {other}", file.display());
            }
        }
    }
}
