//! What a container gets besides its definition: secrets that the control plane told, and variables from files.

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::time::Duration;

use steady_core::secrets::{FILE, credentials, parse_role};
use steady_core::v1::{Assignment, ContainerDefinition};
use tokio::io::AsyncReadExt as _;

use crate::runtime::{ContainerSpec, Credentials, RuntimeError};

/// Largest file of variables, bytes.
const MAX_FILE: u64 = 1024 * 1024;
/// How long it may take to read.
const READ: Duration = Duration::from_secs(10);

/// A task's secrets by what its definition names them. In memory only, and never printed.
#[derive(Clone, Default)]
pub(crate) struct Secrets {
    known: BTreeMap<String, String>,
    missing: BTreeMap<String, String>,
    /// Credentials of the task's role.
    role: Option<String>,
    /// Why there are none, though it has one.
    lost: Option<String>,
}

impl fmt::Debug for Secrets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Secrets")
            .field("known", &self.known.len())
            .field("missing", &self.missing)
            .finish_non_exhaustive()
    }
}

impl Secrets {
    pub(crate) fn of(assignment: &mut Assignment) -> Self {
        let known = std::mem::take(&mut assignment.secrets);
        let role = Some(std::mem::take(&mut assignment.task_role_credentials)).filter(|role| !role.is_empty());
        let missing = std::mem::take(&mut assignment.missing_secrets);
        let name = assignment.definition.as_ref().and_then(|definition| parse_role(&definition.task_role_arn));
        let lost = name.and_then(|name| Some(format!("{name}: {}", missing.get(name)?)));
        Secrets { known, missing, role, lost }
    }

    /// These, with a role's credentials that were known before: that they could not be told once does not take them away.
    pub(crate) fn after(mut self, former: &Secrets) -> Self {
        self.role = self.role.or_else(|| former.role.clone());
        self
    }

    /// Credentials of the task's role, if it has one.
    pub(crate) fn role(&self) -> Option<String> {
        self.role.clone()
    }

    fn get(&self, reference: &str) -> Result<String, RuntimeError> {
        let missing = || {
            let why = self.missing.get(reference).map_or("the control plane did not say what it is", String::as_str);
            RuntimeError::Resource(format!("unable to retrieve secret {reference}: {why}"))
        };
        self.known.get(reference).cloned().ok_or_else(missing)
    }
}

/// Gives a container what its definition names: `environment` counts before secrets, and these before files.
pub(super) async fn complete(mut spec: ContainerSpec, secrets: &Secrets) -> Result<ContainerSpec, RuntimeError> {
    let definition = spec.definition.clone();
    if let Some(lost) = &secrets.lost {
        return Err(RuntimeError::Resource(format!("unable to retrieve the credentials of taskRoleArn {lost}")));
    }
    for secret in &definition.secrets {
        let value = secrets.get(&secret.value_from)?;
        if !is_set(&spec, &secret.name) {
            spec.sensitive.variables.push((secret.name.clone(), value));
        }
    }
    for file in &definition.environment_files {
        let text = if file.r#type == FILE { read(&file.value).await? } else { secrets.get(&file.value)? };
        let failed = |message| RuntimeError::Resource(format!("environment file {}: {message}", file.value));
        for (name, value) in parse(&text).map_err(failed)? {
            if is_set(&spec, &name) {
                continue;
            }
            // A file may be readable by fewer people than what an agent writes down.
            spec.sensitive.variables.push((name, value));
        }
    }
    for option in definition.log_configuration.iter().flat_map(|log| &log.secret_options) {
        spec.sensitive.log_options.insert(option.name.clone(), secrets.get(&option.value_from)?);
    }
    spec.sensitive.credentials = login(&definition, secrets)?;
    Ok(spec)
}

fn is_set(spec: &ContainerSpec, name: &str) -> bool {
    spec.definition.environment.iter().any(|pair| pair.name == name)
        || spec.sensitive.variables.iter().any(|(known, _)| known == name)
}

fn login(definition: &ContainerDefinition, secrets: &Secrets) -> Result<Option<Credentials>, RuntimeError> {
    let Some(named) = &definition.repository_credentials else { return Ok(None) };
    let [username, password] = credentials(&named.credentials_parameter);
    Ok(Some(Credentials { username: secrets.get(&username)?, password: secrets.get(&password)? }))
}

async fn read(path: &str) -> Result<String, RuntimeError> {
    let failed = |message: String| RuntimeError::Resource(format!("environment file {path}: {message}"));
    let read = async {
        // Devices and pipes have no end, or no beginning.
        if !tokio::fs::metadata(path).await?.is_file() {
            return Err(io::Error::other("is no regular file"));
        }
        let mut text = String::new();
        tokio::fs::File::open(path).await?.take(MAX_FILE + 1).read_to_string(&mut text).await?;
        Ok(text)
    };
    let read = tokio::time::timeout(READ, read).await.map_err(|_| failed(format!("cannot be read within {READ:?}")))?;
    let text = read.map_err(|e| failed(e.to_string()))?;
    if text.len() as u64 > MAX_FILE {
        return Err(failed(format!("has more than {MAX_FILE} bytes")));
    }
    Ok(text)
}

/// Variables of a file: `NAME=VALUE` on each line, without any quoting (as Docker and ECS read it). Of a name that is there
/// twice the first one counts.
fn parse(text: &str) -> Result<Vec<(String, String)>, String> {
    let mut found = Vec::new();
    for (number, line) in text.lines().enumerate() {
        if line.trim().is_empty() || line.trim_start().starts_with('#') {
            continue;
        }
        match line.split_once('=') {
            Some((name, value)) if !name.trim().is_empty() && !name.trim().contains(char::is_whitespace) => {
                found.push((name.trim().to_owned(), value.to_owned()));
            }
            // The line itself may be a secret.
            _ => return Err(format!("line {} is not NAME=VALUE", number + 1)),
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runtime::ContainerId;
    use steady_core::v1::{ContainerSecret, EnvironmentFile, KeyValuePair, network_mode};

    fn pairs(list: &[(&str, &str)]) -> BTreeMap<String, String> {
        list.iter().map(|(a, b)| ((*a).to_owned(), (*b).to_owned())).collect()
    }

    #[tokio::test]
    async fn environment_counts_before_secrets_and_the_first_file_before_the_second() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("a.env");
        std::fs::write(&path, "# a comment\n\nA=file\nB = spaced\nURL=x=y\nC=file\n").expect("written");
        let definition = ContainerDefinition {
            environment: vec![KeyValuePair { name: "A".into(), value: "given".into() }],
            secrets: vec![ContainerSecret { name: "C".into(), value_from: "db:c".into() }],
            environment_files: vec![
                EnvironmentFile { value: path.display().to_string(), r#type: "file".into() },
                EnvironmentFile { value: "more".into(), r#type: "secret".into() },
            ],
            ..ContainerDefinition::default()
        };
        let id = ContainerId { task: "t".into(), name: "web".into() };
        let spec = ContainerSpec { definition, ..ContainerSpec::new(id, "c", "i", network_mode::Value::Bridge) };
        let secrets = Secrets {
            known: pairs(&[("db:c", "CANARY"), ("more", "B=no\nD=CANARY")]),
            missing: pairs(&[]),
            ..Secrets::default()
        };
        let done = complete(spec.clone(), &secrets).await.expect("complete");
        assert_eq!(done.definition, spec.definition, "nothing of it is written down with the definition");
        let hidden = [("C", "CANARY"), ("B", " spaced"), ("URL", "x=y"), ("D", "CANARY")]
            .map(|(a, b)| (a.to_owned(), b.to_owned()));
        assert_eq!(done.sensitive.variables, hidden);
        assert!(!format!("{done:?} {secrets:?}").contains("CANARY"), "nothing of it is printed");

        let secrets =
            Secrets { known: pairs(&[]), missing: pairs(&[("db:c", "there is no secret/db")]), ..Secrets::default() };
        let error = complete(spec, &secrets).await.expect_err("is not there").to_string();
        let expected = "ResourceInitializationError: unable to retrieve secret db:c: there is no secret/db";
        assert_eq!(error, expected);
        assert_eq!(parse("A=1\nsecret words"), Err("line 2 is not NAME=VALUE".to_owned()));
    }
}
