//! A container instance: what it has, what is free, what it runs.

use steady_core::{Kind, condition};
use steady_proto::v1::Object;
use steady_proto::v1::instance_state::Value as State;

use super::Page;
use crate::columns::{self, Usage};
use crate::span;
use crate::world::World;

/// How many of another resource are left.
fn usage_of(object: &Object, world: &World, name: &str) -> i64 {
    columns::free(object, world).named.get(name).copied().unwrap_or(0)
}

pub(super) fn describe(page: &mut Page, object: &Object, world: &World) {
    let spec = object.as_container_instance().and_then(|i| i.spec.clone()).unwrap_or_default();
    let status = object.as_container_instance().and_then(|i| i.status.clone()).unwrap_or_default();
    let state = if spec.status() == State::Unspecified { State::Active } else { spec.status() };
    page.state("Status", if status.lost { "LOST" } else { state.as_str_name() });
    let connected = match (&status.connected_at, &status.disconnected_at) {
        (Some(at), _) if status.agent_connected => format!("yes, for {}", span::age(Some(at), page.now)),
        (_, Some(at)) => format!("no, for {}", span::age(Some(at), page.now)),
        _ => if status.agent_connected { "yes" } else { "no" }.to_owned(),
    };
    page.field("Agent connected", &connected);
    page.field("Agent version", &spec.agent_version);
    page.field("Runtime", &spec.runtime);
    page.field("Address", &spec.address);
    let usage = Usage::of(object, world);
    page.field("CPU", &format!("{} of {} units free", usage.free_cpu, usage.cpu));
    page.field("Memory", &format!("{} of {} MiB free", usage.free_memory, usage.memory));
    page.field("Provider", &spec.capacity_provider);
    let registered = spec.registered_resources.unwrap_or_default();
    for (name, count) in &registered.named {
        let left = usage_of(object, world, name);
        page.field(name, &format!("{left} of {count} free"));
    }
    let reserved = registered.reserved_ports;
    let ports: Vec<String> = reserved
        .iter()
        .map(
            |range| {
                if range.from == range.to { range.from.to_string() } else { format!("{}-{}", range.from, range.to) }
            },
        )
        .collect();
    page.field("Reserved ports", &ports.join(", "));
    if condition::waiting(&status.conditions).is_some() {
        page.waiting(object);
    }
    if !spec.attributes.is_empty() {
        page.section("Attributes");
        for attribute in &spec.attributes {
            page.line(&format!("{}={}", attribute.name, attribute.value));
        }
    }
    let tasks = world.view.on_instance(object.cluster(), object.name());
    page.table("Tasks", Kind::Task, tasks, world);
    page.conditions(object);
}
