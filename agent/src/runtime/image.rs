//! Images: which are asked for and when, for every engine; and the image that is the running program itself.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use backon::{ExponentialBuilder, Retryable as _};
use bytes::Bytes;

use super::{Credentials, Pulled, RuntimeError};

/// The image that is the running steady program: examples need nothing else.
pub(crate) const SELF: &str = "steady:self";
/// Label of that image which says of which program it was made.
pub(crate) const MADE_OF: &str = "steady.made-of";
/// How long a pull may take.
pub(crate) const PULL: Duration = Duration::from_secs(2 * 3600);
/// How often a pull is tried again that failed on the way.
const RETRIES: usize = 3;
/// Where the program is in its image.
const PROGRAM: &str = "usr/local/bin/steady";
/// Where programs are looked for in that image.
pub(crate) const SELF_PATH: &str = "/usr/local/bin:/usr/bin:/bin";

/// When an image is asked for at its registry (`ECS_IMAGE_PULL_BEHAVIOR`). One that is named by its digest is not asked for
/// when it is here.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum PullBehavior {
    /// When it is not here, or its tag is `latest`; if that fails, the one that is here does. (ECS asks for every tag.)
    #[default]
    Default,
    /// Always, and the task fails if that does.
    Always,
    /// When this agent has not asked for it yet.
    Once,
    /// When it is not here.
    PreferCached,
}

/// Where an engine keeps its images.
#[async_trait]
pub(crate) trait Images: Sync {
    /// The digest of an image that is here; `None` when it is not here, `Some(None)` when it has no digest.
    async fn digest(&self, image: &str) -> Result<Option<Option<String>>, RuntimeError>;

    /// Pulls one, by its tag or digest. The error is the registry's, in its own words.
    async fn fetch(&self, reference: &str, credentials: Option<&Credentials>) -> Result<(), String>;

    /// Makes the one of the running program, unless it is there and of the same program.
    async fn make_self(&self) -> Result<(), RuntimeError>;
}

/// When images are pulled. Clones share what was.
#[derive(Debug, Clone)]
pub(crate) struct Pulls {
    behavior: PullBehavior,
    pulled: Arc<Mutex<BTreeSet<String>>>,
}

impl Pulls {
    pub(crate) fn new(behavior: PullBehavior) -> Self {
        Pulls { behavior, pulled: Arc::default() }
    }

    /// Makes sure that an image is here.
    pub(crate) async fn pull(
        &self,
        images: &impl Images,
        image: &str,
        credentials: Option<&Credentials>,
    ) -> Result<Pulled, RuntimeError> {
        // Containers that start together need it once.
        static MAKING: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());
        if image == SELF {
            let _making = MAKING.lock().await;
            return images.make_self().await.map(|()| Pulled::default());
        }
        let cached = images.digest(image).await?;
        let asked = self.pulled.lock().unwrap_or_else(PoisonError::into_inner).contains(image);
        let reference = reference(image);
        if let Some(known) = &cached
            && !asks(self.behavior, &reference, asked)
        {
            return Ok(Pulled { digest: known.clone(), is_new: false });
        }
        let limited = tokio::time::timeout(PULL, fetch(images, &reference, credentials));
        let fetched = limited.await.unwrap_or_else(|_| Err(format!("not pulled within {PULL:?}")));
        match fetched {
            Ok(()) => {
                self.pulled.lock().unwrap_or_else(PoisonError::into_inner).insert(image.to_owned());
                Ok(Pulled { digest: images.digest(image).await?.flatten(), is_new: cached.is_none() })
            }
            Err(error) if cached.is_some() && self.behavior != PullBehavior::Always => {
                tracing::warn!(image, error, "the image could not be pulled; the one that is here does");
                Ok(Pulled { digest: cached.flatten(), is_new: false })
            }
            Err(error) => Err(RuntimeError::Pull(format!("{image}: {error}"))),
        }
    }
}

/// Whether an image that is here is asked for all the same.
fn asks(behavior: PullBehavior, reference: &str, asked: bool) -> bool {
    let pinned = reference.contains('@');
    match behavior {
        PullBehavior::Default => reference.ends_with(":latest"),
        PullBehavior::Always => !pinned,
        PullBehavior::Once => !pinned && !asked,
        PullBehavior::PreferCached => false,
    }
}

/// An image with its tag, or by its digest.
fn reference(image: &str) -> String {
    let (_, last) = image.rsplit_once('/').unwrap_or(("", image));
    if last.contains([':', '@']) { image.to_owned() } else { format!("{image}:latest") }
}

/// Pulls it. What may be otherwise a moment later is tried again (ECS' agent does, too); what the registry refuses is not.
async fn fetch(images: &impl Images, reference: &str, credentials: Option<&Credentials>) -> Result<(), String> {
    let once = || images.fetch(reference, credentials);
    let retries =
        ExponentialBuilder::default().with_min_delay(Duration::from_secs(1)).with_max_times(RETRIES).with_jitter();
    once.retry(retries).sleep(tokio::time::sleep).when(|error: &String| !is_final(error)).await
}

/// Whether a registry has spoken: asking again is of no use.
fn is_final(error: &str) -> bool {
    let error = error.to_ascii_lowercase();
    [
        "not found",
        "manifest unknown",
        "denied",
        "unauthorized",
        "authentication required",
        "basic auth",
        "no such image",
    ]
    .iter()
    .any(|said| error.contains(said))
        || error.contains("invalid reference")
}

/// Tells one build of the program from another.
pub(crate) fn identity() -> io::Result<String> {
    let program = fs::metadata("/proc/self/exe")?;
    Ok(format!("{}-{}-{}", program.len(), program.mtime(), program.ino()))
}

/// An archive of the program and the shared libraries that it has loaded, each where it looks for them.
pub(crate) fn archive() -> io::Result<Bytes> {
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
    fn an_image_that_is_here_is_asked_for_as_the_behavior_says() {
        use PullBehavior::{Always, Default, Once, PreferCached};
        let asked = |behavior| {
            let named = ["web", "web:1", "host:5000/web", "web@sha256:0"];
            named.map(|image| asks(behavior, &reference(image), false))
        };
        assert_eq!(asked(Default), [true, false, true, false]);
        assert_eq!(asked(Always), [true, true, true, false]);
        assert_eq!(asked(Once), [true, true, true, false]);
        assert_eq!(asked(PreferCached), [false; 4]);
        assert!(!asks(Once, "web:1", true));
    }

    #[test]
    fn what_a_registry_refuses_is_not_asked_for_again() {
        assert!(is_final("manifest for web:9 not found: manifest unknown"));
        assert!(is_final("Head \"https://r/v2/\": unauthorized: authentication required"));
        assert!(!is_final("Get \"http://r/v2/\": dial tcp: connection refused"));
        assert!(!is_final("unexpected EOF"));
    }

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
