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

/// Sets what the object waits for. False when it was so already: then nothing is touched, not even the time.
pub fn set_waiting(conditions: &mut Vec<Condition>, reason: &str, message: &str, now: Timestamp) -> bool {
    if waiting(conditions).is_some_and(|c| c.reason == reason && c.message == message) {
        return false;
    }
    conditions.retain(|c| c.r#type != PROGRESSING);
    conditions.push(Condition {
        r#type: PROGRESSING.to_owned(),
        status: false,
        reason: reason.to_owned(),
        message: message.to_owned(),
        since: Some(now.into()),
    });
    true
}

/// The object waits no longer. False when it did not wait.
pub fn clear_waiting(conditions: &mut Vec<Condition>) -> bool {
    let before = conditions.len();
    conditions.retain(|c| c.r#type != PROGRESSING);
    conditions.len() != before
}
