//! Host ports for mappings that leave them open.

use std::collections::BTreeSet;

/// Ports that are given out: below the range that the kernel takes for outgoing connections (ECS takes them from
/// that range; then a connection can be in the way).
const RANGE: std::ops::Range<u16> = 20_000..32_768;

/// Ports that are in use by this agent's tasks.
#[derive(Debug, Default)]
pub(crate) struct Ports {
    taken: BTreeSet<(u16, bool)>,
}

impl Ports {
    /// Marks a port as in use.
    pub(crate) fn take(&mut self, port: u16, udp: bool) {
        self.taken.insert((port, udp));
    }

    /// Gives a port back.
    pub(crate) fn release(&mut self, port: u16, udp: bool) {
        self.taken.remove(&(port, udp));
    }

    /// So many ports in a row that are `is_free`, the first of them; looked for from a place that depends on `seed`: two
    /// agents on one machine rarely look in the same place.
    pub(crate) fn find(
        &mut self,
        seed: &str,
        count: u16,
        udp: bool,
        is_free: impl Fn(u16, bool) -> bool,
    ) -> Option<u16> {
        let start = seed.bytes().fold(5381_u64, |hash, byte| hash.wrapping_mul(33) ^ u64::from(byte));
        let all = u64::from(RANGE.end - RANGE.start);
        let is_free = |port: u16| !self.taken.contains(&(port, udp)) && is_free(port, udp);
        let found = (0..all).map(|i| RANGE.start + ((start + i) % all) as u16).find(|first| {
            u32::from(*first) + u32::from(count) <= u32::from(RANGE.end) && (*first..first + count).all(is_free)
        })?;
        (found..found + count).for_each(|port| self.take(port, udp));
        Some(found)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_is_given_once_and_never_one_that_somebody_listens_on() {
        let mut ports = Ports::default();
        let first = ports.find("task", 1, false, |_, _| true).expect("a port");
        let second = ports.find("task", 1, false, |_, _| true).expect("a port");
        assert_ne!(first, second);
        let third = ports.find("task", 1, false, |port, _| port != second + 1).expect("a port");
        assert_eq!(third, second + 2);
        assert_eq!(ports.find("task", 1, false, |_, _| false), None);
    }

    #[test]
    fn ports_in_a_row_have_no_gap() {
        let mut ports = Ports::default();
        let single = ports.find("task", 1, false, |_, _| true).expect("a port");
        let first = ports.find("task", 5, false, |port, _| port != single + 3).expect("ports");
        assert_eq!(first, single + 4);
        assert_eq!(ports.find("task", 1, false, |_, _| true), Some(single + 1));
        assert!(ports.find("task", u16::MAX, false, |_, _| true).is_none());
    }
}
