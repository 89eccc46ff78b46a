//! Where in a YAML document a field stands, so that a fault found later still names its line.

use std::collections::HashMap;
use std::fmt;

use serde::de::{Deserialize, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_saphyr::Spanned;

/// A node's shape and the places of what is inside it; never its values.
enum Node {
    Map(Vec<(Spanned<String>, Spanned<Node>)>),
    List(Vec<Spanned<Node>>),
    Leaf,
}

struct Shape;

impl<'de> Visitor<'de> for Shape {
    type Value = Node;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("anything")
    }
    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Node, A::Error> {
        let mut entries = Vec::new();
        while let Some(entry) = map.next_entry()? {
            entries.push(entry);
        }
        Ok(Node::Map(entries))
    }
    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Node, A::Error> {
        let mut items = Vec::new();
        while let Some(item) = list.next_element()? {
            items.push(item);
        }
        Ok(Node::List(items))
    }
    fn visit_bool<E>(self, _: bool) -> Result<Node, E> {
        Ok(Node::Leaf)
    }
    fn visit_i64<E>(self, _: i64) -> Result<Node, E> {
        Ok(Node::Leaf)
    }
    fn visit_u64<E>(self, _: u64) -> Result<Node, E> {
        Ok(Node::Leaf)
    }
    fn visit_i128<E>(self, _: i128) -> Result<Node, E> {
        Ok(Node::Leaf)
    }
    fn visit_f64<E>(self, _: f64) -> Result<Node, E> {
        Ok(Node::Leaf)
    }
    fn visit_str<E>(self, _: &str) -> Result<Node, E> {
        Ok(Node::Leaf)
    }
    fn visit_unit<E>(self) -> Result<Node, E> {
        Ok(Node::Leaf)
    }
    fn visit_none<E>(self) -> Result<Node, E> {
        Ok(Node::Leaf)
    }
    fn visit_some<D: Deserializer<'de>>(self, d: D) -> Result<Node, D::Error> {
        IgnoredAny::deserialize(d).map(|_| Node::Leaf)
    }
}

impl<'de> Deserialize<'de> for Node {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(Shape)
    }
}

/// Line and column, from 1, of each path of a document (`spec.containerDefinitions[0].name`).
pub(crate) type Places = HashMap<String, (usize, usize)>;

/// Places of every path of `text`; empty when it is not YAML.
pub(crate) fn places(text: &str, options: serde_saphyr::Options) -> Places {
    let mut places = Places::new();
    if let Ok(root) = serde_saphyr::from_str_with_options::<Spanned<Node>>(text, options) {
        visit(&root.value, "", &mut places);
    }
    places
}

fn visit(node: &Node, path: &str, places: &mut Places) {
    match node {
        Node::Map(entries) => {
            for (key, value) in entries {
                let inner = if path.is_empty() { key.value.clone() } else { format!("{path}.{}", key.value) };
                let at = key.referenced;
                places.insert(inner.clone(), (at.line() as usize, at.column() as usize));
                visit(&value.value, &inner, places);
            }
        }
        Node::List(items) => {
            for (i, item) in items.iter().enumerate() {
                let inner = format!("{path}[{i}]");
                let at = item.referenced;
                places.insert(inner.clone(), (at.line() as usize, at.column() as usize));
                visit(&item.value, &inner, places);
            }
        }
        Node::Leaf => {}
    }
}
