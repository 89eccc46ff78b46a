//! Asks a Prometheus for one value.

use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use serde::Deserialize;
use serde::de::IgnoredAny;
use steady_core::v1::PrometheusQuery;

use crate::web;

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Answered {
    status: String,
    error: Option<String>,
    data: Option<Found>,
}

#[derive(Deserialize)]
#[serde(tag = "resultType", content = "result", rename_all = "lowercase")]
enum Found {
    Vector(Vec<Element>),
    Scalar(Sample),
    Matrix(IgnoredAny),
    String(IgnoredAny),
}

#[derive(Deserialize)]
struct Element {
    value: Sample,
}

/// When, and what.
#[derive(Deserialize)]
struct Sample(#[expect(dead_code, reason = "it is now")] f64, String);

/// The value of a query now; or why there is none, in words.
pub(crate) async fn ask(query: &PrometheusQuery) -> Result<f64, String> {
    let url = format!("{}/api/v1/query", query.address.trim_end_matches('/'));
    let body = format!("query={}", utf8_percent_encode(&query.query, NON_ALPHANUMERIC));
    let answer = web::post(&url, "application/x-www-form-urlencoded", body.into_bytes()).await;
    let found = answer.and_then(|(status, body)| understand(status, &body));
    found.map_err(|why| format!("{} says nothing to `{}`: {why}", query.address, query.query))
}

fn understand(status: http::StatusCode, body: &[u8]) -> Result<f64, String> {
    let Ok(answered) = serde_json::from_slice::<Answered>(body) else {
        return Err(format!("it answered {status} and is no Prometheus"));
    };
    let sample = match answered.data {
        _ if answered.status != "success" => {
            return Err(answered.error.unwrap_or_else(|| format!("it answered {status}")));
        }
        Some(Found::Scalar(sample)) => sample,
        Some(Found::Vector(mut elements)) if elements.len() == 1 => elements.remove(0).value,
        Some(Found::Vector(elements)) if elements.is_empty() => return Err("it knows no such metric".to_owned()),
        Some(Found::Vector(elements)) => {
            return Err(format!("it has {} values; expected one: sum(…) or avg(…) make one of them", elements.len()));
        }
        _ => return Err("it has no value; expected a scalar, or a vector of one".to_owned()),
    };
    let value = sample.1.parse::<f64>().ok().filter(|value| value.is_finite());
    value.ok_or_else(|| format!("its value is {}", sample.1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_value_is_taken_and_everything_else_is_told() {
        let said = |data: &str| {
            understand(http::StatusCode::OK, format!(r#"{{"status":"success","data":{data}}}"#).as_bytes())
        };
        let vector = |elements: &str| said(&format!(r#"{{"resultType":"vector","result":[{elements}]}}"#));
        let element = r#"{"metric":{"a":"b"},"value":[1435781451.781,"1.5"]}"#;
        assert_eq!(vector(element), Ok(1.5));
        assert_eq!(said(r#"{"resultType":"scalar","result":[1435781451,"2"]}"#), Ok(2.0));
        assert_eq!(vector(""), Err("it knows no such metric".into()));
        assert!(vector(&format!("{element},{element}")).is_err_and(|why| why.starts_with("it has 2 values")));
        assert_eq!(vector(&element.replace("1.5", "NaN")), Err("its value is NaN".into()));
        let refused = br#"{"status":"error","errorType":"bad_data","error":"parse error"}"#;
        assert_eq!(understand(http::StatusCode::BAD_REQUEST, refused), Err("parse error".into()));
        assert!(understand(http::StatusCode::OK, b"hello").is_err_and(|why| why.contains("is no Prometheus")));
    }
}
