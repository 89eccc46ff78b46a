//! What controllers run on, once for all of them (after kube-rs' runtime).
//!
//! A [`Reflector`] keeps a view of the watched objects; a [`Controller`] turns keys into plans and does nothing
//! else; [`run`] keeps the queue, waits until the view holds the controller's own writes, executes plans as fenced
//! commits, and comes back when it should.

mod client;
mod controller;
mod execute;
mod leadership;
pub mod metrics;
mod queue;
mod reflector;
mod runner;

pub use client::{Client, ClientError, Wire};
pub use controller::Controller;
pub use leadership::{holder, presence, release};
pub use queue::Queue;
pub use reflector::{News, Reflector};
pub use runner::run;
