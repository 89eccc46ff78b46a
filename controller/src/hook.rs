//! Asks lifecycle hooks over HTTP.

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use steady_plan::deployment::{Answer, CALL_BACK, Call};

use crate::web;

/// Seconds until a hook is asked again, at least and at most.
const DELAY: (u64, u64) = (1, 3600);

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Payload<'a> {
    execution_id: &'a str,
    lifecycle_stage: &'a str,
    resource_arn: &'a str,
    execution_details: Details<'a>,
    hook_details: &'a BTreeMap<String, String>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Details<'a> {
    service_arn: &'a str,
    target_service_revision_arn: &'a str,
    test_traffic_weights: BTreeMap<&'a str, f64>,
    production_traffic_weights: BTreeMap<&'a str, f64>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Answered {
    hook_status: String,
    /// Seconds.
    call_back_delay: Option<u64>,
}

/// Asks a hook. Whoever cannot be reached is asked again later.
pub(crate) async fn ask(call: &Call) -> Answer {
    match post(call).await {
        Err(why) => Answer::Later(CALL_BACK, format!("{}: {why}; asking again", call.url)),
        Ok(answer) => understand(&answer),
    }
}

async fn post(call: &Call) -> Result<Bytes, String> {
    let (production, test) = call.weights;
    let payload = Payload {
        execution_id: &call.execution_id,
        lifecycle_stage: call.stage,
        resource_arn: &call.deployment,
        execution_details: Details {
            service_arn: &call.service,
            target_service_revision_arn: &call.revision,
            test_traffic_weights: BTreeMap::from([(call.deployment.as_str(), test)]),
            production_traffic_weights: BTreeMap::from([(call.deployment.as_str(), production)]),
        },
        hook_details: &call.details,
    };
    let body = serde_json::to_vec(&payload).map_err(|e| e.to_string())?;
    let (status, answer) = web::post(&call.url, "application/json", body).await?;
    if status.is_success() { Ok(answer) } else { Err(format!("answered {status}")) }
}

/// Any answer that is not understood is a failure (ECS).
fn understand(answer: &[u8]) -> Answer {
    let Ok(answered) = serde_json::from_slice::<Answered>(answer) else {
        let text = String::from_utf8_lossy(&answer[..answer.len().min(200)]);
        return Answer::Failed(format!("answered `{text}`; expected {{\"hookStatus\": \"SUCCEEDED\"}}"));
    };
    match answered.hook_status.as_str() {
        "SUCCEEDED" => Answer::Succeeded,
        "FAILED" => Answer::Failed("answered FAILED".into()),
        "IN_PROGRESS" => {
            let delay = answered
                .call_back_delay
                .map_or(CALL_BACK, |seconds| Duration::from_secs(seconds.clamp(DELAY.0, DELAY.1)));
            Answer::Later(delay, "answered IN_PROGRESS".into())
        }
        other => Answer::Failed(format!("answered hookStatus `{other}`; expected SUCCEEDED, FAILED or IN_PROGRESS")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_understood_or_is_a_failure() {
        assert_eq!(understand(br#"{"hookStatus": "SUCCEEDED", "more": 1}"#), Answer::Succeeded);
        let later = Answer::Later(Duration::from_secs(2), "answered IN_PROGRESS".into());
        assert_eq!(understand(br#"{"hookStatus": "IN_PROGRESS", "callBackDelay": 2}"#), later);
        for wrong in [&b""[..], b"ok", br#"{"hookStatus": "FINE"}"#, br#"{"hookStatus": "FAILED"}"#] {
            assert!(matches!(understand(wrong), Answer::Failed(_)));
        }
    }
}
