//! `steady.v1`: the messages and services of Steady's API, and how they read and write as manifests.
//!
//! The types are generated from `steady/v1/*.proto`. Beside them this crate owns what every other one
//! needs to treat objects alike: the table of [kinds](KindExt), accessors of [`v1::Object`], the
//! [document](document) form that people read and write, and the [manifest](manifest) reader.

pub mod document;
pub mod fields;
mod kind;
mod locate;
pub mod manifest;
mod object;

pub use kind::{Kind, KindExt};

/// Generated from `steady/v1/*.proto`.
#[allow(missing_docs, clippy::all, clippy::pedantic, unreachable_pub, non_camel_case_types)]
pub mod v1 {
    tonic::include_proto!("steady.v1");
    include!(concat!(env!("OUT_DIR"), "/steady.v1.serde.rs"));

    /// Pieces of a command's input, or of its output, that may be under way without having been acknowledged.
    pub const EXEC_WINDOW: usize = 64;

    /// Serialized `FileDescriptorSet` of the package, for reflection.
    pub const FILE_DESCRIPTOR_SET: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/steady.bin"));
}

/// What a manifest writes as `apiVersion`.
pub const API_VERSION: &str = "steady/v1";
/// Cluster that is meant when none is named (as in ECS).
pub const DEFAULT_CLUSTER: &str = "default";
