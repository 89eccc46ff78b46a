//! Loads of every kind, and what the autoscaler makes of them: steps, waves, noise, bursts, and all of these with gaps.
//!
//! A small model of a service: tasks that start after a while, and are as busy as their share of the load, a hundred percent at most. Every
//! trace is judged by what the autoscaler promises (reliability: S13): it changes its direction once in a cooldown at most, never leaves
//! its bounds, does nothing while nothing is known, and has settled three actions after a step.
//!
//! `STEADY_TRACES=10000` runs that many; `STEADY_TRACE=SEED` one of them, and tells what happens.

use std::fmt::Write as _;

use steady_core::Timestamp;
use steady_core::metric::{self, Metric};
use steady_core::v1::TargetTrackingScalingPolicyConfiguration;
use steady_core::v1::predefined_metric_type::Value as Predefined;

use super::tests::{Story, each_at, tracking};

/// Percent that each task is to be busy.
const TARGET: f64 = 50.0;
const COOLDOWN: i32 = 60;
/// Seconds that the load has to be low.
const LOW: i32 = 180;
/// Periods of a trace: forty minutes.
const LENGTH: i64 = 240;
const BOUNDS: (i32, i32) = (2, 60);

/// Numbers by chance, the same ones for a seed.
struct Chance(u64);

impl Chance {
    fn next(&mut self) -> u64 {
        // SplitMix64.
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// From 0 to 1.
    fn part(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1u64 << 53) as f64
    }

    fn between(&mut self, from: f64, to: f64) -> f64 {
        from + (to - from) * self.part()
    }
}

/// What a load is like.
#[derive(Debug, Clone, Copy)]
enum Shape {
    /// From one level to another, at a time.
    Step { at: i64, from: f64, to: f64 },
    /// Up and down, so many periods a time.
    Sine { every: f64, low: f64, high: f64 },
    /// Around a level.
    Noise { level: f64, by: f64 },
    /// Now and then much more, for a moment.
    Bursts { level: f64, high: f64, every: i64, length: i64 },
}

/// One trace: a load in tasks that are fully busy.
struct Trace {
    shape: Shape,
    noise: f64,
    /// One period in so many is not told; 0: all are.
    gaps: u64,
    /// From when to when nothing at all is told.
    outage: Option<(i64, i64)>,
    /// Periods that a task takes to start.
    start: i64,
}

impl Trace {
    fn of(chance: &mut Chance) -> Self {
        let level = chance.between(1.5, 10.0);
        let shape = match chance.next() % 4 {
            0 => {
                // Tasks that are busy altogether do not say how much more there is: three doublings are a factor of eight.
                let factor = chance.between(1.2, 6.0);
                let up = chance.next().is_multiple_of(2);
                let (from, to) = if up { (level / 2.0, level / 2.0 * factor) } else { (level, level / factor) };
                Shape::Step { at: 60 + (chance.next() % 60) as i64, from, to }
            }
            1 => Shape::Sine { every: chance.between(12.0, 200.0), low: level / 3.0, high: level },
            2 => Shape::Noise { level, by: chance.between(0.05, 0.6) },
            _ => {
                let (every, length) = (20 + (chance.next() % 60) as i64, 1 + (chance.next() % 8) as i64);
                Shape::Bursts { level: level / 2.0, high: level * 1.5, every, length }
            }
        };
        let outage = chance.next().is_multiple_of(4).then(|| {
            let from = 20 + (chance.next() % 150) as i64;
            (from, from + 6 + (chance.next() % 60) as i64)
        });
        let noise = if chance.next().is_multiple_of(2) { 0.0 } else { chance.between(0.0, 0.04) };
        let gaps = if chance.next().is_multiple_of(3) { 5 + chance.next() % 30 } else { 0 };
        Trace { shape, noise, gaps, outage, start: 1 + (chance.next() % 4) as i64 }
    }

    fn load(&self, period: i64, chance: &mut Chance) -> f64 {
        let base = match self.shape {
            Shape::Step { at, from, to } => {
                if period < at {
                    from
                } else {
                    to
                }
            }
            Shape::Sine { every, low, high } => {
                let wave = (period as f64 / every * std::f64::consts::TAU).sin();
                low + (high - low) * (wave + 1.0) / 2.0
            }
            Shape::Noise { level, by } => level * (1.0 + by * (chance.part() * 2.0 - 1.0)),
            Shape::Bursts { level, high, every, length } => {
                if period % every < length {
                    high
                } else {
                    level
                }
            }
        };
        base * (1.0 + self.noise * (chance.part() * 2.0 - 1.0))
    }

    fn silent(&self, period: i64, chance: &mut Chance) -> bool {
        let gap = self.gaps > 0 && chance.next().is_multiple_of(self.gaps);
        gap || self.outage.is_some_and(|(from, to)| (from..to).contains(&period))
    }
}

/// Something that was done.
#[derive(Debug, Clone, Copy)]
struct Action {
    period: i64,
    from: i32,
    to: i32,
}

/// Lives through a trace and judges it; what was done, in words, where a promise is broken.
fn live(seed: u64) -> Result<usize, String> {
    let mut chance = Chance(seed);
    let trace = Trace::of(&mut chance);
    let mut story = Story::new(6, BOUNDS.0, BOUNDS.1);
    let config = TargetTrackingScalingPolicyConfiguration {
        scale_out_cooldown: Some(COOLDOWN),
        scale_in_cooldown: Some(COOLDOWN),
        scale_in_evaluation_seconds: LOW,
        ..tracking(Predefined::EcsServiceAverageCpuUtilization, TARGET)
    };
    story.track("cpu", config);
    let metric = Metric::of_service(metric::CPU_UTILIZATION, "default", "web");
    let (mut running, mut starting): (i32, Vec<(i64, i32)>) = (6, Vec::new());
    let (mut actions, mut log): (Vec<Action>, String) = (Vec::new(), String::new());
    let mut quiet = 0;
    let broken = |what: &str, log: &str| format!("seed {seed}: {what}\n{:?}\n{log}", trace.shape);
    for period in 0..LENGTH {
        let before = story.desired();
        // What was asked for comes, and goes at once.
        starting.retain(|(at, count)| {
            let ready = *at <= period;
            running += if ready { *count } else { 0 };
            !ready
        });
        running = running.min(before);
        story.run(running);
        let load = trace.load(period, &mut chance);
        let percent = (load / f64::from(running) * 100.0).min(100.0);
        story.pass_period();
        let silent = trace.silent(period, &mut chance);
        if silent {
            quiet += 1;
        } else {
            quiet = 0;
            story.tell(&metric, each_at(percent, f64::from(running)));
        }
        // What is told of a period comes a moment after it.
        story.now = Timestamp(story.now.0 + 500);
        story.plan();
        story.now = Timestamp(story.now.0 - 500);
        let after = story.desired();
        let _ =
            writeln!(log, "{period:3}: load {load:5.2}, {running} at {percent:5.1} % {silent}, {before} -> {after}");
        if after == before {
            continue;
        }
        actions.push(Action { period, from: before, to: after });
        if !(BOUNDS.0..=BOUNDS.1).contains(&after) {
            return Err(broken("it left its bounds", &log));
        }
        if quiet > 1 {
            return Err(broken("it acted on what it did not know", &log));
        }
        if after > running {
            let coming: i32 = starting.iter().map(|(_, count)| count).sum();
            starting.push((period + trace.start, (after - running - coming).max(0)));
        }
    }
    let reversals: Vec<i64> = actions
        .windows(2)
        .filter(|pair| (pair[0].to > pair[0].from) != (pair[1].to > pair[1].from))
        .map(|pair| pair[1].period)
        .collect();
    // Each action begins a cooldown. More tasks come at once, whatever was done before; but then nothing is taken away again.
    let cooldown = i64::from(COOLDOWN) / metric::PERIOD;
    let within = |action: &Action| {
        let soon = action.period + 1..action.period + cooldown;
        reversals.iter().filter(|period| soon.contains(period)).count()
    };
    if actions.iter().any(|action| within(action) > 1) {
        return Err(broken("it changed its direction twice in a cooldown", &log));
    }
    if let Shape::Step { at, to, .. } = trace.shape {
        let after: Vec<&Action> = actions.iter().filter(|action| action.period >= at).collect();
        let settles = trace.noise <= 0.0;
        let needed = (to / TARGET * 100.0).ceil().max(f64::from(BOUNDS.0)) as i32;
        let last = story.desired();
        let known = trace.outage.is_none_or(|(_, end)| end < at) && trace.gaps == 0;
        if settles && known && (after.len() > 3 || last < needed) {
            return Err(broken(
                &format!("{} actions after the step, {last} and not {needed} tasks", after.len()),
                &log,
            ));
        }
    }
    Ok(actions.len())
}

#[test]
fn loads_of_every_kind_are_followed_without_oscillation() {
    #[expect(clippy::disallowed_methods, reason = "which traces are run is for whoever runs them")]
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    let (one, count) = (number("STEADY_TRACE"), number("STEADY_TRACES").unwrap_or(300));
    let seeds = one.map_or(0..count, |seed| seed..seed + 1);
    let mut actions = 0;
    for seed in seeds {
        match live(seed) {
            Ok(done) => actions += done,
            Err(broken) => panic!("{broken}"),
        }
    }
    assert!(actions > 0, "something has to have been done");
}
