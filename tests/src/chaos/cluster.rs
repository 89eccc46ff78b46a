//! A whole control plane as real processes: etcd of three members, API servers, controllers, hollow agents. Every way between
//! two of them is a link that can be cut.

use std::net::SocketAddr;
use std::process::Command;
use std::time::Duration;

use steady_apiserver::storage::{Etcd, EtcdSettings, Storage};

use super::link::Link;
use super::runtime;
use crate::{Place, Running, eventually, free_port};

/// A member of etcd.
pub struct Member {
    pub client: SocketAddr,
    /// The way of the other members to it.
    pub peer: Link,
    peer_port: u16,
}

/// The control plane.
pub struct Cluster {
    pub place: Place,
    pub members: Vec<Member>,
    pub etcd: Vec<Running>,
    /// The ways of each API server to each member.
    pub ways: Vec<Vec<Link>>,
    pub apis: Vec<Running>,
    pub addresses: Vec<String>,
    pub controllers: Vec<Running>,
    pub agents: Vec<Running>,
}

fn loopback(port: u16) -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], port))
}

impl Cluster {
    /// Three members of Debian's etcd, `apis` API servers, two processes with all controllers, two of five hollow
    /// instances.
    pub fn start(apis: usize) -> Self {
        let place = Place::new();
        let members: Vec<Member> = (0..3)
            .map(|_| {
                let peer_port = free_port();
                Member { client: loopback(free_port()), peer: Link::to(loopback(peer_port)), peer_port }
            })
            .collect();
        let ways: Vec<Vec<Link>> =
            (0..apis).map(|_| members.iter().map(|member| Link::to(member.client)).collect()).collect();
        let addresses = (0..apis).map(|_| format!("127.0.0.1:{}", free_port())).collect();
        let mut cluster = Cluster {
            place,
            members,
            etcd: vec![],
            ways,
            apis: vec![],
            addresses,
            controllers: vec![],
            agents: vec![],
        };
        cluster.etcd = (0..3).map(|number| cluster.etcd(number)).collect();
        // An API server that finds no etcd ends.
        cluster.leader();
        cluster.apis = (0..apis).map(|number| cluster.api(number)).collect();
        for address in &cluster.addresses {
            eventually("an API server answers", Duration::from_secs(60), || std::net::TcpStream::connect(address).ok());
        }
        cluster.controllers = (0..2).map(|number| cluster.controller(number)).collect();
        cluster.agents = (0..2).map(|number| cluster.agent(number)).collect();
        cluster.place.address.clone_from(&cluster.servers());
        eventually("ten instances are connected", Duration::from_secs(60), || {
            let listed = cluster.place.ok(&["get", "ci"]);
            (listed.matches(" yes ").count() == 10).then_some(())
        });
        cluster
    }

    /// `--server` of everybody.
    pub fn servers(&self) -> String {
        self.addresses.join(",")
    }

    /// Starts a member, for the first time or again.
    pub fn etcd(&self, number: usize) -> Running {
        let member = &self.members[number];
        let name = |number: usize| format!("m{number}");
        let cluster: Vec<String> =
            self.members.iter().enumerate().map(|(n, m)| format!("{}=http://{}", name(n), m.peer.address)).collect();
        let mut command = Command::new("etcd");
        command.args(["--name", &name(number)]).arg("--data-dir").arg(self.place.path(&name(number)));
        let (client, peer) = (format!("http://{}", member.client), format!("http://127.0.0.1:{}", member.peer_port));
        command.args([
            "--listen-client-urls",
            &client,
            "--advertise-client-urls",
            &client,
            "--listen-peer-urls",
            &peer,
        ]);
        command.args(["--initial-advertise-peer-urls", &format!("http://{}", member.peer.address)]);
        command.args(["--initial-cluster", &cluster.join(","), "--logger", "zap", "--log-level", "warn"]);
        Running::start(command, &self.place.path(&format!("etcd-{number}.log")))
    }

    /// Starts an API server. It knows etcd's members by its own ways alone.
    pub fn api(&self, number: usize) -> Running {
        let etcd: Vec<String> = self.ways[number].iter().map(|way| format!("http://{}", way.address)).collect();
        let args = ["apiserver", "--etcd", &etcd.join(","), "--listen", &self.addresses[number]];
        // As a supervisor would: while there is no quorum, one that starts ends again.
        Running::start(self.place.command(&args), &self.place.path(&format!("api-{number}.log")))
    }

    /// Starts a process with all controllers.
    pub fn controller(&self, number: usize) -> Running {
        let command = self.place.command(&["controller", "--server", &self.servers()]);
        Running::start(command, &self.place.path(&format!("controller-{number}.log")))
    }

    /// Starts a process with five hollow instances.
    pub fn agent(&self, number: usize) -> Running {
        let (name, data) = (format!("n{number}"), self.place.path(&format!("agent-{number}")).display().to_string());
        let args = ["agent", "--name", &name, "--data-dir", &data, "--runtime", "hollow", "--instances", "5"];
        let command = self.place.command(&[&args[..], &["--server", &self.servers()]].concat());
        Running::start(command, &self.place.path(&format!("agent-{number}.log")))
    }

    /// Where a member answers, past every link.
    pub fn endpoint(&self, number: usize) -> String {
        format!("http://{}", self.members[number].client)
    }

    /// The member that leads.
    pub fn leader(&self) -> usize {
        eventually("etcd has a leader", Duration::from_secs(30), || {
            (0..3).find(|number| {
                let settings = EtcdSettings { endpoints: vec![self.endpoint(*number)], tls: None };
                let health = runtime().block_on(async { Etcd::open(&settings).await.ok()?.health().await.ok() });
                let member = health.and_then(|health| health.members.into_iter().next());
                member.is_some_and(|member| member.leads && member.error.is_empty())
            })
        })
    }

    /// Who leads a controller.
    pub fn leads(&self, controller: &str) -> Option<String> {
        let listed = self.place.steady(&["get", &format!("controller/{controller}"), "-o", "json"]);
        let listed: serde_json::Value = serde_json::from_slice(&listed.stdout).ok()?;
        listed["spec"]["holder"].as_str().map(str::to_owned)
    }

    /// As many tasks run as are desired, and that stays so.
    pub fn settles(&self, service: &str, count: usize, what: &str) {
        let named = format!("service/{service}");
        eventually(what, Duration::from_secs(60), || {
            let waited = self.place.steady(&["wait", &named, "--for", "steady", "--timeout", "5s"]);
            let running = || self.place.running().iter().filter(|t| t["spec"]["service"] == service).count();
            (waited.status.success() && running() == count).then_some(())
        });
    }
}
