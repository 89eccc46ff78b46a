//! Executes a plan: groups of changes as commits, each fenced by the one before.

use std::collections::BTreeSet;

use futures::StreamExt;
use steady_core::v1::{self, CommitRequest, Fence, LeaseStatus, SequencerExpect};
use steady_core::{Change, Revision, task};
use tokio::sync::watch;
use tonic::{Code, Status};
use tonic_types::StatusExt;

use crate::Client;
use crate::client::{DEADLINE, within};

/// Most changes of one commit (the API takes 100).
const MAX_CHANGES: usize = 100;

/// Commits of one plan that are under way at once, where their order does not matter.
const BESIDE: usize = 8;

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

impl Failure {
    /// The worse one counts.
    fn rank(&self) -> u8 {
        match self {
            Failure::Stale(_) => 0,
            Failure::Refused(_) => 1,
            Failure::Unknown(_) => 2,
            Failure::Fenced => 3,
        }
    }
}

/// What a commit is guarded by.
pub(crate) struct Guards {
    pub(crate) fence: Fence,
    /// The owner's sequencer and the revision it had in the view.
    pub(crate) sequencer: Option<(String, Revision)>,
}

/// How often something was committed, and how often something else came before.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Tally {
    pub(crate) commits: i64,
    pub(crate) conflicts: i64,
}

impl Tally {
    /// Adds it to what the leader tells of itself.
    pub(crate) fn tell(self, doing: &watch::Sender<LeaseStatus>) {
        if self.commits + self.conflicts > 0 {
            doing.send_modify(|doing| {
                doing.commits += self.commits;
                doing.conflicts += self.conflicts;
            });
        }
    }
}

/// What became of a plan, as far as it was executed.
#[derive(Debug, Default)]
pub(crate) struct Executed {
    /// Revision of the newest commit.
    pub(crate) reached: Option<Revision>,
    pub(crate) tally: Tally,
    /// The worst of what went wrong.
    pub(crate) failure: Option<Failure>,
}

impl Executed {
    fn add(&mut self, outcome: Result<i64, Failure>) {
        match outcome {
            Ok(revision) => {
                self.reached = self.reached.max(Some(Revision(revision)));
                self.tally.commits += 1;
            }
            Err(failure) => {
                self.tally.conflicts += i64::from(matches!(failure, Failure::Stale(_)));
                if self.failure.as_ref().is_none_or(|known| known.rank() < failure.rank()) {
                    self.failure = Some(failure);
                }
            }
        }
    }
}

/// Commits the groups in order, each commit after the one before; nothing more when one fails.
pub(crate) async fn execute(client: &Client, groups: Vec<Vec<Change>>, mut guards: Guards) -> Executed {
    let mut executed = Executed::default();
    for changes in pack(groups) {
        let sequencer = guards.sequencer.as_ref();
        let expect = sequencer.map(|(name, at)| SequencerExpect { name: name.clone(), revision: at.0 });
        let answer = commit(client, changes.into_iter().flatten(), &guards.fence, expect).await;
        if let (Ok(answer), Some((_, at))) = (&answer, &mut guards.sequencer) {
            *at = Revision(answer.sequencer_revision);
        }
        executed.add(answer.map(|answer| answer.revision));
        if executed.failure.is_some() {
            break;
        }
    }
    executed
}

/// Commits groups that have nothing to do with each other, several at a time. Where a commit of several groups meets
/// another's write, each of its groups is tried alone: only what conflicted has to be decided anew.
pub(crate) async fn execute_beside(client: &Client, groups: Vec<Vec<Change>>, fence: &Fence) -> Executed {
    let mut commits = futures::stream::iter(pack(groups).into_iter().map(|groups| async move {
        let all = groups.iter().flatten().cloned();
        let answer = commit(client, all, fence, None).await.map(|answer| answer.revision);
        if !matches!(answer, Err(Failure::Stale(_))) || groups.len() == 1 {
            return vec![answer];
        }
        let mut answers = Vec::new();
        for group in groups {
            answers.push(commit(client, group, fence, None).await.map(|answer| answer.revision));
        }
        answers
    }))
    .buffer_unordered(BESIDE);
    let mut executed = Executed::default();
    while let Some(answers) = commits.next().await {
        for answer in answers {
            executed.add(answer);
        }
        // Of what is under way anything may happen: whoever looks again sees it.
        if matches!(executed.failure, Some(Failure::Fenced | Failure::Unknown(_))) {
            break;
        }
    }
    executed
}

async fn commit(
    client: &Client,
    changes: impl IntoIterator<Item = Change>,
    fence: &Fence,
    sequencer: Option<SequencerExpect>,
) -> Result<v1::CommitResponse, Failure> {
    let changes = changes.into_iter().map(v1::Change::from).collect();
    let request = CommitRequest { changes, fence: Some(fence.clone()), sequencer };
    let mut objects = client.objects();
    within(DEADLINE, objects.commit(request)).await.map(tonic::Response::into_inner).map_err(|status| {
        match status.code() {
            Code::Aborted if says(&status, "LEASE_LOST") => Failure::Fenced,
            Code::ResourceExhausted if says(&status, "OVERLOADED") => Failure::Refused(status),
            Code::Aborted => Failure::Stale(status.message().to_owned()),
            // An instance has less than it had: as good as a conflict.
            Code::FailedPrecondition if names_room(&status) => Failure::Stale(status.message().to_owned()),
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

/// Whether the API says that an instance has no room for a task, or is none for it.
fn names_room(status: &Status) -> bool {
    let info = status.get_details_error_info();
    let names = |reason: &str| reason.starts_with("RESOURCE:") || reason == "ATTRIBUTE";
    info.is_some_and(|info| info.domain == "steady" && names(&info.reason))
}

/// Groups as commits: none is split, and small ones go together.
fn pack(groups: Vec<Vec<Change>>) -> Vec<Vec<Vec<Change>>> {
    let mut commits: Vec<(Vec<Vec<Change>>, usize, BTreeSet<String>)> = Vec::new();
    for group in groups.into_iter().filter(|group| !group.is_empty()) {
        let losers: BTreeSet<String> = group.iter().filter_map(loser).collect();
        let size: usize = group.iter().map(Change::size).sum();
        match commits.last_mut() {
            Some((open, sizes, others)) if *sizes + size + others.union(&losers).count() <= MAX_CHANGES => {
                open.push(group);
                *sizes += size;
                others.extend(losers);
            }
            _ => commits.push((vec![group], size, losers)),
        }
    }
    commits.into_iter().map(|(groups, ..)| groups).collect()
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
    use steady_core::{Bind, Key, Kind};

    fn group(count: usize) -> Vec<Change> {
        let key = Key::new(Kind::Task, "default", "x");
        vec![Change::Check { key, expect: Revision(1) }; count]
    }

    #[test]
    fn a_group_is_never_split_and_small_ones_go_together() {
        let sizes = |groups: &[usize]| -> Vec<usize> {
            pack(groups.iter().map(|n| group(*n)).collect())
                .iter()
                .map(|groups| groups.iter().map(Vec::len).sum())
                .collect()
        };
        assert_eq!(sizes(&[1; 250]), [100, 100, 50]);
        assert_eq!(sizes(&[41, 41, 41]), [82, 41]);
        assert_eq!(sizes(&[0, 0]), Vec::<usize>::new());
    }

    #[test]
    fn what_a_commit_binds_fits_one_transaction() {
        let bind = |number: usize| {
            let instance = Key::new(Kind::ContainerInstance, "default", &format!("node-{number}"));
            let tasks = vec![(format!("task-{number}").into(), Revision(1))];
            vec![Change::Bind(Bind { instance, reservation: Some(Revision(1)), scheduler: "steady".into(), tasks })]
        };
        // Of each: its task, the instance and its Reservation are compared; etcd takes 128 comparisons, the fence is one.
        let commits = pack((0..200).map(bind).collect());
        assert!(
            commits.iter().all(|groups| groups.len() * 3 < 128),
            "{:?}",
            commits.iter().map(Vec::len).collect::<Vec<_>>()
        );
    }
}
