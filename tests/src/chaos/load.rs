//! Writers over the API. Each has a cluster object of its own and counts up its label, one write after the other; it
//! knows the last count that was acknowledged, and how long it had to wait for one.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use steady_core::v1::{ApplyRequest, Cluster, ClusterSpec, GetRequest, Object};
use steady_core::{Key, Kind};
use steady_runtime::Client;
use tokio::task::JoinHandle;

use super::runtime;

/// The label that is counted up.
pub const LABEL: &str = "count";
/// How long one write may take until it is given up and its outcome looked at.
const PATIENCE: Duration = Duration::from_secs(3);

/// What one writer saw.
#[derive(Debug, Clone, Default)]
pub struct Seen {
    /// The last count that was acknowledged.
    pub acknowledged: u64,
    /// Longest time between two acknowledgements.
    pub gap: Duration,
    /// Writes without an answer, or with an error.
    pub failed: u64,
}

/// Writers that write until they are stopped.
pub struct Load {
    stop: Arc<AtomicBool>,
    writes: Arc<AtomicU64>,
    seen: Vec<Arc<Mutex<Seen>>>,
    writing: Vec<JoinHandle<()>>,
}

/// The object of a writer.
pub fn name(writer: usize) -> String {
    format!("load-{writer}")
}

fn object(writer: usize, count: u64) -> Object {
    let mut object = Object::new("", &name(writer), Cluster { spec: Some(ClusterSpec {}), status: None });
    object.meta_mut().labels.insert(LABEL.to_owned(), count.to_string());
    object
}

impl Load {
    /// Starts writers at these API servers.
    pub fn start(servers: &[String], count: usize) -> Self {
        let (stop, writes) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let seen: Vec<Arc<Mutex<Seen>>> = (0..count).map(|_| Arc::default()).collect();
        let _inside = runtime().enter();
        let writing = seen.iter().enumerate().map(|(writer, seen)| {
            let client = Client::new(servers).unwrap();
            let (stop, writes, seen) = (Arc::clone(&stop), Arc::clone(&writes), Arc::clone(seen));
            runtime().spawn(async move {
                let mut last = Instant::now();
                let mut count = 1;
                while !stop.load(Ordering::Relaxed) {
                    let request = ApplyRequest { objects: vec![object(writer, count)], dry_run: false };
                    let (mut objects, place) = (client.objects(), client.place());
                    let written = tokio::time::timeout(PATIENCE, objects.apply(request)).await;
                    let written = matches!(written, Ok(Ok(_)));
                    if written {
                        let mut seen = seen.lock().unwrap();
                        seen.gap = seen.gap.max(last.elapsed());
                        seen.acknowledged = count;
                        last = Instant::now();
                        count += 1;
                        writes.fetch_add(1, Ordering::Relaxed);
                    } else {
                        // Applying the same again changes nothing if it happened.
                        seen.lock().unwrap().failed += 1;
                        client.rotate(place);
                        tokio::time::sleep(Duration::from_millis(20)).await;
                    }
                }
            })
        });
        let writing = writing.collect();
        Load { stop, writes, seen, writing }
    }

    /// Writes that were acknowledged so far.
    pub fn writes(&self) -> u64 {
        self.writes.load(Ordering::Relaxed)
    }

    /// Waits until there were enough writes a second for a while: a fault without load proves nothing.
    pub fn is_high(&self, per_second: u64) {
        super::super::eventually("the load is high enough", Duration::from_secs(30), || {
            let before = self.writes();
            std::thread::sleep(Duration::from_secs(1));
            (self.writes() - before >= per_second).then_some(())
        });
    }

    /// Forgets the gaps so far.
    pub fn forget_gaps(&self) {
        self.seen.iter().for_each(|seen| seen.lock().unwrap().gap = Duration::ZERO);
    }

    /// The longest time that any writer waited.
    pub fn gap(&self) -> Duration {
        self.seen.iter().map(|seen| seen.lock().unwrap().gap).max().unwrap_or_default()
    }

    /// Stops them; what each saw.
    pub fn stop(self) -> Vec<Seen> {
        self.stop.store(true, Ordering::Relaxed);
        runtime().block_on(async {
            for writer in self.writing {
                writer.await.unwrap();
            }
        });
        self.seen.iter().map(|seen| seen.lock().unwrap().clone()).collect()
    }
}

/// What is stored for each writer is what was acknowledged to it, or one more.
pub fn nothing_is_lost(servers: &[String], seen: &[Seen]) {
    let stored = |writer: usize| -> u64 {
        super::super::eventually("the writer's object is read", Duration::from_secs(30), || {
            let reference = Key::new(Kind::Cluster, "", &name(writer)).reference();
            let read = runtime().block_on(async {
                let client = Client::new(servers).unwrap();
                client.objects().get(GetRequest { r#ref: Some(reference) }).await
            });
            let object = read.ok()?.into_inner().object?;
            object.meta().labels.get(LABEL)?.parse().ok()
        })
    };
    for (writer, seen) in seen.iter().enumerate() {
        let stored = stored(writer);
        let range = seen.acknowledged..=seen.acknowledged + 1;
        assert!(range.contains(&stored), "writer {writer}: {stored} is stored, {} was acknowledged", seen.acknowledged);
    }
}
