//! `steady metric put`: a value of a metric of your own (`CloudWatch` `PutMetricData`).

use clap::{Args, Subcommand};
use steady_proto::v1::{Dimension, MetricDatum, PutMetricDataRequest};

use crate::args::Global;
use crate::failure::Failure;
use crate::out::Out;

/// Arguments of `steady metric`.
#[derive(Debug, Args)]
pub struct MetricArgs {
    #[command(subcommand)]
    command: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Tell a value; services scale by it, and alarms watch it.
    Put(Put),
}

/// Arguments of `steady metric put`.
#[derive(Debug, Args)]
#[command(
    after_long_help = "A ScalingPolicy names the metric in customizedMetricSpecification, an Alarm in namespace and metricName.
Values that nothing names are forgotten after half an hour.

Examples:
  steady metric put Shop/Backlog 25
  steady metric put Shop/Backlog 25 --dimension Queue=orders
  steady get metricdata                        what policies and alarms are decided on"
)]
struct Put {
    /// NAMESPACE/NAME.
    metric: String,
    /// Its value now.
    #[arg(allow_negative_numbers = true)]
    value: f64,
    /// What it is of; several times.
    #[arg(long = "dimension", value_name = "NAME=VALUE")]
    dimensions: Vec<String>,
}

/// `steady metric`.
pub async fn run(args: MetricArgs, global: &Global, out: &mut Out) -> Result<(), Failure> {
    let Verb::Put(put) = args.command;
    let Some((namespace, name)) = put.metric.rsplit_once('/').filter(|(a, b)| !a.is_empty() && !b.is_empty()) else {
        return Err(Failure::usage(format!("`{}` is no metric; write NAMESPACE/NAME", put.metric)));
    };
    let dimension = |text: &String| {
        let wrong = || Failure::usage(format!("`{text}` is no dimension; write NAME=VALUE"));
        let (name, value) = text.split_once('=').ok_or_else(wrong)?;
        Ok(Dimension { name: name.to_owned(), value: value.to_owned() })
    };
    let dimensions = put.dimensions.iter().map(dimension).collect::<Result<Vec<_>, Failure>>()?;
    let datum =
        MetricDatum { metric_name: name.to_owned(), dimensions, value: Some(put.value), ..MetricDatum::default() };
    let (cluster, namespace) = (global.cluster.clone(), namespace.to_owned());
    let client = global.connect().await?;
    client.put_metric_data(PutMetricDataRequest { cluster, namespace, metric_data: vec![datum] }).await?;
    out.line(&format!("{} is {}", put.metric, put.value))
}
