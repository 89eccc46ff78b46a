//! Spans of time as people write and read them: `60s`, `5m`, `1h30m`.

use std::time::Duration;

use steady_core::Timestamp;

/// Reads `500ms`, `60s`, `5m`, `1h30m`, `2d`; a bare number is seconds.
pub fn parse(text: &str) -> Result<Duration, String> {
    let bad = || format!("`{text}` is no duration; write for example 30s, 5m or 1h30m");
    if let Ok(seconds) = text.parse::<u64>() {
        return Ok(Duration::from_secs(seconds));
    }
    let mut rest = text;
    let mut millis: u64 = 0;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit()).ok_or_else(bad)?;
        let number: u64 = rest[..digits].parse().map_err(|_| bad())?;
        rest = &rest[digits..];
        let letters = rest.find(|c: char| c.is_ascii_digit()).unwrap_or(rest.len());
        let unit = match &rest[..letters] {
            "ms" => 1,
            "s" => 1000,
            "m" => 60_000,
            "h" => 3_600_000,
            "d" => 86_400_000,
            _ => return Err(bad()),
        };
        millis = number.checked_mul(unit).and_then(|n| millis.checked_add(n)).ok_or_else(bad)?;
        rest = &rest[letters..];
    }
    if text.is_empty() { Err(bad()) } else { Ok(Duration::from_millis(millis)) }
}

/// As short as a table wants it: `45s`, `3m10s`, `2h5m`, `4d`.
pub fn short(span: Duration) -> String {
    let seconds = span.as_secs();
    let (minutes, hours, days) = (seconds / 60, seconds / 3600, seconds / 86_400);
    match seconds {
        0..120 => format!("{seconds}s"),
        120..600 if !seconds.is_multiple_of(60) => format!("{minutes}m{}s", seconds % 60),
        120..7200 => format!("{minutes}m"),
        7200..36_000 if minutes % 60 != 0 => format!("{hours}h{}m", minutes % 60),
        7200..172_800 => format!("{hours}h"),
        172_800..864_000 if hours % 24 != 0 => format!("{days}d{}h", hours % 24),
        _ => format!("{days}d"),
    }
}

/// Age of something that happened at `at`; `-` when it never did.
pub fn age(at: Option<&pbjson_types::Timestamp>, now: Timestamp) -> String {
    at.map_or_else(|| "-".to_owned(), |at| short(now.since(Timestamp::from(at))))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_read_as_people_write_them() {
        assert_eq!(parse("60s"), Ok(Duration::from_secs(60)));
        assert_eq!(parse("5m"), Ok(Duration::from_secs(300)));
        assert_eq!(parse("1h30m"), Ok(Duration::from_secs(5400)));
        assert_eq!(parse("250ms"), Ok(Duration::from_millis(250)));
        assert_eq!(parse("7"), Ok(Duration::from_secs(7)));
        for bad in ["", "s", "5x", "-3s", "1h30", "99999999999999999999s", "5 m"] {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn ages_get_coarser_as_they_grow() {
        let show = |seconds| short(Duration::from_secs(seconds));
        assert_eq!((show(0), show(119), show(190)), ("0s".into(), "119s".into(), "3m10s".into()));
        assert_eq!((show(3600), show(7500)), ("60m".into(), "2h5m".into()));
        assert_eq!((show(86_400), show(180_000), show(8_640_000)), ("24h".into(), "2d2h".into(), "100d".into()));
    }
}
