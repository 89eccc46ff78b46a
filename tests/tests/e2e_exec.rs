//! `steady exec`: commands in containers, talked to through the API server.
#![allow(clippy::unwrap_used, missing_docs)]

use std::io::{Read as _, Write as _};
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use steady_tests::docker::Engine;
use steady_tests::{Place, Running, eventually, steady_binary, text};

const MANIFEST: &str = "
apiVersion: steady/v1
kind: TaskDefinition
metadata: {name: box}
spec:
  containerDefinitions:
    - {name: side, image: 'box:1', memory: 16, essential: false, command: ['true']}
    - {name: main, image: 'box:1', memory: 16, stopTimeout: 1, command: [sleep, '1000'], environment: [{name: WHO, value: me}]}
---
apiVersion: steady/v1
kind: Service
metadata: {name: box}
spec: {taskDefinition: box, desiredCount: 1}
";

fn started(place: &Place, args: &[&str]) -> Running {
    let up = place.up(args);
    place.apply("box", MANIFEST);
    place.wait_steady("service/box");
    up
}

/// Runs a command with some input.
fn feed(mut command: Command, input: &[u8]) -> Output {
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let (mut stdin, input) = (child.stdin.take().unwrap(), input.to_vec());
    let feeding = std::thread::spawn(move || stdin.write_all(&input));
    let output = child.wait_with_output().unwrap();
    let _ = feeding.join().unwrap();
    output
}

fn story(place: &Place) {
    // Both outputs, the exit code, and the container's own environment.
    let output = place.steady(&["exec", "service/box", "--", "sh", "-c", "echo $WHO; echo oops >&2; exit 7"]);
    assert_eq!((output.stdout.as_slice(), output.status.code()), (&b"me\n"[..], Some(7)), "{}", text(&output));
    assert!(String::from_utf8_lossy(&output.stderr).contains("oops\n"));

    // More than may be under way at once, there and back; and standard input that nobody reads holds up nothing.
    let much: Vec<u8> = (0..6_000_000_u32).map(|i| (i % 251) as u8).collect();
    let output = feed(place.command(&["exec", "-i", "service/box", "--", "cat"]), &much);
    assert!(output.status.success() && output.stdout == much, "{} bytes", output.stdout.len());
    let output = feed(place.command(&["exec", "-i", "service/box", "--", "true"]), &much);
    assert_eq!(output.status.code(), Some(0), "{}", text(&output));

    // With a terminal: `script` has one for us.
    let line = format!("{} exec service/box", steady_binary().display());
    let mut script = Command::new("script");
    script.args(["-qec", &line, "/dev/null"]).env("STEADY_SERVER", &place.address);
    script.env("XDG_CONFIG_HOME", place.path("config"));
    let output = feed(script, b"test -t 0 && echo termi''nal $WHO\nexit 5\n");
    assert!(text(&output).contains("terminal me"), "{}", text(&output));
    assert_eq!(output.status.code(), Some(5));

    // And what it all takes.
    let top = place.ok(&["top", "service/box", "--once"]);
    let row = top.lines().nth(1).unwrap_or_default();
    assert!(top.starts_with("TASK") && row.contains("main") && row.contains('%') && row.contains("iB"), "{top}");

    // What cannot be run says why.
    for (args, expected) in [
        (&["exec", "service/box", "--container", "mian", "--", "true"][..], "containers: side, main"),
        (&["exec", "service/box", "--container", "side", "--", "true"], "does not run: it is STOPPED"),
        (&["exec", "-t", "service/box", "--", "true"], "-t needs a terminal"),
        (&["exec", "service/none", "--", "true"], "there is no service/none"),
    ] {
        let refused = feed(place.command(args), b"");
        assert!(!refused.status.success() && text(&refused).contains(expected), "{}", text(&refused));
    }

    // Whoever hangs up ends the command.
    let mut command = place.command(&["exec", "service/box", "--", "sh", "-c", "echo runs; sleep 71.25"]);
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
    let mut runs = [0; 5];
    child.stdout.take().unwrap().read_exact(&mut runs).unwrap();
    let there = || {
        let look = "if cat /proc/[0-9]*/cmdline | tr '\\0' ' ' | grep -q 'sleep 71.2[5]'; then echo there; \
                    else echo gone; fi";
        let said = place.ok(&["exec", "service/box", "--", "sh", "-c", look]);
        assert!(said == "there\n" || said == "gone\n", "{said}");
        said == "there\n"
    };
    assert!(there());
    child.kill().unwrap();
    child.wait().unwrap();
    eventually("the command is gone", Duration::from_secs(20), || (!there()).then_some(()));
}

#[test]
fn commands_run_in_plain_processes() {
    let place = Place::new();
    let _up = started(&place, &["--runtime", "process"]);
    story(&place);
}

#[test]
fn commands_run_in_containers_of_docker() {
    let place = Place::new();
    let engine = Engine::start(&place);
    engine.busybox("box:1");
    let _up = started(&place, &["--runtime", "docker", "--docker-socket", &engine.socket]);
    story(&place);
}
