//! Ten cells of the matrix of deployments (see `sim --matrix`) on a real Docker Engine, all at once.
#![allow(clippy::unwrap_used, missing_docs)]

use std::fmt::Write as _;
use std::time::{Duration, Instant};

use serde_json::Value;
use steady_tests::docker::Engine;
use steady_tests::{Place, eventually};

/// What is wrong with the second version.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Trouble {
    FailingImage,
    FlappingHealth,
    SlowStart,
    NoCapacity,
}
use Trouble::{FailingImage, FlappingHealth, NoCapacity, SlowStart};

/// Tasks, minimumHealthyPercent, maximumPercent, strategy, trouble.
const CELLS: [(usize, usize, usize, &str, Trouble); 10] = [
    (1, 100, 200, "ROLLING", FailingImage),
    (2, 50, 100, "ROLLING", FailingImage),
    (3, 100, 150, "ROLLING", SlowStart),
    (2, 0, 100, "ROLLING", SlowStart),
    (2, 100, 200, "ROLLING", FlappingHealth),
    (2, 50, 200, "ROLLING", NoCapacity),
    (2, 100, 200, "BLUE_GREEN", FailingImage),
    (2, 50, 100, "CANARY", SlowStart),
    (1, 100, 200, "LINEAR", SlowStart),
    (1, 100, 200, "BLUE_GREEN", NoCapacity),
];

const CHECK: &str = "healthCheck: {interval: 5, timeout: 2, retries: 2, command: ";

/// A service as it is, without trouble, or in it.
fn manifest(number: usize, version: u32, trouble: Option<Trouble>) -> String {
    let (desired, least, most, strategy, _) = CELLS[number];
    let (image, command, more) = match trouble {
        None | Some(NoCapacity) => ("box:1", "sleep 1000", String::new()),
        Some(FailingImage) => ("127.0.0.1:1/none:1", "true", String::new()),
        Some(SlowStart) => (
            "box:1",
            "sleep 6; touch /tmp/ready; sleep 1000",
            format!("{CHECK}[CMD-SHELL, \"test -f /tmp/ready\"], startPeriod: 20}}"),
        ),
        Some(FlappingHealth) => {
            ("box:1", "sleep 1000", format!("{CHECK}[CMD-SHELL, \"test $(( $(date +%s) / 15 % 2 )) = 0\"]}}"))
        }
    };
    let memory = if trouble == Some(NoCapacity) { 4_000_000 } else { 16 };
    let steps = match strategy {
        "BLUE_GREEN" => ", bakeTimeInMinutes: 0",
        "CANARY" => ", canaryConfiguration: {canaryBakeTimeInMinutes: 0}",
        "LINEAR" => ", linearConfiguration: {stepPercent: 50, stepBakeTimeInMinutes: 0}",
        _ => "",
    };
    format!(
        "apiVersion: steady/v1\nkind: TaskDefinition\nmetadata: {{name: m{number}}}\nspec:\n  containerDefinitions:\n    \
         - name: main\n      image: \"{image}\"\n      memory: {memory}\n      stopTimeout: 1\n      environment: \
         [{{name: VERSION, value: \"{version}\"}}]\n      command: [sh, -c, \"{command}\"]\n      \
         {more}\n---\napiVersion: steady/v1\nkind: Service\nmetadata: {{name: m{number}}}\nspec:\n  taskDefinition: \
         m{number}\n  desiredCount: {desired}\n  deploymentConfiguration: {{minimumHealthyPercent: {least}, \
         maximumPercent: {most}, strategy: {strategy}{steps}, deploymentCircuitBreaker: {{enable: true, rollback: \
         true}}}}\n---\n"
    )
}

fn apply(place: &Place, version: u32, which: impl Fn(Trouble) -> Option<Option<Trouble>>) {
    let mut all = String::new();
    for (number, (.., trouble)) in CELLS.iter().enumerate() {
        if let Some(as_it_is) = which(*trouble) {
            let _ = write!(all, "{}", manifest(number, version, as_it_is));
        }
    }
    let path = place.path("matrix.yaml");
    std::fs::write(&path, all).unwrap();
    place.ok(&["apply", "-f", path.to_str().unwrap()]);
}

fn tasks(place: &Place, service: &str) -> Vec<Value> {
    let listed = place.json(&["get", "tasks", "--all"]);
    let items = listed["items"].as_array().cloned().unwrap_or_default();
    items.into_iter().filter(|task| task["spec"]["service"] == service).collect()
}

#[test]
fn ten_services_in_trouble_keep_floor_and_ceiling_and_end_as_they_should() {
    let place = Place::new();
    let engine = Engine::start(&place);
    engine.busybox("box:1");
    let _up = place.up(&["--runtime", "docker", "--docker-socket", &engine.socket]);
    apply(&place, 1, |_| Some(None));
    for number in 0..CELLS.len() {
        place.wait_steady(&format!("service/m{number}"));
    }
    apply(&place, 2, |trouble| Some(Some(trouble)));
    let began = Instant::now();
    let ends = |number: usize| {
        let service = place.json(&["get", "service", &format!("m{number}")]);
        let newest = service["status"]["primaryDeployment"].as_str().unwrap_or_default().to_owned();
        let failed = service["status"]["failedRollout"]["rolledBackTo"].as_str().unwrap_or_default().to_owned();
        match CELLS[number].4 {
            FailingImage => service["status"]["steady"] == true && failed == format!("m{number}-1"),
            SlowStart => service["status"]["steady"] == true && newest == format!("m{number}-2"),
            FlappingHealth | NoCapacity => true,
        }
    };
    let mut open: Vec<usize> = (0..CELLS.len()).collect();
    while !open.is_empty() || began.elapsed() < Duration::from_secs(45) {
        assert!(began.elapsed() < Duration::from_secs(240), "{open:?}\n{}", place.story());
        for (number, (desired, least, most, strategy, trouble)) in CELLS.iter().enumerate() {
            let (floor, ceiling) = ((desired * least).div_ceil(100), desired * most / 100);
            let ceiling = if *strategy == "ROLLING" { ceiling } else { ceiling + desired };
            let all = tasks(&place, &format!("m{number}"));
            let live = all.iter().filter(|task| task["status"]["lastStatus"] != "STOPPED").count();
            let healthy = |task: &&Value| {
                task["status"]["lastStatus"] == "RUNNING"
                    && task["status"]["desiredStatus"] == "RUNNING"
                    && ["HEALTHY", ""].contains(&task["status"]["healthStatus"].as_str().unwrap_or_default())
            };
            assert!(live <= ceiling, "m{number} ({trouble:?}): {live} live, ceiling {ceiling}\n{}", place.story());
            // What flaps takes itself below.
            let enough = all.iter().filter(healthy).count() >= floor || *trouble == FlappingHealth;
            assert!(enough, "m{number} ({trouble:?}): under {floor}\n{}", place.story());
        }
        open.retain(|number| !ends(*number));
        std::thread::sleep(Duration::from_millis(500));
    }
    let waits = place.ok(&["describe", "service/m5"]);
    assert!(waits.contains("insufficient memory"), "{waits}");
    // A third version ends what would not end by itself.
    let stuck = |trouble: Trouble| matches!(trouble, FlappingHealth | NoCapacity).then_some(None);
    apply(&place, 3, stuck);
    for (number, (.., trouble)) in CELLS.iter().enumerate() {
        if stuck(*trouble).is_some() {
            eventually("the third version", Duration::from_secs(90), || {
                let service = place.json(&["get", "service", &format!("m{number}")]);
                (service["status"]["steady"] == true && service["spec"]["taskDefinition"] == format!("m{number}:3"))
                    .then_some(())
            });
        }
    }
    eventually("no container too many", Duration::from_secs(30), || {
        (engine.containers().len() == CELLS.iter().map(|cell| cell.0).sum::<usize>()).then_some(())
    });
}
