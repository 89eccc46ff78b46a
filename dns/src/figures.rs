//! Figures of a server of names.

use std::sync::Arc;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;
use steady_runtime::metrics;
use tokio::net::TcpListener;
use tokio::sync::watch;

use crate::zone::Zone;

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfAnswer {
    /// A response code of DNS.
    code: String,
    /// Whose name it was: own, or forwarded.
    zone: &'static str,
}

/// Counts answers.
#[derive(Debug, Clone, Default)]
pub(crate) struct Figures {
    answers: Family<OfAnswer, Counter>,
}

impl Figures {
    /// An answer; of an own name, or of one that is somebody else's.
    pub(crate) fn answered(&self, code: String, own: bool) {
        let zone = if own { "own" } else { "forwarded" };
        self.answers.get_or_create(&OfAnswer { code, zone }).inc();
    }

    fn text(&self, zone: &Zone) -> String {
        let mut registry = Registry::with_prefix("steady_dns");
        registry.register("answers", "Answers by code", self.answers.clone());
        let names = Gauge::<i64>::default();
        names.set(i64::try_from(zone.names()).unwrap_or(i64::MAX));
        registry.register("names", "Names that are answered", names);
        metrics::written(&registry)
    }
}

/// Tells them to whoever asks, for ever.
pub(crate) async fn serve(listener: Option<&TcpListener>, figures: Figures, zones: watch::Receiver<Arc<Zone>>) {
    metrics::serve(listener, move || std::future::ready(figures.text(&zones.borrow()))).await;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_counted_by_code_and_by_whose_name_it_was() {
        let (figures, zone) = (Figures::default(), Zone::new("steady.internal", 5).expect("a zone"));
        figures.answered("NXDomain".into(), true);
        figures.answered("NoError".into(), false);
        let text = figures.text(&zone);
        assert!(text.contains(r#"steady_dns_answers_total{code="NXDomain",zone="own"} 1"#), "{text}");
        assert!(text.contains("steady_dns_names 0"), "{text}");
    }
}
