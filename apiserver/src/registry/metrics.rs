//! What this API server knows of metrics, for whoever decides on them.

use steady_core::v1::{MetricData, MetricDataSpec, Object, object};
use steady_core::{Key, SmolStr};

use super::{Registry, RegistryError};

/// Most metrics of one transaction.
const AT_ONCE: usize = 20;

impl Registry {
    /// Writes what is known of metrics, each with its cluster and the name of its object.
    pub(crate) async fn publish(&self, known: Vec<(SmolStr, String, MetricDataSpec)>) -> Result<(), RegistryError> {
        let mut failed = None;
        for some in known.chunks(AT_ONCE) {
            // What cannot be told of some must not silence the others.
            let told = self.write(|writes| {
                for (cluster, name, spec) in some {
                    let new = Object::new(cluster, name, MetricData { spec: Some(spec.clone()) });
                    match writes.get(&Key::of(&new)).cloned() {
                        None => {
                            writes.create(new);
                        }
                        Some(mut object) => {
                            object.kind = Some(object::Kind::MetricData(MetricData { spec: Some(spec.clone()) }));
                            writes.put(object);
                        }
                    }
                }
                Ok(())
            });
            failed = told.await.err().or(failed);
        }
        failed.map_or(Ok(()), Err)
    }
}
