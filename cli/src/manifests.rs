//! Reading manifests: every document of every file, and every fault of all of them at once.

use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};

use steady_core::validate::{self, Fault};
use steady_core::{Kind, KindExt, defaults};
use steady_proto::manifest::{self, ParseFault, Parsed};
use steady_proto::v1::Object;
use tonic_types::StatusExt;

use crate::failure::Failure;

/// Documents that were read, in the order in which their objects are created.
#[derive(Debug, Default)]
pub struct Documents {
    /// The documents.
    pub parsed: Vec<Parsed>,
    faults: Vec<ParseFault>,
}

/// Fails when there are faults, with all of them.
pub fn refuse(faults: &[ParseFault]) -> Result<(), Failure> {
    if faults.is_empty() { Ok(()) } else { Err(Failure::usage(listed(faults))) }
}

impl Documents {
    /// Reads files, directories (their `*.yaml`, `*.yml`, `*.json`) and `-`, standard input.
    pub fn read(paths: &[PathBuf], cluster: &str) -> Result<Self, Failure> {
        let mut documents = Self::as_written(paths, cluster)?;
        // Stable: within a kind, the order in which a person wrote them.
        documents.parsed.sort_by_key(|parsed| rank(parsed.object.kind()));
        Ok(documents)
    }

    /// Reads them and leaves them in the order in which they were written.
    pub fn as_written(paths: &[PathBuf], cluster: &str) -> Result<Self, Failure> {
        if paths.is_empty() {
            return Err(Failure::usage("say which manifest: -f FILE, -f DIRECTORY or -f - for standard input"));
        }
        let mut documents = Documents::default();
        for path in paths {
            if path.as_os_str() == "-" {
                let mut text = Vec::new();
                std::io::stdin().lock().take(manifest::MAX_BYTES as u64 + 1).read_to_end(&mut text)?;
                documents.add("-", &text, cluster);
                continue;
            }
            for file in files(path)? {
                let text = fs::read(&file).map_err(|error| unreadable(&file, &error))?;
                documents.add(&file.display().to_string(), &text, cluster);
            }
        }
        Ok(documents)
    }

    fn add(&mut self, file: &str, text: &[u8], cluster: &str) {
        let found = manifest::parse(file, text, Some(cluster));
        self.parsed.extend(found.documents);
        self.faults.extend(found.faults);
    }

    /// The objects as they were written.
    pub fn objects(&self) -> Vec<Object> {
        self.parsed.iter().map(|parsed| parsed.object.clone()).collect()
    }

    /// Everything that is wrong with one of them, as far as it can be told without the server.
    pub fn faults_of_each(&self) -> Vec<ParseFault> {
        let mut faults = self.faults.clone();
        for parsed in &self.parsed {
            faults.extend(validate::object(&filled(&parsed.object)).iter().map(|fault| place(parsed, fault)));
        }
        faults
    }

    /// Everything that is wrong, as far as it can be told without the server.
    pub fn faults(&self) -> Vec<ParseFault> {
        let mut faults = self.faults_of_each();
        let filled: Vec<Object> = self.parsed.iter().map(|parsed| filled(&parsed.object)).collect();
        for (index, fault) in validate::duplicates(&filled) {
            faults.extend(self.parsed.get(index).map(|parsed| place(parsed, &fault)));
        }
        faults.sort_by(|a, b| (&a.file, a.line).cmp(&(&b.file, b.line)));
        faults
    }

    /// Fails with every fault there is.
    pub fn check(&self) -> Result<(), Failure> {
        refuse(&self.faults())
    }

    /// The server's refusal, each of its faults with the line of the manifest that it is about.
    pub fn explain(&self, failure: Failure) -> Failure {
        let Some(refused) = failure.status.as_ref().and_then(|status| status.get_details_bad_request()) else {
            return failure;
        };
        let faults: Vec<String> = refused
            .field_violations
            .iter()
            .map(|violation| match located(&violation.field).and_then(|(i, path)| Some((self.parsed.get(i)?, path))) {
                Some((parsed, path)) => parsed.fault(path, &violation.description).to_string(),
                None => format!("{}: {}", violation.field, violation.description),
            })
            .collect();
        if faults.is_empty() { failure } else { Failure::usage(listed(&faults)) }
    }
}

fn filled(object: &Object) -> Object {
    let mut object = object.clone();
    defaults::fill(&mut object);
    object
}

fn place(parsed: &Parsed, fault: &Fault) -> ParseFault {
    parsed.fault(&fault.path, &fault.message)
}

fn listed<T: ToString>(faults: &[T]) -> String {
    let count = faults.len();
    let text: Vec<String> = faults.iter().map(ToString::to_string).collect();
    let plural = if count == 1 { "1 fault" } else { &format!("{count} faults") };
    format!("{plural} in the manifest; nothing was changed\n{}", text.join("\n"))
}

/// Index and path of `objects[2].spec.taskDefinition`.
fn located(field: &str) -> Option<(usize, &str)> {
    let (index, rest) = field.strip_prefix("objects[")?.split_once(']')?;
    Some((index.parse().ok()?, rest.trim_start_matches('.')))
}

/// Place of a kind in the order of creation.
pub fn rank(kind: Kind) -> usize {
    Kind::USER.iter().position(|known| *known == kind).unwrap_or(usize::MAX)
}

/// A file itself; of a directory, its manifests by name.
fn files(path: &Path) -> Result<Vec<PathBuf>, Failure> {
    if !path.is_dir() {
        return Ok(vec![path.to_owned()]);
    }
    let mut found = Vec::new();
    for entry in fs::read_dir(path).map_err(|error| unreadable(path, &error))? {
        let file = entry?.path();
        let extension = file.extension().and_then(|e| e.to_str()).unwrap_or_default();
        if file.is_file() && matches!(extension, "yaml" | "yml" | "json") {
            found.push(file);
        }
    }
    found.sort();
    if found.is_empty() {
        let path = path.display();
        return Err(Failure::usage(format!("{path}: no manifest in this directory (*.yaml, *.yml, *.json)")));
    }
    Ok(found)
}

fn unreadable(path: &Path, error: &std::io::Error) -> Failure {
    Failure::usage(format!("{}: {error}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEAD: &str = "apiVersion: steady/v1\nkind: Service\nmetadata:\n  name: web\nspec:\n";

    fn read(texts: &[(&str, String)]) -> Result<Documents, Failure> {
        let directory = tempfile::tempdir().unwrap();
        for (name, text) in texts {
            fs::write(directory.path().join(name), text).unwrap();
        }
        Documents::read(&[directory.path().to_owned()], "default")
    }

    #[test]
    fn a_directory_gives_its_manifests_and_nothing_else() {
        let good = format!("{HEAD}  taskDefinition: web\n");
        let documents = read(&[("b.yaml", good.clone()), ("notes.txt", "x".into())]).unwrap();
        assert_eq!(documents.objects().len(), 1);
        assert!(documents.check().is_ok(), "{:?}", documents.faults());
        assert!(read(&[("notes.txt", good)]).unwrap_err().message.contains("no manifest"));
    }

    #[test]
    fn faults_of_every_document_are_told_at_once_with_their_lines() {
        let one = format!("{HEAD}  taskDefinition: web\n  desiredCount: -1\n");
        let two = format!("{HEAD}  taskDefinishun: web\n");
        let failure = read(&[("a.yaml", one), ("b.yaml", two)]).unwrap().check().unwrap_err();
        assert_eq!(failure.exit, crate::failure::USAGE);
        assert!(failure.message.contains("a.yaml:7"), "{failure}");
        assert!(failure.message.contains("b.yaml:6"), "{failure}");
        assert!(failure.message.starts_with("2 faults"), "{failure}");
    }

    #[test]
    fn a_servers_refusal_is_shown_at_the_line_it_is_about() {
        use tonic_types::{ErrorDetails, StatusExt};
        let documents = read(&[("a.yaml", format!("{HEAD}  taskDefinition: web\n"))]).unwrap();
        let details = ErrorDetails::with_bad_request_violation("objects[0].spec.taskDefinition", "there is none");
        let status = tonic::Status::with_error_details(tonic::Code::InvalidArgument, "bad", details);
        let failure = documents.explain(Failure::of_status(&status, "http://a:1"));
        assert_eq!(failure.exit, crate::failure::USAGE);
        assert!(failure.message.contains("a.yaml:6:3: spec.taskDefinition: there is none"), "{failure}");
    }

    #[test]
    fn fields_of_a_refusal_name_their_document() {
        assert_eq!(located("objects[2].spec.taskDefinition"), Some((2, "spec.taskDefinition")));
        assert_eq!(located("objects[0]"), Some((0, "")));
        assert_eq!(located("spec"), None);
    }
}
