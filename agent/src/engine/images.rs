//! Images that no task uses any more: removed after a while, a few at a time (ECS `ECS_IMAGE_MINIMUM_CLEANUP_AGE`). Only those that tasks
//! of this agent had pulled, and that can be pulled again; what people made or pulled themselves is theirs.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use steady_core::Timestamp;

use super::{Engine, Input, effects};

/// Most images that are removed at once (ECS `ECS_NUM_IMAGES_DELETE_PER_CYCLE`).
const MOST: usize = 5;

/// When images are removed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ImageCleanup {
    /// How often it is looked for some.
    pub interval: Duration,
    /// How long an image was not used.
    pub minimum_age: Duration,
}

/// Images that tasks of this agent had pulled, and when they were last used.
#[derive(Debug, Default)]
pub(super) struct Images {
    used: BTreeMap<String, Timestamp>,
    file: Option<PathBuf>,
}

impl Images {
    /// Those that an agent before knew.
    pub(super) fn load(directory: Option<&Path>) -> Self {
        let file = directory.map(|directory| directory.join("images.json"));
        let read = file.as_ref().and_then(|file| fs::read(file).ok());
        let used = read.and_then(|bytes| serde_json::from_slice(&bytes).ok()).unwrap_or_default();
        Images { used, file }
    }

    /// It was pulled for a task.
    pub(super) fn learn(&mut self, image: &str, now: Timestamp) {
        self.used.insert(image.to_owned(), now);
        self.save();
    }

    /// They are used now, those of them that were pulled for a task once.
    pub(super) fn touch<'a>(&mut self, images: impl IntoIterator<Item = &'a String>, now: Timestamp) {
        let mut is_changed = false;
        for image in images {
            if let Some(at) = self.used.get_mut(image) {
                *at = now;
                is_changed = true;
            }
        }
        if is_changed {
            self.save();
        }
    }

    pub(super) fn forget(&mut self, image: &str) {
        self.used.remove(image);
        self.save();
    }

    /// What is lost is only that an image stays.
    fn save(&self) {
        let Some(file) = &self.file else { return };
        let part = file.with_extension("part");
        let kept = serde_json::to_vec(&self.used).map_err(std::io::Error::other);
        if let Err(error) = kept.and_then(|bytes| fs::write(&part, bytes)).and_then(|()| fs::rename(&part, file)) {
            tracing::warn!(path = %file.display(), %error, "it is not remembered which images are used");
        }
    }

    /// Those to remove, the ones that were not used for longest first.
    pub(super) fn due(&self, in_use: &BTreeSet<&str>, age: Duration, now: Timestamp) -> Vec<String> {
        let mut old: Vec<(&Timestamp, &String)> = self
            .used
            .iter()
            .filter(|(image, at)| !in_use.contains(image.as_str()) && now.since(**at) >= age)
            .map(|(image, at)| (at, image))
            .collect();
        old.sort();
        old.into_iter().take(MOST).map(|(_, image)| image.clone()).collect()
    }
}

impl Engine {
    /// Looks for images that are due.
    pub(super) fn clean_images(&self, age: Duration) {
        let containers = self.tasks.values().flat_map(|entry| &entry.state.containers);
        let in_use: BTreeSet<&str> = containers.map(|container| container.definition.image.as_str()).collect();
        for image in self.images.due(&in_use, age, self.clock.now()) {
            let (runtime, inputs) = (Arc::clone(&self.runtime), self.inputs.clone());
            tokio::spawn(async move {
                // Whoever has it already must not lose it before there is a container of it: then it waits for the next time.
                let removed = match effects::LAUNCHING.try_write() {
                    Ok(_alone) => runtime.remove_image(&image).await,
                    Err(_) => Ok(false),
                };
                match &removed {
                    Ok(true) => tracing::info!(image, "no task uses it any more; removed"),
                    Ok(false) => {}
                    Err(error) => tracing::warn!(image, %error, "an image that no task uses stays"),
                }
                let _ = inputs.send(Input::ImageRemoved { image, is_gone: removed.unwrap_or_default() });
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn five_images_that_nobody_uses_go_at_once_the_oldest_first() {
        let directory = tempfile::tempdir().expect("a directory");
        let mut images = Images::load(Some(directory.path()));
        for (at, name) in ["g", "f", "e", "d", "c", "b", "a"].into_iter().enumerate() {
            images.learn(name, Timestamp(at as i64 * 1000));
        }
        images.touch([&"unknown".to_owned()], Timestamp(0));
        let images = Images::load(Some(directory.path()));
        let due = |in_use: &[&str], now| {
            images.due(&in_use.iter().copied().collect(), Duration::from_secs(10), Timestamp(now))
        };
        assert_eq!(due(&[], 9_999), Vec::<String>::new());
        assert_eq!(due(&["f"], 12_000), ["g", "e"]);
        assert_eq!(due(&[], 60_000), ["g", "f", "e", "d", "c"]);
    }
}
