//! Every process by itself over Debian's etcd; each is killed or frozen in turn, and nothing is lost or doubled.
#![allow(clippy::unwrap_used, missing_docs)]

use std::time::Duration;

use rustix::process::Signal;
use steady_tests::{Place, Running, eventually, free_port, ids, is_alive, pids};

struct Parts {
    place: Place,
    etcd_url: String,
    etcd: Running,
    api: Running,
    controllers: [Running; 2],
    agents: [Running; 2],
}

fn controller(place: &Place) -> Running {
    Running::start(place.command(&["controller"]), &place.path("controller.log"))
}

fn agent(place: &Place, name: &str) -> Running {
    let directory = place.path(name).display().to_string();
    let args = ["agent", "--name", name, "--data-dir", &directory, "--runtime", "process"];
    Running::start(place.command(&args), &place.path(&format!("agent-{name}.log")))
}

impl Parts {
    fn start() -> (Self, String) {
        let place = Place::new();
        let (url, peer) = (format!("http://127.0.0.1:{}", free_port()), format!("http://127.0.0.1:{}", free_port()));
        let parts = Parts {
            etcd: place.etcd_at(&url, &peer, &[]),
            api: place.apiserver(&url),
            controllers: [controller(&place), controller(&place)],
            agents: [agent(&place, "a"), agent(&place, "b")],
            etcd_url: url,
            place,
        };
        (parts, peer)
    }

    /// Exactly as many tasks run as are desired, each as one process, and none was doubled.
    fn settled(&self, what: &str, count: usize) -> Vec<String> {
        eventually(what, Duration::from_secs(60), || {
            self.place
                .steady(&["wait", "service/hello", "--for", "steady", "--timeout", "5s"])
                .status
                .success()
                .then_some(())
        });
        let running = self.place.running();
        assert_eq!(running.len(), count, "{what}\n{}", self.place.story());
        let pids = pids(&running);
        assert!(pids.len() == count && pids.iter().all(|pid| is_alive(*pid)), "{what}\n{}", self.place.story());
        assert_eq!(self.place.shims().len(), count, "{what}: none is doubled\n{}", self.place.story());
        ids(&running)
    }

    fn scale(&self, count: &str) {
        eventually("the count is taken", Duration::from_secs(30), || {
            self.place.steady(&["scale", "service/hello", count]).status.success().then_some(())
        });
    }
}

#[test]
fn any_process_may_be_killed_at_any_time_and_nothing_is_lost_or_doubled() {
    let (mut parts, peer) = Parts::start();
    let manifest = std::fs::read_to_string(steady_tests::root().join("examples/manifests/hello.yaml")).unwrap();
    let four = parts.place.path("four.yaml");
    // Tasks are counted here, and one that moves is two for a while.
    let settings = "desiredCount: 4\n  availabilityZoneRebalancing: DISABLED";
    std::fs::write(&four, manifest.replace("desiredCount: 2", settings)).unwrap();
    parts.place.ok(&["apply", "-f", four.to_str().unwrap()]);
    let first = parts.settled("the first deployment", 4);

    parts.controllers[0].kill();
    parts.scale("6");
    let six = parts.settled("one of two controllers is gone", 6);
    assert!(first.iter().all(|id| six.contains(id)), "what ran goes on");
    parts.controllers[0] = controller(&parts.place);

    parts.api.kill();
    parts.api = parts.place.apiserver(&parts.etcd_url);
    assert_eq!(parts.settled("the API server was restarted", 6), six);

    parts.agents[0].kill();
    parts.agents[0] = agent(&parts.place, "a");
    std::thread::sleep(Duration::from_secs(2));
    assert_eq!(parts.settled("an agent was restarted", 6), six, "it adopts its tasks");

    parts.etcd.kill();
    std::thread::sleep(Duration::from_secs(1));
    parts.etcd = parts.place.etcd_at(&parts.etcd_url, &peer, &[]);
    std::thread::sleep(Duration::from_secs(3));
    assert_eq!(parts.settled("etcd was restarted", 6), six);

    for i in [0, 1] {
        parts.controllers[i].signal(Signal::STOP);
        parts.scale("3");
        std::thread::sleep(Duration::from_secs(9));
        parts.scale("5");
        parts.settled("a controller is frozen", 5);
        parts.controllers[i].signal(Signal::CONT);
        std::thread::sleep(Duration::from_secs(2));
        parts.settled("and wakes up", 5);
    }
    parts.place.ok(&["delete", "service/hello"]);
    eventually("no process is left", Duration::from_secs(10), || parts.place.shims().is_empty().then_some(()));
}
