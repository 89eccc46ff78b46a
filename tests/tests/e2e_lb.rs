//! Real tasks behind real load balancers: rules, protocols, health, and requests that come to their end whatever goes on.
#![allow(clippy::unwrap_used, missing_docs)]

use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use steady_tests::load::Load;
use steady_tests::{Place, Running, eventually, free_port, ids, root, text};

/// A service `web` of tasks of this script, behind the target group `web`.
fn web(count: usize, script: &str, group: &str, more: &str) -> String {
    let script = root().join("tests/src").join(script).display().to_string();
    format!(
        "apiVersion: steady/v1
kind: TargetGroup
metadata: {{name: web}}
spec: {{healthCheckPath: /health, healthCheckIntervalSeconds: 1, healthCheckTimeoutSeconds: 2, healthyThresholdCount: 2, deregistrationDelaySeconds: 20{group}}}
---
apiVersion: steady/v1
kind: TaskDefinition
metadata: {{name: web}}
spec:
  containerDefinitions:
    - {{name: web, image: none, memory: 64, stopTimeout: 2, command: [/usr/bin/python3, {script}], portMappings: [{{containerPort: 8080}}]}}
---
apiVersion: steady/v1
kind: Service
metadata: {{name: web}}
spec:
  taskDefinition: web
  desiredCount: {count}
  loadBalancers: [{{targetGroupArn: web, containerName: web, containerPort: 8080}}]
{more}"
    )
}

fn listener(name: &str, port: u16, more: &str) -> String {
    format!(
        "apiVersion: steady/v1
kind: Listener
metadata: {{name: {name}}}
spec:
  port: {port}
  defaultActions: [{{type: forward, targetGroupArn: web}}]
{more}---
"
    )
}

/// A place where everything runs, with a load balancer beside it when `HAProxy` is to be the data plane.
struct Site {
    place: Place,
    lb: Option<Running>,
    _up: Running,
}

impl Site {
    fn new(haproxy: bool) -> Self {
        let place = Place::new();
        let up = place.up(&UP);
        let lb = haproxy.then(|| self::haproxy(&place));
        Site { place, lb, _up: up }
    }

    fn listener(&self, name: &str, port: u16, more: &str) -> String {
        let of = if self.lb.is_some() { "  loadBalancer: edge\n" } else { "" };
        listener(name, port, &format!("{of}{more}"))
    }
}

/// A load balancer `edge` whose data plane is `HAProxy`.
fn haproxy(place: &Place) -> Running {
    let data = place.path("lb").display().to_string();
    let args = ["lb", "--load-balancer", "edge", "--data-plane", "haproxy", "--drain-timeout", "2"];
    let mut command = place.command(&[&args[..], &["--data-dir", &data]].concat());
    command.env("STEADY_LOG", "info");
    Running::start(command, &place.path(&format!("haproxy-{}.log", free_port())))
}

/// A scenario with each data plane.
macro_rules! with_each_data_plane {
    ($($scenario:ident => $haproxy:ident;)*) => {
        $(
            #[test]
            fn $scenario() {
                scenario::$scenario(&Site::new(false));
            }

            #[test]
            fn $haproxy() {
                scenario::$scenario(&Site::new(true));
            }
        )*
    };
}

fn curl(args: &[&str]) -> String {
    let output = Command::new("curl").args(["-s", "-m", "15"]).args(args).output().unwrap();
    text(&output)
}

/// The status of an answer.
fn status(args: &[&str]) -> String {
    curl(&[&["-o", "/dev/null", "-w", "%{http_code}"], args].concat())
}

/// All that comes within a second.
fn raw(port: u16, request: &str) -> String {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(1))).unwrap();
    stream.write_all(request.as_bytes()).unwrap();
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer);
    String::from_utf8_lossy(&answer).into_owned()
}

const UP: [&str; 2] = ["--runtime", "process"];

with_each_data_plane! {
    requests_go_where_rules_say_and_carry_for_whom_they_are_asked => requests_go_where_rules_say_and_carry_for_whom_they_are_asked_through_haproxy;
    every_condition_of_a_rule_is_looked_at => every_condition_of_a_rule_is_looked_at_through_haproxy;
    requests_end_before_their_task_does => requests_end_before_their_task_does_through_haproxy;
    a_target_that_fails_its_checks_gets_nothing_and_is_replaced => a_target_that_fails_its_checks_gets_nothing_and_is_replaced_through_haproxy;
    every_protocol_passes => every_protocol_passes_through_haproxy;
    grpc_passes_with_its_trailers => grpc_passes_with_its_trailers_through_haproxy;
    clients_come_back_to_their_target => clients_come_back_to_their_target_through_haproxy;
}

mod scenario {
    use super::*;

    pub(super) fn requests_go_where_rules_say_and_carry_for_whom_they_are_asked(site: &Site) {
        let place = &site.place;
        let port = free_port();
        let url = |path: &str| format!("http://127.0.0.1:{port}{path}");
        let rules = "  rules:
    - priority: 5
      conditions: [{field: path-pattern, values: [/teapot]}]
      actions: [{type: fixed-response, fixedResponseConfig: {statusCode: '418', messageBody: short}}]
    - priority: 6
      conditions: [{field: host-header, hostHeaderConfig: {values: ['*.old.example']}}]
      actions: [{type: redirect, redirectConfig: {statusCode: HTTP_301, host: new.example, port: '443', protocol: HTTPS}}]
";
        place.apply("web", &(site.listener("http", port, rules) + &web(2, "backend.py", "", "")));
        place.wait_steady("service/web");
        assert_eq!(status(&[&url("/teapot")]), "418");
        assert_eq!(curl(&[&url("/teapot")]), "short");
        let moved = curl(&["-i", "-H", "Host: a.old.example", &url("/x?y=1")]);
        assert!(moved.to_lowercase().contains("location: https://new.example/x?y=1"), "{moved}");
        let seen = curl(&[
            "-H",
            "X-Forwarded-For: 10.0.0.9",
            "-H",
            "Connection: keep-alive, X-Hop",
            "-H",
            "X-Hop: 1",
            &url("/a?b=c"),
        ]);
        let lower = seen.to_lowercase();
        assert!(seen.starts_with("GET /a?b=c\n") && lower.contains("x-forwarded-proto: http\n"), "{seen}");
        let haproxy = site.lb.is_some();
        if haproxy {
            assert!(lower.contains("x-forwarded-for: 10.0.0.9\n"), "{seen}");
            assert!(lower.contains("x-forwarded-for: 127.0.0.1\n"), "{seen}");
        } else {
            assert!(lower.contains("x-forwarded-for: 10.0.0.9, 127.0.0.1\n") && !lower.contains("x-hop"), "{seen}");
        }
        assert!(
            lower.contains(&format!("x-forwarded-port: {port}\n"))
                && lower.contains(&format!("host: 127.0.0.1:{port}\n")),
            "{seen}"
        );
        let posted = curl(&["-d", &"x".repeat(100_000), &url("/up")]);
        assert!(posted.contains("POST /up") && posted.contains("body 100000"), "{posted}");
        assert_eq!(status(&[&url("/?code=503")]), "503", "what a target says is what a client hears");
        assert!(curl(&["-i", &url("/")]).to_lowercase().contains("x-own: kept"));
        assert_eq!(status(&["-I", &url("/")]), "200");
        assert_eq!(curl(&[&url("/stream?count=5")]), "0\n1\n2\n3\n4\n");
        // Both tasks get some.
        let tasks: BTreeSet<String> = (0..8).map(|_| curl(&[&url("/")]).lines().nth(1).unwrap().to_owned()).collect();
        assert_eq!(tasks.len(), 2, "{tasks:?}");
        // What two readers would understand in two ways is for neither.
        let smuggled = "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\nGET /evil HTTP/1.1\r\n\r\n";
        // Whoever reads on reads what was understood here.
        let seen = raw(port, smuggled);
        assert!(seen.contains("body 0") && !seen.contains("Content-Length: 5") && !seen.contains("evil"), "{seen}");
        assert!(raw(port, "GET / HTTP/1.1\r\n\r\n").starts_with("HTTP/1.1 400"));
        assert!(raw(port, "GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n").starts_with("HTTP/1.1 400"));
        assert!(
            raw(port, "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nxx")
                .starts_with("HTTP/1.1 400")
        );
        assert!(
            raw(port, &format!("GET / HTTP/1.1\r\nHost: a\r\nX: {}\r\n\r\n", "x".repeat(100_000)))
                .starts_with(if haproxy { "HTTP/1.1 400" } else { "HTTP/1.1 431" })
        );
        // What cannot be is told when it is applied.
        let path = place.path("wrong.yaml");
        let refused = |manifest: &str| {
            std::fs::write(&path, manifest).unwrap();
            text(&place.steady(&["apply", "-f", path.to_str().unwrap()]))
        };
        let said = refused(&site.listener("twice", port, ""));
        assert!(said.contains(&format!("{port} is listener/http's already")), "{said}");
        let said =
            refused(&site.listener("lost", free_port(), "").replace("targetGroupArn: web", "targetGroupArn: wep"));
        assert!(said.contains("there is no target group `wep`; did you mean `web`?"), "{said}");
        let said = refused(
            &web(2, "backend.py", "", "")
                .replace("portMappings: [{containerPort: 8080}]", "portMappings: [{containerPort: 8081}]"),
        );
        assert!(said.contains("did not have a container port 8080 defined"), "{said}");
        let said = text(&place.steady(&["delete", "targetgroup/web"]));
        assert!(said.contains("in use by listener/http, service/web"), "{said}");
    }

    pub(super) fn every_condition_of_a_rule_is_looked_at(site: &Site) {
        let port = free_port();
        let rule = |priority: u32, status: u16, conditions: &str| {
            format!(
                "    - priority: {priority}
      conditions: [{conditions}]
      actions: [{{type: fixed-response, fixedResponseConfig: {{statusCode: '{status}'}}}}]
"
            )
        };
        let rules = [
            rule(30, 430, "{field: path-pattern, values: ['/a/*', '/o''clock.html']}"),
            rule(20, 420, "{field: path-pattern, values: ['/a/*']}, {field: host-header, values: ['*.b.c']}"),
            rule(40, 440, "{field: http-header, httpHeaderConfig: {httpHeaderName: X-Kind, values: ['beta*', '(x)?']}}"),
            rule(50, 450, "{field: query-string, queryStringConfig: {values: [{key: v, value: '2?'}, {value: any}]}}"),
            rule(60, 460, "{field: source-ip, sourceIpConfig: {values: [127.0.0.3/32]}}"),
            rule(70, 470, "{field: http-request-method, httpRequestMethodConfig: {values: [PURGE]}}"),
            "    - priority: 80
      conditions: [{field: path-pattern, values: [/moved/*]}]
      actions: [{type: redirect, redirectConfig: {statusCode: HTTP_302, path: '/to/#{path}', query: 'from=#{host}&#{query}'}}]
"
            .to_owned(),
        ];
        let listener = site.listener("http", port, &format!("  rules:\n{}", rules.concat()));
        let listener = listener.replace(
            "{type: forward, targetGroupArn: web}",
            "{type: fixed-response, fixedResponseConfig: {statusCode: '499'}}",
        );
        site.place.apply("rules", &listener);
        let url = |path: &str| format!("http://127.0.0.1:{port}{path}");
        eventually("it listens", Duration::from_secs(20), || (status(&[&url("/")]) == "499").then_some(()));
        for (expected, args) in [
            ("420", &["-H", "Host: x.B.c:80", &url("/a/1")][..]),
            ("430", &["-H", "Host: b.c", &url("/a/1")]),
            ("499", &[&url("/A/1")]),
            ("430", &[&url("/o'clock.html")]),
            ("499", &[&url("/o'clockxhtml")]),
            ("440", &["-H", "X-Kind: Beta1", &url("/b")]),
            ("440", &["-H", "X-Kind: (x)y", &url("/b")]),
            ("499", &["-H", "X-Kind: xy", &url("/b")]),
            ("450", &[&url("/b?u=1&V=22")]),
            ("450", &[&url("/b?u=any")]),
            ("499", &[&url("/b?v=2")]),
            ("460", &["--interface", "127.0.0.3", &url("/")]),
            ("470", &["-X", "PURGE", &url("/")]),
            ("302", &[&url("/moved/x")]),
        ] {
            assert_eq!(status(args), expected, "{args:?}");
        }
        let moved = |path: &str| curl(&["-o", "/dev/null", "-w", "%{redirect_url}", &url(path)]);
        assert_eq!(moved("/moved/x?y=1"), url("/to/moved/x?from=127.0.0.1&y=1"));
        assert_eq!(moved("/moved/x"), url("/to/moved/x?from=127.0.0.1&"));
    }

    pub(super) fn requests_end_before_their_task_does(site: &Site) {
        let place = &site.place;
        let port = free_port();
        place.apply("web", &(site.listener("http", port, "") + &web(1, "backend.py", "", "")));
        place.wait_steady("service/web");
        let old = ids(&place.running());
        let slow = Command::new("curl")
            .args(["-s", "-m", "20", &format!("http://127.0.0.1:{port}/slow?seconds=6")])
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        std::thread::sleep(Duration::from_millis(500));
        let began = Instant::now();
        place.ok(&["rollout", "restart", "service/web"]);
        let id = old.first().unwrap();
        eventually("the old task leaves its load balancers", Duration::from_secs(10), || {
            (place.json(&["get", &format!("task/{id}")])["status"]["lastStatus"] == "DEACTIVATING").then_some(())
        });
        // New requests are the new task's.
        let now = curl(&[&format!("http://127.0.0.1:{port}/")]);
        assert!(!now.contains(id.as_str()), "{now}");
        let answer = String::from_utf8(slow.wait_with_output().unwrap().stdout).unwrap();
        assert_eq!(answer, format!("slowly {id}"));
        place.wait_steady("service/web");
        assert!(began.elapsed() < Duration::from_secs(18), "it does not wait for the whole delay when nothing is left");
    }

    pub(super) fn a_target_that_fails_its_checks_gets_nothing_and_is_replaced(site: &Site) {
        let place = &site.place;
        let port = free_port();
        let sick = place.path("sick");
        std::fs::create_dir(&sick).unwrap();
        let manifest = web(2, "backend.py", "", "").replace("/health,", &format!("'/health?sick={}',", sick.display()));
        place.apply("web", &(site.listener("http", port, "") + &manifest));
        place.wait_steady("service/web");
        let before = ids(&place.running());
        let id = before.first().unwrap();
        std::fs::write(sick.join(id), "").unwrap();
        eventually("another task takes its place", Duration::from_secs(30), || {
            let now = ids(&place.running());
            (now.len() == 2 && !now.contains(id)).then_some(())
        });
        let task = place.json(&["get", &format!("task/{id}")]);
        assert_eq!(task["status"]["stoppedReason"], "Task failed ELB health checks in (target-group web)", "{task:#}");
        for _ in 0..6 {
            assert!(!curl(&[&format!("http://127.0.0.1:{port}/")]).contains(id.as_str()));
        }
    }

    pub(super) fn every_protocol_passes(site: &Site) {
        let place = &site.place;
        let (http, https, tcp) = (free_port(), free_port(), free_port());
        let mut manifest = String::new();
        for (name, host) in [("cert-a", "a.example"), ("cert-b", "b.example")] {
            let (key, cert) = (place.path(&format!("{name}.key")), place.path(&format!("{name}.pem")));
            let made = Command::new("openssl")
                .args([
                    "req",
                    "-x509",
                    "-newkey",
                    "ec",
                    "-pkeyopt",
                    "ec_paramgen_curve:prime256v1",
                    "-nodes",
                    "-days",
                    "2",
                ])
                .args(["-subj", &format!("/CN={host}"), "-addext", &format!("subjectAltName=DNS:{host}")])
                .arg("-keyout")
                .arg(&key)
                .arg("-out")
                .arg(&cert)
                .output()
                .unwrap();
            assert!(made.status.success(), "{}", text(&made));
            let read = |path: &std::path::Path| std::fs::read_to_string(path).unwrap();
            let value = serde_json::json!({ "certificate": read(&cert), "privateKey": read(&key) }).to_string();
            let value = serde_json::to_string(&value).unwrap();
            let head = "apiVersion: steady/v1\nkind: Secret\nmetadata: {name: ";
            manifest.extend([head, name, "}\nspec: {secretString: ", &value, "}\n---\n"]);
        }
        manifest += &site.listener("http", http, "");
        manifest += &site.listener(
            "https",
            https,
            "  protocol: HTTPS\n  certificates: [{certificateArn: cert-a}, {certificateArn: cert-b}]\n",
        );
        manifest += &site.listener("tcp", tcp, "  protocol: TCP\n");
        place.apply("web", &(manifest + &web(2, "backend.py", "", "")));
        place.wait_steady("service/web");
        for host in ["a.example", "b.example"] {
            let resolve = format!("{host}:{https}:127.0.0.1");
            let cert = place.path(&format!("cert-{}.pem", &host[..1])).display().to_string();
            let url = format!("https://{host}:{https}/");
            let url = url.as_str();
            let version = "%{http_version} %{http_code}";
            let both = eventually("the certificate is there", Duration::from_secs(10), || {
                let newer = curl(&["--cacert", &cert, "--resolve", &resolve, "-o", "/dev/null", "-w", version, url]);
                (newer == "2 200").then(|| {
                    curl(&[
                        "--http1.1",
                        "--cacert",
                        &cert,
                        "--resolve",
                        &resolve,
                        "-o",
                        "/dev/null",
                        "-w",
                        version,
                        url,
                    ])
                })
            });
            assert_eq!(both, "1.1 200");
        }
        let seen = curl(&["-k", &format!("https://127.0.0.1:{https}/")]).to_lowercase();
        assert!(seen.contains("x-forwarded-proto: https"), "{seen}");
        let plain2 = curl(&["--http2-prior-knowledge", "-d", "abc", &format!("http://127.0.0.1:{http}/p")]);
        assert!(
            plain2.contains("POST /p") && plain2.contains("body 3") && plain2.to_lowercase().contains("host: 127"),
            "{plain2}"
        );
        assert!(curl(&[&format!("http://127.0.0.1:{tcp}/t")]).starts_with("GET /t\n"));

        // What becomes something else than HTTP goes on as that.
        let mut stream = TcpStream::connect(("127.0.0.1", http)).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        stream
            .write_all(
                b"GET /echo HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
                Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n",
            )
            .unwrap();
        let mut read = |until: &str| {
            let (mut all, mut piece) = (String::new(), [0; 1024]);
            while !all.contains(until) {
                let count = stream.read(&mut piece).unwrap();
                assert!(count > 0, "{all}");
                all += &String::from_utf8_lossy(&piece[..count]);
            }
            all
        };
        assert!(read("\r\n\r\n").starts_with("HTTP/1.1 101"));
        let mut writer = TcpStream::try_clone(&stream).unwrap();
        writer.write_all(b"hello").unwrap();
        let mut answer = [0; 5];
        stream.read_exact(&mut answer).unwrap();
        assert_eq!(&answer, b"HELLO");
    }

    pub(super) fn grpc_passes_with_its_trailers(site: &Site) {
        let place = &site.place;
        let port = free_port();
        let group = ", protocolVersion: GRPC, matcher: {grpcCode: '0'}";
        let manifest = web(2, "grpc_backend.py", group, "").replace("/health,", "/grpc.health.v1.Health/Check,");
        place.apply("web", &(site.listener("http", port, "") + &manifest));
        place.wait_steady("service/web");
        let client = "
import sys, grpc
channel = grpc.insecure_channel('127.0.0.1:' + sys.argv[1])
same = lambda data: data
say = channel.unary_unary('/test.Echo/Say', request_serializer=same, response_deserializer=same)
print(len({say(b'hello ', timeout=5) for _ in range(20)}))
count = channel.unary_stream('/test.Echo/Count', request_serializer=same, response_deserializer=same)
print(len(list(count(bytes([50]), timeout=5))))
try:
    channel.unary_unary('/test.Echo/None', request_serializer=same, response_deserializer=same)(b'', timeout=5)
except grpc.RpcError as error:
    print(error.code().name)
";
        let output = Command::new("/usr/bin/python3").args(["-c", client, &port.to_string()]).output().unwrap();
        assert_eq!(text(&output).lines().collect::<Vec<_>>(), ["2", "50", "UNIMPLEMENTED"], "{}", text(&output));
    }

    pub(super) fn clients_come_back_to_their_target(site: &Site) {
        let place = &site.place;
        let port = free_port();
        place.apply(
            "web",
            &(site.listener("http", port, "") + &web(3, "backend.py", ", stickiness: {enabled: true}", "")),
        );
        place.wait_steady("service/web");
        let jar = place.path("cookies").display().to_string();
        let url = format!("http://127.0.0.1:{port}/");
        let task = || curl(&["-b", &jar, "-c", &jar, &url]).lines().nth(1).unwrap().to_owned();
        let first = task();
        assert!((0..6).all(|_| task() == first));
        assert!(std::fs::read_to_string(&jar).unwrap().contains("STEADYLB"));
        // Until it is gone.
        let id = first.trim_start_matches("task ").to_owned();
        place.ok(&["stop", &format!("task/{id}")]);
        eventually("another target", Duration::from_secs(20), || (task() != first).then_some(()));
    }
}

/// Parts of a control plane and an agent, each a process, and load balancers beside them.
struct Apart {
    place: Place,
    etcd: String,
    _etcd: Running,
    api: Running,
    _controllers: Running,
    _agent: Running,
}

impl Apart {
    fn new() -> Self {
        let place = Place::new();
        let (running, etcd) = place.etcd("http", &[]);
        let api = place.apiserver(&etcd);
        let controllers = Running::start(place.command(&["controller"]), &place.path("controller.log"));
        let data = place.path("agent").display().to_string();
        let agent = place.command(&[
            "agent",
            "--name",
            "m",
            "--runtime",
            "process",
            "--data-dir",
            &data,
            "--address",
            "127.0.0.1",
        ]);
        let agent = Running::start(agent, &place.path("agent.log"));
        Apart { place, etcd, _etcd: running, api, _controllers: controllers, _agent: agent }
    }

    fn lb(&self, name: &str, group: &str) -> Running {
        let data = self.place.path("lb").display().to_string();
        let args =
            ["lb", "--name", name, "--load-balancer", group, "--data-dir", &data, "--listen-address", "127.0.0.1"];
        let mut command = self.place.command(&args);
        command.env("STEADY_LOG", "info");
        Running::start(command, &self.place.path(&format!("lb-{name}.log")))
    }
}

fn answers(port: u16) -> Option<()> {
    (status(&[&format!("http://127.0.0.1:{port}/")]) == "200").then_some(())
}

#[test]
fn a_load_balancer_serves_on_without_a_control_plane_also_after_a_restart() {
    let mut apart = Apart::new();
    let port = free_port();
    let mut lb = apart.lb("one", "default");
    apart.place.apply("web", &(listener("http", port, "") + &web(2, "backend.py", "", "")));
    apart.place.wait_steady("service/web");
    assert_eq!(answers(port), Some(()));
    std::thread::sleep(Duration::from_secs(2));
    apart.api.kill();
    assert_eq!(answers(port), Some(()));
    lb.kill();
    assert_eq!(answers(port), None);
    let _lb = apart.lb("one", "default");
    eventually("the last table is obeyed", Duration::from_secs(10), || answers(port));
    // What changed meanwhile is obeyed as soon as somebody says it.
    apart.api = apart.place.apiserver(&apart.etcd);
    let before = ids(&apart.place.running());
    apart.place.ok(&["rollout", "restart", "service/web", "--wait"]);
    let seen = curl(&[&format!("http://127.0.0.1:{port}/")]);
    assert!(!before.iter().any(|id| seen.contains(id.as_str())), "{seen}");
}

#[test]
fn a_load_balancer_is_restarted_without_a_connection_lost() {
    let apart = Apart::new();
    let port = free_port();
    let mut lb = apart.lb("one", "default");
    apart.place.apply("web", &(listener("http", port, "") + &web(2, "backend.py", "", "")));
    apart.place.wait_steady("service/web");
    // New connections all the time, and some that are kept.
    let url = format!("http://127.0.0.1:{port}/");
    let load = |args: &[&str]| {
        Command::new("wrk").args(["-d", "8s"]).args(args).arg(&url).stdout(Stdio::piped()).spawn().unwrap()
    };
    let fresh = load(&["-t1", "-c4", "-H", "Connection: close"]);
    let kept = load(&["-t1", "-c4"]);
    let slow = ["-s", "-m", "20", &format!("{url}slow?seconds=5")];
    let slow = Command::new("curl").args(slow).stdout(Stdio::piped()).spawn().unwrap();
    for _ in 0..3 {
        std::thread::sleep(Duration::from_secs(1));
        let next = apart.lb("one", "default");
        let ended = std::mem::replace(&mut lb, next);
        std::thread::spawn(move || {
            let mut ended = ended;
            assert_eq!(ended.wait(), Some(0));
        });
    }
    for load in [fresh, kept] {
        let said = String::from_utf8(load.wait_with_output().unwrap().stdout).unwrap();
        assert!(said.contains("requests in"), "{said}");
        assert!(!said.contains("Socket errors") && !said.contains("Non-2xx"), "{said}");
    }
    let answer = String::from_utf8(slow.wait_with_output().unwrap().stdout).unwrap();
    assert!(answer.starts_with("slowly"), "what goes on goes on in the process where it began: {answer}");
}

/// A client that keeps its connection.
struct Quiet(TcpStream);

impl Quiet {
    fn new(port: u16) -> Self {
        Quiet(TcpStream::connect(("127.0.0.1", port)).unwrap())
    }

    /// The beginning of an answer.
    fn ask(&mut self) -> String {
        self.0.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        self.0.write_all(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n").unwrap();
        let mut answer = [0; 4096];
        let count = self.0.read(&mut answer).unwrap_or(0);
        String::from_utf8_lossy(&answer[..count]).into_owned()
    }
}

#[test]
fn haproxy_outlives_steady_and_learns_of_listeners_without_a_request_lost() {
    let site = Site::new(true);
    let place = &site.place;
    let (first, second) = (free_port(), free_port());
    let service = web(2, "backend.py", "", "").replace("memory: 64", "memory: 512");
    place.apply("web", &(site.listener("http", first, "") + &service));
    place.wait_steady("service/web");
    let url = format!("http://127.0.0.1:{first}/");
    let load = Load::start(&url);
    let mut quiet = Quiet::new(first);
    assert!(quiet.ask().starts_with("HTTP/1.1 200"));
    // Another listener needs a reload.
    place.apply("web", &(site.listener("http", first, "") + &site.listener("more", second, "") + &service));
    eventually("the other port answers", Duration::from_secs(10), || answers(second));
    // Who was quiet meanwhile may ask the process before once more, and is answered, whoever is leaving.
    place.ok(&["rollout", "restart", "service/web"]);
    eventually("they leave", Duration::from_secs(10), || {
        let all = place.json(&["get", "tasks"]);
        let leave = all["items"].as_array()?.iter().filter(|task| task["status"]["lastStatus"] == "DEACTIVATING");
        (leave.count() == 2).then_some(())
    });
    std::thread::sleep(Duration::from_secs(1));
    assert!(quiet.ask().starts_with("HTTP/1.1 200"));
    drop(quiet);
    place.wait_steady("service/web");
    // Whoever drives it is gone, and comes back.
    let Site { place, lb, _up: up } = site;
    let masters = place.haproxies();
    lb.unwrap().kill();
    assert_eq!((answers(first), answers(second)), (Some(()), Some(())), "it goes on by itself");
    let lb = haproxy(&place);
    place.ok(&["rollout", "restart", "service/web", "--wait"]);
    // The next one takes it over from one that runs.
    let next = haproxy(&place);
    let mut before = lb;
    assert_eq!(before.wait(), Some(0));
    place.ok(&["rollout", "restart", "service/web", "--wait"]);
    assert!(place.haproxies().contains(&masters[0]), "it is the same");
    let seen = curl(&[&url]);
    let now = ids(&place.running());
    assert!(now.iter().any(|id| seen.contains(id.as_str())), "{seen} {now:?}");
    let requests = load.end("under way");
    assert!(requests > 500, "{requests}");
    // What cannot be had is told, and does not spoil the rest.
    let taken = std::net::TcpListener::bind("0.0.0.0:0").unwrap();
    let port = taken.local_addr().unwrap().port();
    let of = "  loadBalancer: edge\n";
    let all =
        [("http", first), ("more", second), ("taken", port)].map(|(name, port)| listener(name, port, of)).concat();
    place.apply("web", &(all + &service));
    place.ok(&["rollout", "restart", "service/web", "--wait"]);
    assert_eq!((answers(first), answers(second)), (Some(()), Some(())));
    drop(taken);
    eventually("the port is had when it is free", Duration::from_secs(15), || answers(port));
    let mut ended = next;
    ended.signal(rustix::process::Signal::TERM);
    assert_eq!(ended.wait(), Some(0));
    assert_eq!((answers(first), place.haproxies().len()), (None, 0), "it ends with the one that was asked to");
    drop(up);
}

#[test]
fn grpc_clients_choose_targets_themselves_as_xds_tells_them() {
    let place = Place::new();
    let _up = place.up(&UP);
    let (port, xds) = (free_port(), format!("127.0.0.1:{}", free_port()));
    let data = place.path("lb").display().to_string();
    let args = ["lb", "--load-balancer", "edge", "--data-plane", "xds", "--xds-listen", &xds, "--data-dir", &data];
    let _lb = Running::start(place.command(&args), &place.path("xds.log"));
    let group = ", protocolVersion: GRPC, matcher: {grpcCode: '0'}";
    let manifest = web(2, "grpc_backend.py", group, "")
        .replace("/health,", "/grpc.health.v1.Health/Check,")
        .replace("deregistrationDelaySeconds: 20", "deregistrationDelaySeconds: 2");
    let rules = "  loadBalancer: edge
  rules:
    - priority: 5
      conditions: [{field: path-pattern, values: ['/test.Echo/No*']}, {field: http-header, httpHeaderConfig: {httpHeaderName: x-no, values: ['y*']}}]
      actions: [{type: forward, targetGroupArn: empty}]
";
    let empty =
        "---\napiVersion: steady/v1\nkind: TargetGroup\nmetadata: {name: empty}\nspec: {protocolVersion: GRPC}\n";
    place.apply("web", &(listener("http", port, rules) + &manifest + empty));
    place.wait_steady("service/web");
    let client = "
import sys, time, grpc
channel = grpc.insecure_channel('xds:///http')
same = lambda data: data
say = channel.unary_unary('/test.Echo/Say', request_serializer=same, response_deserializer=same)
end, seen = time.time() + 8, {}
while time.time() < end:
    task = say(b'hello ', timeout=5)
    seen[task] = seen.get(task, 0) + 1
print(len(seen), sum(seen.values()))
none = channel.unary_unary('/test.Echo/None', request_serializer=same, response_deserializer=same)
for metadata in ([], [('x-no', 'yes')]):
    try:
        none(b'', timeout=5, metadata=metadata)
    except grpc.RpcError as error:
        print(error.code().name)
";
    let bootstrap = serde_json::json!({
        "xds_servers": [{ "server_uri": xds, "channel_creds": [{ "type": "insecure" }], "server_features": ["xds_v3"] }],
        "node": { "id": "test" },
    });
    let mut command = Command::new("/usr/bin/python3");
    let command = command.args(["-c", client]).env("GRPC_XDS_BOOTSTRAP_CONFIG", bootstrap.to_string());
    let client = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    std::thread::sleep(Duration::from_secs(1));
    // Whoever leaves is not chosen any more, and ends when its time is over: that of clients that do not tell.
    place.ok(&["rollout", "restart", "service/web", "--wait"]);
    let output = client.wait_with_output().unwrap();
    let said = text(&output);
    let lines: Vec<&str> = said.lines().filter(|line| !line.starts_with(['E', 'W', 'I'])).collect();
    let [seen, known, unknown] = lines[..] else { panic!("{said}") };
    let counts: Vec<usize> = seen.split(' ').map(|count| count.parse().unwrap()).collect();
    assert!(counts[0] == 4 && counts[1] > 500, "two before, two after, and none failed: {said}");
    assert_eq!((known, unknown), ("UNIMPLEMENTED", "UNAVAILABLE"), "{said}");
}
