//! Images: from a registry, from the cache, or made of the running program itself.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use bollard::Docker;
use bollard::query_parameters::CreateImageOptions;
use bytes::Bytes;
use futures::StreamExt;

use super::{LOOK, status, text, within};
use crate::runtime::{RuntimeError, repository};

/// The image that is the running steady program: examples need nothing else.
const SELF: &str = "steady:self";
/// Label of that image which says of which program it was made.
const MADE_OF: &str = "steady.made-of";
/// How long a pull may take.
const PULL: Duration = Duration::from_secs(10 * 60);
/// Where the program is in its image.
const PROGRAM: &str = "usr/local/bin/steady";

/// Makes sure that an image is here (ECS' default behaviour: pull it, else what is cached). One that is cached under
/// a tag other than `latest`, or by digest, is not asked for again.
pub(super) async fn pull(engine: &Docker, image: &str) -> Result<Option<String>, RuntimeError> {
    if image == SELF {
        return make(engine).await.map(|()| None);
    }
    let cached = digest(engine, image).await?;
    let (tag, pinned) = match image.rsplit_once('/').map_or(image, |(_, last)| last).rsplit_once(':') {
        Some((_, tag)) => (tag, image.contains('@')),
        None => ("latest", image.contains('@')),
    };
    if let Some(known) = &cached
        && (pinned || tag != "latest")
    {
        return Ok(known.clone());
    }
    let reference =
        if pinned || image.ends_with(&format!(":{tag}")) { image.to_owned() } else { format!("{image}:{tag}") };
    let options = CreateImageOptions { from_image: Some(reference), ..CreateImageOptions::default() };
    let pulled = async {
        let mut steps = engine.create_image(Some(options), None, None);
        while let Some(step) = steps.next().await {
            step?;
        }
        Ok(())
    };
    match within("pull", PULL, pulled).await? {
        Ok(()) => Ok(digest(engine, image).await?.flatten()),
        Err(_) if cached.is_some() => Ok(cached.flatten()),
        Err(error) => Err(RuntimeError::Pull(format!("{image}: {}", text(&error)))),
    }
}

/// The digest of an image that is here; `None` when it is not here, `Some(None)` when it has no digest.
async fn digest(engine: &Docker, image: &str) -> Result<Option<Option<String>>, RuntimeError> {
    match within("inspect image", LOOK, engine.inspect_image(image)).await? {
        Ok(found) => {
            // Of a repository of another name it is no digest that this name can be pulled by.
            let digests = found.repo_digests.unwrap_or_default();
            let digests = digests.iter().filter_map(|digest| digest.split_once('@'));
            let own = digests.filter(|(of, _)| familiar(of) == familiar(repository(image)));
            Ok(Some(own.map(|(_, digest)| digest.to_owned()).next()))
        }
        Err(error) if status(&error) == Some(404) => Ok(None),
        Err(error) => Err(RuntimeError::Pull(text(&error))),
    }
}

/// A repository as Docker shows it.
fn familiar(repository: &str) -> &str {
    let bare = repository.strip_prefix("docker.io/").unwrap_or(repository);
    bare.strip_prefix("library/").unwrap_or(bare)
}

/// Makes the image of the running program, unless it is there and of the same program.
async fn make(engine: &Docker) -> Result<(), RuntimeError> {
    // Containers that start together need it once.
    static MAKING: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());
    let _making = MAKING.lock().await;
    let failed = |e: io::Error| RuntimeError::Pull(format!("{SELF} cannot be made: {e}"));
    let of = identity().map_err(failed)?;
    if let Ok(found) = within("inspect image", LOOK, engine.inspect_image(SELF)).await? {
        let labels = found.config.and_then(|c| c.labels).unwrap_or_default();
        if labels.get(MADE_OF) == Some(&of) {
            return Ok(());
        }
    }
    let files = tokio::task::spawn_blocking(archive).await.map_err(|e| failed(io::Error::other(e)))?.map_err(failed)?;
    let (repo, tag) = SELF.split_once(':').unwrap_or((SELF, "latest"));
    let options = CreateImageOptions {
        from_src: Some("-".to_owned()),
        repo: Some(repo.to_owned()),
        tag: Some(tag.to_owned()),
        changes: vec![format!("LABEL {MADE_OF}={of}"), "ENV PATH=/usr/local/bin:/usr/bin:/bin".to_owned()],
        ..CreateImageOptions::default()
    };
    let imported = async {
        let mut steps = engine.create_image(Some(options), Some(bollard::body_full(files)), None);
        while let Some(step) = steps.next().await {
            step?;
        }
        Ok(())
    };
    let imported = within("import", PULL, imported).await?;
    imported.map_err(|e| RuntimeError::Pull(format!("{SELF} cannot be made: {}", text(&e))))
}

/// Tells one build of the program from another.
fn identity() -> io::Result<String> {
    let program = fs::metadata("/proc/self/exe")?;
    Ok(format!("{}-{}-{}", program.len(), program.mtime(), program.ino()))
}

/// An archive of the program and the shared libraries that it has loaded, each where it looks for them.
fn archive() -> io::Result<Bytes> {
    let mut tar = tar::Builder::new(Vec::new());
    add(&mut tar, Path::new("/proc/self/exe"), PROGRAM, 0o755)?;
    let maps = fs::read_to_string("/proc/self/maps")?;
    let loaded: BTreeSet<PathBuf> = maps
        .lines()
        .filter_map(|line| line.find('/').map(|at| PathBuf::from(&line[at..])))
        .filter(|path| path.file_name().is_some_and(|name| name.to_string_lossy().contains(".so")))
        .collect();
    for library in &loaded {
        // Where it is, and where it is looked for on a system with separate /lib and /usr/lib.
        let path = library.strip_prefix("/").unwrap_or(library);
        let other = path.strip_prefix("usr").map_or_else(|_| Path::new("usr").join(path), Path::to_owned);
        for target in [path, &other] {
            add(&mut tar, library, &target.display().to_string(), 0o755)?;
        }
        if library.file_name().is_some_and(|name| name.to_string_lossy().starts_with("ld-linux-x86-64")) {
            add(&mut tar, library, "lib64/ld-linux-x86-64.so.2", 0o755)?;
        }
    }
    add_bytes(&mut tar, b"root:x:0:0:root:/root:/bin/sh\n", "etc/passwd", 0o644)?;
    let mut tmp = tar::Header::new_gnu();
    tmp.set_entry_type(tar::EntryType::Directory);
    tmp.set_size(0);
    tmp.set_mode(0o1777);
    tar.append_data(&mut tmp, "tmp/", io::empty())?;
    Ok(tar.into_inner()?.into())
}

fn add(tar: &mut tar::Builder<Vec<u8>>, from: &Path, to: &str, mode: u32) -> io::Result<()> {
    add_bytes(tar, &fs::read(from)?, to, mode)
}

fn add_bytes(tar: &mut tar::Builder<Vec<u8>>, bytes: &[u8], to: &str, mode: u32) -> io::Result<()> {
    let mut header = tar::Header::new_gnu();
    header.set_size(bytes.len() as u64);
    header.set_mode(mode);
    tar.append_data(&mut header, to, bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_archive_has_the_program_and_its_loader() {
        let bytes = archive().expect("made");
        let mut tar = tar::Archive::new(bytes.as_ref());
        let names: Vec<String> = tar
            .entries()
            .expect("entries")
            .map(|e| e.expect("an entry").path().expect("a path").display().to_string())
            .collect();
        assert!(names.iter().any(|n| n == PROGRAM), "{names:?}");
        assert!(names.iter().any(|n| n.contains("libc.so.6")), "{names:?}");
    }
}
