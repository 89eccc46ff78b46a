//! The store's own tools on real processes: backup and restore, export and import, growing etcd, a full store.
#![allow(clippy::unwrap_used, missing_docs)]

use std::process::Command;
use std::time::Duration;

use rustix::process::Signal;
use steady_tests::chaos::load::{Load, nothing_is_lost};
use steady_tests::{Place, Running, eventually, free_port, ids, is_alive, pids, text};

fn answers(place: &Place) {
    eventually("the API answers", Duration::from_secs(60), || std::net::TcpStream::connect(&place.address).ok());
}

fn apiserver(place: &Place, data: &str) -> Running {
    let data = place.path(data).display().to_string();
    let args = ["apiserver", "--data-dir", &data, "--listen", &place.address];
    let api = Running::start(place.command(&args), &place.path("api.log"));
    answers(place);
    api
}

fn hello(place: &Place) -> String {
    let manifest = steady_tests::root().join("examples/manifests/hello.yaml").display().to_string();
    place.ok(&["apply", "-f", &manifest]);
    place.wait_steady("service/hello");
    manifest
}

#[test]
fn a_backup_is_restored_under_controllers_and_agents_that_stay_and_no_task_is_stopped() {
    let place = Place::new();
    let mut api = apiserver(&place, "first");
    let mut controller = Running::start(place.command(&["controller"]), &place.path("controller.log"));
    let data = place.path("agent").display().to_string();
    let agent = ["agent", "--name", "n", "--data-dir", &data, "--runtime", "process"];
    let mut agent = Running::start(place.command(&agent), &place.path("agent.log"));
    hello(&place);
    let before = place.running();
    let file = place.path("one.backup").display().to_string();
    println!("{}", place.ok(&["store", "backup", &file]));
    let again = place.steady(&["store", "backup", &file]);
    assert_eq!(again.status.code(), Some(2), "a backup is never written over: {}", text(&again));
    place.ok(&["scale", "service/hello", "4"]);
    place.wait_steady("service/hello");
    // The store is gone, and everything that it knew since the backup.
    api.signal(Signal::TERM);
    api.wait();
    let second = place.path("second").display().to_string();
    println!("{}", place.ok(&["store", "restore", &file, "--data-dir", &second]));
    let twice = place.steady(&["store", "restore", &file, "--data-dir", &second]);
    assert!(text(&twice).contains("not empty"), "{}", text(&twice));
    let _api = apiserver(&place, "second");
    eventually("the controllers lead in the new epoch", Duration::from_secs(60), || {
        place.ok(&["get", "controllers"]).contains("service").then_some(())
    });
    eventually("what the backup wanted is there", Duration::from_secs(90), || {
        let running = place.running();
        (running.len() == 2 && pids(&running).iter().all(|pid| is_alive(*pid))).then_some(())
    });
    let after = place.running();
    assert_eq!((ids(&before), pids(&before)), (ids(&after), pids(&after)), "the same tasks, never restarted");
    let status = place.ok(&["admin", "status"]);
    assert!(status.contains("epoch ") && !status.contains("epoch 0"), "{status}");
    place.ok(&["scale", "service/hello", "3"]);
    place.wait_steady("service/hello");
    eventually("nothing is left over", Duration::from_secs(30), || {
        place.steady(&["store", "check"]).status.success().then_some(())
    });
    for process in [&mut controller, &mut agent] {
        assert!(is_alive(i32::try_from(process.pid()).unwrap()), "it was not restarted");
    }
}

#[test]
fn an_export_is_imported_elsewhere_and_gives_the_same() {
    let first = Place::new();
    let _up = first.up(&["--runtime", "hollow"]);
    let manifest = hello(&first);
    let exported = first.ok(&["store", "export"]);
    let file = first.path("export.yaml").display().to_string();
    std::fs::write(&file, &exported).unwrap();
    let second = Place::new();
    let _other = second.up(&["--runtime", "hollow"]);
    println!("{}", second.ok(&["store", "import", &file]));
    second.wait_steady("service/hello");
    assert_eq!(second.ok(&["store", "export"]), exported);
    let diff = second.steady(&["diff", "-f", &manifest]);
    assert!(diff.status.success(), "{}", text(&diff));
    let broken = second.path("broken.backup").display().to_string();
    std::fs::write(&broken, "this is no backup").unwrap();
    let empty = second.path("empty").display().to_string();
    let refused = second.steady(&["store", "restore", &broken, "--data-dir", &empty]);
    assert!(refused.status.code() == Some(2) && text(&refused).contains("no whole backup"), "{}", text(&refused));
}

fn member(place: &Place, name: &str, join: Option<&str>) -> (Running, String) {
    let (client, peer) = (format!("http://127.0.0.1:{}", free_port()), format!("http://127.0.0.1:{}", free_port()));
    let data = place.path(name).display().to_string();
    let mut args = vec!["etcd", "--name", name, "--data-dir", &data, "--client-url", &client, "--peer-url", &peer];
    args.extend(join.iter().flat_map(|url| ["join", *url]));
    (Running::start(place.command(&args), &place.path(&format!("{name}.log"))), client)
}

#[test]
fn etcd_grows_from_one_member_to_three_and_back_under_load() {
    let place = Place::new();
    let (mut a, first) = member(&place, "a", None);
    let _api = place.apiserver(&first);
    let servers = [place.address.clone()];
    let load = Load::start(&servers, 4);
    load.is_high(50);
    let votes = |count: usize| {
        eventually(&format!("{count} members vote"), Duration::from_secs(60), || {
            let listed = place.steady(&["etcd", "members", &first]);
            (String::from_utf8_lossy(&listed.stdout).matches("\tvotes\t").count() == count).then_some(())
        });
    };
    let (_b, second) = member(&place, "b", Some(&first));
    votes(2);
    let (_c, _) = member(&place, "c", Some(&first));
    votes(3);
    load.is_high(50);
    eventually("the API server knows all three", Duration::from_secs(60), || {
        (place.ok(&["admin", "status"]).matches("3.7").count() == 3).then_some(())
    });
    // The first one goes for good: the API server was told of it alone, and has found the others.
    place.ok(&["etcd", "leave", "a", &second]);
    eventually("its process ends", Duration::from_secs(30), || {
        (!is_alive(i32::try_from(a.pid()).unwrap())).then_some(())
    });
    a.kill();
    load.is_high(50);
    let gone = place.steady(&["etcd", "leave", "z", &second]);
    assert!(text(&gone).contains("members: ") && gone.status.code() == Some(2), "{}", text(&gone));
    place.ok(&["etcd", "leave", "c", &second]);
    load.is_high(50);
    nothing_is_lost(&servers, &load.stop());
}

#[test]
fn a_full_store_says_so_takes_deletions_and_has_room_again_after_make_room() {
    let place = Place::new();
    let (_etcd, url) = place.etcd("http", &["--quota-backend-bytes", "8388608"]);
    let args = ["up", "--etcd", &url, "--listen", &place.address, "--runtime", "hollow", "--data-dir"];
    let data = place.path("data").display().to_string();
    let _up = Running::start(place.command(&[&args[..], &[&data]].concat()), &place.path("up.log"));
    answers(&place);
    hello(&place);
    // One object, written again and again: what fills the store is its past.
    let big = place.path("big.yaml").display().to_string();
    let full = eventually("the store is full", Duration::from_secs(120), || {
        for round in 0..20 {
            let filler = "x".repeat(200_000);
            let manifest = format!(
                "apiVersion: steady/v1\nkind: Cluster\nmetadata: {{name: big, annotations: {{filler: \"{filler}{}\"}}}}\nspec: {{}}\n",
                std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_nanos() + round
            );
            std::fs::write(&big, manifest).unwrap();
            let applied = place.steady(&["apply", "-f", &big]);
            if !applied.status.success() {
                return Some(text(&applied));
            }
        }
        None
    });
    assert!(full.contains("full") && full.contains("make-room"), "{full}");
    let status = place.steady(&["admin", "status"]);
    assert!(status.status.code() == Some(1) && text(&status).contains("NOSPACE"), "{}", text(&status));
    println!("{}", place.ok(&["admin", "make-room"]));
    place.ok(&["admin", "status"]);
    eventually("controllers lead again", Duration::from_secs(60), || {
        place.ok(&["get", "controllers"]).contains("scheduler").then_some(())
    });
    place.ok(&["scale", "service/hello", "3"]);
    place.wait_steady("service/hello");
}

/// A key and a certificate that an authority signed, by `openssl`.
fn certificates(place: &Place) {
    let extensions = place.path("extensions");
    std::fs::write(&extensions, "subjectAltName=IP:127.0.0.1\n").unwrap();
    let file = |name: &str| place.path(name).display().to_string();
    let openssl = |args: &[&str]| {
        let output = Command::new("openssl").args(args).output().unwrap();
        assert!(output.status.success(), "openssl {args:?}: {}", text(&output));
    };
    let ec = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"];
    let new = |key: &str, name: &str| vec!["-keyout".to_owned(), file(key), "-subj".to_owned(), format!("/CN={name}")];
    let all = |more: &[&[&str]], new: &[String]| -> Vec<String> {
        more.concat().into_iter().map(str::to_owned).chain(new.iter().cloned()).collect()
    };
    let run = |words: Vec<String>| openssl(&words.iter().map(String::as_str).collect::<Vec<_>>());
    let authority = file("ca.pem");
    run(all(&[&["req", "-x509", "-days", "2", "-out", &authority], &ec], &new("ca.key", "authority")));
    for name in ["etcd", "steady"] {
        let (request, certificate) = (file(&format!("{name}.csr")), file(&format!("{name}.pem")));
        run(all(&[&["req", "-out", &request], &ec], &new(&format!("{name}.key"), name)));
        let (key, extensions) = (file("ca.key"), extensions.display().to_string());
        let sign = ["x509", "-req", "-days", "2", "-in", &request, "-CA", &authority, "-CAkey", &key];
        openssl(&[&sign[..], &["-CAcreateserial", "-out", &certificate, "-extfile", &extensions]].concat());
    }
}

#[test]
fn etcd_is_reached_over_tls_with_a_certificate_and_not_without() {
    let place = Place::new();
    certificates(&place);
    let file = |name: &str| place.path(name).display().to_string();
    let (authority, certificate, key) = (file("ca.pem"), file("etcd.pem"), file("etcd.key"));
    let tls = ["--client-cert-auth", "--trusted-ca-file", &authority, "--cert-file", &certificate, "--key-file", &key];
    let (_etcd, url) = place.etcd("https", &tls);
    let (certificate, key) = (file("steady.pem"), file("steady.key"));
    let data = file("data");
    let up = ["up", "--listen", &place.address, "--runtime", "hollow", "--data-dir", &data, "--etcd", &url];
    let nobody = place.steady(&up);
    assert!(nobody.status.code() == Some(2) && text(&nobody).contains("--etcd-cacert"), "{}", text(&nobody));
    let stranger = place.steady(&[&up[..], &["--etcd-cacert", &authority]].concat());
    assert!(stranger.status.code() == Some(1) && text(&stranger).contains("does not answer"), "{}", text(&stranger));
    let known = ["--etcd-cacert", &authority, "--etcd-cert", &certificate, "--etcd-key", &key];
    let _up = Running::start(place.command(&[&up[..], &known].concat()), &place.path("up.log"));
    answers(&place);
    hello(&place);
    assert!(place.ok(&["admin", "status"]).contains(&url));
}
