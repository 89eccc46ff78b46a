//! Words of tables and their colours.

use crate::out::Style;
use crate::table::Cell;

/// The name of an enum's value, without what stands for «not set».
pub(super) fn name<'a>(word: &'a str, unset: &'a str) -> &'a str {
    if word == "VALUE_UNSPECIFIED" { unset } else { word }
}

/// A status, coloured by what it means.
pub fn state(word: &str) -> Cell {
    Cell::styled(word, style(word))
}

/// `yes` or `no`.
pub fn yes_no(yes: bool) -> Cell {
    if yes { Cell::styled("yes", Style::Good) } else { Cell::styled("no", Style::Busy) }
}

/// What a status word means.
pub(super) fn style(word: &str) -> Style {
    match word {
        "RUNNING" | "ACTIVE" | "PRIMARY" | "COMPLETED" | "HEALTHY" => Style::Good,
        "PROVISIONING" | "PENDING" | "ACTIVATING" | "IN_PROGRESS" | "DRAINING" | "DEACTIVATING" | "STOPPING"
        | "DEPROVISIONING" | "WARN" => Style::Busy,
        "FAILED" | "UNHEALTHY" | "ERROR" | "LOST" => Style::Bad,
        "STOPPED" | "INACTIVE" => Style::Faint,
        _ => Style::Plain,
    }
}
