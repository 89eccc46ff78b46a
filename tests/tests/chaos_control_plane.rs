//! Faults of real processes under load: nothing acknowledged is lost, nothing is doubled, every promise holds in every
//! revision, and what was asked for is there in the end. A run counts only if the load was high before the fault and the
//! fault really happened.
#![allow(clippy::unwrap_used, missing_docs)]

use std::time::{Duration, Instant};

use rustix::process::Signal;
use steady_tests::chaos::cluster::Cluster;
use steady_tests::chaos::link::Way;
use steady_tests::chaos::load::{Load, nothing_is_lost};
use steady_tests::chaos::{history, proxy};
use steady_tests::{Place, Running, eventually, is_alive};

/// Writes a second without which a fault proves nothing.
const LOAD: u64 = 100;
const WRITERS: usize = 16;

fn servers(cluster: &Cluster) -> Vec<String> {
    cluster.addresses.clone()
}

#[test]
fn members_of_etcd_are_killed_frozen_and_cut_off_and_nothing_is_lost() {
    let mut cluster = Cluster::start(2);
    cluster.place.declare("web", 20);
    cluster.settles("web", 20, "the first deployment");
    let load = Load::start(&servers(&cluster), WRITERS);

    load.is_high(LOAD);
    load.forget_gaps();
    let leader = cluster.leader();
    cluster.etcd[leader].kill();
    assert_ne!(cluster.leader(), leader, "another member leads");
    cluster.place.ok(&["scale", "service/web", "25"]);
    cluster.settles("web", 25, "etcd's leader is dead");
    println!("longest write gap, leader of etcd killed: {:?}", load.gap());
    cluster.etcd[leader] = cluster.etcd(leader);

    load.is_high(LOAD);
    load.forget_gaps();
    let leader = cluster.leader();
    cluster.etcd[leader].signal(Signal::STOP);
    std::thread::sleep(Duration::from_secs(6));
    cluster.etcd[leader].signal(Signal::CONT);
    cluster.settles("web", 25, "etcd's leader was frozen");
    println!("longest write gap, leader of etcd frozen for 6 s: {:?}", load.gap());

    load.is_high(LOAD);
    load.forget_gaps();
    let leader = cluster.leader();
    let before = cluster.members[leader].peer.stopped();
    // The others cannot reach it, though it reaches them; then nobody reaches anybody through it.
    for way in [Way::Deaf, Way::Cut] {
        cluster.members[leader].peer.set(way);
        std::thread::sleep(Duration::from_secs(4));
    }
    assert!(cluster.members[leader].peer.stopped() > before, "the fault happened");
    cluster.place.ok(&["scale", "service/web", "15"]);
    cluster.members[leader].peer.set(Way::Open);
    cluster.settles("web", 15, "etcd's leader was cut off");
    println!("longest write gap, leader of etcd cut off: {:?}", load.gap());

    load.is_high(LOAD);
    load.forget_gaps();
    let leader = cluster.leader();
    let slow = disk(&cluster, cluster.etcd[leader].pid(), "fdatasync", "delay_exit=200000");
    cluster.place.ok(&["scale", "service/web", "18"]);
    cluster.settles("web", 18, "the disk of etcd's leader is slow");
    assert!(slow() > 10, "the fault happened");
    println!("longest write gap, each fdatasync of etcd's leader takes 200 ms longer: {:?}", load.gap());

    load.is_high(LOAD);
    load.forget_gaps();
    let leader = cluster.leader();
    let full = disk(&cluster, cluster.etcd[leader].pid(), "fdatasync,pwrite64,fallocate", "error=ENOSPC");
    cluster.place.ok(&["scale", "service/web", "22"]);
    cluster.settles("web", 22, "the disk of etcd's leader is full");
    assert!(full() > 0, "the fault happened");
    assert!(!is_alive(i32::try_from(cluster.etcd[leader].pid()).unwrap()), "an etcd that cannot write ends");
    println!("longest write gap, the disk of etcd's leader is full: {:?}", load.gap());
    cluster.etcd[leader].kill();
    cluster.etcd[leader] = cluster.etcd(leader);

    load.is_high(LOAD);
    let seen = load.stop();
    nothing_is_lost(&servers(&cluster), &seen);
    let history = history::judge(&cluster.endpoint(cluster.leader()));
    println!("{history:?}, {} writes acknowledged", seen.iter().map(|s| s.acknowledged).sum::<u64>());
}

/// From now on what a process writes to disk goes wrong like this (`strace`'s words). Ends it; how often it happened.
fn disk(cluster: &Cluster, pid: u32, calls: &str, fault: &str) -> impl FnOnce() -> usize {
    let seen = cluster.place.path("strace.out");
    let mut command = std::process::Command::new("strace");
    command.args(["-f", "-e", &format!("trace={calls}"), "-e", &format!("inject={calls}:{fault}"), "-o"]).arg(&seen);
    command.args(["-p", &pid.to_string()]);
    let tracing = Running::start(command, &cluster.place.path("strace.log"));
    std::thread::sleep(Duration::from_secs(5));
    move || {
        tracing.signal(Signal::TERM);
        std::fs::read_to_string(seen)
            .unwrap_or_default()
            .lines()
            .filter(|line| line.contains("(DELAYED)") || line.contains("(INJECTED)"))
            .count()
    }
}

#[test]
fn api_servers_controllers_and_agents_are_killed_frozen_and_cut_off_and_nothing_is_lost() {
    let mut cluster = Cluster::start(3);
    cluster.place.declare("web", 20);
    cluster.settles("web", 20, "the first deployment");
    let load = Load::start(&servers(&cluster), WRITERS);

    for number in 0..3 {
        load.is_high(LOAD);
        cluster.apis[number].kill();
        cluster.place.ok(&["scale", "service/web", &format!("{}", 21 + number)]);
        cluster.settles("web", 21 + number, "an API server is dead");
        cluster.apis[number] = cluster.api(number);
    }

    load.is_high(LOAD);
    let held = cluster.ways[0].iter().map(steady_tests::chaos::link::Link::stopped).sum::<u64>();
    cluster.ways[0].iter().for_each(|way| way.set(Way::Cut));
    cluster.place.ok(&["scale", "service/web", "18"]);
    cluster.settles("web", 18, "an API server is cut off from etcd");
    cluster.ways[0].iter().for_each(|way| way.set(Way::Open));
    let stopped = cluster.ways[0].iter().map(steady_tests::chaos::link::Link::stopped).sum::<u64>();
    assert!(stopped > held, "the fault happened");

    // Both in turn, so that one that leads is among them.
    for number in 0..2 {
        load.is_high(LOAD);
        let leader = cluster.leads("service");
        cluster.controllers[number].signal(Signal::STOP);
        cluster.place.ok(&["scale", "service/web", &format!("{}", 22 + number)]);
        cluster.settles("web", 22 + number, "a process of controllers is frozen");
        cluster.controllers[number].signal(Signal::CONT);
        std::thread::sleep(Duration::from_secs(1));
        println!("controller {number} was frozen; before {leader:?}, after {:?} leads", cluster.leads("service"));
    }

    load.is_high(LOAD);
    cluster.agents[0].kill();
    cluster.agents[0] = cluster.agent(0);
    cluster.settles("web", 23, "a process of agents was restarted");

    let seen = load.stop();
    nothing_is_lost(&servers(&cluster), &seen);
    let history = history::judge(&cluster.endpoint(0));
    println!("{history:?}, {} writes acknowledged", seen.iter().map(|s| s.acknowledged).sum::<u64>());
    assert!(history.tasks < 200, "tasks are not replaced without need: {history:?}");
}

#[test]
fn the_past_is_forgotten_every_second_under_load_and_nobody_minds() {
    let cluster = Cluster::start(2);
    let load = Load::start(&servers(&cluster), WRITERS);
    cluster.place.declare("web", 10);
    load.is_high(LOAD);
    let end = Instant::now() + Duration::from_secs(15);
    let mut compacted = 0;
    while Instant::now() < end {
        compacted += u32::from(compact(&cluster.endpoint(0)));
        // A slow way makes a watch fall behind what is kept.
        cluster.ways[0].iter().for_each(|way| way.set(Way::Late(Duration::from_millis(50))));
        std::thread::sleep(Duration::from_secs(1));
        cluster.place.ok(&["scale", "service/web", &format!("{}", 10 + compacted % 5)]);
    }
    assert!(compacted >= 5, "the fault happened: {compacted}");
    cluster.ways[0].iter().for_each(|way| way.set(Way::Open));
    cluster.place.ok(&["scale", "service/web", "12"]);
    cluster.settles("web", 12, "the past was forgotten all the time");
    nothing_is_lost(&servers(&cluster), &load.stop());
}

fn compact(endpoint: &str) -> bool {
    use steady_apiserver::storage::{Etcd, EtcdSettings, Storage};
    steady_tests::chaos::runtime()
        .block_on(async {
            let store = Etcd::connect(&EtcdSettings { endpoints: vec![endpoint.to_owned()], tls: None }).await?;
            let now = store.revision().await?;
            store.compact(now).await
        })
        .is_ok()
}

/// One API server between whom and etcd a proxy sits.
struct Proxied {
    place: Place,
    proxy: proxy::Proxy,
    api: Running,
    _etcd: Running,
    _controller: Running,
    _agent: Running,
    endpoint: String,
}

impl Proxied {
    fn start() -> Self {
        let place = Place::new();
        let (etcd, endpoint) = place.etcd("http", &[]);
        let proxy = proxy::Proxy::to(&endpoint);
        let api = place.apiserver(&format!("http://{}", proxy.address));
        let controller = Running::start(place.command(&["controller"]), &place.path("controller.log"));
        let data = place.path("agent").display().to_string();
        let args = ["agent", "--name", "n", "--data-dir", &data, "--runtime", "hollow", "--instances", "3"];
        let agent = Running::start(place.command(&args), &place.path("agent.log"));
        eventually("three instances are connected", Duration::from_secs(60), || {
            let listed = place.steady(&["get", "ci"]);
            (String::from_utf8_lossy(&listed.stdout).matches(" yes ").count() == 3).then_some(())
        });
        Proxied { place, proxy, api, _etcd: etcd, _controller: controller, _agent: agent, endpoint }
    }

    fn scale(&self, count: usize) {
        eventually("the count is taken", Duration::from_secs(30), || {
            let scaled = self.place.steady(&["scale", "service/web", &count.to_string(), "--timeout", "5s"]);
            scaled.status.success().then_some(())
        });
    }

    fn settles(&self, count: usize, what: &str) {
        eventually(what, Duration::from_secs(60), || {
            let waited = self.place.steady(&["wait", "service/web", "--for", "steady", "--timeout", "5s"]);
            (waited.status.success() && self.place.running().len() == count).then_some(())
        });
    }
}

#[test]
fn an_api_server_dies_at_its_nth_write_or_loses_the_answer_and_nothing_is_lost_or_doubled() {
    use proxy::Fate::{KillAfter, KillBefore, LateAnswer, LateWrite, Unanswered};
    let mut parts = Proxied::start();
    parts.place.declare("web", 2);
    parts.settles(2, "the first deployment");
    let mut tried = 0;
    for (round, nth) in [1, 2, 3, 4, 5, 7].into_iter().enumerate() {
        for (turn, fate) in
            [KillBefore, KillAfter, Unanswered, LateAnswer(Duration::from_secs(5)), LateWrite(Duration::from_secs(5))]
                .into_iter()
                .enumerate()
        {
            let before = parts.proxy.happened();
            parts.proxy.doom(nth, fate, parts.api.pid());
            // Up and down by three: some writes of every controller.
            let count = if (round * 5 + turn) % 2 == 0 { 5 } else { 2 };
            parts.scale_through(count, fate);
            parts.settles(count, &format!("{fate:?} at write {nth}"));
            assert_eq!(parts.proxy.happened(), before + 1, "{fate:?} at write {nth} happened");
            tried += 1;
        }
    }
    let history = history::judge(&parts.endpoint);
    println!("{tried} faults at writes, {history:?}");
}

impl Proxied {
    /// Scales, and starts the API server again if the fault killed it.
    fn scale_through(&mut self, count: usize, fate: proxy::Fate) {
        let before = self.proxy.happened();
        let dies = matches!(fate, proxy::Fate::KillBefore | proxy::Fate::KillAfter);
        let scaled = self.place.steady(&["scale", "service/web", &count.to_string(), "--timeout", "3s"]);
        if dies {
            eventually("the fault happens", Duration::from_secs(30), || (self.proxy.happened() > before).then_some(()));
            self.api.kill();
            self.api = self.place.apiserver(&format!("http://{}", self.proxy.address));
        }
        if !scaled.status.success() {
            self.scale(count);
        }
    }
}
