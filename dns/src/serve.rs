//! Answers questions.

use std::net::SocketAddr;
use std::sync::Arc;

use hickory_server::net::runtime::Time;
use hickory_server::proto::op::{HeaderCounts, Metadata, OpCode, ResponseCode};
use hickory_server::proto::rr::Record;
use hickory_server::server::{Request, RequestHandler, ResponseHandler, ResponseInfo};
use hickory_server::zone_handler::MessageResponseBuilder;
use tokio::sync::watch;

use crate::figures::Figures;
use crate::forward;
use crate::zone::{Answer, Zone};

/// Answers by the zone as it is.
pub(crate) struct Answers {
    zones: watch::Receiver<Arc<Zone>>,
    forward: Vec<SocketAddr>,
    figures: Figures,
}

/// What an answer has.
#[derive(Default)]
struct Parts {
    metadata: Option<Metadata>,
    code: ResponseCode,
    answers: Vec<Record>,
    authorities: Vec<Record>,
    additionals: Vec<Record>,
}

impl Answers {
    pub(crate) fn new(zones: watch::Receiver<Arc<Zone>>, forward: Vec<SocketAddr>, figures: Figures) -> Self {
        Answers { zones, forward, figures }
    }

    async fn parts(&self, request: &Request) -> Parts {
        let of = |code| Parts { code, ..Parts::default() };
        if request.metadata.op_code != OpCode::Query {
            return of(ResponseCode::NotImp);
        }
        let Ok(info) = request.request_info() else { return of(ResponseCode::FormErr) };
        let answer = self.zones.borrow().answer(info.query.name(), info.query.query_type());
        match answer {
            Answer::Found(answers, additionals) => Parts { answers, additionals, ..Parts::default() },
            Answer::Nothing(soa) => Parts { authorities: vec![*soa], ..Parts::default() },
            Answer::Unknown(soa) => Parts { authorities: vec![*soa], ..of(ResponseCode::NXDomain) },
            Answer::NotOurs if self.forward.is_empty() => of(ResponseCode::Refused),
            Answer::NotOurs => match forward::ask(&self.forward, request.as_slice(), request.protocol()).await {
                Some(message) => Parts {
                    metadata: Some(message.metadata),
                    code: message.metadata.response_code,
                    answers: message.answers,
                    authorities: message.authorities,
                    additionals: message.additionals,
                },
                None => of(ResponseCode::ServFail),
            },
        }
    }
}

#[async_trait::async_trait]
impl RequestHandler for Answers {
    async fn handle_request<R: ResponseHandler, T: Time>(&self, request: &Request, mut to: R) -> ResponseInfo {
        let parts = self.parts(request).await;
        self.figures.answered(format!("{:?}", parts.code), parts.metadata.is_none());
        let mut metadata = Metadata::response_from_request(&request.metadata);
        metadata.response_code = parts.code;
        match parts.metadata {
            Some(theirs) => {
                metadata.recursion_available = theirs.recursion_available;
                metadata.truncation = theirs.truncation;
            }
            None => metadata.authoritative = !matches!(parts.code, ResponseCode::Refused | ResponseCode::ServFail),
        }
        let builder = MessageResponseBuilder::from_message_request(request);
        let none: [Record; 0] = [];
        let response = builder.build(metadata, &parts.answers, &parts.authorities, &none, &parts.additionals);
        match to.send_response(response).await {
            Ok(info) => info,
            Err(error) => {
                tracing::debug!(%error, "an answer could not be sent");
                metadata.response_code = ResponseCode::ServFail;
                ResponseInfo::from(hickory_server::proto::op::Header { metadata, counts: HeaderCounts::default() })
            }
        }
    }
}
