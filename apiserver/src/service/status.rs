//! Registry errors as gRPC statuses.

use std::collections::HashMap;

use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt};

use crate::registry::RegistryError;

/// The status for an error: ABORTED to look again, `FAILED_PRECONDITION` for what cannot be as things are,
/// `INVALID_ARGUMENT` with every fault in its details.
pub(super) fn of(error: RegistryError) -> Status {
    match error {
        RegistryError::Invalid(faults) => {
            let mut details = ErrorDetails::new();
            let mut lines = Vec::new();
            for (index, fault) in &faults {
                let path = if fault.path.is_empty() { String::new() } else { format!(".{}", fault.path) };
                details.add_bad_request_violation(format!("objects[{index}]{path}"), fault.message.clone());
                lines.push(format!("objects[{index}]{path}: {}", fault.message));
            }
            Status::with_error_details(Code::InvalidArgument, lines.join("\n"), details)
        }
        RegistryError::NotFound(key) => Status::not_found(format!("there is no {key}")),
        RegistryError::Exists(message) => Status::already_exists(message),
        RegistryError::Stale(message) => Status::aborted(message),
        error @ RegistryError::Fenced(..) => {
            let details = ErrorDetails::with_error_info("LEASE_LOST", "steady", HashMap::new());
            Status::with_error_details(Code::Aborted, error.to_string(), details)
        }
        error @ RegistryError::NoRoom(reason, _) => {
            let details = ErrorDetails::with_error_info(reason, "steady", HashMap::new());
            Status::with_error_details(Code::FailedPrecondition, error.to_string(), details)
        }
        RegistryError::Refused(message) => Status::failed_precondition(message),
        RegistryError::Unavailable(message) => Status::unavailable(message),
        error @ RegistryError::Full(_) => Status::resource_exhausted(error.to_string()),
    }
}
