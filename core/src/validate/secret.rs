//! Checks of secrets, and of how a container names them.

use std::collections::BTreeSet;

use steady_proto::v1::{ContainerDefinition, ContainerSecret, SecretSpec};

use super::common::Faults;
use crate::secrets::{FILE, SECRET, parse_reference};

/// Most bytes of a value (AWS Secrets Manager).
const MAX_VALUE: usize = 64 * 1024;

pub(super) fn check(spec: &SecretSpec, faults: &mut Faults) {
    let (description, value) = (spec.description.len(), spec.secret_string.len());
    if description > 2048 {
        faults.add("spec.description", format!("has {description} characters; at most 2048"));
    }
    if value > MAX_VALUE {
        faults.add("spec.secretString", format!("has {value} bytes; at most {MAX_VALUE}"));
    }
    if spec.secret_string.contains('\0') {
        faults.add("spec.secretString", "has a NUL character; no variable of a process can hold one".into());
    }
}

/// How a container names its secrets and its files of variables.
pub(super) fn of_container(container: &ContainerDefinition, path: &str, faults: &mut Faults) {
    let mut names: BTreeSet<&str> = container.environment.iter().map(|pair| pair.name.as_str()).collect();
    for (i, secret) in container.secrets.iter().enumerate() {
        let path = format!("{path}.secrets[{i}]");
        if secret.name.contains(['=', '\0']) {
            faults.add(&format!("{path}.name"), format!("`{}` is no variable's name", secret.name));
        }
        if !names.insert(&secret.name) {
            let message = format!("`{}` is given twice, here or in environment", secret.name);
            faults.add(&format!("{path}.name"), message);
        }
        reference(secret, &path, faults);
    }
    if container.environment_files.len() > 10 {
        let message = format!("{} files; at most 10", container.environment_files.len());
        faults.add(&format!("{path}.environmentFiles"), message);
    }
    for (i, file) in container.environment_files.iter().enumerate() {
        let path = format!("{path}.environmentFiles[{i}]");
        match file.r#type.as_str() {
            FILE if file.value.starts_with('/') => {}
            FILE => {
                let message = format!("`{}` is not absolute; expected a path on the instance, `/…`", file.value);
                faults.add(&format!("{path}.value"), message);
            }
            SECRET => value_from(&format!("{path}.value"), &file.value, faults),
            other => {
                let message = format!(
                    "`{other}` is not supported; expected file (a path on the instance) or secret (the name of a Secret)"
                );
                faults.add(&format!("{path}.type"), message);
            }
        }
    }
    if let Some(credentials) = &container.repository_credentials {
        let (field, name) = ("repositoryCredentials.credentialsParameter", &credentials.credentials_parameter);
        if !matches!(parse_reference(name), Some((_, None))) {
            let message = format!("`{name}` is no name of a Secret; it is to hold `username` and `password` as JSON");
            faults.add(&format!("{path}.{field}"), message);
        }
    }
}

/// One name and what it stands for.
pub(super) fn reference(secret: &ContainerSecret, path: &str, faults: &mut Faults) {
    if secret.name.is_empty() {
        faults.add(&format!("{path}.name"), "is missing".into());
    }
    value_from(&format!("{path}.valueFrom"), &secret.value_from, faults);
}

fn value_from(field: &str, text: &str, faults: &mut Faults) {
    if parse_reference(text).is_none() {
        let message =
            format!("`{text}` is no secret; expected NAME of a Secret of the task's cluster, or NAME:KEY of its JSON");
        faults.add(field, message);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use steady_proto::v1::{EnvironmentFile, KeyValuePair, RepositoryCredentials};

    #[test]
    fn names_are_given_once_and_what_they_stand_for_is_a_secret() {
        let secret = |name: &str, from: &str| ContainerSecret { name: name.into(), value_from: from.into() };
        let container = ContainerDefinition {
            environment: vec![KeyValuePair { name: "A".into(), value: "1".into() }],
            secrets: vec![secret("A", "db"), secret("B", "db:password"), secret("C", "arn:aws:ssm:x")],
            environment_files: vec![EnvironmentFile { value: "arn:aws:s3:::b/x.env".into(), r#type: "s3".into() }],
            repository_credentials: Some(RepositoryCredentials { credentials_parameter: "a:b".into() }),
            ..ContainerDefinition::default()
        };
        let mut faults = Faults::default();
        of_container(&container, "c", &mut faults);
        let found: Vec<String> = faults.found.iter().map(ToString::to_string).collect();
        assert_eq!(found.len(), 4, "{found:#?}");
        assert!(found[0].starts_with("c.secrets[0].name: `A` is given twice"));
        assert!(found[1].starts_with("c.secrets[2].valueFrom: `arn:aws:ssm:x` is no secret"));
        assert!(found[2].contains("expected file"));
        assert!(found[3].contains("credentialsParameter"));
    }
}
