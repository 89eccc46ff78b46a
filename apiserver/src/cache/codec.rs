//! Objects as bytes of the store.
//!
//! What the store knows by itself (an object's revision, a lease's epoch) is never written, and filled in when
//! reading.

use bytes::Bytes;
use prost::Message;
use steady_core::v1::{Object, object};
use steady_core::{Key, Revision};

use crate::storage::Entry;

/// An object as bytes.
pub fn encode(object: &Object) -> Bytes {
    let mut object = object.clone();
    strip(&mut object);
    object.encode_to_vec().into()
}

fn strip(object: &mut Object) {
    if let Some(meta) = &mut object.meta {
        meta.revision = 0;
    }
    if let Some(object::Kind::Lease(lease)) = &mut object.kind
        && let Some(spec) = &mut lease.spec
    {
        spec.epoch = 0;
    }
}

/// What an entry of the store holds.
pub struct Decoded {
    /// Its key.
    pub key: Key,
    /// The object, its revision filled in.
    pub object: Object,
    /// It has fields that this program does not know.
    pub newer: bool,
}

/// Reads an entry; why it cannot be read otherwise.
pub fn decode(entry: &Entry) -> Result<Decoded, String> {
    let key = Key::parse_path(&entry.key).map_err(|e| e.to_string())?;
    let mut object = Object::decode(entry.value.clone()).map_err(|e| format!("it does not decode: {e}"))?;
    if Key::of(&object) != key {
        return Err(format!("it holds {}, which belongs under another key", Key::of(&object)));
    }
    // Unknown fields are dropped in decoding, so encoding again is shorter.
    let newer = object.encoded_len() != entry.value.len();
    object.meta_mut().revision = entry.mod_revision.0;
    if let Some(object::Kind::Lease(lease)) = &mut object.kind {
        let Revision(created) = entry.create_revision;
        lease.spec.get_or_insert_default().epoch = created;
    }
    Ok(Decoded { key, object, newer })
}

#[cfg(test)]
mod tests {
    use super::*;
    use steady_core::v1::Service;

    fn stored(value: Vec<u8>, key: &str) -> Entry {
        Entry {
            key: key.into(),
            value: value.into(),
            mod_revision: Revision(7),
            create_revision: Revision(3),
            lease: None,
        }
    }

    #[test]
    fn an_object_comes_back_with_its_revision() {
        let mut object = Object::new("default", "web", Service::default());
        object.meta_mut().revision = 5;
        let decoded = decode(&stored(encode(&object).to_vec(), "/steady/v1/services/default/web")).expect("decodes");
        assert_eq!(decoded.object.meta().revision, 7);
        assert!(!decoded.newer);
    }

    #[test]
    fn fields_of_a_newer_version_are_noticed() {
        let mut bytes = encode(&Object::new("default", "web", Service::default())).to_vec();
        // Field 999, varint 1.
        bytes.extend_from_slice(&[0xb8, 0x3e, 0x01]);
        assert!(decode(&stored(bytes, "/steady/v1/services/default/web")).expect("decodes").newer);
    }

    #[test]
    fn an_object_under_a_foreign_key_or_of_rubbish_is_refused() {
        let object = encode(&Object::new("default", "web", Service::default())).to_vec();
        assert!(decode(&stored(object, "/steady/v1/services/default/other")).is_err());
        assert!(decode(&stored(vec![0xff, 0xff], "/steady/v1/services/default/web")).is_err());
    }
}
