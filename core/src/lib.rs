//! Steady's nouns: what is decided on, and how it is named, measured and checked.
//!
//! Everything here is a plain value or a pure function. Messages that only pass through stay the
//! generated types of [`v1`]; this crate adds the types that decisions need.

pub mod alarm;
pub mod capacity;
pub mod condition;
pub mod defaults;
pub mod discovery;
pub mod guard;
pub mod hash;
mod ids;
pub mod metric;
pub mod placement;
mod plan;
pub mod query;
pub mod resources;
pub mod scaling;
pub mod schedule;
pub mod secrets;
pub mod security;
pub mod service;
pub mod task;
mod time;
pub mod traffic;
pub mod validate;
mod view;

pub use ids::{Epoch, Key, ParseKeyError, Revision, derived_id, instance_lease};
pub use plan::{Bind, Change, Event, Plan, Waiting, bind_size};
pub use smol_str::SmolStr;
pub use steady_proto::{API_VERSION, DEFAULT_CLUSTER, Kind, KindExt, document, manifest, v1};
pub use time::{Clock, SystemClock, Timestamp};
pub use view::{Placement, View, bound};
