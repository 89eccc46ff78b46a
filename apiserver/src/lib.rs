//! Steady's API server: the only writer of etcd.
//!
//! A request is decoded, checked against the [`registry`]'s rules, and becomes one transaction of the
//! [`storage`]; what comes back through the store's watch into the [`cache`] is what every reader sees.
//! The server keeps nothing of its own: run as many as you like.

pub mod backup;
pub mod bundled;
pub mod cache;
pub mod figures;
mod lanes;
mod meter;
pub mod registry;
pub mod seal;
pub mod server;
mod service;
pub mod storage;
mod upkeep;
