//! Steady's decisions. Each is a pure function of one view and the time: no clock, no chance, no log, no effect.
//!
//! One module for each controller; its `plan` is called with a key and answers with a [`Plan`](steady_core::Plan).

pub mod autoscaler;
pub mod capacity;
mod daemon;
pub mod deployment;
pub mod instance;
pub mod reaper;
pub mod registrar;
pub mod scheduler;
pub mod service;
mod site;

#[cfg(test)]
mod builders;
