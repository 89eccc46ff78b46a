//! Which server is meant when none is named: contexts, saved by `steady up`.
//!
//! The file is `$XDG_CONFIG_HOME/steady/context.json`, else `~/.config/steady/context.json`:
//! `{"current":"dev","contexts":{"dev":{"server":"http://127.0.0.1:7443"}}}`.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::{env, fs, io};

use serde::{Deserialize, Serialize};

use crate::failure::Failure;

/// Where `steady up` listens unless it is told otherwise.
pub const DEFAULT_SERVER: &str = "http://127.0.0.1:7443";

#[derive(Debug, Default, Serialize, Deserialize)]
struct Contexts {
    #[serde(default)]
    current: String,
    #[serde(default)]
    contexts: BTreeMap<String, Context>,
}

#[derive(Debug, Serialize, Deserialize)]
struct Context {
    server: String,
}

/// The file of contexts; `None` for a user without a home.
pub fn path() -> Option<PathBuf> {
    let set = |name: &str| env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let config = set("XDG_CONFIG_HOME").or_else(|| Some(set("HOME")?.join(".config")))?;
    Some(config.join("steady").join("context.json"))
}

/// Remembers a server under a name and makes it the current one.
///
/// # Errors
/// When the file cannot be written.
pub fn save(name: &str, server: &str) -> io::Result<()> {
    let path = path().ok_or_else(|| io::Error::other("neither XDG_CONFIG_HOME nor HOME is set"))?;
    save_in(&path, name, server)
}

fn save_in(path: &Path, name: &str, server: &str) -> io::Result<()> {
    let mut contexts = read(path).unwrap_or_default();
    name.clone_into(&mut contexts.current);
    contexts.contexts.insert(name.to_owned(), Context { server: server.to_owned() });
    if let Some(directory) = path.parent() {
        fs::create_dir_all(directory)?;
    }
    // Written beside and renamed: two processes that save at once leave one whole file.
    let beside = path.with_extension(format!("json.{}", std::process::id()));
    fs::write(&beside, serde_json::to_string_pretty(&contexts)? + "\n")?;
    fs::rename(&beside, path)
}

fn read(path: &Path) -> io::Result<Contexts> {
    Ok(serde_json::from_str(&fs::read_to_string(path)?)?)
}

/// Addresses to try, in order: those given (`--server`, `STEADY_SERVER`), else the current context's, else
/// where `steady up` listens.
pub fn servers(given: Option<&str>) -> Result<Vec<String>, Failure> {
    if let Some(given) = given {
        return addresses(given);
    }
    match path().map(|path| (read(&path), path)) {
        Some((Ok(contexts), _)) => match contexts.contexts.get(&contexts.current) {
            Some(context) => addresses(&context.server),
            None => addresses(DEFAULT_SERVER),
        },
        Some((Err(error), path)) if error.kind() != io::ErrorKind::NotFound => {
            Err(Failure::usage(format!("{}: {error}; mend or delete the file", path.display())))
        }
        _ => addresses(DEFAULT_SERVER),
    }
}

/// Reads `URL[,URL]`; an address without a scheme is `http://`.
pub fn addresses(text: &str) -> Result<Vec<String>, Failure> {
    let found: Vec<String> = text
        .split(',')
        .map(str::trim)
        .filter(|address| !address.is_empty())
        .map(|address| {
            let address = address.trim_end_matches('/');
            if address.contains("://") { address.to_owned() } else { format!("http://{address}") }
        })
        .collect();
    if found.is_empty() {
        return Err(Failure::usage("--server is empty; write HOST:PORT or http://HOST:PORT"));
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_need_no_scheme() {
        assert_eq!(addresses("a:1, https://b:2/").unwrap(), ["http://a:1", "https://b:2"]);
        assert!(addresses(" , ").is_err());
    }

    #[test]
    fn a_saved_context_becomes_the_current_one_and_leaves_the_others() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("deep/context.json");
        save_in(&path, "dev", "http://a:1").unwrap();
        save_in(&path, "prod", "http://b:2").unwrap();
        let contexts = read(&path).unwrap();
        assert_eq!(contexts.current, "prod");
        assert_eq!(contexts.contexts["dev"].server, "http://a:1");
        assert_eq!(fs::read_dir(path.parent().unwrap()).unwrap().count(), 1);
    }
}
