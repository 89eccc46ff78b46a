//! Says where the official etcd binary for this platform is, so that it can be built in.
#![allow(missing_docs)]

fn main() {
    #[cfg(any(
        all(target_os = "linux", any(target_arch = "x86_64", target_arch = "aarch64")),
        all(target_os = "macos", any(target_arch = "x86_64", target_arch = "aarch64"))
    ))]
    if let Ok(path) = etcd_bin_vendored::etcd_bin_path() {
        println!("cargo:rustc-env=STEADY_BUNDLED_ETCD={}", path.display());
        println!("cargo:rustc-cfg=bundled_etcd");
    }
    println!("cargo:rustc-check-cfg=cfg(bundled_etcd)");
}
