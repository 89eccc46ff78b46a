//! Executes a plan: groups of changes as commits, each fenced by the one before.

use std::collections::BTreeSet;

use steady_core::v1::{self, CommitRequest, Fence, SequencerExpect};
use steady_core::{Change, Revision, task};
use tonic::{Code, Status};
use tonic_types::StatusExt;

use crate::Client;
use crate::client::{DEADLINE, within};

/// Most changes of one commit (the API takes 100).
const MAX_CHANGES: usize = 100;

/// Why a plan was not executed, or not to its end.
#[derive(Debug)]
pub(crate) enum Failure {
    /// Something changed since the view that was planned on: look again.
    Stale(String),
    /// The lease is another's.
    Fenced,
    /// No answer: the commit may have happened. Look at a view that is newer than now before doing anything.
    Unknown(Status),
    /// The API refuses it: it has too much to do, or the plan is wrong.
    Refused(Status),
}

/// What a commit is guarded by.
pub(crate) struct Guards {
    pub(crate) fence: Fence,
    /// The owner's sequencer and the revision it had in the view.
    pub(crate) sequencer: Option<(String, Revision)>,
}

/// Commits the groups in order. `reached` is the revision of the last one, also when a later one fails.
pub(crate) async fn execute(
    client: &Client,
    groups: Vec<Vec<Change>>,
    mut guards: Guards,
    reached: &mut Option<Revision>,
) -> Result<(), Failure> {
    for changes in pack(groups) {
        let sequencer = guards.sequencer.as_ref();
        let request = CommitRequest {
            changes: changes.into_iter().map(v1::Change::from).collect(),
            fence: Some(guards.fence.clone()),
            sequencer: sequencer.map(|(name, at)| SequencerExpect { name: name.clone(), revision: at.0 }),
        };
        let answer = commit(client, request).await?;
        *reached = Some(Revision(answer.revision));
        if let Some((_, at)) = &mut guards.sequencer {
            *at = Revision(answer.sequencer_revision);
        }
    }
    Ok(())
}

async fn commit(client: &Client, request: CommitRequest) -> Result<v1::CommitResponse, Failure> {
    let mut objects = client.objects();
    within(DEADLINE, objects.commit(request)).await.map(tonic::Response::into_inner).map_err(|status| {
        match status.code() {
            Code::Aborted if says(&status, "LEASE_LOST") => Failure::Fenced,
            Code::ResourceExhausted if says(&status, "OVERLOADED") => Failure::Refused(status),
            Code::Aborted => Failure::Stale(status.message().to_owned()),
            Code::InvalidArgument | Code::FailedPrecondition | Code::AlreadyExists | Code::NotFound => {
                Failure::Refused(status)
            }
            _ => Failure::Unknown(status),
        }
    })
}

/// Whether the API names this reason.
fn says(status: &Status, reason: &str) -> bool {
    let info = status.get_details_error_info();
    info.is_some_and(|info| info.reason == reason && info.domain == "steady")
}

/// Groups as commits: none is split, and small ones go together.
fn pack(groups: Vec<Vec<Change>>) -> Vec<Vec<Change>> {
    let mut commits: Vec<(Vec<Change>, BTreeSet<String>)> = Vec::new();
    for group in groups.into_iter().filter(|group| !group.is_empty()) {
        let losers: BTreeSet<String> = group.iter().filter_map(loser).collect();
        match commits.last_mut() {
            Some((open, others)) if open.len() + group.len() + others.union(&losers).count() <= MAX_CHANGES => {
                open.extend(group);
                others.extend(losers);
            }
            _ => commits.push((group, losers)),
        }
    }
    commits.into_iter().map(|(changes, _)| changes).collect()
}

/// The service that a change takes a task from: the API writes one object more for each.
fn loser(change: &Change) -> Option<String> {
    let Change::PutStatus { object, .. } = change else { return None };
    let task = task::of(object).filter(|task| !task.is_wanted())?;
    Some(format!("{}/{}", object.cluster(), task.spec.service))
}

#[cfg(test)]
mod tests {
    use super::*;
    use steady_core::{Key, Kind};

    fn group(count: usize) -> Vec<Change> {
        let key = Key::new(Kind::Task, "default", "x");
        vec![Change::Check { key, expect: Revision(1) }; count]
    }

    #[test]
    fn a_group_is_never_split_and_small_ones_go_together() {
        let sizes = |groups: &[usize]| -> Vec<usize> {
            pack(groups.iter().map(|n| group(*n)).collect()).iter().map(Vec::len).collect()
        };
        assert_eq!(sizes(&[1; 250]), [100, 100, 50]);
        assert_eq!(sizes(&[41, 41, 41]), [82, 41]);
        assert_eq!(sizes(&[0, 0]), Vec::<usize>::new());
    }
}
