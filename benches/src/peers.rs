//! Figures of peers, measured earlier on a like machine. They are for orientation: only what is measured in the
//! same run is a yardstick.

/// Where the figures are from.
pub(crate) const SOURCE: &str = "performance.md, peers on a like machine (2 cores, one run each, local disk)";

/// What a peer reached.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Peer {
    /// Who.
    pub(crate) who: &'static str,
    /// At what.
    pub(crate) what: &'static str,
    /// How much: lowest and highest.
    pub(crate) figure: (f64, f64),
    /// Of what.
    pub(crate) unit: &'static str,
}

/// 0 to all running, without containers.
pub(crate) const CONVERGE: [Peer; 2] = [
    Peer {
        who: "swarmkit manager, hollow agents",
        what: "0 to 1,000 (and 5,000) tasks running",
        figure: (575.0, 885.0),
        unit: "tasks/s",
    },
    Peer {
        who: "Kubernetes 1.20, hollow nodes, client limits raised",
        what: "0 to 1,000 pods ready",
        figure: (208.0, 213.0),
        unit: "tasks/s",
    },
];

/// One task, from its creation to running.
pub(crate) const ONE: [Peer; 2] = [
    Peer {
        who: "swarmkit manager, hollow agents",
        what: "one task, created to running, p50",
        figure: (203.0, 203.0),
        unit: "ms",
    },
    Peer {
        who: "Kubernetes 1.20, hollow nodes, client limits raised",
        what: "created to running while 1,000 start, p50",
        figure: (1400.0, 1400.0),
        unit: "ms",
    },
];

/// From a load step to enough capacity, by how often peers look and how long they wait.
pub(crate) const SCALE: [Peer; 2] = [
    Peer {
        who: "ECS service auto scaling, metrics of a minute",
        what: "three datapoints above the target, by its documentation, without the start of tasks",
        figure: (180.0, 240.0),
        unit: "s",
    },
    Peer {
        who: "Kubernetes HPA",
        what: "a loop of 15 s on metrics of 15 s, by its documentation, without the start of pods",
        figure: (15.0, 30.0),
        unit: "s",
    },
];
