//! Reads manifests: YAML (and so JSON) text of one or more documents into objects.
//!
//! Each document is decoded straight into its typed message, so an unknown field, a wrong type or a bad
//! enum value is a [`ParseFault`] with its line and the nearest right name. Sizes, nesting and alias
//! expansion are bounded; a key given twice is refused.

use std::fmt;

use serde::Deserialize;
use serde::de::{DeserializeOwned, IgnoredAny};
use serde_saphyr::options::{DuplicateKeyPolicy, MergeKeyPolicy};
use serde_saphyr::{Error as YamlError, Options};

use crate::locate::{Places, places};
use crate::v1::{self, Meta, Object, object};
use crate::{API_VERSION, DEFAULT_CLUSTER, Kind, KindExt};

/// Largest manifest that is read, bytes.
pub const MAX_BYTES: usize = 1024 * 1024;
/// Most documents in one manifest.
pub const MAX_DOCUMENTS: usize = 1000;

/// Why a document could not be read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ParseFault {
    /// As given to [`parse`].
    pub file: String,
    /// From 1; 0 where the fault is of the whole file.
    pub line: usize,
    /// From 1.
    pub column: usize,
    /// What is wrong and what would be right.
    pub message: String,
    /// The line itself.
    pub source: String,
}

impl fmt::Display for ParseFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_fault(f, &self.file, self.line, self.column, &self.source, &self.message)
    }
}

impl std::error::Error for ParseFault {}

fn write_fault(
    f: &mut fmt::Formatter<'_>,
    file: &str,
    line: usize,
    column: usize,
    source: &str,
    message: &str,
) -> fmt::Result {
    if line == 0 {
        return write!(f, "{file}: {message}");
    }
    writeln!(f, "{file}:{line}:{column}: {message}")?;
    let number = line.to_string();
    writeln!(f, "  {number} | {source}")?;
    write!(f, "  {:width$} | {:>column$}", "", "^", width = number.len())
}

/// A document that was read, and where its fields stand.
#[derive(Debug, Clone)]
pub struct Parsed {
    /// The object, its cluster filled in.
    pub object: Object,
    file: String,
    first_line: usize,
    text: String,
    places: Places,
}

impl Parsed {
    /// A fault of the field at `path`, shown with the line it stands on: of the nearest enclosing field
    /// that the document has.
    pub fn fault(&self, path: &str, message: &str) -> ParseFault {
        let mut at = path;
        let place = loop {
            if let Some(place) = self.places.get(at) {
                break Some(*place);
            }
            match at.rfind(['.', '[']) {
                Some(cut) => at = &at[..cut],
                None => break None,
            }
        };
        let (line, column) = place.unwrap_or((1, 1));
        ParseFault {
            file: self.file.clone(),
            line: self.first_line + line - 1,
            column,
            message: format!("{path}: {message}"),
            source: self.text.lines().nth(line - 1).unwrap_or_default().to_owned(),
        }
    }
}

/// What [`parse`] found.
#[derive(Debug, Default)]
pub struct Manifest {
    /// Documents that were read, in order.
    pub documents: Vec<Parsed>,
    /// At most one fault for each document that was not.
    pub faults: Vec<ParseFault>,
}

/// Reads every document of `text`. `file` is how faults name it; `cluster` is where objects go that name none.
pub fn parse(file: &str, text: &[u8], cluster: Option<&str>) -> Manifest {
    let mut manifest = Manifest::default();
    let whole = |message: String| ParseFault { file: file.into(), line: 0, column: 0, message, source: String::new() };
    if text.len() > MAX_BYTES {
        let size = text.len();
        manifest.faults.push(whole(format!(
            "the file has {size} bytes; a manifest may have {MAX_BYTES} at most: split it into several files"
        )));
        return manifest;
    }
    let Ok(text) = std::str::from_utf8(text) else {
        manifest.faults.push(whole("the file is not UTF-8 text; is it a manifest?".into()));
        return manifest;
    };
    let documents = split(text);
    if documents.len() > MAX_DOCUMENTS {
        manifest.faults.push(whole(format!("the file has more than {MAX_DOCUMENTS} documents: split it")));
        return manifest;
    }
    for (first_line, text) in documents {
        match document(text, cluster.unwrap_or(DEFAULT_CLUSTER)) {
            Ok(Some(object)) => manifest.documents.push(Parsed {
                object,
                file: file.to_owned(),
                first_line,
                text: text.to_owned(),
                places: places(text, options()),
            }),
            Ok(None) => {}
            Err(fault) => manifest.faults.push(ParseFault {
                file: file.to_owned(),
                line: first_line + fault.line - 1,
                column: fault.column,
                message: fault.message,
                source: text.lines().nth(fault.line - 1).unwrap_or_default().to_owned(),
            }),
        }
    }
    if manifest.documents.is_empty() && manifest.faults.is_empty() {
        manifest
            .faults
            .push(whole("the file has no document; expected `apiVersion`, `kind`, `metadata`, `spec`".into()));
    }
    manifest
}

/// Documents of a stream with the line each begins on. A `---` at the start of a line always ends a
/// document in YAML, even inside a block scalar.
fn split(text: &str) -> Vec<(usize, &str)> {
    let mut documents = Vec::new();
    let (mut start, mut first_line, mut offset) = (0, 1, 0);
    for (number, line) in text.split_inclusive('\n').enumerate() {
        let bare = line.trim_end();
        if bare == "---" || bare.starts_with("--- ") {
            documents.push((first_line, &text[start..offset]));
            (start, first_line) = (offset + line.len(), number + 2);
        }
        offset += line.len();
    }
    documents.push((first_line, &text[start..]));
    documents.retain(|(_, text)| text.lines().any(|l| !l.trim().is_empty() && !l.trim_start().starts_with('#')));
    documents
}

struct Fault {
    line: usize,
    column: usize,
    message: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct Head {
    api_version: Option<String>,
    kind: Option<String>,
    #[serde(rename = "metadata")]
    _metadata: Option<IgnoredAny>,
    #[serde(rename = "spec")]
    _spec: Option<IgnoredAny>,
    #[serde(rename = "status")]
    _status: Option<IgnoredAny>,
}

#[derive(Deserialize)]
struct Body<S> {
    #[serde(default)]
    metadata: Option<Meta>,
    spec: Option<S>,
}

fn options() -> Options {
    serde_saphyr::options! {
        budget: serde_saphyr::budget! {
            max_depth: 32,
            max_events: 200_000,
            max_nodes: 50_000,
            max_aliases: 100,
            max_anchors: 100,
            max_documents: 1,
        },
        duplicate_keys: DuplicateKeyPolicy::Error,
        merge_keys: MergeKeyPolicy::Merge,
        with_snippet: false,
        strict_booleans: true,
    }
}

fn document(text: &str, cluster: &str) -> Result<Option<Object>, Fault> {
    let head: Head = decode(text)?;
    match head.api_version.as_deref() {
        Some(API_VERSION) => {}
        Some(other) => {
            return Err(at_key(
                text,
                "apiVersion",
                format!("apiVersion `{other}` is unknown; expected `{API_VERSION}`"),
            ));
        }
        None => return Err(at_key(text, "", format!("`apiVersion` is missing; expected `apiVersion: {API_VERSION}`"))),
    }
    let Some(kind) = head.kind else {
        return Err(at_key(text, "", "`kind` is missing; for example `kind: Service`".into()));
    };
    let known = [
        Kind::Cluster,
        Kind::TaskDefinition,
        Kind::Service,
        Kind::Task,
        Kind::ContainerInstance,
        Kind::Alarm,
        Kind::TaskSet,
        Kind::Secret,
        Kind::SecurityGroup,
        Kind::TargetGroup,
        Kind::Listener,
        Kind::ScalableTarget,
        Kind::ScalingPolicy,
        Kind::CapacityProvider,
    ];
    let Some(kind) = known.into_iter().find(|k| k.name() == kind) else {
        let names: Vec<&str> = known.iter().map(|k| k.name()).collect();
        let hint = nearest(&kind, &names).map(|n| format!("; did you mean `{n}`?")).unwrap_or_default();
        let message = format!("kind `{kind}` is unknown{hint} Kinds: {}", names.join(", "));
        return Err(at_key(text, "kind", message.replacen("unknown Kinds", "unknown. Kinds", 1)));
    };
    let (meta, value): (Option<Meta>, object::Kind) = match kind {
        Kind::Cluster => body(text, |spec| v1::Cluster { spec, status: None })?,
        Kind::TaskDefinition => body(text, |spec| v1::TaskDefinition { spec, status: None })?,
        Kind::Service => body(text, |spec| v1::Service { spec, status: None })?,
        Kind::Task => body(text, |spec| v1::Task { spec, status: None })?,
        Kind::TaskSet => body(text, |spec| v1::TaskSet { spec, status: None })?,
        Kind::Alarm => body(text, |spec| v1::Alarm { spec, status: None })?,
        Kind::Secret => body(text, |spec| v1::Secret { spec, status: None })?,
        Kind::SecurityGroup => body(text, |spec| v1::SecurityGroup { spec })?,
        Kind::TargetGroup => body(text, |spec| v1::TargetGroup { spec })?,
        Kind::Listener => body(text, |spec| v1::Listener { spec })?,
        Kind::ScalableTarget => body(text, |spec| v1::ScalableTarget { spec, status: None })?,
        Kind::ScalingPolicy => body(text, |spec| v1::ScalingPolicy { spec, status: None })?,
        Kind::CapacityProvider => body(text, |spec| v1::CapacityProvider { spec, status: None })?,
        _ => body(text, |spec| v1::ContainerInstance { spec, status: None })?,
    };
    let mut meta = meta.unwrap_or_default();
    if meta.cluster.is_empty() && kind.in_cluster() {
        cluster.clone_into(&mut meta.cluster);
    }
    // What the API writes; a document that `steady get -o yaml` printed can be applied as it is.
    let meta = Meta {
        name: meta.name,
        cluster: meta.cluster,
        labels: meta.labels,
        annotations: meta.annotations,
        ..Meta::default()
    };
    Ok(Some(Object { meta: Some(meta), kind: Some(value) }))
}

fn body<S: DeserializeOwned, V: Into<object::Kind>>(
    text: &str,
    make: impl Fn(Option<S>) -> V,
) -> Result<(Option<Meta>, object::Kind), Fault> {
    let body: Body<S> = decode(text)?;
    Ok((body.metadata, make(body.spec).into()))
}

fn decode<T: DeserializeOwned>(text: &str) -> Result<T, Fault> {
    serde_saphyr::from_str_with_options(text, options()).map_err(|e| explain(&e))
}

fn at_key(text: &str, key: &str, message: String) -> Fault {
    let found = places(text, options());
    let first = found.values().copied().min().unwrap_or((1, 1));
    let (line, column) = found.get(key).copied().unwrap_or(first);
    Fault { line, column, message }
}

fn explain(error: &YamlError) -> Fault {
    let at = error.location();
    let (line, column) = at.map_or((1, 1), |at| (at.line().max(1) as usize, at.column().max(1) as usize));
    let message = match error.without_snippet() {
        YamlError::SerdeUnknownField { field, expected, .. } => unknown("field", field, expected),
        YamlError::SerdeUnknownVariant { variant, expected, .. } => unknown("value", variant, expected),
        YamlError::SerdeInvalidType { unexpected, expected, .. } => format!("expected {expected}, found {unexpected}"),
        YamlError::DuplicateMappingKey { key, .. } => {
            format!("`{}` is given twice; keep one", key.as_deref().unwrap_or("this key"))
        }
        YamlError::AliasReplayLimitExceeded { .. }
        | YamlError::AliasExpansionLimitExceeded { .. }
        | YamlError::AliasReplayStackDepthExceeded { .. } => {
            "refused: its aliases expand to more than a manifest may have".to_owned()
        }
        other => plain(&other.to_string()),
    };
    Fault { line, column, message }
}

/// The library's own sentence, without what only its authors understand.
fn plain(message: &str) -> String {
    let first = message.lines().next().unwrap_or_default();
    let first = first.split(" at line ").next().unwrap_or(first);
    if first.starts_with("budget breached") {
        return "refused: it is larger, deeper or has more aliases than a manifest may have".to_owned();
    }
    if first.contains("untagged enum Content") || first.contains("invalid digit") {
        return "expected a whole number".to_owned();
    }
    first.trim_start_matches("error: ").to_owned()
}

fn unknown(what: &str, found: &str, expected: &[&'static str]) -> String {
    // The generated code lists both spellings of a field: camelCase is the one to write. Values have capitals, as in ECS.
    let camel = |name: &str| {
        let mut words = name.split('_');
        let first = words.next().unwrap_or_default().to_owned();
        words
            .fold(first, |all, word| all + &word[..1.min(word.len())].to_ascii_uppercase() + &word[1.min(word.len())..])
    };
    let other = |name: &str| name.contains('_') && expected.contains(&camel(name).as_str());
    let names: Vec<&str> = expected.iter().copied().filter(|n| !other(n) && *n != "VALUE_UNSPECIFIED").collect();
    match nearest(found, &names) {
        Some(name) => format!("unknown {what} `{found}`; did you mean `{name}`?"),
        None if names.is_empty() => format!("unknown {what} `{found}`; nothing can be set here"),
        None => format!("unknown {what} `{found}`; expected one of {}", names.join(", ")),
    }
}

/// The name that was probably meant, if any is near.
pub fn nearest<'a>(found: &str, names: &[&'a str]) -> Option<&'a str> {
    let lower = found.to_lowercase();
    names
        .iter()
        .map(|name| (strsim::damerau_levenshtein(&lower, &name.to_lowercase()), *name))
        .filter(|(distance, name)| *distance <= (name.len().max(found.len()) / 3).max(1))
        .min()
        .map(|(_, name)| name)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fault(text: &str) -> ParseFault {
        let manifest = parse("web.yaml", text.as_bytes(), None);
        manifest.faults.into_iter().next().expect("a fault")
    }

    const HEAD: &str = "apiVersion: steady/v1\nkind: Service\nmetadata:\n  name: web\nspec:\n";

    #[test]
    fn a_wrong_value_of_several_words_is_told_with_the_right_one() {
        let text = format!("{HEAD}  deploymentConfiguration: {{strategy: BLUE_GREN}}\n");
        let fault = &parse("f", text.as_bytes(), None).faults[0];
        assert!(fault.message.contains("did you mean `BLUE_GREEN`?"), "{}", fault.message);
        let text = format!("{HEAD}  deploymentConfiguration: {{strategy: SLOWLY}}\n");
        let fault = &parse("f", text.as_bytes(), None).faults[0];
        assert!(fault.message.contains("expected one of ROLLING, BLUE_GREEN, LINEAR, CANARY"), "{}", fault.message);
    }

    #[test]
    fn a_misspelt_field_is_named_with_its_line_and_the_nearest_right_name() {
        let fault = fault(&format!("# a comment\n---\n{HEAD}  desierdCount: 2\n"));
        assert_eq!((fault.line, fault.column), (8, 3), "{fault}");
        assert_eq!(fault.message, "unknown field `desierdCount`; did you mean `desiredCount`?");
        assert_eq!(fault.source, "  desierdCount: 2");
    }

    #[test]
    fn a_wrong_type_a_bad_enum_value_and_a_key_given_twice_say_what_would_be_right() {
        let wrong = fault(&format!("{HEAD}  desiredCount: two\n"));
        assert_eq!((wrong.line, wrong.message.as_str()), (6, "expected a whole number"));
        let value = fault(&format!("{HEAD}  schedulingStrategy: REPLICAS\n"));
        assert_eq!(value.message, "unknown value `REPLICAS`; did you mean `REPLICA`?");
        let twice = fault(&format!("{HEAD}  desiredCount: 1\n  desiredCount: 2\n"));
        assert!(twice.message.contains("twice"), "{twice}");
        let list = fault(&format!("{HEAD}  placementStrategy: 3\n"));
        assert!(list.message.contains("sequence"), "{list}");
    }

    #[test]
    fn an_unknown_kind_is_answered_with_the_kinds_there_are() {
        let fault = fault("apiVersion: steady/v1\nkind: Servce\n");
        assert!(fault.message.starts_with("kind `Servce` is unknown; did you mean `Service`?"), "{fault}");
        assert_eq!(fault.line, 2);
    }

    #[test]
    fn an_alias_bomb_and_text_that_is_no_yaml_are_refused() {
        let mut bomb = String::from("apiVersion: steady/v1\nkind: Service\nmetadata:\n  a: &a [x,x,x,x,x,x,x,x,x]\n");
        for (new, old) in ["b", "c", "d", "e", "f", "g", "h"].iter().zip(["a", "b", "c", "d", "e", "f", "g"]) {
            let line = format!("  {new}: &{new} [*{old},*{old},*{old},*{old},*{old},*{old},*{old},*{old},*{old}]\n");
            bomb += &line;
        }
        assert!(fault(&bomb).message.contains("refused"), "{}", fault(&bomb));
        assert!(!fault("}{ not yaml").message.is_empty());
        assert!(fault("\u{0}\u{1}").line <= 1);
    }

    #[test]
    fn typed_strings_are_kept_as_written() {
        let text = "apiVersion: steady/v1\nkind: TaskDefinition\nspec:\n  cpu: 256\n  containerDefinitions:\n  - name: no\n    image: 1.10\n";
        let manifest = parse("t", text.as_bytes(), None);
        assert_eq!(manifest.faults, vec![]);
        let spec = manifest.documents[0].object.as_task_definition().and_then(|t| t.spec.clone()).expect("a spec");
        assert_eq!((spec.cpu.as_str(), spec.container_definitions[0].image.as_str()), ("256", "1.10"));
        assert_eq!(spec.container_definitions[0].name, "no");
    }

    #[test]
    fn a_later_fault_still_shows_the_line_of_its_field() {
        let text = format!("---\n{HEAD}  taskDefinition: web\n  desiredCount: -1\n");
        let manifest = parse("web.yaml", text.as_bytes(), None);
        let fault = manifest.documents[0].fault("spec.desiredCount", "must not be negative");
        assert_eq!((fault.line, fault.source.as_str()), (8, "  desiredCount: -1"));
        assert_eq!(manifest.documents[0].fault("spec.deploymentConfiguration.maximumPercent", "x").line, 6);
    }

    #[test]
    fn what_get_prints_can_be_applied_again() {
        let text = format!("{HEAD}  taskDefinition: web:1\n  desiredCount: 0\n");
        let object = parse("a", text.as_bytes(), None).documents.remove(0).object;
        let printed = crate::document::to_yaml(&object).expect("yaml");
        assert_eq!(parse("b", printed.as_bytes(), None).documents[0].object, object);
    }
}
