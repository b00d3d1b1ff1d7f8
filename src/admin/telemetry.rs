//! Logs and metrics of the process. Owns: their set-up, once per process.
//! Always: logs go to stderr, so that stdout stays for answers. Not here: what is logged or counted.

use std::io::IsTerminal;
use std::time::Duration;

use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle};
use serde::{Deserialize, Serialize};
use tokio_util::sync::CancellationToken;
use tracing_subscriber::EnvFilter;

/// How logs look.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// For people.
    #[default]
    Pretty,
    /// One JSON object per line.
    Json,
}

/// Section `[log]`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LogConfig {
    /// How they look.
    pub format: LogFormat,
    /// What is logged, for example `info,novafed::protocol=debug`.
    pub filter: String,
}

impl Default for LogConfig {
    fn default() -> Self {
        Self { format: LogFormat::Pretty, filter: "info".into() }
    }
}

/// Why logs or metrics can't be had.
#[derive(Debug, thiserror::Error)]
pub enum TelemetryError {
    /// The filter is malformed.
    #[error("log.filter: '{filter}' is not a log filter: {why}; write, for example, info,novafed::store=debug")]
    Filter { filter: String, why: String },
    /// A part of the process has set them up already.
    #[error("setting up {what}: {why}")]
    Setup { what: &'static str, why: String },
}

impl LogConfig {
    /// The filter, checked.
    pub fn filter(&self) -> Result<EnvFilter, TelemetryError> {
        EnvFilter::try_new(&self.filter)
            .map_err(|e| TelemetryError::Filter { filter: self.filter.clone(), why: e.to_string() })
    }

    /// Sends the process's logs to stderr.
    pub fn install(&self) -> Result<(), TelemetryError> {
        let logs = tracing_subscriber::fmt()
            .with_env_filter(self.filter()?)
            .with_writer(std::io::stderr)
            .with_ansi(std::io::stderr().is_terminal());
        let done = match self.format {
            LogFormat::Pretty => logs.try_init(),
            LogFormat::Json => logs.json().flatten_event(true).try_init(),
        };
        done.map_err(|e| TelemetryError::Setup { what: "logs", why: e.to_string() })
    }
}

/// Bounds of the histogram buckets for durations, seconds.
const SECONDS: [f64; 12] = [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0];

/// The process's metrics.
#[derive(Clone)]
pub struct Metrics(PrometheusHandle);

impl Metrics {
    /// Begins to count. Once per process: a second time is an error.
    pub fn install() -> Result<Metrics, TelemetryError> {
        let failed =
            |e: metrics_exporter_prometheus::BuildError| TelemetryError::Setup { what: "metrics", why: e.to_string() };
        let builder = PrometheusBuilder::new()
            .set_buckets_for_metric(Matcher::Suffix("_seconds".into()), &SECONDS)
            .map_err(failed)?;
        let handle = builder.install_recorder().map_err(failed)?;
        metrics::describe_histogram!(
            "novacron_federation_api_duration_seconds",
            metrics::Unit::Seconds,
            "Time from a request's arrival to its answer"
        );
        metrics::describe_counter!("novacron_federation_api_requests_total", "Requests answered");
        metrics::describe_counter!("novafed_admin_refused_total", "Connections to the admin socket that were refused");
        metrics::describe_counter!(
            "novafed_admin_broken_connections_total",
            "Connections to the admin socket that broke: garbage, a head too large or too slow, a client that left"
        );
        Ok(Metrics(handle))
    }

    /// Everything counted so far, as Prometheus text.
    pub fn render(&self) -> String {
        self.0.render()
    }

    /// Keeps histograms small until `stop`, also when nobody ever asks for them.
    pub async fn upkeep(self, stop: CancellationToken) {
        loop {
            tokio::select! {
                biased;
                () = stop.cancelled() => return,
                () = tokio::time::sleep(Duration::from_secs(5)) => self.0.run_upkeep(),
            }
        }
    }
}
