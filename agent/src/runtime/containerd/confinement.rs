//! What holds a container in: its capabilities, and the calls of the kernel that are refused to it.

use std::fs;

use serde_json::{Value, json};
use steady_core::v1::LinuxParameters;

use crate::runtime::ContainerSpec;

/// Capabilities that a container has unless it says otherwise (Docker's).
const CAPABILITIES: [&str; 14] = [
    "CHOWN",
    "DAC_OVERRIDE",
    "FSETID",
    "FOWNER",
    "MKNOD",
    "NET_RAW",
    "SETGID",
    "SETUID",
    "SETFCAP",
    "SETPCAP",
    "NET_BIND_SERVICE",
    "SYS_CHROOT",
    "KILL",
    "AUDIT_WRITE",
];

/// All that there are (Linux 5.9 and later), each at its number.
const ALL: [&str; 41] = [
    "CHOWN",
    "DAC_OVERRIDE",
    "DAC_READ_SEARCH",
    "FOWNER",
    "FSETID",
    "KILL",
    "SETGID",
    "SETUID",
    "SETPCAP",
    "LINUX_IMMUTABLE",
    "NET_BIND_SERVICE",
    "NET_BROADCAST",
    "NET_ADMIN",
    "NET_RAW",
    "IPC_LOCK",
    "IPC_OWNER",
    "SYS_MODULE",
    "SYS_RAWIO",
    "SYS_CHROOT",
    "SYS_PTRACE",
    "SYS_PACCT",
    "SYS_ADMIN",
    "SYS_BOOT",
    "SYS_NICE",
    "SYS_RESOURCE",
    "SYS_TIME",
    "SYS_TTY_CONFIG",
    "MKNOD",
    "LEASE",
    "AUDIT_WRITE",
    "AUDIT_CONTROL",
    "SETFCAP",
    "MAC_OVERRIDE",
    "MAC_ADMIN",
    "SYSLOG",
    "WAKE_ALARM",
    "BLOCK_SUSPEND",
    "AUDIT_READ",
    "PERFMON",
    "BPF",
    "CHECKPOINT_RESTORE",
];

/// Calls of the kernel's that reach past a container's namespaces, or have been used to; and the capability that they are let through
/// with (`SYS_ADMIN` does for all).
const DENIED: [(&str, &[&str]); 11] = [
    ("SYS_PACCT", &["acct"]),
    ("BPF", &["bpf"]),
    ("PERFMON", &["perf_event_open"]),
    ("SYS_MODULE", &["delete_module", "finit_module", "init_module"]),
    ("SYS_BOOT", &["kexec_file_load", "kexec_load", "reboot"]),
    ("SYS_RAWIO", &["ioperm", "iopl"]),
    ("DAC_READ_SEARCH", &["open_by_handle_at"]),
    ("SYS_TIME", &["clock_settime", "settimeofday", "stime"]),
    ("SYS_NICE", &["move_pages"]),
    ("SYS_PTRACE", &["kcmp", "userfaultfd"]),
    (
        ADMIN,
        &[
            "add_key",
            "fanotify_init",
            "fsconfig",
            "fsmount",
            "fsopen",
            "fspick",
            "io_uring_enter",
            "io_uring_register",
            "io_uring_setup",
            "keyctl",
            "lookup_dcookie",
            "mount",
            "mount_setattr",
            "move_mount",
            "nfsservctl",
            "open_tree",
            "pivot_root",
            "quotactl",
            "request_key",
            "setns",
            "swapoff",
            "swapon",
            "umount",
            "umount2",
            "unshare",
        ],
    ),
];

/// The capability that is nearly all of them.
const ADMIN: &str = "SYS_ADMIN";
/// `CLONE_NEWUSER`: who may make namespaces of users is an administrator in them.
const NEW_USERS: u64 = 0x1000_0000;
/// `ENOSYS`: a program does the same by an older call.
const NO_SUCH_CALL: u32 = 38;

/// What a container may do that is not everybody's.
pub(super) fn capabilities(spec: &ContainerSpec, linux: &LinuxParameters) -> Vec<String> {
    let bare = |name: &String| name.to_ascii_uppercase().trim_start_matches("CAP_").to_owned();
    let given = linux.capabilities.clone().unwrap_or_default();
    let (add, drop): (Vec<String>, Vec<String>) =
        (given.add.iter().map(bare).collect(), given.drop.iter().map(bare).collect());
    let everything = spec.definition.privileged || add.iter().any(|name| name == "ALL");
    let mut own: Vec<String> = if everything { every_capability() } else { CAPABILITIES.map(str::to_owned).to_vec() };
    if drop.iter().any(|name| name == "ALL") {
        own.clear();
    }
    own.retain(|name| !drop.contains(name));
    for name in add.into_iter().filter(|name| name != "ALL") {
        if !own.contains(&name) {
            own.push(name);
        }
    }
    own.into_iter().map(|name| format!("CAP_{name}")).collect()
}

/// Those that this kernel knows and the agent has itself: runc refuses others.
fn every_capability() -> Vec<String> {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status.lines().find_map(|line| line.strip_prefix("CapBnd:"));
    let mask = mask.and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok()).unwrap_or(u64::MAX);
    let there = ALL.iter().enumerate().filter(|(at, _)| mask & (1 << at) != 0);
    there.map(|(_, &name)| name.to_owned()).collect()
}

/// Options that Docker takes for security.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Security {
    pub(super) no_new_privileges: bool,
    /// Without a filter of system calls.
    pub(super) unconfined: bool,
    pub(super) apparmor: Option<String>,
}

/// Those of a definition.
pub(super) fn security(spec: &ContainerSpec) -> Result<Security, String> {
    let mut found = Security { unconfined: spec.definition.privileged, ..Security::default() };
    for option in &spec.definition.docker_security_options {
        match option.split_once([':', '=']).unwrap_or((option, "")) {
            ("no-new-privileges", "" | "true") => found.no_new_privileges = true,
            ("seccomp", "unconfined") => found.unconfined = true,
            ("apparmor", profile) if !profile.is_empty() => found.apparmor = Some(profile.to_owned()),
            _ => {
                return Err(format!(
                    "dockerSecurityOptions: containerd does not take `{option}`; it takes no-new-privileges, \
                     seccomp=unconfined and apparmor=PROFILE"
                ));
            }
        }
    }
    Ok(found)
}

/// A filter of system calls, for a container with these capabilities.
pub(super) fn seccomp(capabilities: &[String]) -> Value {
    let has = |name: &str| capabilities.iter().any(|capability| capability.strip_prefix("CAP_") == Some(name));
    let architectures = match std::env::consts::ARCH {
        "x86_64" => json!(["SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32"]),
        "aarch64" => json!(["SCMP_ARCH_AARCH64", "SCMP_ARCH_ARM"]),
        _ => json!([]),
    };
    let refused = |names: &[&str], error: u32| json!({ "names": names, "action": "SCMP_ACT_ERRNO", "errnoRet": error });
    let mut calls: Vec<Value> = Vec::new();
    if !has(ADMIN) {
        let denied = DENIED.iter().filter(|(capability, _)| !has(capability)).flat_map(|(_, names)| *names);
        calls.push(refused(&denied.copied().collect::<Vec<_>>(), 1));
        let mut clone = refused(&["clone"], 1);
        clone["args"] = json!([{ "index": 0, "value": NEW_USERS, "valueTwo": NEW_USERS, "op": "SCMP_CMP_MASKED_EQ" }]);
        // What `clone3` is asked for cannot be seen by a filter.
        calls.extend([clone, refused(&["clone3"], NO_SUCH_CALL)]);
    }
    json!({ "defaultAction": "SCMP_ACT_ALLOW", "architectures": architectures, "syscalls": calls })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runtime::ContainerId;
    use steady_core::v1::Capabilities;
    use steady_core::v1::network_mode::Value as NetworkMode;

    fn spec() -> ContainerSpec {
        ContainerSpec::new(ContainerId { task: "t".into(), name: "web".into() }, "c", "i", NetworkMode::Bridge)
    }

    #[test]
    fn capabilities_are_dropped_and_then_added() {
        let of = |add: &[&str], drop: &[&str]| {
            let own = |names: &[&str]| names.iter().map(|&name| name.to_owned()).collect();
            let capabilities_ = Capabilities { add: own(add), drop: own(drop) };
            let linux = LinuxParameters { capabilities: Some(capabilities_), ..<_>::default() };
            capabilities(&spec(), &linux)
        };
        assert_eq!(of(&["net_admin"], &["ALL"]), ["CAP_NET_ADMIN"]);
        assert!(!of(&[], &["CHOWN"]).contains(&"CAP_CHOWN".to_owned()));
        assert_eq!(of(&[], &[]).len(), CAPABILITIES.len());
    }

    #[test]
    fn a_capability_lets_its_calls_through() {
        let denied = |capabilities: &[&str]| {
            let own: Vec<String> = capabilities.iter().map(|name| format!("CAP_{name}")).collect();
            seccomp(&own)["syscalls"].to_string()
        };
        assert!(denied(&[]).contains("\"bpf\"") && denied(&[]).contains("unshare"));
        assert!(!denied(&["BPF"]).contains("\"bpf\"") && denied(&["BPF"]).contains("unshare"));
        assert_eq!(denied(&["SYS_ADMIN"]), "[]");
        assert!(DENIED.iter().all(|(capability, _)| ALL.contains(capability)));
    }

    #[test]
    fn every_capability_is_at_its_number() {
        assert_eq!((ALL[21], ALL[29], ALL[40]), ("SYS_ADMIN", "AUDIT_WRITE", "CHECKPOINT_RESTORE"));
        assert!(CAPABILITIES.iter().all(|name| ALL.contains(name)));
    }
}
