//! Task protection from inside of a task: ECS agent endpoint, `$ECS_AGENT_URI/task-protection/v1/state`.

use http::{Method, StatusCode};
use serde::Deserialize;
use serde_json::{Value, json};
use steady_core::v1::{Object, UpdateTaskProtectionRequest};
use steady_core::{Timestamp, task};
use steady_runtime::Client;
use tonic::{Code, Status};

use super::document::arn;

/// Where it is, below a container's own address.
pub(super) const PATH: &str = "task-protection/v1/state";
/// How long protection lasts unless it says otherwise (ECS).
const MINUTES: i32 = 120;

/// Asks the control plane to have tasks protected.
#[derive(Clone)]
pub(crate) struct Protector {
    pub(crate) client: Client,
    pub(crate) cluster: String,
}

/// What is asked for.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
struct Wanted {
    protection_enabled: bool,
    expires_in_minutes: Option<i32>,
}

impl Protector {
    /// Answers for a task that is protected until then, as far as the agent knows.
    pub(super) async fn answer(
        &self,
        task: &str,
        until: Option<Timestamp>,
        method: &Method,
        body: &[u8],
        now: Timestamp,
    ) -> (StatusCode, Value) {
        let arn = arn("task", &format!("{}/{task}", self.cluster));
        if method == Method::GET {
            return (StatusCode::OK, protection(&arn, until.filter(|until| *until > now)));
        }
        let wanted: Wanted = match serde_json::from_slice(body) {
            Ok(wanted) => wanted,
            Err(error) => {
                let message =
                    format!("expected {{\"ProtectionEnabled\": true, \"ExpiresInMinutes\": 1..2880}}: {error}");
                return refused(&arn, &Status::invalid_argument(message));
            }
        };
        if wanted.expires_in_minutes == Some(0) {
            return refused(&arn, &Status::invalid_argument("ExpiresInMinutes: 0 is out of range; expected 1 to 2880"));
        }
        let request = UpdateTaskProtectionRequest {
            cluster: self.cluster.clone(),
            tasks: vec![task.to_owned()],
            protection_enabled: wanted.protection_enabled,
            expires_in_minutes: wanted.expires_in_minutes.unwrap_or(MINUTES),
        };
        match self.client.tasks().update_task_protection(request).await {
            Ok(answer) => {
                let tasks = answer.into_inner().protected_tasks;
                let until = tasks.first().and_then(|object: &Object| task::of(object)?.protected_until());
                (StatusCode::OK, protection(&arn, until))
            }
            Err(status) => refused(&arn, &status),
        }
    }
}

fn protection(arn: &str, until: Option<Timestamp>) -> Value {
    let mut told = json!({ "TaskArn": arn, "ProtectionEnabled": until.is_some() });
    if let Some(until) = until {
        told["ExpirationDate"] = json!(until.to_string());
    }
    json!({ "protection": told })
}

/// What ECS calls a failure is the task's; all else is an error.
fn refused(arn: &str, status: &Status) -> (StatusCode, Value) {
    let message = status.message().trim_start_matches("objects[0].");
    if status.code() == Code::FailedPrecondition {
        return (StatusCode::OK, json!({ "failure": { "Arn": arn, "Reason": "TASK_NOT_VALID", "Detail": message } }));
    }
    let (answer, code) = match status.code() {
        Code::InvalidArgument => (StatusCode::BAD_REQUEST, "InvalidParameterException"),
        Code::NotFound => (StatusCode::NOT_FOUND, "ResourceNotFoundException"),
        _ => (StatusCode::INTERNAL_SERVER_ERROR, "ServerException"),
    };
    (answer, json!({ "error": { "Arn": arn, "Code": code, "Message": message } }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_told_is_in_ecs_words() {
        assert_eq!(protection("a", None), json!({ "protection": { "TaskArn": "a", "ProtectionEnabled": false } }));
        let until = Timestamp(0);
        assert!(protection("a", Some(until))["protection"]["ExpirationDate"].is_string());
        let (status, body) = refused("a", &Status::failed_precondition("x"));
        assert_eq!((status, &body["failure"]["Reason"]), (StatusCode::OK, &json!("TASK_NOT_VALID")));
        let (status, body) = refused("a", &Status::unavailable("x"));
        assert_eq!((status, &body["error"]["Code"]), (StatusCode::INTERNAL_SERVER_ERROR, &json!("ServerException")));
        assert!(serde_json::from_str::<Wanted>(r#"{"ProtectionEnabled": true, "ExpiresInMinutes": 3}"#).is_ok());
        assert!(serde_json::from_str::<Wanted>(r#"{"ProtectionEnable": true}"#).is_err());
    }
}
