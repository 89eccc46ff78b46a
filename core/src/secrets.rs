//! What a task definition says of secrets: names of values that it does not hold itself.

use std::collections::BTreeSet;

use steady_proto::v1::TaskDefinitionSpec;

/// Type of an environment file that is on the instance.
pub const FILE: &str = "file";
/// Type of an environment file that is a Secret.
pub const SECRET: &str = "secret";

/// Name and key of a `valueFrom`: `NAME`, or `NAME:KEY` for a member of a secret that is a JSON object. `None` for anything
/// else.
pub fn parse_reference(text: &str) -> Option<(&str, Option<&str>)> {
    let (name, key) = text.split_once(':').map_or((text, None), |(name, key)| (name, Some(key)));
    let is_name = !name.is_empty() && name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-'));
    (is_name && key.is_none_or(|key| !key.is_empty() && !key.contains(':'))).then_some((name, key))
}

/// What a registry's user name and password are called by, of the credentials of this name.
pub fn credentials(name: &str) -> [String; 2] {
    [format!("{name}:username"), format!("{name}:password")]
}

/// The secret that holds the credentials of a role: the last part of its ARN, or its name. `None` for anything else.
pub fn parse_role(role: &str) -> Option<&str> {
    let name = match role.strip_prefix("arn:") {
        None => role,
        Some(rest) => rest.split_once(":role/")?.1.rsplit('/').next()?,
    };
    parse_reference(name).filter(|(_, key)| key.is_none()).map(|(name, _)| name)
}

/// Everything that tasks of a definition need to be told: as [`parse_reference`] reads it.
pub fn references(definition: &TaskDefinitionSpec) -> BTreeSet<String> {
    let mut found: BTreeSet<String> = parse_role(&definition.task_role_arn).map(str::to_owned).into_iter().collect();
    for container in &definition.container_definitions {
        let options = container.log_configuration.iter().flat_map(|log| &log.secret_options);
        found.extend(container.secrets.iter().chain(options).map(|secret| secret.value_from.clone()));
        let files = container.environment_files.iter().filter(|file| file.r#type == SECRET);
        found.extend(files.map(|file| file.value.clone()));
        found.extend(container.repository_credentials.iter().flat_map(|c| credentials(&c.credentials_parameter)));
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_role_is_a_name_or_an_arn() {
        assert_eq!(parse_role("app"), Some("app"));
        assert_eq!(parse_role("arn:aws:iam::123456789012:role/team/app"), Some("app"));
        for wrong in ["", "arn:aws:iam::123456789012:user/app", "a:b", "a/b"] {
            assert_eq!(parse_role(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn a_reference_is_a_name_and_perhaps_a_key() {
        assert_eq!(parse_reference("db"), Some(("db", None)));
        assert_eq!(parse_reference("db:password"), Some(("db", Some("password"))));
        for wrong in ["", ":key", "db:", "arn:aws:secretsmanager:eu-west-1:1:secret:db", "a b", "db:a:b"] {
            assert_eq!(parse_reference(wrong), None, "{wrong}");
        }
    }
}
