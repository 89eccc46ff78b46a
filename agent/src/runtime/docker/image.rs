//! Images of a Docker Engine.

use async_trait::async_trait;
use bollard::auth::DockerCredentials;
use bollard::query_parameters::CreateImageOptions;
use futures::StreamExt;

use super::{LOOK, status, text, within};
use crate::runtime::image::{Images, MADE_OF, PULL, SELF, SELF_PATH, archive, identity};
use crate::runtime::{Credentials, RuntimeError, repository};

#[async_trait]
impl Images for bollard::Docker {
    async fn digest(&self, image: &str) -> Result<Option<Option<String>>, RuntimeError> {
        match within("inspect image", LOOK, self.inspect_image(image)).await? {
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

    async fn fetch(&self, reference: &str, credentials: Option<&Credentials>) -> Result<(), String> {
        let options = CreateImageOptions { from_image: Some(reference.to_owned()), ..CreateImageOptions::default() };
        let login = credentials.map(|given| DockerCredentials {
            username: Some(given.username.clone()),
            password: Some(given.password.clone()),
            ..DockerCredentials::default()
        });
        let mut steps = self.create_image(Some(options), None, login);
        while let Some(step) = steps.next().await {
            step.map_err(|e| text(&e))?;
        }
        Ok(())
    }

    async fn make_self(&self) -> Result<(), RuntimeError> {
        let failed = |e: std::io::Error| RuntimeError::Pull(format!("{SELF} cannot be made: {e}"));
        let of = identity().map_err(failed)?;
        if let Ok(found) = within("inspect image", LOOK, self.inspect_image(SELF)).await? {
            let labels = found.config.and_then(|c| c.labels).unwrap_or_default();
            if labels.get(MADE_OF) == Some(&of) {
                return Ok(());
            }
        }
        let files = tokio::task::spawn_blocking(archive)
            .await
            .map_err(|e| failed(std::io::Error::other(e)))?
            .map_err(failed)?;
        let (repo, tag) = SELF.split_once(':').unwrap_or((SELF, "latest"));
        let options = CreateImageOptions {
            from_src: Some("-".to_owned()),
            repo: Some(repo.to_owned()),
            tag: Some(tag.to_owned()),
            changes: vec![format!("LABEL {MADE_OF}={of}"), format!("ENV PATH={SELF_PATH}")],
            ..CreateImageOptions::default()
        };
        let imported = async {
            let mut steps = self.create_image(Some(options), Some(bollard::body_full(files)), None);
            while let Some(step) = steps.next().await {
                step?;
            }
            Ok(())
        };
        let imported = within("import", PULL, imported).await?;
        imported.map_err(|e| RuntimeError::Pull(format!("{SELF} cannot be made: {}", text(&e))))
    }
}

/// A repository as Docker shows it.
fn familiar(repository: &str) -> &str {
    let bare = repository.strip_prefix("docker.io/").unwrap_or(repository);
    bare.strip_prefix("library/").unwrap_or(bare)
}
