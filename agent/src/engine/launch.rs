//! Launching a container: remembered first, its host ports chosen, then done.

use std::sync::Arc;

use steady_core::resources;
use steady_core::v1::{KeyValuePair, network_mode, transport_protocol};

use super::model::Phase;
use super::{Engine, effects, firewall, id};
use crate::runtime::{PAUSE, Port, RuntimeError};

impl Engine {
    pub(super) fn launch(&mut self, name: &str, container: &str) {
        let Some(entry) = self.tasks.get_mut(name) else { return };
        let Some(wanted) = entry.state.container(container).map(|state| &state.definition) else { return };
        let known = entry.record.gpus.get(container).cloned();
        let Some(gpus) = known.or_else(|| self.gpus.give(name, wanted)) else {
            // Whose they are is told already that it has stopped: it is about to be over.
            tracing::debug!(task = name, container, "waiting for a GPU of this instance");
            return;
        };
        entry.record.launched.insert(container.to_owned());
        if !gpus.is_empty() {
            entry.record.gpus.insert(container.to_owned(), gpus.clone());
        }
        if let Err(error) = self.records.save(&entry.record) {
            // Without the record it could be launched twice: rather not at all.
            let error = RuntimeError::Create(format!("the agent cannot remember it: {error}"));
            return self.launched(&id(name, container), Err(error));
        }
        let mode = entry.state.definition.network_mode();
        let own = mode == network_mode::Value::Awsvpc;
        let host = own || mode == network_mode::Value::Host;
        let Some(state) = entry.state.container_mut(container) else { return };
        state.phase = Phase::Starting;
        // An agent before may have made the container already, with these.
        let mut ports = state.ports.clone();
        for mapping in state.definition.port_mappings.iter().filter(|_| state.ports.is_empty()) {
            let udp = resources::protocol(mapping.protocol()) == transport_protocol::Value::Udp;
            let (from, to) = resources::container_ports(mapping).unwrap_or_default();
            let (from, count) = (u16::try_from(from).unwrap_or(0), u16::try_from(to - from + 1).unwrap_or(1));
            let fixed = if host { from } else { u16::try_from(mapping.host_port).unwrap_or(0) };
            let chosen = if fixed == 0 {
                self.ports.find(name, count, udp, |port, udp| self.runtime.is_port_free(port, udp))
            } else {
                // Ports of a task's own address are nobody else's.
                if !own {
                    (fixed..fixed.saturating_add(count)).for_each(|port| self.ports.take(port, udp));
                }
                Some(fixed)
            };
            let Some(first) = chosen else {
                for port in &ports {
                    let Port { host, udp, .. } = port;
                    self.ports.release(*host, *udp);
                }
                let error = RuntimeError::Create("no host port is free on this instance".into());
                return self.launched(&id(name, container), Err(error));
            };
            ports.extend((0..count).map(|at| Port { container: from + at, host: first + at, udp }));
        }
        state.ports.clone_from(&ports);
        let Some(entry) = self.tasks.get(name) else { return };
        let Some(state) = entry.state.container(container) else { return };
        let mut spec = effects::spec(&self.place, &entry.state, state, ports);
        spec.gpus = self.gpus.is_any().then_some(gpus);
        // Whoever has the network has its servers of names.
        let resolves = match mode {
            network_mode::Value::Awsvpc => container == PAUSE,
            network_mode::Value::Host | network_mode::Value::None => false,
            _ => container != PAUSE,
        };
        if resolves && spec.definition.dns_servers.is_empty() {
            spec.definition.dns_servers.clone_from(&self.place.dns);
        }
        if let Some(addresses) =
            self.place.metadata.as_ref().filter(|_| mode != network_mode::Value::None && container != PAUSE)
        {
            let has_role = !entry.state.definition.task_role_arn.is_empty();
            for (name, value) in addresses.variables(&spec.id, has_role) {
                if !spec.definition.environment.iter().any(|pair| pair.name == name) {
                    spec.definition.environment.push(KeyValuePair { name, value });
                }
            }
        }
        let (runtime, clock) = (Arc::clone(&self.runtime), Arc::clone(&self.clock));
        let rules = (container == PAUSE).then(|| firewall::rules(&entry.state, &self.groups)).flatten();
        effects::launch(runtime, self.inputs.clone(), spec, entry.state.secrets.clone(), rules, clock);
    }
}
