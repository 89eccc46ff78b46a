//! Checks of a container instance, as its agent registers it.

use steady_proto::v1::ContainerInstanceSpec;

use super::common::{Faults, name};

pub(super) fn check(spec: &ContainerInstanceSpec, faults: &mut Faults) {
    let resources = spec.registered_resources.clone().unwrap_or_default();
    let at = |field: &str| format!("spec.registeredResources.{field}");
    let most = i64::from(i32::MAX);
    faults.range(&at("cpu"), resources.cpu.into(), 0, most, "CPU units");
    faults.range(&at("memory"), resources.memory.into(), 0, most, "MiB");
    for (resource, count) in &resources.named {
        name(faults, &at("named"), resource);
        faults.range(&at(&format!("named.{resource}")), (*count).into(), 0, 1_000_000, "");
    }
    for (i, range) in resources.reserved_ports.iter().enumerate() {
        if range.from < 0 || range.to > 65_535 || range.from > range.to {
            let message = format!("{}-{} is no range of ports; expected 0 to 65535", range.from, range.to);
            faults.add(&at(&format!("reservedPorts[{i}]")), message);
        }
    }
    if !spec.capacity_provider.is_empty() {
        name(faults, "spec.capacityProvider", &spec.capacity_provider);
    }
    for (i, attribute) in spec.attributes.iter().enumerate() {
        // ECS allows letters, digits and `-_./\\`.
        let known = |b: u8| b.is_ascii_alphanumeric() || b"-_./\\".contains(&b);
        let good = (1..=128).contains(&attribute.name.len()) && attribute.name.bytes().all(known);
        if !good || attribute.value.len() > 128 {
            let message = format!(
                "`{}={}` is no attribute; expected a name of 1-128 letters, digits and `-_./\\`, and a value of at most 128 \
                 characters",
                attribute.name, attribute.value
            );
            faults.add(&format!("spec.attributes[{i}]"), message);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use steady_proto::v1::{Attribute, HostPortRange, InstanceResources};

    #[test]
    fn what_an_agent_registers_makes_sense_or_is_refused() {
        let resources = InstanceResources {
            cpu: -1,
            named: [("GPU".into(), -2)].into(),
            reserved_ports: vec![HostPortRange { from: 30, to: 20 }],
            ..InstanceResources::default()
        };
        let spec = ContainerInstanceSpec {
            registered_resources: Some(resources),
            attributes: vec![Attribute { name: "a b".into(), value: String::new() }],
            capacity_provider: "spot pool".into(),
            ..ContainerInstanceSpec::default()
        };
        let mut faults = Faults::default();
        check(&spec, &mut faults);
        let paths: Vec<&str> = faults.found.iter().map(|fault| fault.path.as_str()).collect();
        assert_eq!(
            paths,
            [
                "spec.registeredResources.cpu",
                "spec.registeredResources.named.GPU",
                "spec.registeredResources.reservedPorts[0]",
                "spec.capacityProvider",
                "spec.attributes[0]"
            ]
        );
    }
}
