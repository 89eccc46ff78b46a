//! The names of all services, and what they are answered with. Pure.

use std::collections::BTreeMap;
use std::net::IpAddr;

use hickory_server::proto::rr::rdata::{A, AAAA, SOA, SRV};
use hickory_server::proto::rr::{LowerName, Name, RData, Record, RecordType};
use steady_core::View;
use steady_core::discovery::{Instance, instances};

/// Most tasks of an answer (AWS Cloud Map).
const MOST: usize = 8;

/// What is answered for one name.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Entry {
    addresses: Vec<IpAddr>,
    /// Ports, and the names of those who have them.
    ports: Vec<(u16, Name)>,
}

/// Everything that is answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Zone {
    domain: Name,
    origin: LowerName,
    ttl: u32,
    names: BTreeMap<LowerName, Entry>,
}

/// What a question comes to.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Answer {
    /// It is somebody else's.
    NotOurs,
    /// There is no such name.
    Unknown(Box<Record>),
    /// The name is there; with it the records of the kind, at least one, and those that will be asked for next.
    Found(Vec<Record>, Vec<Record>),
    /// The name is there, without a record of the kind.
    Nothing(Box<Record>),
}

impl Zone {
    /// How many names it has.
    pub(crate) fn names(&self) -> usize {
        self.names.len()
    }

    /// Without any name yet.
    pub(crate) fn new(domain: &str, ttl: u32) -> Result<Self, String> {
        let domain = Name::from_ascii(format!("{}.", domain.trim_matches('.'))).map_err(|error| error.to_string())?;
        let origin = LowerName::new(&domain);
        Ok(Zone { domain, origin, ttl, names: BTreeMap::new() })
    }

    /// The names that a view has.
    pub(crate) fn with(&self, view: &View) -> Self {
        let mut names = BTreeMap::new();
        for ((cluster, service), found) in instances(view) {
            let Ok(name) = Name::from_ascii(format!("{service}.{cluster}.{}", self.domain)) else { continue };
            // Where nobody is healthy, whoever runs may be of some use (AWS Cloud Map).
            let any = found.iter().any(|instance| instance.is_healthy);
            let mut entry = Entry::default();
            for Instance { task, address, port, .. } in found.into_iter().filter(|found| found.is_healthy || !any) {
                let Ok(own) = Name::from_ascii(format!("{task}.{name}")) else { continue };
                names.insert(LowerName::new(&own), Entry { addresses: vec![address], ports: Vec::new() });
                if !entry.addresses.contains(&address) {
                    entry.addresses.push(address);
                }
                entry.ports.extend(port.map(|port| (port, own)));
            }
            // What is above a name is there, too.
            let parent = LowerName::new(&name.base_name());
            names.entry(parent).or_default();
            names.insert(LowerName::new(&name), entry);
        }
        names.entry(self.origin.clone()).or_default();
        Zone { names, ..self.clone() }
    }

    fn soa(&self) -> Record {
        let server =
            Name::from_ascii("ns").and_then(|ns| ns.append_domain(&self.domain)).unwrap_or(self.domain.clone());
        let mailbox = Name::from_ascii("hostmaster").and_then(|m| m.append_domain(&self.domain));
        // What is not there may be there in a moment: nobody is to remember it for long.
        let soa = SOA::new(server, mailbox.unwrap_or(self.domain.clone()), 1, 60, 60, 3600, self.ttl.min(5));
        Record::from_rdata(self.domain.clone(), self.ttl.min(5), RData::SOA(soa))
    }

    /// What a question is answered with: of more than eight tasks, some of them, others each time.
    pub(crate) fn answer(&self, asked: &LowerName, kind: RecordType) -> Answer {
        if !self.origin.zone_of(asked) {
            return Answer::NotOurs;
        }
        let Some(entry) = self.names.get(asked) else { return Answer::Unknown(Box::new(self.soa())) };
        let name = Name::from(asked);
        let of_address = |name: &Name, address: &IpAddr| {
            let data = match address {
                IpAddr::V4(address) => RData::A(A(*address)),
                IpAddr::V6(address) => RData::AAAA(AAAA(*address)),
            };
            Record::from_rdata(name.clone(), self.ttl, data)
        };
        let mut beside = Vec::new();
        let records: Vec<Record> = match kind {
            RecordType::A | RecordType::AAAA => {
                let wanted = |address: &&IpAddr| address.is_ipv4() == (kind == RecordType::A);
                some(entry.addresses.iter().filter(wanted)).map(|address| of_address(&name, address)).collect()
            }
            RecordType::SRV => some(entry.ports.iter())
                .map(|(port, target)| {
                    let addresses = self.names.get(&LowerName::new(target)).map_or(&[][..], |entry| &entry.addresses);
                    beside.extend(addresses.iter().map(|address| of_address(target, address)));
                    Record::from_rdata(name.clone(), self.ttl, RData::SRV(SRV::new(1, 1, *port, target.clone())))
                })
                .collect(),
            RecordType::SOA if *asked == self.origin => vec![self.soa()],
            _ => Vec::new(),
        };
        if records.is_empty() { Answer::Nothing(Box::new(self.soa())) } else { Answer::Found(records, beside) }
    }
}

/// At most eight, by chance and in any order: whoever takes the first takes another each time.
fn some<'a, T: 'a>(all: impl Iterator<Item = &'a T>) -> impl Iterator<Item = &'a T> {
    let mut all: Vec<&T> = all.collect();
    fastrand::shuffle(&mut all);
    all.into_iter().take(MOST)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use steady_core::v1::{
        Container, HealthStatus, NetworkBinding, Object, Service, ServiceRegistry, ServiceSpec, Task, TaskSpec,
        TaskStatus, desired_status, health_status, task_last_status,
    };

    fn view(tasks: &[(&str, i32, health_status::Value)]) -> View {
        let registry =
            ServiceRegistry { registry_arn: "Shop".into(), container_name: "web".into(), container_port: 80 };
        let spec = ServiceSpec { service_registries: vec![registry], ..ServiceSpec::default() };
        let mut view = View::default();
        view.put(Arc::new(Object::new("prod", "web", Service { spec: Some(spec), status: None })));
        for (name, port, health) in tasks {
            let binding =
                NetworkBinding { bind_ip: "10.0.0.1".into(), container_port: 80, host_port: *port, protocol: 0 };
            let container = Container { name: "web".into(), network_bindings: vec![binding], ..Container::default() };
            let mut status = TaskStatus { containers: vec![container], ..TaskStatus::default() };
            status.set_health_status(*health);
            status.set_last_status(task_last_status::Value::Running);
            status.set_desired_status(desired_status::Value::Running);
            let spec = TaskSpec { service: "web".into(), ..TaskSpec::default() };
            view.put(Arc::new(Object::new("prod", name, Task { spec: Some(spec), status: Some(status) })));
        }
        let _ = HealthStatus {};
        view
    }

    fn ask(zone: &Zone, name: &str, kind: RecordType) -> Answer {
        zone.answer(&LowerName::new(&Name::from_ascii(name).expect("a name")), kind)
    }

    use health_status::Value::{Healthy, Unhealthy, Unspecified};

    #[test]
    fn a_service_is_its_healthy_tasks() {
        let zone = Zone::new("steady.internal", 5).expect("a zone");
        let zone = zone.with(&view(&[("a", 1001, Unspecified), ("b", 1002, Healthy), ("c", 1003, Unhealthy)]));
        let Answer::Found(records, beside) = ask(&zone, "SHOP.prod.steady.internal.", RecordType::SRV) else {
            panic!("nothing")
        };
        let mut ports: Vec<u16> = records
            .iter()
            .filter_map(|record| match &record.data {
                RData::SRV(srv) => Some(srv.port),
                _ => None,
            })
            .collect();
        ports.sort_unstable();
        assert_eq!((ports, beside.len()), (vec![1001, 1002], 2));
        let Answer::Found(records, _) = ask(&zone, "shop.prod.steady.internal.", RecordType::A) else { panic!() };
        assert_eq!(records.len(), 1, "both are at one address");
        assert!(matches!(ask(&zone, "a.shop.prod.steady.internal.", RecordType::A), Answer::Found(..)));
        assert!(matches!(ask(&zone, "shop.prod.steady.internal.", RecordType::AAAA), Answer::Nothing(_)));
        assert!(matches!(ask(&zone, "prod.steady.internal.", RecordType::A), Answer::Nothing(_)));
        assert!(matches!(ask(&zone, "web.prod.steady.internal.", RecordType::A), Answer::Unknown(_)));
        assert_eq!(ask(&zone, "example.com.", RecordType::A), Answer::NotOurs);
    }

    #[test]
    fn where_nobody_is_healthy_everybody_is_answered_and_never_more_than_eight() {
        let zone = Zone::new("steady.internal", 5).expect("a zone");
        let zone = zone.with(&view(&[("a", 1001, Unhealthy), ("b", 1002, Unhealthy)]));
        let Answer::Found(records, _) = ask(&zone, "shop.prod.steady.internal.", RecordType::SRV) else { panic!() };
        assert_eq!(records.len(), 2);
        let names: Vec<String> = (0..20).map(|n| format!("t{n}")).collect();
        let tasks: Vec<(&str, i32, health_status::Value)> =
            names.iter().zip(2000..).map(|(name, port)| (name.as_str(), port, Unspecified)).collect();
        let Answer::Found(records, _) = ask(&zone.with(&view(&tasks)), "shop.prod.steady.internal.", RecordType::SRV)
        else {
            panic!()
        };
        assert_eq!(records.len(), 8);
    }
}
