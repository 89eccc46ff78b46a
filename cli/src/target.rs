//! What a command is about: `service/web`, `service web`, `task/3fa8`, label selectors.

use std::collections::BTreeMap;

use steady_core::{Key, Kind, KindExt};
use steady_proto::manifest::nearest;
use steady_proto::v1::{Object, Selector};

use crate::client::Client;
use crate::failure::Failure;

/// A kind and perhaps one object of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    /// The kind.
    pub kind: Kind,
    /// Name as the person gave it.
    pub name: Option<String>,
}

/// Fewest characters of a task's id that name it.
const SHORTEST_PREFIX: usize = 4;

/// The kind that a word of the command line means.
pub fn kind(word: &str) -> Result<Kind, Failure> {
    Kind::parse(word).ok_or_else(|| {
        let names: Vec<&str> = Kind::USER.iter().map(|kind| kind.plural()).collect();
        let hint = nearest(word, &names).map(|name| format!(" Did you mean `{name}`?")).unwrap_or_default();
        Failure::usage(format!("there is no kind `{word}`.{hint} Kinds: {}", names.join(", ")))
    })
}

/// Reads `KIND`, `KIND NAME…` or `KIND/NAME…`.
pub fn parse(words: &[String]) -> Result<Vec<Target>, Failure> {
    let Some(first) = words.first() else {
        return Err(Failure::usage("say what: KIND/NAME, for example service/web"));
    };
    if first.contains('/') {
        return words.iter().map(|word| parse_one(word)).collect();
    }
    let kind = kind(first)?;
    if words.len() == 1 {
        return Ok(vec![Target { kind, name: None }]);
    }
    if let Some(mixed) = words[1..].iter().find(|word| word.contains('/')) {
        return Err(Failure::usage(format!("`{mixed}` after `{first}`: write KIND NAME or KIND/NAME, not both")));
    }
    Ok(words[1..].iter().map(|name| Target { kind, name: Some(name.clone()) }).collect())
}

/// Reads `KIND/NAME`.
pub fn parse_one(word: &str) -> Result<Target, Failure> {
    let Some((kind_word, name)) = word.split_once('/') else {
        return Err(Failure::usage(format!("`{word}` names no object; write KIND/NAME, for example service/web")));
    };
    if name.is_empty() || name.contains('/') {
        return Err(Failure::usage(format!("`{word}` names no object; write KIND/NAME, for example service/web")));
    }
    Ok(Target { kind: kind(kind_word)?, name: Some(name.to_owned()) })
}

/// Reads a name that may have its kind before it: `web`, `service/web`.
pub fn name_of(expected: Kind, word: &str) -> Result<String, Failure> {
    if !word.contains('/') {
        return Ok(word.to_owned());
    }
    let target = parse_one(word)?;
    if target.kind == expected {
        return Ok(target.name.unwrap_or_default());
    }
    let (expected, found) = (expected.name().to_lowercase(), target.kind.name().to_lowercase());
    Err(Failure::usage(format!("`{word}` is a {found}; this command takes a {expected}: {expected}/NAME")))
}

/// The service that `service/NAME` means, which has to be there; `None`: a task is meant.
pub async fn service_of(client: &Client, cluster: &str, word: &str) -> Result<Option<Key>, Failure> {
    let found = word.contains('/').then(|| parse_one(word)).transpose()?;
    let Some(found) = found.filter(|found| found.kind == Kind::Service) else { return Ok(None) };
    let key = Key::new(Kind::Service, cluster, &found.name.unwrap_or_default());
    client.get(&key).await?;
    Ok(Some(key))
}

/// Reads a label selector: `app=web,tier=front`.
pub fn labels(text: &str) -> Result<BTreeMap<String, String>, String> {
    text.split(',')
        .map(|pair| match pair.split_once('=') {
            Some((key, value)) if !key.trim().is_empty() => Ok((key.trim().to_owned(), value.trim().to_owned())),
            _ => Err(format!("`{pair}` selects nothing; write KEY=VALUE[,KEY=VALUE…]")),
        })
        .collect()
}

/// Whether an object carries all these labels.
pub fn matches(object: &Object, labels: &BTreeMap<String, String>) -> bool {
    labels.iter().all(|(key, value)| object.meta().labels.get(key) == Some(value))
}

/// Whether a name is a whole task id.
fn is_whole_id(name: &str) -> bool {
    name.len() == 32 && name.bytes().all(|b| b.is_ascii_hexdigit())
}

/// Keys of the objects that a target means: a task by the beginning of its id, a task definition
/// without a revision as all revisions of its family.
pub async fn resolve(client: &Client, cluster: &str, kind: Kind, name: &str) -> Result<Vec<Key>, Failure> {
    match kind {
        Kind::Task if !is_whole_id(name) => Ok(vec![task(client, cluster, name).await?]),
        Kind::TaskDefinition if !name.contains(':') => family(client, name).await,
        _ => Ok(vec![Key::new(kind, cluster, name)]),
    }
}

/// The one task whose id begins with `prefix`.
pub async fn task(client: &Client, cluster: &str, prefix: &str) -> Result<Key, Failure> {
    if is_whole_id(prefix) {
        return Ok(Key::new(Kind::Task, cluster, prefix));
    }
    if prefix.len() < SHORTEST_PREFIX {
        return Err(Failure::usage(format!("`{prefix}` is too short for a task id; give at least 4 characters of it")));
    }
    let tasks = client.list(Kind::Task, in_cluster(cluster)).await?;
    let found: Vec<&Object> = tasks.iter().filter(|task| task.name().starts_with(prefix)).collect();
    match found[..] {
        [one] => Ok(Key::of(one)),
        [] => Err(Failure::failed(format!(
            "no task of cluster {cluster} begins with `{prefix}`; `steady get tasks --all` lists them"
        ))),
        _ => {
            let ids: Vec<&str> = found.iter().take(8).map(|task| task.name()).collect();
            Err(Failure::usage(format!("`{prefix}` begins {} tasks: {}", found.len(), ids.join(", "))))
        }
    }
}

/// Every revision of a family, oldest first.
async fn family(client: &Client, family: &str) -> Result<Vec<Key>, Failure> {
    let definitions = client.list(Kind::TaskDefinition, Selector::default()).await?;
    let mut found: Vec<(i64, Key)> = definitions
        .iter()
        .filter_map(|object| {
            let (of, revision) = steady_core::task::split_definition(object.name())?;
            (of == family).then(|| (revision, Key::of(object)))
        })
        .collect();
    found.sort();
    if found.is_empty() {
        return Err(Failure::failed(format!(
            "there is no task definition `{family}`; `steady get taskdefinitions` lists them"
        )));
    }
    Ok(found.into_iter().map(|(_, key)| key).collect())
}

/// Everything in one cluster; in all of them when it is empty.
pub fn in_cluster(cluster: &str) -> Selector {
    Selector { cluster: cluster.to_owned(), ..Selector::default() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(words: &[&str]) -> Result<Vec<Target>, Failure> {
        parse(&words.iter().map(|w| (*w).to_owned()).collect::<Vec<_>>())
    }

    fn target(kind: Kind, name: Option<&str>) -> Target {
        Target { kind, name: name.map(str::to_owned) }
    }

    #[test]
    fn objects_are_named_with_a_slash_or_a_blank() {
        assert_eq!(read(&["services"]).unwrap(), vec![target(Kind::Service, None)]);
        assert_eq!(read(&["svc", "web"]).unwrap(), vec![target(Kind::Service, Some("web"))]);
        let both = read(&["service/web", "task/3fa8"]).unwrap();
        assert_eq!(both, vec![target(Kind::Service, Some("web")), target(Kind::Task, Some("3fa8"))]);
        assert_eq!(read(&["td", "web:3", "web:4"]).unwrap().len(), 2);
    }

    #[test]
    fn what_names_nothing_is_a_fault_of_usage_with_the_nearest_kind() {
        let failure = read(&["servces"]).unwrap_err();
        assert_eq!(failure.exit, crate::failure::USAGE);
        assert!(failure.message.contains("Did you mean `services`?"), "{failure}");
        for bad in [&["service/"][..], &["service/a/b"], &["service", "task/b"], &[], &["service/a", "b"]] {
            assert!(read(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn a_name_may_carry_the_kind_that_is_expected_and_no_other() {
        assert_eq!(name_of(Kind::Service, "web").unwrap(), "web");
        assert_eq!(name_of(Kind::Service, "svc/web").unwrap(), "web");
        assert!(name_of(Kind::Service, "task/web").unwrap_err().message.contains("is a task"));
    }

    #[test]
    fn labels_are_pairs() {
        let found = labels("app=web, tier=").unwrap();
        assert_eq!(found.get("app").map(String::as_str), Some("web"));
        assert_eq!(found.get("tier").map(String::as_str), Some(""));
        assert!(labels("app").is_err());
        assert!(labels("=x").is_err());
    }
}
