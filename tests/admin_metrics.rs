//! Metrics of the API: NovaCron's names, and labels whose number clients can't raise. One process, one recorder.

mod admin_fake;

use admin_fake::*;
use novafed::admin::telemetry::Metrics;
use serde_json::Value;

#[tokio::test]
async fn requests_are_counted_and_timed_under_names_that_clients_can_not_multiply() {
    let metrics = Metrics::install().unwrap();
    assert!(Metrics::install().is_err(), "a second recorder would lose what the first one counts");
    let api = api(&fake("eu"));
    ask(&api, "GET", "/v2/vms", &[], Value::Null).await;
    ask(&api, "POST", "/v2/vms", &[], vm_body("web")).await;
    for i in 0..50 {
        ask(&api, "GET", &format!("/v2/vms/vm-1-1-{i}"), &[], Value::Null).await;
        ask(&api, &format!("M{i}"), &format!("/nowhere/{i}"), &[], Value::Null).await;
    }
    let text = metrics.render();
    for part in [
        "novacron_federation_api_requests_total{method=\"POST\",endpoint=\"/v2/vms\",status=\"201\"} 1",
        "novacron_federation_api_requests_total{method=\"GET\",endpoint=\"/v2/vms/{id}\",status=\"404\"} 49",
        "novacron_federation_api_requests_total{method=\"other\",endpoint=\"unknown\",status=\"404\"} 50",
        "novacron_federation_api_duration_seconds_bucket{method=\"GET\",endpoint=\"/v2/vms\",le=\"0.001\"}",
        "novacron_federation_api_duration_seconds_count{method=\"GET\",endpoint=\"/v2/vms/{id}\"} 50",
    ] {
        assert!(text.contains(part), "{part} is missing:\n{text}");
    }
    assert!(!text.contains("nowhere") && !text.contains("M1"), "{text}");
}
