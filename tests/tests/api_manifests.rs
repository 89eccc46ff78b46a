//! Manifests against a real API server: the examples, and ten that are wrong.
#![allow(clippy::unwrap_used, missing_docs)]

use std::fmt::Write as _;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use steady_apiserver::seal::Keys;
use steady_apiserver::server::Server;
use steady_apiserver::storage::Memory;
use steady_core::v1::apply_result::Outcome;
use steady_core::v1::{ApplyRequest, ListRequest};
use steady_core::{Kind, SystemClock, manifest};
use steady_runtime::Client;
use steady_tests::{Place, text};

async fn server() -> (Server, Client) {
    let listen: SocketAddr = "127.0.0.1:0".parse().unwrap();
    let keys = tempfile::tempdir().unwrap();
    let keys = Keys::load_or_make(&keys.path().join("secrets.key")).unwrap();
    let store = Arc::new(Memory::new(Arc::new(SystemClock)));
    let server = Server::start(listen, store, Some(keys)).await.unwrap();
    let client = Client::new(&[format!("http://{}", server.address)]).unwrap();
    (server, client)
}

#[tokio::test(flavor = "multi_thread")]
async fn every_example_applies_and_applying_it_again_changes_nothing() {
    let (_server, client) = server().await;
    let mut count = 0;
    for entry in std::fs::read_dir(steady_tests::root().join("examples/manifests")).unwrap() {
        let path = entry.unwrap().path();
        if path.file_name().unwrap().to_string_lossy().starts_with("bad") {
            continue;
        }
        let read = manifest::parse(&path.display().to_string(), &std::fs::read(&path).unwrap(), None);
        assert_eq!(read.faults, vec![]);
        let objects: Vec<_> = read.documents.into_iter().map(|d| d.object).collect();
        for expected in [Outcome::Created, Outcome::Unchanged] {
            let request = ApplyRequest { objects: objects.clone(), dry_run: false };
            let results = client.objects().apply(request).await.unwrap().into_inner().results;
            assert!(results.iter().all(|r| r.outcome() == expected), "{}: {results:#?}", path.display());
        }
        count += 1;
    }
    assert!(count >= 3, "the examples are there");
}

/// Ten wrong manifests, and what has to be said of each.
fn wrong() -> Vec<(&'static str, Vec<u8>, &'static str)> {
    let head = "apiVersion: steady/v1\nkind: Service\nmetadata: {name: web}\nspec:\n  taskDefinition: web\n";
    let service = |spec: &str| format!("{head}{spec}").into_bytes();
    let twice = format!("{head}---\n{head}").into_bytes();
    let cycle =
        b"apiVersion: steady/v1\nkind: TaskDefinition\nmetadata: {name: web}\nspec:\n  containerDefinitions:\n  \
        - {name: a, image: x, memory: 10, dependsOn: [{containerName: b, condition: START}]}\n  \
        - {name: b, image: x, memory: 10, dependsOn: [{containerName: a, condition: START}]}\n"
            .to_vec();
    let mut bomb = String::from("apiVersion: steady/v1\nkind: Service\nmetadata:\n  a: &a [x,x,x,x,x,x,x,x,x]\n");
    for (new, old) in ["b", "c", "d", "e", "f", "g", "h"].iter().zip(["a", "b", "c", "d", "e", "f", "g"]) {
        let _ = writeln!(bomb, "  {new}: &{new} [*{old},*{old},*{old},*{old},*{old},*{old},*{old},*{old},*{old}]");
    }
    vec![
        ("typo", service("  desierdCount: 2\n"), "did you mean `desiredCount`?"),
        ("wrong type", service("  desiredCount: two\n"), "expected a whole number"),
        ("negative count", service("  desiredCount: -1\n"), "spec.desiredCount: -1 is out of range"),
        ("unknown kind", b"apiVersion: steady/v1\nkind: Servce\n".to_vec(), "did you mean `Service`?"),
        ("duplicate names", twice, "is given twice"),
        (
            "min 100 and max 100",
            service("  deploymentConfiguration: {minimumHealthyPercent: 100, maximumPercent: 100}\n"),
            "no deployment could ever progress",
        ),
        ("cyclic dependsOn", cycle, "a -> b -> a"),
        ("2 MiB", service(&format!("# {}\n", "x".repeat(2 * 1024 * 1024))), "split it"),
        ("alias bomb", bomb.into_bytes(), "refused"),
        ("not YAML", b"}{ : not yaml\n".to_vec(), "not.yaml"),
    ]
}

#[tokio::test(flavor = "multi_thread")]
async fn wrong_manifests_are_refused_with_a_clear_error_and_nothing_is_written() {
    let (server, client) = server().await;
    let mut place = Place::new();
    place.address = server.address.to_string();
    let revision = client.revision().await.unwrap();
    for (what, bytes, expected) in wrong() {
        let file = place.path("not.yaml");
        std::fs::write(&file, bytes).unwrap();
        let output = tokio::task::block_in_place(|| place.steady(&["apply", "-f", file.to_str().unwrap()]));
        let said = text(&output);
        assert_eq!(output.status.code(), Some(2), "{what}: {said}");
        assert!(said.contains(expected), "{what}: {said}");
    }
    assert_eq!(client.revision().await.unwrap(), revision, "nothing was written");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_bad_example_shows_every_fault_with_its_line() {
    let (server, _client) = server().await;
    let mut place = Place::new();
    place.address = server.address.to_string();
    let output = tokio::task::block_in_place(|| place.steady(&["apply", "-f", "examples/manifests/bad.yaml"]));
    let said = text(&output);
    assert_eq!(output.status.code(), Some(2), "{said}");
    assert!(said.matches("bad.yaml:").count() >= 4, "{said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_service_of_an_unknown_definition_is_refused_by_the_server_with_the_nearest_name() {
    let (_server, client) = server().await;
    let text = "apiVersion: steady/v1\nkind: TaskDefinition\nmetadata: {name: hello}\nspec:\n  containerDefinitions:\n  \
        - {name: a, image: x, memory: 10}\n";
    let apply = |text: &str| {
        let objects = manifest::parse("t", text.as_bytes(), None).documents.into_iter().map(|d| d.object).collect();
        ApplyRequest { objects, dry_run: false }
    };
    client.objects().apply(apply(text)).await.unwrap();
    let wrong = "apiVersion: steady/v1\nkind: Service\nmetadata: {name: w}\nspec: {taskDefinition: helo}\n";
    let status = client.objects().apply(apply(wrong)).await.unwrap_err();
    assert_eq!(status.code(), tonic::Code::InvalidArgument);
    assert!(
        status.message().contains("spec.taskDefinition: there is no task definition `helo`; did you mean `hello`?")
    );
    let list = ListRequest { kind: Kind::Service.into(), ..ListRequest::default() };
    assert_eq!(client.objects().list(list).await.unwrap().into_inner().items, vec![]);
    tokio::time::sleep(Duration::ZERO).await;
}
