//! Setting named fields of a message on its wire form.
//!
//! A commit may write some fields of a spec and leave the others (`PutSpec.fields`). On the wire form
//! this needs no knowledge of the message but its field numbers, which the descriptors give.

use std::collections::HashMap;
use std::sync::LazyLock;

use prost::Message;
use prost_types::FileDescriptorSet;

use crate::{Kind, KindExt, v1};

/// Field numbers of every message: message name to (field's JSON name to number).
static NUMBERS: LazyLock<HashMap<String, HashMap<String, u32>>> = LazyLock::new(|| {
    let Ok(set) = FileDescriptorSet::decode(v1::FILE_DESCRIPTOR_SET) else { return HashMap::new() };
    set.file
        .into_iter()
        .filter(|file| file.package() == "steady.v1")
        .flat_map(|file| file.message_type)
        .map(|message| {
            let fields =
                message.field.iter().map(|f| (f.json_name().to_owned(), f.number() as u32)).collect::<HashMap<_, _>>();
            (message.name().to_owned(), fields)
        })
        .collect()
});

/// Number of a field of a kind's spec, by its JSON name.
pub fn spec_field(kind: Kind, json_name: &str) -> Option<u32> {
    NUMBERS.get(&format!("{}Spec", kind.name()))?.get(json_name).copied()
}

/// JSON names of the fields of a kind's spec, sorted.
pub fn spec_fields(kind: Kind) -> Vec<&'static str> {
    let mut names: Vec<&'static str> = NUMBERS
        .get(&format!("{}Spec", kind.name()))
        .map(|fields| fields.keys().map(String::as_str).collect())
        .unwrap_or_default();
    names.sort_unstable();
    names
}

/// `old` with the top-level fields `numbers` as they are in `new`: set, changed, or gone.
/// `None` when either is not a wire form.
pub fn splice(old: &[u8], new: &[u8], numbers: &[u32]) -> Option<Vec<u8>> {
    let mut out = Vec::with_capacity(old.len() + new.len());
    for (number, bytes) in records(old)? {
        if !numbers.contains(&number) {
            out.extend_from_slice(bytes);
        }
    }
    for (number, bytes) in records(new)? {
        if numbers.contains(&number) {
            out.extend_from_slice(bytes);
        }
    }
    Some(out)
}

/// Top-level fields of a message, each with its tag.
fn records(mut bytes: &[u8]) -> Option<Vec<(u32, &[u8])>> {
    let mut found = Vec::new();
    while !bytes.is_empty() {
        let start = bytes;
        let tag = prost::encoding::decode_varint(&mut bytes).ok()?;
        let length = match tag & 7 {
            0 => {
                prost::encoding::decode_varint(&mut bytes).ok()?;
                0
            }
            1 => 8,
            2 => usize::try_from(prost::encoding::decode_varint(&mut bytes).ok()?).ok()?,
            5 => 4,
            _ => return None,
        };
        bytes = bytes.get(length..)?;
        let record = start.get(..start.len() - bytes.len())?;
        found.push((u32::try_from(tag >> 3).ok()?, record));
    }
    Some(found)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::v1::ServiceSpec;

    #[test]
    fn only_the_named_fields_are_taken_from_the_new_message() {
        let old = ServiceSpec { task_definition: "web:1".into(), desired_count: Some(2), ..Default::default() };
        let new = ServiceSpec { task_definition: "other:9".into(), desired_count: Some(5), ..Default::default() };
        let number = spec_field(Kind::Service, "desiredCount").expect("a field");
        let bytes = splice(&old.encode_to_vec(), &new.encode_to_vec(), &[number]).expect("wire form");
        let merged = ServiceSpec::decode(bytes.as_slice()).expect("a spec");
        assert_eq!(merged, ServiceSpec { desired_count: Some(5), ..old });
    }

    #[test]
    fn a_field_that_the_new_message_lacks_is_cleared() {
        let old = ServiceSpec { desired_count: Some(2), ..Default::default() };
        let number = spec_field(Kind::Service, "desiredCount").expect("a field");
        assert_eq!(splice(&old.encode_to_vec(), &[], &[number]), Some(Vec::new()));
    }

    #[test]
    fn what_is_no_message_is_refused() {
        assert_eq!(splice(&[0x0a, 0xff], &[], &[]), None);
    }
}
