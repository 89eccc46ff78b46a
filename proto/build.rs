//! Compiles `steady/v1/*.proto`: messages, gRPC services, proto3 JSON, and the descriptor set that
//! gRPC reflection serves.
#![allow(missing_docs)]

use std::{env, error::Error, fs, path::PathBuf};

fn main() -> Result<(), Box<dyn Error>> {
    let mut protos: Vec<PathBuf> = fs::read_dir("steady/v1")?
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| path.extension().is_some_and(|e| e == "proto"))
        .collect();
    protos.sort();
    println!("cargo:rerun-if-changed=steady/v1");

    let descriptors = PathBuf::from(env::var("OUT_DIR")?).join("steady.bin");
    tonic_prost_build::configure()
        .btree_map(".")
        .compile_well_known_types(true)
        .extern_path(".google.protobuf", "::pbjson_types")
        .file_descriptor_set_path(&descriptors)
        .compile_protos(&protos, &[PathBuf::from(".")])?;

    pbjson_build::Builder::new()
        .register_descriptors(&fs::read(&descriptors)?)?
        .btree_map(["."])
        .build(&[".steady.v1"])?;
    Ok(())
}
