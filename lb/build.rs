//! Compiles `proto/xds.proto`.
#![allow(missing_docs)]

fn main() -> std::io::Result<()> {
    println!("cargo:rerun-if-changed=proto");
    tonic_prost_build::configure().build_client(false).btree_map(".").compile_protos(&["proto/xds.proto"], &["proto"])
}
