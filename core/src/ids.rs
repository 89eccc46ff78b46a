//! Names, revisions and derived ids.

use std::fmt;

use sha2::{Digest, Sha256};
use smol_str::SmolStr;
use steady_proto::v1::{Object, ObjectRef};
use steady_proto::{Kind, KindExt};

/// Revision of the store: counts its transactions. 0 means «absent» in a comparison.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Revision(pub i64);

/// Fence of a lease: the revision at which it was taken. A commit under an older one is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Epoch(pub i64);

impl fmt::Display for Revision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Names one object for good; its order is the order of the store's keys. Cloning it allocates nothing: views are maps of
/// keys, and share most of their nodes with the views before.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key {
    /// What it is.
    pub kind: Kind,
    /// Empty for kinds that belong to no cluster.
    pub cluster: SmolStr,
    /// Unique in kind and cluster.
    pub name: SmolStr,
}

/// Not a key of the store.
#[derive(Debug, thiserror::Error)]
#[error("`{0}` is not a key of Steady's; expected {prefix}KIND/CLUSTER/NAME", prefix = Key::PREFIX)]
pub struct ParseKeyError(String);

impl Key {
    /// Of the store's epoch: greater with each restoration from a backup.
    pub fn epoch() -> Self {
        Key::new(Kind::Sequencer, "", "epoch")
    }

    /// Of the mark that a restoration has begun and not ended.
    pub fn restoring() -> Self {
        Key::new(Kind::Sequencer, "", "restoring")
    }

    /// Every key of the store begins with it.
    pub const PREFIX: &'static str = "/steady/v1/";
    /// The first of all keys, which is nobody's.
    pub const fn first() -> Self {
        Key { kind: Kind::Unspecified, cluster: SmolStr::new_static(""), name: SmolStr::new_static("") }
    }

    /// Stands for «no cluster» in a key of the store.
    const NO_CLUSTER: &'static str = "_";

    /// Key of an object of a cluster; the cluster is dropped for kinds that have none.
    pub fn new(kind: Kind, cluster: &str, name: &str) -> Self {
        let cluster = if kind.in_cluster() { cluster } else { "" };
        Key { kind, cluster: SmolStr::new(cluster), name: SmolStr::new(name) }
    }

    /// Key of the object itself.
    pub fn of(object: &Object) -> Self {
        Key::new(object.kind(), object.cluster(), object.name())
    }

    /// Key of what a reference names.
    pub fn of_ref(reference: &ObjectRef) -> Self {
        Key::new(reference.kind(), &reference.cluster, &reference.name)
    }

    /// A reference to it, whatever its uid.
    pub fn reference(&self) -> ObjectRef {
        let (cluster, name) = (self.cluster.to_string(), self.name.to_string());
        ObjectRef { kind: self.kind.into(), cluster, name, uid: String::new() }
    }

    /// As the store spells it: `/steady/v1/services/default/web`.
    pub fn to_path(&self) -> String {
        let cluster = if self.cluster.is_empty() { Self::NO_CLUSTER } else { &self.cluster };
        format!("{}{}/{cluster}/{}", Self::PREFIX, self.kind.plural(), self.name)
    }

    /// The opposite of [`Key::to_path`].
    pub fn parse_path(path: &str) -> Result<Self, ParseKeyError> {
        let bad = || ParseKeyError(path.to_owned());
        let mut parts = path.strip_prefix(Self::PREFIX).ok_or_else(bad)?.splitn(3, '/');
        let (Some(kind), Some(cluster), Some(name)) = (parts.next(), parts.next(), parts.next()) else {
            return Err(bad());
        };
        let kind = Kind::USER.iter().chain(&[Kind::Sequencer]).copied().find(|k| k.plural() == kind).ok_or_else(bad)?;
        let cluster = if cluster == Self::NO_CLUSTER { "" } else { cluster };
        Ok(Key { kind, cluster: SmolStr::new(cluster), name: SmolStr::new(name) })
    }
}

impl fmt::Display for Key {
    /// `service/web`, with the cluster when it is not `default`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.reference().fmt(f)
    }
}

/// 32 hex digits that are the same for the same parts: a name that a repeated write cannot double.
pub fn derived_id(parts: &[&str]) -> String {
    let mut hash = Sha256::new();
    for part in parts {
        hash.update((part.len() as u64).to_be_bytes());
        hash.update(part.as_bytes());
    }
    hash.finalize().iter().take(16).fold(String::with_capacity(32), |mut hex, byte| {
        use fmt::Write as _;
        let _ = write!(hex, "{byte:02x}");
        hex
    })
}

/// Name of the lease that is an instance's sign of life.
pub fn instance_lease(cluster: &str, instance: &str) -> String {
    format!("instance.{cluster}.{instance}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_survives_its_path() {
        for key in [
            Key::new(Kind::Service, "prod", "web"),
            Key::new(Kind::TaskDefinition, "ignored", "web:3"),
            Key::new(Kind::Sequencer, "", "service/prod/web"),
        ] {
            assert_eq!(Key::parse_path(&key.to_path()).expect("a key"), key);
        }
        assert!(Key::parse_path("/other/x").is_err());
        assert!(Key::parse_path("/steady/v1/nonsense/a/b").is_err());
    }

    #[test]
    fn derived_ids_depend_on_every_part_and_on_where_parts_end() {
        assert_eq!(derived_id(&["a", "b"]), derived_id(&["a", "b"]));
        assert_ne!(derived_id(&["a", "b"]), derived_id(&["ab", ""]));
        assert_eq!(derived_id(&["a"]).len(), 32);
    }
}
