//! Addresses of tasks, by CNI plug-ins: a bridge of the machine, and addresses of its subnet (networkMode awsvpc).
//!
//! The machine's leases are the plug-ins' own (`/var/lib/cni/networks/steady`), so several agents of one machine share its
//! subnet. What a task was given is kept beside the agent's state, so that the next agent knows it.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::process::Command;

use super::{Port, nft};

/// Where plug-ins are: as containerd and Kubernetes have them, and as Debian does.
const PLUGINS: [&str; 2] = ["/opt/cni/bin", "/usr/lib/cni"];
/// Name of the network and of its bridge.
const NETWORK: &str = "steady";
const BRIDGE: &str = "steady0";
/// The task's interface.
const INTERFACE: &str = "eth0";
/// What rules are known by.
const COMMENT: &str = "steady-tasks";
/// How long a plug-in may take.
const LIMIT: Duration = Duration::from_secs(30);
/// Only this version is spoken by all plug-ins of the last years.
const VERSION: &str = "0.4.0";

/// What is kept of a result beyond it: ports of the machine.
const PORTS: &str = "steadyPorts";
/// Whether all was done that belongs to it.
const DONE: &str = "steadyDone";

/// The subnet of tasks' addresses where none is named.
pub(crate) const DEFAULT_SUBNET: &str = "10.88.0.0/16";

/// Makes and removes networks of tasks.
#[derive(Debug, Clone)]
pub(crate) struct Cni {
    plugins: PathBuf,
    subnet: String,
    /// Addresses of tasks on all machines: what goes there keeps its task's address.
    network: String,
    /// What tasks were given.
    results: PathBuf,
}

impl Cni {
    /// With the machine's plug-ins; `None` where it has none.
    pub(crate) fn find(subnet: &str, network: Option<&str>, results: PathBuf) -> Option<Self> {
        let has =
            |directory: &&&str| ["bridge", "host-local"].iter().all(|name| Path::new(directory).join(name).exists());
        let plugins = PathBuf::from(PLUGINS.iter().find(has)?);
        let network = network.unwrap_or(subnet).to_owned();
        Some(Cni { plugins, subnet: subnet.to_owned(), network, results })
    }

    fn result(&self, task: &str) -> PathBuf {
        self.results.join(format!("{task}.json"))
    }

    fn bridge(&self) -> Value {
        json!({
            "cniVersion": VERSION, "name": NETWORK, "type": "bridge", "bridge": BRIDGE,
            "isGateway": true, "hairpinMode": true,
            "ipam": {
                "type": "host-local",
                "ranges": [[{ "subnet": self.subnet }]],
                "routes": [{ "dst": "0.0.0.0/0" }],
            },
        })
    }

    /// Other engines drop what is forwarded unless it is let through.
    fn firewall(&self, result: &Value) -> Option<Value> {
        let there = self.plugins.join("firewall").exists();
        there.then(|| json!({ "cniVersion": VERSION, "name": NETWORK, "type": "firewall", "prevResult": result }))
    }

    /// The address that a task was given.
    pub(crate) fn address(&self, task: &str) -> Option<String> {
        address(&self.kept(task)?)
    }

    fn kept(&self, task: &str) -> Option<Value> {
        serde_json::from_slice(&fs::read(self.result(task)).ok()?).ok()
    }

    /// Leads ports of the machine to a container's.
    fn port_map(ports: &[Port], result: &Value) -> Option<Value> {
        let mappings = ports.iter().map(|port| {
            let protocol = if port.udp { "udp" } else { "tcp" };
            json!({ "hostPort": port.host, "containerPort": port.container, "protocol": protocol })
        });
        let mappings: Vec<Value> = mappings.collect();
        (!mappings.is_empty()).then(|| {
            json!({
                "cniVersion": VERSION, "name": NETWORK, "type": "portmap", "capabilities": { "portMappings": true }, "snat": true,
                "runtimeConfig": { "portMappings": mappings }, "prevResult": result,
            })
        })
    }

    /// Gives a network namespace an address, and ports of the machine; those that `task` has already, if it does.
    pub(crate) async fn add(&self, task: &str, namespace: &Path, ports: &[Port]) -> Result<String, String> {
        if let Some(known) = self.kept(task).filter(|kept| kept[DONE] != json!(false)).and_then(|kept| address(&kept)) {
            return Ok(known);
        }
        self.masquerade().await;
        // Half of a former attempt may be there.
        self.del(task, Some(namespace)).await?;
        let mut result = self.call("ADD", task, Some(namespace), &self.bridge()).await?;
        let address = address(&result).ok_or_else(|| format!("the bridge plug-in gave no address: {result}"))?;
        result[PORTS] = json!(ports);
        result[DONE] = json!(false);
        // Kept before the rest is done: all of it is taken back by what is kept.
        self.keep(task, &result).map_err(|e| format!("{}: {e}", self.results.display()))?;
        let rest = self.lead_in(task, namespace, ports, &result).await;
        if rest.is_err() {
            self.del(task, Some(namespace)).await?;
        }
        rest?;
        result[DONE] = json!(true);
        self.keep(task, &result).map_err(|e| format!("{}: {e}", self.results.display()))?;
        Ok(address)
    }

    async fn lead_in(&self, task: &str, namespace: &Path, ports: &[Port], result: &Value) -> Result<(), String> {
        if let Some(firewall) = self.firewall(result) {
            self.call("ADD", task, Some(namespace), &firewall).await?;
        }
        if let Some(map) = Self::port_map(ports, result) {
            self.call("ADD", task, Some(namespace), &map).await?;
        }
        Ok(())
    }

    /// What leaves the subnet has the machine's address: one rule for all tasks, whoever made it.
    async fn masquerade(&self) {
        // Tasks that start together look one after the other.
        static LOOKING: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());
        let _looking = LOOKING.lock().await;
        let (subnet, network) = (self.subnet.as_str(), self.network.as_str());
        let rule = [
            "-s",
            subnet,
            "!",
            "-d",
            network,
            "!",
            "-o",
            BRIDGE,
            "-j",
            "MASQUERADE",
            "-m",
            "comment",
            "--comment",
            COMMENT,
        ];
        // One of another network, of an agent before, would go first.
        let listed = iptables(&["-t", "nat", "-S", "POSTROUTING"]).await.unwrap_or_default();
        let of_subnet = |line: &&str| line.contains(&format!("-s {subnet} ")) && line.contains(COMMENT);
        for line in listed.lines().filter(of_subnet).filter(|line| !line.contains(&format!("! -d {network} "))) {
            let words = line.split_whitespace().map(|word| if word == "-A" { "-D" } else { word.trim_matches('"') });
            let _ = iptables(&["-t", "nat"].into_iter().chain(words).collect::<Vec<_>>()).await;
        }
        if !ensure("POSTROUTING", "-A", &rule).await {
            tracing::warn!(subnet, "iptables does not masquerade tasks: they reach this machine only");
        }
    }

    fn keep(&self, task: &str, result: &Value) -> io::Result<()> {
        fs::create_dir_all(&self.results)?;
        let part = self.result(task).with_extension("part");
        fs::write(&part, result.to_string())?;
        fs::rename(part, self.result(task))
    }

    /// Takes a task's address back. One that has none is no error.
    pub(crate) async fn del(&self, task: &str, namespace: Option<&Path>) -> Result<(), String> {
        if let Some(result) = self.kept(task) {
            let ports: Vec<Port> = serde_json::from_value(result[PORTS].clone()).unwrap_or_default();
            if let Some(map) = Self::port_map(&ports, &result) {
                self.call("DEL", task, namespace, &map).await?;
            }
            if let Some(firewall) = self.firewall(&result) {
                self.call("DEL", task, namespace, &firewall).await?;
            }
        }
        self.call("DEL", task, namespace, &self.bridge()).await?;
        match fs::remove_file(self.result(task)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error.to_string()),
            _ => Ok(()),
        }
    }

    async fn call(&self, verb: &str, task: &str, namespace: Option<&Path>, config: &Value) -> Result<Value, String> {
        let kind = config["type"].as_str().unwrap_or_default();
        let failed = |what: String| format!("CNI {kind} {verb}: {what}");
        let mut command = Command::new(self.plugins.join(kind));
        // The firewall's tools may be where a user's own path does not lead.
        command.env_clear().envs(BTreeMap::from([
            ("PATH", nft::path()),
            ("CNI_COMMAND", verb.to_owned()),
            ("CNI_CONTAINERID", task.to_owned()),
            ("CNI_NETNS", namespace.map(|path| path.display().to_string()).unwrap_or_default()),
            ("CNI_IFNAME", INTERFACE.to_owned()),
            ("CNI_PATH", self.plugins.display().to_string()),
        ]));
        let output = nft::fed(command, config.to_string().as_bytes(), LIMIT).await.map_err(failed)?;
        let answer: Value = serde_json::from_slice(&output.stdout).unwrap_or_default();
        if output.status.success() {
            return Ok(answer);
        }
        let said =
            answer["msg"].as_str().map_or_else(|| String::from_utf8_lossy(&output.stderr).into_owned(), str::to_owned);
        Err(failed(format!("{said} {}", answer["details"].as_str().unwrap_or_default()).trim().to_owned()))
    }
}

/// What iptables says; `None`: it failed.
async fn iptables(args: &[&str]) -> Option<String> {
    let mut command = Command::new("iptables");
    command.env("PATH", nft::path());
    command.arg("--wait").args(args).stdin(Stdio::null()).stderr(Stdio::null()).kill_on_drop(true);
    let output = tokio::time::timeout(LIMIT, command.output()).await.ok()?.ok()?;
    output.status.success().then(|| String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Makes sure that a chain that rewrites addresses has a rule: at its end (`-A`) or its beginning (`-I`). Whether it has.
pub(crate) async fn ensure(chain: &str, verb: &str, rule: &[&str]) -> bool {
    let of = |verb| [&["-t", "nat", verb, chain], rule].concat();
    iptables(&of("-C")).await.is_some() || iptables(&of(verb)).await.is_some()
}

/// The address of a result, without the length of its prefix.
fn address(result: &Value) -> Option<String> {
    let text = result["ips"].get(0)?["address"].as_str()?;
    Some(text.split('/').next()?.to_owned())
}
