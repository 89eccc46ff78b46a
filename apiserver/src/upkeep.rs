//! What an API server does for its store beside serving: it forgets the past, its own and the store's, and says in time
//! when the room gets scarce.
//!
//! Every API server does it, and none asks the others: forgetting what is forgotten already is no error.

use std::time::Duration;

use steady_core::v1::change::Change as Wire;
use steady_core::v1::severity::Value as Severity;
use steady_core::v1::{Change, CommitRequest, Event, EventSpec, Object};
use steady_core::{DEFAULT_CLUSTER, Key, Kind, Revision};

use crate::registry::Registry;
use crate::storage::{Alarm, Health};

/// Between two looks.
const LOOK: Duration = Duration::from_secs(60);
/// The past is kept for five to ten minutes: nobody resumes a watch of the store from further back.
const PAST: Duration = Duration::from_secs(300);
/// Percent of its room from which on a store is called full.
const SCARCE: u64 = 70;

/// Looks after the store for as long as the server lives.
pub(crate) async fn run(registry: Registry) {
    let mut looks = tokio::time::interval(LOOK);
    let mut forget = (tokio::time::Instant::now() + PAST, registry.cache().revision());
    let mut seen = Revision(0);
    loop {
        looks.tick().await;
        // A watcher that is a minute behind is cut off anyway.
        registry.cache().forget(std::mem::replace(&mut seen, registry.cache().revision()));
        match registry.health().await {
            Ok(health) => {
                if let Some(message) = scarce(&health) {
                    tracing::warn!(message, "the store is filling up");
                    tell(&registry, message).await;
                }
            }
            Err(error) => tracing::debug!(%error, "the store's health is not known"),
        }
        if tokio::time::Instant::now() >= forget.0 {
            let before =
                std::mem::replace(&mut forget, (tokio::time::Instant::now() + PAST, registry.cache().revision())).1;
            if before > Revision(1)
                && let Err(error) = registry.compact(before).await
            {
                tracing::debug!(%error, "the past was not forgotten");
            }
        }
    }
}

/// What to say when there is little room left.
fn scarce(health: &Health) -> Option<String> {
    let help = "`steady admin make-room` shrinks it; a larger --quota-backend-bytes of etcd gives it more";
    if health.alarms.contains(&Alarm::NoSpace) {
        return Some(format!("the store is full: nothing can be written but deletions. {help}"));
    }
    let fullest = health.members.iter().filter(|m| m.quota > 0).max_by_key(|m| m.size * 100 / m.quota)?;
    let percent = fullest.size * 100 / fullest.quota;
    (percent >= SCARCE).then(|| {
        let mib = |bytes: u64| bytes >> 20;
        let (size, quota, name) = (mib(fullest.size), mib(fullest.quota), &fullest.endpoint);
        format!("{name} has filled {percent} % of its room ({size} of {quota} MiB). {help}")
    })
}

/// Raises an event, one an hour for all API servers together.
async fn tell(registry: &Registry, message: String) {
    let now = registry.now();
    let spec = EventSpec {
        about: Some(Key::new(Kind::Cluster, "", DEFAULT_CLUSTER).reference()),
        reason: "StoreFillingUp".to_owned(),
        message,
        severity: Severity::Warn.into(),
        source: "apiserver".to_owned(),
        at: Some(now.into()),
    };
    let event = Object::new(DEFAULT_CLUSTER, &format!("store-room-{}", now.0 / 3_600_000), Event { spec: Some(spec) });
    let change = Change { change: Some(Wire::Create(event)) };
    if let Err(error) = registry.commit(CommitRequest { changes: vec![change], ..CommitRequest::default() }).await {
        tracing::debug!(%error, "the event is there already, or nothing can be written");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::MemberHealth;

    fn health(size: u64, alarms: Vec<Alarm>) -> Health {
        let member = MemberHealth { endpoint: "a:1".into(), size: size << 20, quota: 100 << 20, ..<_>::default() };
        Health { members: vec![member], alarms }
    }

    #[test]
    fn room_is_scarce_from_70_percent_on_and_the_fullest_member_counts() {
        assert_eq!(scarce(&health(69, vec![])), None);
        assert!(
            scarce(&health(70, vec![])).is_some_and(|message| message.contains("70 % of its room (70 of 100 MiB)"))
        );
        let mut two = health(10, vec![]);
        two.members.push(health(90, vec![]).members.remove(0));
        assert!(scarce(&two).is_some_and(|message| message.contains("90 %")));
        assert!(scarce(&health(1, vec![Alarm::NoSpace])).is_some_and(|message| message.contains("is full")));
        assert_eq!(scarce(&Health::default()), None);
    }
}
