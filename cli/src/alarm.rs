//! `steady alarm`: says how an alarm is (`SetAlarmState` over gRPC).

use clap::{Args, ValueEnum};
use steady_core::{Key, Kind};
use steady_proto::v1::{SetAlarmStateRequest, alarm_state};

use crate::args::Global;
use crate::failure::Failure;
use crate::out::Out;
use crate::target;

/// Arguments of `steady alarm`.
#[derive(Debug, Args)]
#[command(after_long_help = "Whatever watches your services calls this, or SetAlarmState over gRPC. A deployment whose
service names the alarm in deploymentConfiguration.alarms fails when the alarm is raised.

Examples:
  steady apply -f - <<< '{apiVersion: steady/v1, kind: Alarm, metadata: {name: errors}}'
  steady alarm errors alarm --reason '5 % of requests fail'
  steady alarm errors ok
  steady get alarms")]
pub struct AlarmArgs {
    /// The alarm: alarm/NAME or NAME.
    pub alarm: String,
    /// How it is.
    pub state: State,
    /// Why, for people.
    #[arg(long, value_name = "TEXT", default_value = "")]
    pub reason: String,
}

/// How an alarm is.
#[derive(Debug, Clone, Copy, ValueEnum)]
pub enum State {
    /// Well.
    Ok,
    /// Raised.
    Alarm,
    /// Nothing is known.
    InsufficientData,
}

/// `steady alarm`.
pub async fn run(args: AlarmArgs, global: &Global, out: &mut Out) -> Result<(), Failure> {
    let client = global.connect().await?;
    let name = target::name_of(Kind::Alarm, &args.alarm)?;
    let state = match args.state {
        State::Ok => alarm_state::Value::Ok,
        State::Alarm => alarm_state::Value::Alarm,
        State::InsufficientData => alarm_state::Value::InsufficientData,
    };
    let key = Key::new(Kind::Alarm, &global.cluster, &name);
    let request = SetAlarmStateRequest {
        cluster: key.cluster.to_string(),
        alarm_name: name,
        state_value: state.into(),
        state_reason: args.reason,
    };
    client.set_alarm_state(request).await?;
    out.line(&format!("{key} is {}", state.as_str_name()))
}
