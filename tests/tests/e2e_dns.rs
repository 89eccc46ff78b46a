//! Services found by their names: real tasks, asked for over UDP and TCP, from this machine and from containers.
#![allow(clippy::unwrap_used, missing_docs)]

use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::net::{TcpStream, UdpSocket};
use std::time::Duration;

use hickory_server::proto::op::{Message, MessageType, OpCode, Query, ResponseCode};
use hickory_server::proto::rr::{Name, RData, RecordType};
use steady_tests::docker::Engine;
use steady_tests::{Place, Running, eventually, free_port, text};

const SHOP: &str = "
apiVersion: steady/v1
kind: TaskDefinition
metadata: {name: shop}
spec:
  containerDefinitions:
    - {name: web, image: 'steady:self', memory: 64, stopTimeout: 1, command: [steady, hello], portMappings: [{containerPort: 8080}]}
---
apiVersion: steady/v1
kind: Service
metadata: {name: shop}
spec:
  taskDefinition: shop
  desiredCount: 2
  serviceRegistries: [{registryArn: store, containerName: web, containerPort: 8080}]
";

fn question(name: &str, kind: RecordType) -> Vec<u8> {
    let mut message = Message::new(7, MessageType::Query, OpCode::Query);
    message.metadata.recursion_desired = true;
    message.add_query(Query::query(Name::from_ascii(name).unwrap(), kind));
    message.to_vec().unwrap()
}

/// The answer to a question, over UDP.
fn ask(port: u16, name: &str, kind: RecordType) -> Option<Message> {
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(3))).unwrap();
    socket.send_to(&question(name, kind), ("127.0.0.1", port)).ok()?;
    let mut answer = [0; 4096];
    let count = socket.recv(&mut answer).ok()?;
    Some(Message::from_vec(&answer[..count]).unwrap())
}

fn ask_by_stream(port: u16, name: &str, kind: RecordType) -> Message {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
    let question = question(name, kind);
    stream.write_all(&u16::try_from(question.len()).unwrap().to_be_bytes()).unwrap();
    stream.write_all(&question).unwrap();
    let mut length = [0; 2];
    stream.read_exact(&mut length).unwrap();
    let mut answer = vec![0; u16::from_be_bytes(length).into()];
    stream.read_exact(&mut answer).unwrap();
    Message::from_vec(&answer).unwrap()
}

fn ports(message: &Message) -> BTreeSet<u16> {
    let port = |data: &RData| match data {
        RData::SRV(srv) => Some(srv.port),
        _ => None,
    };
    message.answers.iter().filter_map(|record| port(&record.data)).collect()
}

fn server(place: &Place, listen: &str, more: &[&str]) -> Running {
    let args = [&["dns", "--listen", listen], more].concat();
    Running::start(place.command(&args), &place.path(&format!("dns-{}.log", listen.replace(':', "-"))))
}

#[test]
fn services_are_found_by_their_names() {
    let place = Place::new();
    let mut up = place.up(&["--runtime", "process"]);
    let (port, other) = (free_port(), free_port());
    let _dns = server(&place, &format!("127.0.0.1:{port}"), &[]);
    let forward = format!("127.0.0.1:{port}");
    let _other =
        server(&place, &format!("127.0.0.1:{other}"), &["--domain", "elsewhere.internal", "--forward", &forward]);
    place.apply("shop", SHOP);
    place.wait_steady("service/shop");
    let name = "store.default.steady.internal.";
    let running = || -> BTreeSet<u16> {
        let bound = |task: &serde_json::Value| {
            let port = &task["status"]["containers"][0]["networkBindings"][0]["hostPort"];
            port.as_u64().and_then(|port| u16::try_from(port).ok()).unwrap()
        };
        place.running().iter().map(bound).collect()
    };
    let found = eventually("both are found", Duration::from_secs(10), || {
        ask(port, name, RecordType::SRV).filter(|answer| answer.answers.len() == 2)
    });
    assert_eq!(ports(&found), running());
    assert!(found.metadata.authoritative && found.additionals.len() == 2, "{found:?}");
    assert!(found.answers.iter().all(|record| record.ttl == 5));
    let own = ask(port, "STORE.default.Steady.internal.", RecordType::A).unwrap();
    assert_eq!(own.answers.iter().map(|record| record.data.to_string()).collect::<Vec<_>>(), ["127.0.0.1"]);
    assert_eq!(ports(&ask_by_stream(port, name, RecordType::SRV)), running());
    let code = |port, name: &str| ask(port, name, RecordType::A).unwrap().metadata.response_code;
    assert_eq!(code(port, "shop.default.steady.internal."), ResponseCode::NXDomain);
    assert_eq!(code(port, "example.com."), ResponseCode::Refused);
    assert_eq!(code(port, "default.steady.internal."), ResponseCode::NoError);
    // One that is asked for others' names asks on.
    let asked_on = ask(other, name, RecordType::SRV).unwrap();
    assert_eq!(ports(&asked_on), running());

    // Who comes and who goes.
    place.ok(&["scale", "service/shop", "3", "--wait"]);
    eventually("the third is found", Duration::from_secs(10), || {
        let found = ports(&ask(port, name, RecordType::SRV)?);
        (found.len() == 3 && found == running()).then_some(())
    });
    place.ok(&["scale", "service/shop", "0", "--wait"]);
    eventually("nobody is found", Duration::from_secs(10), || {
        let answer = ask(port, name, RecordType::SRV)?;
        (answer.answers.is_empty() && answer.metadata.response_code == ResponseCode::NoError).then_some(())
    });
    // Without the API, what was known last.
    place.ok(&["scale", "service/shop", "1", "--wait"]);
    eventually("one is found", Duration::from_secs(10), || {
        (ask(port, name, RecordType::SRV)?.answers.len() == 1).then_some(())
    });
    up.kill();
    assert_eq!(ask(port, name, RecordType::SRV).unwrap().answers.len(), 1);
    let refused = place.path("wrong.yaml");
    let _up = place.up(&["--runtime", "process"]);
    std::fs::write(&refused, SHOP.replace("registryArn: store", "registryArn: my_store")).unwrap();
    let said = text(&place.steady(&["apply", "-f", refused.to_str().unwrap()]));
    assert!(said.contains("serviceRegistries[0].registryArn: `my_store` is no name in DNS"), "{said}");
}

#[test]
fn containers_on_docker_ask_for_names_of_services() {
    let place = Place::new();
    let engine = Engine::start(&place);
    engine.busybox("box:1");
    let (etcd, url) = place.etcd("http", &[]);
    let _parts =
        (etcd, place.apiserver(&url), Running::start(place.command(&["controller"]), &place.path("controller.log")));
    // The address of the machine on the engine's bridge: no other process asks there.
    let gateway = engine.docker(&["network", "inspect", "bridge", "-f", "{{(index .IPAM.Config 0).Gateway}}"]);
    let gateway = gateway.trim();
    let _dns = server(&place, &format!("{gateway}:53"), &[]);
    let data = place.path("agent").display().to_string();
    let args = ["agent", "--name", "m", "--runtime", "docker", "--docker-socket", &engine.socket, "--data-dir", &data];
    let more = ["--address", gateway, "--dns", gateway, "--metadata-address", "none", "--without-live-restore"];
    let _agent = Running::start(place.command(&[&args[..], &more].concat()), &place.path("agent.log"));
    place.apply("shop", SHOP);
    place.wait_steady("service/shop");
    let client = "apiVersion: steady/v1
kind: TaskDefinition
metadata: {name: client}
spec:
  containerDefinitions: [{name: client, image: 'box:1', memory: 16, stopTimeout: 1, command: [sleep, '1000']}]
---
apiVersion: steady/v1
kind: Service
metadata: {name: client}
spec: {taskDefinition: client}
";
    place.apply("client", client);
    place.wait_steady("service/client");
    let answer = eventually("a container finds the service", Duration::from_secs(20), || {
        let asked = place.steady(&[
            "exec",
            "service/client",
            "--",
            "/bin/busybox",
            "nslookup",
            "store.default.steady.internal",
        ]);
        Some(text(&asked)).filter(|said| asked.status.success() && said.contains(gateway))
    });
    assert!(answer.contains("store.default.steady.internal"), "{answer}");
}
