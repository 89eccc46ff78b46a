//! Schedules: `at(…)`, `rate(…)` and `cron(…)`, as Application Auto Scaling and `EventBridge` write them.

use std::time::Duration;

use croner::Cron;
use croner::parser::{CronParser, Seconds, Year};
use jiff::civil::DateTime;
use jiff::tz::TimeZone;

use crate::Timestamp;

/// When something is to happen.
#[derive(Debug, Clone)]
pub struct Schedule {
    when: When,
    zone: TimeZone,
}

#[derive(Debug, Clone)]
enum When {
    At(Timestamp),
    Rate(Duration),
    Cron(Box<Cron>),
}

const FORMS: &str = "expected `at(2026-11-21T18:00:00)`, `rate(1 day)` or `cron(0 18 ? * MON-FRI *)`";

impl Schedule {
    /// Reads a schedule and its time zone, an IANA name; none: UTC. The text says which of both is wrong, and what would be right.
    pub fn parse(schedule: &str, zone: &str) -> Result<Self, String> {
        let zone = self::zone(zone)?;
        let Some((form, rest)) = schedule.trim().split_once('(') else {
            return Err(format!("`{schedule}` is no schedule; {FORMS}"));
        };
        let Some(inner) = rest.strip_suffix(')') else {
            return Err(format!("`{schedule}` has no `)` at its end; {FORMS}"));
        };
        let when = match form {
            "at" => When::At(at(inner, &zone)?),
            "rate" => When::Rate(rate(inner)?),
            "cron" => When::Cron(Box::new(cron(inner)?)),
            _ => return Err(format!("`{schedule}` is no schedule; {FORMS}")),
        };
        Ok(Schedule { when, zone })
    }

    /// The first time after `after`; `start` is when a rate begins.
    pub fn next(&self, after: Timestamp, start: Timestamp) -> Option<Timestamp> {
        match &self.when {
            When::At(at) => (*at > after).then_some(*at),
            When::Rate(every) => {
                let every = i64::try_from(every.as_millis()).ok()?;
                let passed = (after.0 - start.0).div_euclid(every);
                Some(if after < start { start } else { Timestamp(start.0 + (passed + 1) * every) })
            }
            When::Cron(cron) => {
                let from = jiff::Timestamp::from_millisecond(after.0).ok()?.to_zoned(self.zone.clone());
                let next = cron.find_next_occurrence(&from, false).ok()?;
                Some(Timestamp(next.timestamp().as_millisecond()))
            }
        }
    }
}

/// A time zone of the IANA database that comes with the program.
fn zone(name: &str) -> Result<TimeZone, String> {
    let name = if name.is_empty() { "UTC" } else { name };
    TimeZone::get(name)
        .map_err(|_| format!("there is no time zone `{name}`; expected an IANA name, as `Europe/Berlin`"))
}

fn at(text: &str, zone: &TimeZone) -> Result<Timestamp, String> {
    let wrong = |_| format!("`at({text})` is no time; expected `at(2026-11-21T18:00:00)`, without a time zone");
    let local: DateTime = text.trim().parse().map_err(wrong)?;
    let at = local.to_zoned(zone.clone()).map_err(wrong)?;
    Ok(Timestamp(at.timestamp().as_millisecond()))
}

fn rate(text: &str) -> Result<Duration, String> {
    let wrong = || format!("`rate({text})` is no rate; expected `rate(5 minutes)`, `rate(1 hour)` or `rate(7 days)`");
    let (count, unit) = text.trim().split_once(' ').ok_or_else(wrong)?;
    let count: u64 = count.parse().ok().filter(|count| (1..=100_000).contains(count)).ok_or_else(wrong)?;
    let seconds = match unit.trim() {
        "minute" | "minutes" => 60,
        "hour" | "hours" => 3600,
        "day" | "days" => 86_400,
        _ => return Err(wrong()),
    };
    Ok(Duration::from_secs(count * seconds))
}

/// The fields of `cron`, and what is in each of them, besides `*`, `?`, lists, ranges and steps.
const FIELDS: [(&str, &str); 6] = [
    ("minute", "0 to 59"),
    ("hour", "0 to 23"),
    ("day of the month", "1 to 31 or L"),
    ("month", "1 to 12 or JAN to DEC"),
    ("day of the week", "1 to 7 or SUN to SAT"),
    ("year", "four digits"),
];

/// Six fields, to the minute: minutes, hours, day of the month, month, day of the week (1: Sunday), year.
fn cron(text: &str) -> Result<Cron, String> {
    let wrong = |why: String| {
        format!(
            "`cron({text})` is no schedule: {why}; expected minutes, hours, day of the month, month, day of the week and \
             year, as `cron(0 18 ? * MON-FRI *)`"
        )
    };
    let fields: Vec<&str> = text.split_whitespace().collect();
    if fields.len() != 6 {
        return Err(wrong(format!("it has {} fields and not 6", fields.len())));
    }
    let parser = CronParser::builder()
        .seconds(Seconds::Required)
        .year(Year::Required)
        .alternative_weekdays(true)
        .dom_and_dow(true)
        .sloppy_ranges(true)
        .build();
    parser.parse(&format!("0 {text}")).map_err(|error| {
        // Which of them is wrong shows when the others are right.
        let alone = |place: usize| {
            let mut all = ["0", "0", "?", "*", "*", "*"];
            all[place] = fields[place];
            parser.parse(&format!("0 {}", all.join(" "))).is_err()
        };
        let why = (0..fields.len()).find(|place| alone(*place)).map(|place| {
            let (name, range) = FIELDS[place];
            format!("`{}` is no {name}, {range}", fields[place])
        });
        wrong(why.unwrap_or_else(|| error.to_string()))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(text: &str) -> Timestamp {
        Timestamp::parse(text).expect("a time")
    }

    fn next(schedule: &str, zone: &str, after: &str) -> Option<String> {
        Schedule::parse(schedule, zone).expect("a schedule").next(at(after), Timestamp(0)).map(|at| at.to_string())
    }

    #[test]
    fn cron_is_of_the_time_zone_in_summer_and_in_winter() {
        let (weekdays, berlin) = ("cron(0 18 ? * MON-FRI *)", "Europe/Berlin");
        assert_eq!(next(weekdays, berlin, "2026-11-20T17:00:00Z").as_deref(), Some("2026-11-23T17:00:00Z"));
        assert_eq!(next(weekdays, berlin, "2026-07-01T12:00:00Z").as_deref(), Some("2026-07-01T16:00:00Z"));
        assert_eq!(next("cron(30 1 1 * ? *)", "", "2026-11-21T00:00:00Z").as_deref(), Some("2026-12-01T01:30:00Z"));
        assert_eq!(next("cron(0/15 * * * ? *)", "", "2026-11-21T10:01:00Z").as_deref(), Some("2026-11-21T10:15:00Z"));
        assert_eq!(next("cron(0 8 ? * 2#1 *)", "", "2026-11-21T00:00:00Z").as_deref(), Some("2026-12-07T08:00:00Z"));
        assert_eq!(next("cron(0 8 1 1 ? 2020)", "", "2026-11-21T00:00:00Z"), None);
    }

    #[test]
    fn a_rate_goes_on_from_where_it_began() {
        let schedule = Schedule::parse("rate(5 minutes)", "").expect("a schedule");
        let start = at("2026-11-21T10:00:00Z");
        let next = |after: &str| schedule.next(at(after), start).map(|at| at.to_string());
        assert_eq!(next("2026-11-20T00:00:00Z").as_deref(), Some("2026-11-21T10:00:00Z"));
        assert_eq!(next("2026-11-21T10:00:00Z").as_deref(), Some("2026-11-21T10:05:00Z"));
        assert_eq!(next("2026-11-21T10:07:00Z").as_deref(), Some("2026-11-21T10:10:00Z"));
    }

    #[test]
    fn one_time_is_of_its_time_zone() {
        let schedule = "at(2026-11-21T18:00:00)";
        assert_eq!(next(schedule, "America/New_York", "2026-11-21T00:00:00Z").as_deref(), Some("2026-11-21T23:00:00Z"));
        assert_eq!(next(schedule, "", "2026-11-21T18:00:00Z"), None);
    }

    #[test]
    fn what_is_wrong_is_told_with_what_would_be_right() {
        for (schedule, zone, part) in [
            ("every day", "", "is no schedule"),
            ("cron(0 18 * * *)", "", "it has 5 fields and not 6"),
            ("cron(0 25 ? * * *)", "", "is no schedule: `25` is no hour, 0 to 23"),
            ("cron(0 5 ? * MON-FRY *)", "", "`MON-FRY` is no day of the week, 1 to 7 or SUN to SAT"),
            ("rate(5 weeks)", "", "is no rate"),
            ("rate(0 minutes)", "", "is no rate"),
            ("at(18:00)", "", "is no time"),
            ("at(2026-11-21T18:00:00", "", "has no `)`"),
            ("rate(1 day)", "Mars/Olympus", "there is no time zone `Mars/Olympus`"),
        ] {
            let message = Schedule::parse(schedule, zone).expect_err(schedule);
            assert!(message.contains(part) && message.contains("expected"), "{message}");
        }
    }
}
