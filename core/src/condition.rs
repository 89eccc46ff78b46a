//! Conditions: why an object is as it is, kept in its status.

use std::time::Duration;

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

/// How often the message of the same reason may change: numbers change all the time.
const QUIET: Duration = Duration::from_secs(10);

/// Whether something was said already.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Told {
    /// The same, and not long ago.
    Yes,
    /// The same with other words or numbers, and it is not to be written anew before this.
    Recently(Timestamp),
    /// It is to be said.
    No,
}

/// Whether it was said that the object waits for this.
pub fn told(conditions: &[Condition], source: &str, reason: &str, message: &str, now: Timestamp) -> Told {
    let Some(known) = waiting_for(conditions, source).filter(|known| known.reason == reason) else { return Told::No };
    let since = known.since.as_ref().map_or(now, Timestamp::from);
    let at = known.told_at.as_ref().map_or(since, Timestamp::from);
    if known.message == message {
        return if now.since(at) < TELL_AGAIN { Told::Yes } else { Told::No };
    }
    if now.since(since) < QUIET { Told::Recently(since + QUIET) } else { Told::No }
}

/// Whether something else is said than before, numbers left out: they change all the time.
pub fn is_news(conditions: &[Condition], source: &str, reason: &str, message: &str) -> bool {
    let words = |text: &str| text.chars().filter(|c| !c.is_ascii_digit()).collect::<String>();
    waiting_for(conditions, source).is_none_or(|c| c.reason != reason || words(&c.message) != words(message))
}

/// The same is told again after so long (ECS service events).
pub const TELL_AGAIN: Duration = Duration::from_secs(6 * 3600);

/// Sets what the object waits for, in the eyes of one controller. False when it was so already and was told not long ago: then
/// nothing is touched, not even the time.
pub fn set_waiting(conditions: &mut Vec<Condition>, source: &str, reason: &str, message: &str, now: Timestamp) -> bool {
    let same = |c: &&mut Condition| {
        c.r#type == PROGRESSING && !c.status && c.source == source && c.reason == reason && c.message == message
    };
    if let Some(same) = conditions.iter_mut().find(same) {
        let told = same.told_at.as_ref().or(same.since.as_ref()).map_or(now, Timestamp::from);
        let again = now.since(told) >= TELL_AGAIN;
        if again {
            same.told_at = Some(now.into());
        }
        return again;
    }
    clear_waiting(conditions, source);
    conditions.push(Condition {
        r#type: PROGRESSING.to_owned(),
        status: false,
        reason: reason.to_owned(),
        message: message.to_owned(),
        since: Some(now.into()),
        source: source.to_owned(),
        told_at: None,
    });
    true
}

/// The object waits no longer, as far as this controller knows. False when it did not wait.
pub fn clear_waiting(conditions: &mut Vec<Condition>, source: &str) -> bool {
    let before = conditions.len();
    conditions.retain(|c| c.r#type != PROGRESSING || c.source != source);
    conditions.len() != before
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_is_told_again_after_six_hours_and_since_stays() {
        let mut conditions = Vec::new();
        let mut set = |hours: i64| {
            let news = set_waiting(&mut conditions, "service", "X", "no room", Timestamp(hours * 3_600_000));
            (news, conditions[0].since.as_ref().map(Timestamp::from))
        };
        let since = Some(Timestamp(0));
        let told = [0, 1, 5, 6, 7, 11, 12].map(&mut set);
        assert_eq!(told.map(|(news, _)| news), [true, false, false, true, false, false, true]);
        assert!(told.iter().all(|(_, at)| *at == since));
    }
}
