//! Executes a plan: groups of changes as commits, each fenced by the one before.

use std::time::Duration;

use steady_core::v1::{self, CommitRequest, Fence, SequencerExpect, change::Change as Wire};
use steady_core::{Change, Revision};
use tonic::{Code, Status};

use crate::Client;

/// Most changes of one commit (the API takes 100).
const MAX_CHANGES: usize = 100;
/// After this long without an answer the outcome is unknown.
const DEADLINE: Duration = Duration::from_secs(5);

/// Why a plan was not executed, or not to its end.
#[derive(Debug)]
pub(crate) enum Failure {
    /// Something changed since the view that was planned on: look again.
    Stale(String),
    /// No answer: the commit may have happened. Look at a view that is newer than now before doing anything.
    Unknown(Status),
    /// The API refuses it as it is: a defect of the plan.
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
            changes: changes.into_iter().map(wire).collect(),
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
    match tokio::time::timeout(DEADLINE, objects.commit(request)).await {
        Ok(Ok(answer)) => Ok(answer.into_inner()),
        Ok(Err(status)) => Err(match status.code() {
            Code::Aborted => Failure::Stale(status.message().to_owned()),
            Code::InvalidArgument | Code::FailedPrecondition | Code::AlreadyExists | Code::NotFound => {
                Failure::Refused(status)
            }
            _ => Failure::Unknown(status),
        }),
        Err(_) => Err(Failure::Unknown(Status::deadline_exceeded("no answer to the commit"))),
    }
}

/// Groups as commits: none is split, and small ones go together.
fn pack(groups: Vec<Vec<Change>>) -> Vec<Vec<Change>> {
    let mut commits: Vec<Vec<Change>> = Vec::new();
    for group in groups.into_iter().filter(|group| !group.is_empty()) {
        match commits.last_mut() {
            Some(last) if last.len() + group.len() <= MAX_CHANGES => last.extend(group),
            _ => commits.push(group),
        }
    }
    commits
}

fn wire(change: Change) -> v1::Change {
    let expect = |revision: Revision| Some(v1::Expect { revision: revision.0 });
    let change = match change {
        Change::Create(object) => Wire::Create(object),
        Change::PutSpec { object, fields, expect: at } => Wire::PutSpec(v1::PutSpec {
            object: Some(object),
            fields: fields.iter().map(|field| (*field).to_owned()).collect(),
            expect: expect(at),
        }),
        Change::PutStatus { object, expect: at } => {
            Wire::PutStatus(v1::PutStatus { object: Some(object), expect: expect(at) })
        }
        Change::Remove { key, expect: at } => {
            Wire::Remove(v1::Remove { r#ref: Some(key.reference()), expect: expect(at) })
        }
        Change::Check { key, expect: at } => {
            Wire::Check(v1::Check { r#ref: Some(key.reference()), expect: expect(at) })
        }
    };
    v1::Change { change: Some(change) }
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
