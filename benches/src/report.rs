//! What a benchmark found, for people and for programs.

use std::fmt::Write as _;
use std::io::Write as _;

use serde_json::{Value, json};

use crate::args::Scale;
use crate::machine::{Machine, Others};
use crate::peers::{Peer, SOURCE};
use crate::sample::Sample;

/// What a figure should be.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Target {
    /// This or more.
    AtLeast(f64),
    /// This or less.
    AtMost(f64),
}

impl Target {
    fn met(self, value: f64) -> bool {
        match self {
            Target::AtLeast(least) => value >= least,
            Target::AtMost(most) => value <= most,
        }
    }

    fn text(self) -> String {
        match self {
            Target::AtLeast(least) => format!(">= {}", number(least)),
            Target::AtMost(most) => format!("<= {}", number(most)),
        }
    }
}

struct Row {
    metric: String,
    unit: &'static str,
    sample: Sample,
    target: Option<Target>,
    yardstick: bool,
}

/// Everything that one benchmark found.
pub(crate) struct Report {
    benchmark: &'static str,
    row: &'static str,
    scale: Scale,
    machine: Machine,
    others: f64,
    rows: Vec<Row>,
    peers: Vec<Peer>,
    notes: Vec<String>,
}

impl Report {
    /// An empty one. `row` names the scorecard's row.
    pub(crate) fn new(benchmark: &'static str, row: &'static str, scale: Scale) -> Self {
        let machine = Machine::this();
        Report { benchmark, row, scale, machine, others: 0.0, rows: vec![], peers: vec![], notes: vec![] }
    }

    /// What else the machine did.
    pub(crate) fn others(&mut self, others: &Others) {
        self.others = others.percent();
    }

    /// A yardstick: measured in this run, and not Steady's.
    pub(crate) fn yardstick(&mut self, metric: &str, unit: &'static str, sample: impl Into<Sample>) {
        self.push(metric, unit, sample.into(), None, true);
    }

    /// A figure of Steady.
    pub(crate) fn figure(&mut self, metric: &str, unit: &'static str, sample: impl Into<Sample>) {
        self.push(metric, unit, sample.into(), None, false);
    }

    /// A figure that the scorecard sets a target for.
    pub(crate) fn goal(&mut self, metric: &str, unit: &'static str, sample: impl Into<Sample>, target: Target) {
        self.push(metric, unit, sample.into(), Some(target), false);
    }

    fn push(&mut self, metric: &str, unit: &'static str, sample: Sample, target: Option<Target>, yardstick: bool) {
        self.rows.push(Row { metric: metric.to_owned(), unit, sample, target, yardstick });
    }

    /// What peers reached elsewhere.
    pub(crate) fn peers(&mut self, peers: &[Peer]) {
        self.peers.extend_from_slice(peers);
    }

    /// Something to know when reading the figures.
    pub(crate) fn note(&mut self, note: String) {
        self.notes.push(note);
    }

    /// Prints it.
    pub(crate) fn print(&self, json: bool) -> anyhow::Result<()> {
        let text = if json { self.lines() } else { self.table() };
        Ok(std::io::stdout().lock().write_all(text.as_bytes())?)
    }

    fn run(&self) -> Value {
        let Machine { cores, memory, processor, commit } = &self.machine;
        json!({
            "benchmark": self.benchmark, "row": self.row, "commit": commit,
            "machine": {"cores": cores, "memoryMiB": memory, "processor": processor},
            "othersPercentOfCore": self.others, "rounds": self.scale.rounds, "tasks": self.scale.tasks,
            "instances": self.scale.instances, "notes": self.notes,
        })
    }

    fn lines(&self) -> String {
        let mut lines = vec![json!({"run": self.run()})];
        for Row { metric, unit, sample, target, yardstick } in &self.rows {
            let (low, high) = sample.spread();
            lines.push(json!({
                "benchmark": self.benchmark, "metric": metric, "unit": unit, "yardstick": yardstick,
                "median": sample.median(), "min": low, "max": high, "samples": sample.values(),
                "target": target.map(Target::text), "met": target.map(|target| target.met(sample.median())),
            }));
        }
        for Peer { who, what, figure: (low, high), unit } in &self.peers {
            lines.push(json!({
                "benchmark": self.benchmark, "peer": who, "metric": what, "unit": unit,
                "min": low, "max": high, "source": SOURCE,
            }));
        }
        lines.iter().fold(String::new(), |text, line| format!("{text}{line}\n"))
    }

    fn table(&self) -> String {
        let Machine { cores, memory, processor, commit } = &self.machine;
        let Scale { rounds, tasks, instances } = self.scale;
        let mut text = format!(
            "{} ({}) · {rounds} rounds · {tasks} tasks · {instances} instances\n{cores} cores · {memory} MiB · \
             {processor} · commit {commit} · other processes {:.0} % of a core\n\n",
            self.benchmark, self.row, self.others
        );
        let width = self.rows.iter().map(|row| row.metric.chars().count()).max().unwrap_or(0).max(20);
        let head = ("", "median", "min – max", "unit", "target");
        let _ = writeln!(text, "{:<width$}  {:>10}  {:>21}  {:<9} {}", head.0, head.1, head.2, head.3, head.4);
        for Row { metric, unit, sample, target, yardstick } in &self.rows {
            let (low, high) = sample.spread();
            let spread =
                if sample.values().len() > 1 { format!("{} – {}", number(low), number(high)) } else { String::new() };
            let median = number(sample.median());
            let verdict = match target {
                Some(target) if target.met(sample.median()) => format!("{} met", target.text()),
                Some(target) => format!("{} MISSED", target.text()),
                None if *yardstick => "yardstick".to_owned(),
                None => String::new(),
            };
            let _ = writeln!(text, "{metric:<width$}  {median:>10}  {spread:>21}  {unit:<9} {verdict}");
        }
        if !self.peers.is_empty() {
            let _ = writeln!(text, "\n{SOURCE}:");
        }
        for Peer { who, what, figure: (low, high), unit } in &self.peers {
            let range = if (low - high).abs() < f64::EPSILON {
                number(*low)
            } else {
                format!("{}–{}", number(*low), number(*high))
            };
            let _ = writeln!(text, "  {who}, {what}: {range} {unit}");
        }
        for note in &self.notes {
            let _ = writeln!(text, "\n{note}");
        }
        text
    }
}

/// Three significant digits, or whole from 100.
fn number(value: f64) -> String {
    match value.abs() {
        size if size == 0.0 || size >= 100.0 => format!("{value:.0}"),
        size if size >= 10.0 => format!("{value:.1}"),
        size if size >= 1.0 => format!("{value:.2}"),
        _ => format!("{value:.3}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report() -> Report {
        let mut report = Report::new("converge", "P3", Scale { rounds: 1, tasks: 10, instances: 2 });
        report.yardstick("raw puts", "puts/s", 12_345.6);
        report.goal("up", "tasks/s", 900.0, Target::AtLeast(4400.0));
        report.peers(&crate::peers::CONVERGE);
        report
    }

    #[test]
    fn each_line_is_an_object() {
        let lines = report().lines();
        let lines: Vec<Value> = lines.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
        assert_eq!(lines.len(), 5);
        assert_eq!(lines[2]["met"], false);
    }

    #[test]
    fn a_table_says_what_was_missed() {
        let table = report().table();
        assert!(table.contains("12346") && table.contains(">= 4400 MISSED") && table.contains("575–885"), "{table}");
    }
}
