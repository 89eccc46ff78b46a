//! Small objects, and commits of them, as the benchmarks of writing use them.

use steady_core::Revision;
use steady_core::v1::change::Change as Wire;
use steady_core::v1::{Change, CommitRequest, Object, Reservation, ReservationSpec};
use steady_runtime::Client;

use crate::subject::Subject;

/// Bytes of an object, about; and of the yardstick's values.
pub(crate) const SIZE: usize = 512;
/// Clients share connections, as the yardstick's do.
pub(crate) const CONNECTIONS: usize = 8;

/// Connections to the subject.
pub(crate) fn clients(subject: &Subject) -> anyhow::Result<Vec<Client>> {
    let server = std::slice::from_ref(&subject.address);
    Ok((0..CONNECTIONS).map(|_| Client::new(server)).collect::<Result<_, _>>()?)
}

/// A Reservation in a cluster that is not there: no controller looks at it.
pub(crate) fn object(name: &str, bound: i64) -> Object {
    let spec = ReservationSpec { scheduler: "x".repeat(SIZE - 120), bound };
    Object::new("bench", name, Reservation { spec: Some(spec) })
}

/// Commits changes together. The revision they were committed at.
pub(crate) async fn commit(client: &Client, changes: Vec<Wire>) -> anyhow::Result<Revision> {
    let changes = changes.into_iter().map(|change| Change { change: Some(change) }).collect();
    let answer = client.objects().commit(CommitRequest { changes, ..CommitRequest::default() }).await?;
    Ok(Revision(answer.into_inner().revision))
}
