//! Instances that a program of the user's makes: a cloud, a rack, virtual machines.
//!
//! The program is called with one question on its standard input and answers on its standard output, both JSON, within two minutes; what it
//! says on standard error is logged, and told when it fails. Each question may be asked again.
//!
//! ```json
//! {"action": "list", "cluster": "default", "capacityProvider": "spot"}
//! {"instances": ["spot-1a2b3c4d"]}
//!
//! {"action": "grow", "cluster": "default", "capacityProvider": "spot", "servers": ["http://10.0.0.1:7443"],
//!  "instances": [{"name": "spot-5e6f7081", "availabilityZone": "a", "cpu": 2048, "memory": 4096, "runtime": "docker",
//!                 "attributes": {"disk": "ssd"}, "version": "v2"}]}
//! {"failed": {"spot-5e6f7081": "no capacity in zone a"}}
//!
//! {"action": "shrink", "cluster": "default", "capacityProvider": "spot", "instances": [{"name": "spot-1a2b3c4d"}]}
//! {}
//! ```
//!
//! An instance is to run `steady agent --name NAME --capacity-provider PROVIDER --cluster CLUSTER --server SERVERS`, with
//! `--attribute ecs.availability-zone=ZONE` and the other attributes.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use async_trait::async_trait;
use rustix::process::{Pid, Signal, kill_process_group};
use serde::{Deserialize, Serialize};
use tokio::io::AsyncWriteExt;
use tokio::process::Command;

use crate::{Maker, Provider, Wanted};

/// How long an answer may take.
const PATIENCE: Duration = Duration::from_secs(120);
/// Longest text of a failure that is told, bytes.
const LONGEST: usize = 500;

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Question<'a> {
    action: &'a str,
    cluster: &'a str,
    capacity_provider: &'a str,
    servers: &'a [String],
    instances: Vec<Instance<'a>>,
}

#[derive(Serialize, Default)]
#[serde(rename_all = "camelCase")]
struct Instance<'a> {
    name: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    availability_zone: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    cpu: Option<i32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    memory: Option<i32>,
    #[serde(skip_serializing_if = "str::is_empty")]
    runtime: &'a str,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    attributes: BTreeMap<String, String>,
    #[serde(skip_serializing_if = "str::is_empty")]
    version: &'a str,
}

#[derive(Deserialize)]
struct Listed {
    instances: BTreeSet<String>,
}

#[derive(Deserialize)]
struct Done {
    #[serde(default)]
    failed: BTreeMap<String, String>,
}

/// A program that makes instances.
#[derive(Debug)]
pub struct Exec {
    program: PathBuf,
}

impl Exec {
    /// The program, which is found as a shell finds it.
    pub fn new(program: PathBuf) -> Self {
        Exec { program }
    }

    async fn ask(&self, question: &Question<'_>) -> Result<Vec<u8>, String> {
        let name = self.program.display();
        let input = serde_json::to_vec(question).map_err(|e| e.to_string())?;
        let mut command = Command::new(&self.program);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
        // What it has started goes with it, when it gives no answer.
        command.process_group(0);
        let mut child = command.spawn().map_err(|e| format!("{name} cannot be run: {e}"))?;
        let group = child.id().and_then(|pid| Pid::from_raw(i32::try_from(pid).ok()?));
        let mut stdin = child.stdin.take();
        let talking = async {
            if let Some(stdin) = &mut stdin {
                // One that does not read its question may answer all the same.
                let _ = stdin.write_all(&input).await;
            }
            drop(stdin.take());
            child.wait_with_output().await
        };
        let output = tokio::time::timeout(PATIENCE, talking).await;
        let output = output.map_err(|_| {
            if let Some(group) = group {
                let _ = kill_process_group(group, Signal::KILL);
            }
            let open = "does something that it started hold its standard output?";
            format!("{name} gives no answer for {} s, and was killed; {open}", PATIENCE.as_secs())
        })?;
        let output = output.map_err(|e| format!("{name}: {e}"))?;
        let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        if !said.is_empty() {
            tracing::info!(program = %name, action = question.action, said);
        }
        if !output.status.success() {
            let shown: String = said.chars().take(LONGEST).collect();
            return Err(format!("{name} ended with {}: {shown}", output.status));
        }
        Ok(output.stdout)
    }

    async fn answer<T: for<'a> Deserialize<'a>>(&self, question: &Question<'_>, form: &str) -> Result<T, String> {
        let answer = self.ask(question).await?;
        serde_json::from_slice(&answer).map_err(|error| {
            let text: String = String::from_utf8_lossy(&answer).chars().take(LONGEST).collect();
            let (name, action) = (self.program.display(), question.action);
            format!("{name} answers `{}` to {action}: {error}; expected {form}", text.trim())
        })
    }
}

fn question<'a>(action: &'a str, provider: &'a Provider, instances: Vec<Instance<'a>>) -> Question<'a> {
    let (cluster, capacity_provider) = (&provider.cluster, &provider.name);
    Question { action, cluster, capacity_provider, servers: &provider.servers, instances }
}

#[async_trait]
impl Maker for Exec {
    async fn list(&self, provider: &Provider) -> Result<BTreeSet<String>, String> {
        let listed: Listed = self.answer(&question("list", provider, vec![]), r#"{"instances": ["NAME"]}"#).await?;
        Ok(listed.instances)
    }

    async fn grow(&self, provider: &Provider, wanted: &[Wanted]) -> Result<BTreeMap<String, String>, String> {
        let instances = wanted.iter().map(|one| Instance {
            name: &one.name,
            availability_zone: &one.availability_zone,
            cpu: Some(one.template.cpu),
            memory: Some(one.template.memory),
            runtime: &one.template.runtime,
            attributes: one.template.attributes.clone(),
            version: &one.template.version,
        });
        let done: Done = self.answer(&question("grow", provider, instances.collect()), r#"{"failed": {}}"#).await?;
        Ok(done.failed)
    }

    async fn shrink(&self, provider: &Provider, names: &[String]) -> Result<BTreeMap<String, String>, String> {
        let instances = names.iter().map(|name| Instance { name, ..Instance::default() });
        let done: Done = self.answer(&question("shrink", provider, instances.collect()), r#"{"failed": {}}"#).await?;
        Ok(done.failed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    fn provider() -> Provider {
        Provider { cluster: "default".into(), name: "spot".into(), servers: vec!["http://a:1".into()] }
    }

    /// A program that writes down what it is asked, and says this.
    fn program(directory: &std::path::Path, script: &str) -> Exec {
        let path = directory.join("maker");
        fs::write(&path, format!("#!/bin/sh\ncat > {}/asked\n{script}\n", directory.display())).expect("written");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("executable");
        Exec::new(path)
    }

    #[tokio::test]
    async fn questions_and_answers_are_json() {
        let directory = tempfile::tempdir().expect("a directory");
        let exec = program(directory.path(), r#"echo '{"failed": {"spot-1": "no room"}}'"#);
        let template = steady_core::v1::InstanceTemplate { cpu: 1024, memory: 512, ..<_>::default() };
        let wanted = Wanted { name: "spot-1".into(), availability_zone: "a".into(), template };
        let failed = exec.grow(&provider(), &[wanted]).await.expect("an answer");
        assert_eq!(failed, BTreeMap::from([("spot-1".to_owned(), "no room".to_owned())]));
        let asked = fs::read_to_string(directory.path().join("asked")).expect("asked");
        assert_eq!(
            asked,
            r#"{"action":"grow","cluster":"default","capacityProvider":"spot","servers":["http://a:1"],"instances":[{"name":"spot-1","availabilityZone":"a","cpu":1024,"memory":512}]}"#
        );
        let exec = program(directory.path(), r#"echo '{"instances": ["spot-1"]}'"#);
        assert_eq!(exec.list(&provider()).await, Ok(BTreeSet::from(["spot-1".to_owned()])));
    }

    #[tokio::test]
    async fn what_is_no_answer_is_told_with_what_would_be_one() {
        let directory = tempfile::tempdir().expect("a directory");
        let exec = program(directory.path(), "echo hello");
        let why = exec.list(&provider()).await.expect_err("no answer");
        assert!(
            why.contains("answers `hello` to list") && why.contains(r#"expected {"instances": ["NAME"]}"#),
            "{why}"
        );
        let exec = program(directory.path(), "echo 'no credentials' >&2; exit 3");
        let why = exec.shrink(&provider(), &["a".into()]).await.expect_err("it failed");
        assert!(why.contains("exit status: 3") && why.contains("no credentials"), "{why}");
        let why = Exec::new("/nowhere/maker".into()).list(&provider()).await.expect_err("it is not there");
        assert!(why.contains("cannot be run"), "{why}");
    }
}
