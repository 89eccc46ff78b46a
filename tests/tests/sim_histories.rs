//! A few histories of the simulator; `tests/run` runs thousands of them in a release build.
#![allow(clippy::unwrap_used, missing_docs)]

use steady_core::guard::Guard;
use steady_tests::sim::exhaustive::{Script, check, perturbations};
use steady_tests::sim::{self, Settings};

#[test]
fn the_same_seed_is_the_same_history() {
    for seed in 1..=3 {
        let first = sim::run(Settings::of_seed(seed));
        let second = sim::run(Settings::of_seed(seed));
        assert_eq!((first.hash, first.revisions), (second.hash, second.revisions), "seed {seed}");
        assert!(first.revisions > 10 && first.faults > 0, "seed {seed} does nothing: {first:?}");
    }
    assert_ne!(sim::run(Settings::of_seed(1)).hash, sim::run(Settings::of_seed(2)).hash);
}

#[test]
fn no_history_breaks_a_promise() {
    sim::catch_panics();
    for seed in 1..=20 {
        let ended = sim::run(Settings::of_seed(seed));
        assert_eq!(ended.broken, None, "run `cargo run --release -p steady-tests --bin sim -- --seed {seed} --trace`");
    }
}

#[test]
fn a_missing_guard_is_noticed() {
    sim::catch_panics();
    for guard in [Guard::Ceiling, Guard::DrainFirst, Guard::StoppingCounts] {
        let noticed = (1..=40).any(|seed| sim::run_with(Settings::of_seed(seed), Some(guard), None).broken.is_some());
        assert!(noticed, "{guard:?} was taken away, and nothing was broken");
    }
}

#[test]
fn a_crash_in_any_write_of_a_scale_in_changes_nothing_in_the_end() {
    sim::catch_panics();
    let expected = sim::run(Settings::scripted(Script::ScaleIn));
    assert_eq!(expected.broken, None);
    let crashes: Vec<_> = perturbations(&expected.counts).into_iter().step_by(7).collect();
    assert!(crashes.len() > 20, "{:?}", expected.counts);
    for crash in crashes {
        check(Script::ScaleIn, &crash, &expected).unwrap();
    }
}

#[test]
fn deployments_in_trouble_keep_floor_and_ceiling_and_end_as_they_should() {
    sim::catch_panics();
    for cell in sim::matrix::cells().into_iter().filter(|cell| cell.desired == 2) {
        assert_eq!(sim::matrix::check(cell).broken, None, "{cell}");
    }
}
