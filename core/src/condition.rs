//! Conditions: why an object is as it is, kept in its status.

use steady_proto::v1::Condition;

use crate::Timestamp;

/// Type of the condition that says what an object waits for; its status is false while it waits.
pub const PROGRESSING: &str = "Progressing";

/// The condition of a type, if there is one.
pub fn find<'a>(conditions: &'a [Condition], kind: &str) -> Option<&'a Condition> {
    conditions.iter().find(|c| c.r#type == kind)
}

/// What the object waits for, if it waits.
pub fn waiting(conditions: &[Condition]) -> Option<&Condition> {
    find(conditions, PROGRESSING).filter(|c| !c.status)
}

/// What the object waits for as far as this controller knows.
pub fn waiting_for<'a>(conditions: &'a [Condition], source: &str) -> Option<&'a Condition> {
    conditions.iter().find(|c| c.r#type == PROGRESSING && !c.status && c.source == source)
}

/// Sets what the object waits for, in the eyes of one controller. False when it was so already: then nothing is
/// touched, not even the time.
pub fn set_waiting(conditions: &mut Vec<Condition>, source: &str, reason: &str, message: &str, now: Timestamp) -> bool {
    if waiting_for(conditions, source).is_some_and(|c| c.reason == reason && c.message == message) {
        return false;
    }
    clear_waiting(conditions, source);
    conditions.push(Condition {
        r#type: PROGRESSING.to_owned(),
        status: false,
        reason: reason.to_owned(),
        message: message.to_owned(),
        since: Some(now.into()),
        source: source.to_owned(),
    });
    true
}

/// The object waits no longer, as far as this controller knows. False when it did not wait.
pub fn clear_waiting(conditions: &mut Vec<Condition>, source: &str) -> bool {
    let before = conditions.len();
    conditions.retain(|c| c.r#type != PROGRESSING || c.source != source);
    conditions.len() != before
}
