//! The API without a socket: shapes of answers and errors, keys, versions, deadlines, forwarding.

mod admin_fake;

use std::time::Duration;

use admin_fake::*;
use novafed::admin::Forwarded;
use novafed::types::{ErrorCode, JobState, Millis};
use serde_json::{Value, json};

/// Checks the one shape of errors and returns (code, message, hint, details).
fn error_of(answer: &(u16, Value)) -> (String, String, String, Value) {
    let (status, document) = answer;
    let keys: Vec<_> = document.as_object().expect("a document").keys().cloned().collect();
    assert_eq!(keys, ["error", "requestId"], "{document}");
    let error = document["error"].as_object().expect("an error");
    assert_eq!(error.keys().cloned().collect::<Vec<_>>(), ["code", "details", "hint", "message"], "{document}");
    assert!(document["requestId"].as_str().unwrap().starts_with("req-"), "{document}");
    let code: ErrorCode = serde_json::from_value(error["code"].clone()).unwrap();
    assert_eq!(code.http_status(), *status, "{document}");
    let text = |key: &str| error[key].as_str().unwrap().to_owned();
    (text("code"), text("message"), text("hint"), error["details"].clone())
}

#[tokio::test]
async fn every_refusal_has_the_one_error_shape() {
    let region = fake("eu");
    let api = api(&region);
    let raw = async |method: &str, path: &str, body: &[u8]| {
        let reply = api.dispatch(asked(method, path, &[], body)).await;
        (reply.status, serde_json::from_slice(&reply.body).expect("a JSON document"))
    };
    for (method, path, body, code, part) in [
        ("GET", "/v2/vm", &b""[..], "NOT_FOUND", "there is no path /v2/vm"),
        ("GET", "/", b"", "NOT_FOUND", "there is no path"),
        ("PATCH", "/v2/vms", b"", "INVALID_ARGUMENT", "can't be used with PATCH"),
        ("POST", "/v2/vms", b"", "INVALID_ARGUMENT", "empty"),
        ("POST", "/v2/vms", b"{", "INVALID_ARGUMENT", "not JSON"),
        ("POST", "/v2/vms", b"\xff\xfe", "INVALID_ARGUMENT", "not JSON"),
        ("POST", "/v2/vms", b"[]", "INVALID_ARGUMENT", "body"),
        ("POST", "/v2/vms", b"{\"name\":\"A_B\"}", "INVALID_ARGUMENT", "'A_B' is not a name"),
        ("GET", "/v2/vms/web", b"", "INVALID_ARGUMENT", "'web' is not a vm id"),
        ("GET", "/v2/vms/vm-1-1-9", b"", "NOT_FOUND", "vm-1-1-9"),
        ("GET", "/v2/vms/%ff", b"", "INVALID_ARGUMENT", "can't be read"),
        ("GET", "/v2/vms?stat=running", b"", "INVALID_ARGUMENT", "unknown field 'stat'"),
        ("GET", "/v2/vms?state=flying", b"", "INVALID_ARGUMENT", "flying"),
        ("GET", "/v2/vms?limit=0", b"", "INVALID_ARGUMENT", "limit: 0"),
        ("GET", "/v2/vms?limit=501", b"", "INVALID_ARGUMENT", "limit: 501"),
        ("GET", "/v2/vms?cursor=x", b"", "INVALID_ARGUMENT", "cursor: 'x'"),
        ("GET", "/v2/vms?label=x", b"", "INVALID_ARGUMENT", "'x' is not key=value"),
        ("GET", "/v2/migrations?status=done", b"", "INVALID_ARGUMENT", "'done' is none of"),
        ("POST", "/v2/placements", b"{}", "INVALID_ARGUMENT", "only explains"),
        ("POST", "/v2/migrations/job-1-1-1/cancel", b"{\"why\":1}", "INVALID_ARGUMENT", "unknown field 'why'"),
    ] {
        let (got, message, _, _) = error_of(&raw(method, path, body).await);
        assert!(got == code && message.contains(part), "{method} {path}: {got}: {message}");
    }
}

#[tokio::test]
async fn an_unknown_field_is_named_with_the_nearest_known_one() {
    let api = api(&fake("eu"));
    for (field, nearest) in [("memory_bytes", json!("memoryBytes")), ("nmae", json!("name")), ("zzz", Value::Null)] {
        let mut body = vm_body("web");
        body[field] = json!(1);
        let (_, message, hint, details) = error_of(&ask(&api, "POST", "/v2/vms", &[], body).await);
        assert!(message.contains(field), "{message}");
        assert_eq!(details["field"], field);
        assert_eq!(details["nearest"], nearest, "{details}");
        assert!(!hint.is_empty());
    }
    let mut body = vm_body("web");
    body["placement"] = json!({ "regoin": "eu" });
    let (_, message, hint, _) = error_of(&ask(&api, "POST", "/v2/vms", &[], body).await);
    assert!(message.contains("'regoin'") && hint.contains("'region'"), "{message}: {hint}");
}

#[tokio::test]
async fn a_vm_is_created_listed_shown_stopped_and_deleted() {
    let region = fake("eu");
    let api = api(&region);
    let (status, empty) = ask(&api, "GET", "/v2/vms", &[], Value::Null).await;
    assert_eq!((status, &empty), (200, &json!({ "items": [], "next": null })), "a list is never null");
    let (status, made) = ask(&api, "POST", "/v2/vms", &[], vm_body("web")).await;
    assert_eq!(status, 201, "{made}");
    assert_eq!(made["placement"]["vmID"], made["vm"]["id"]);
    assert_eq!(made["placement"]["targetCluster"], "eu/eu-a");
    assert_eq!(made["placement"]["alternatives"][0]["rejectedBy"], "memory");
    assert_eq!(made["vm"]["createdAt"], "2025-11-24T10:00:00.000Z");
    assert_eq!(made["vm"]["place"], "eu/eu-a");
    let path = format!("/v2/vms/{}", made["vm"]["id"].as_str().unwrap());
    let shown = api.dispatch(asked("GET", &path, &[], b"")).await;
    assert!(shown.headers.contains(&("etag".into(), "\"1\"".into())), "{:?}", shown.headers);
    let (_, page) = ask(&api, "GET", "/v2/vms?name=web&region=eu&state=running", &[], Value::Null).await;
    assert_eq!(page["items"].as_array().unwrap().len(), 1);
    let (_, page) = ask(&api, "GET", "/v2/vms?name=other", &[], Value::Null).await;
    assert_eq!(page["items"], json!([]));
    let (status, vm) = ask(&api, "POST", &format!("{path}/stop"), &[], Value::Null).await;
    assert_eq!((status, &vm["power"]), (200, &json!("stopped")));
    let (status, gone) = ask(&api, "DELETE", &path, &[], Value::Null).await;
    assert_eq!((status, &gone["deleted"]), (200, &json!(true)));
    assert_eq!(ask(&api, "GET", &path, &[], Value::Null).await.0, 404);
}

#[tokio::test]
async fn a_dry_run_changes_nothing_and_says_so() {
    let region = fake("eu");
    let api = api(&region);
    let (status, dry) = ask(&api, "POST", "/v2/vms?dryRun=true", &[], vm_body("web")).await;
    assert_eq!((status, &dry["vm"], &dry["placement"]["vmID"]), (200, &Value::Null, &Value::Null));
    let (status, why) = ask(&api, "POST", "/v2/placements?dryRun=true", &[], vm_body("web")).await;
    assert_eq!((status, &why["reasoning"]), (200, &json!("the only cluster with room")));
    assert_eq!(ask(&api, "GET", "/v2/vms", &[], Value::Null).await.1["items"], json!([]));
    assert!(region.audit_records().iter().all(|record| record.dry_run));
}

#[tokio::test]
async fn the_same_key_gives_the_same_vm_and_another_body_conflicts() {
    let region = fake("eu");
    let api = api(&region);
    let key = [("idempotency-key", "k1")];
    let (_, first) = ask(&api, "POST", "/v2/vms", &key, vm_body("web")).await;
    let (_, again) = ask(&api, "POST", "/v2/vms", &key, vm_body("web")).await;
    assert_eq!(first, again);
    let other = ask(&api, "POST", "/v2/vms", &key, vm_body("db")).await;
    assert_eq!(error_of(&other).0, "CONFLICT");
    let long = "k".repeat(129);
    for bad in ["", long.as_str()] {
        let answer = ask(&api, "POST", "/v2/vms", &[("idempotency-key", bad)], vm_body("web")).await;
        assert_eq!(error_of(&answer).0, "INVALID_ARGUMENT", "'{bad}'");
    }
}

#[tokio::test]
async fn a_change_of_an_old_version_is_refused() {
    let api = api(&fake("eu"));
    ask(&api, "POST", "/v2/vms", &[], vm_body("web")).await;
    let path = "/v2/vms/vm-1-1-1/stop";
    assert_eq!(ask(&api, "POST", path, &[("if-match", "\"1\"")], Value::Null).await.0, 200);
    assert_eq!(
        error_of(&ask(&api, "POST", path, &[("if-match", "\"1\"")], Value::Null).await).0,
        "PRECONDITION_FAILED"
    );
    assert_eq!(error_of(&ask(&api, "POST", path, &[("if-match", "seven")], Value::Null).await).0, "INVALID_ARGUMENT");
    // Where there is no version, the header is refused and not ignored.
    let answer = ask(&api, "POST", "/v2/vms", &[("if-match", "\"1\"")], vm_body("db")).await;
    assert_eq!(error_of(&answer).0, "INVALID_ARGUMENT");
}

#[tokio::test]
async fn every_mutation_is_recorded_refused_ones_too_and_no_read_is() {
    let region = fake("eu");
    let api = api(&region);
    ask(&api, "GET", "/v2/vms", &[], Value::Null).await;
    ask(&api, "POST", "/v2/vms", &[("idempotency-key", "k")], vm_body("web")).await;
    ask(&api, "POST", "/v2/vms", &[], json!({})).await;
    ask(&api, "DELETE", "/v2/nowhere", &[], Value::Null).await;
    let records = region.audit_records();
    let short: Vec<_> = records.iter().map(|r| (r.method.as_str(), r.path.as_str(), r.status, r.code)).collect();
    assert_eq!(
        short,
        [
            ("POST", "/v2/vms", 201, None),
            ("POST", "/v2/vms", 400, Some(ErrorCode::InvalidArgument)),
            ("DELETE", "/v2/nowhere", 404, Some(ErrorCode::NotFound)),
        ]
    );
    assert_eq!(records[0].idempotency_key.as_deref(), Some("k"));
}

#[tokio::test(start_paused = true)]
async fn a_mutation_that_outlives_its_deadline_is_unknown_goes_on_and_is_recorded() {
    let region = fake("eu");
    let api = api(&region);
    region.stuck.send_replace(true);
    let late = ask(&api, "POST", "/v2/vms", &[], vm_body("web")).await;
    assert_eq!(error_of(&late).0, "OUTCOME_UNKNOWN");
    assert!(region.audit_records().is_empty());
    region.stuck.send_replace(false);
    tokio::time::sleep(Duration::from_millis(10)).await;
    assert_eq!(ask(&api, "GET", "/v2/vms/vm-1-1-1", &[], Value::Null).await.0, 200);
    assert_eq!(region.audit_records()[0].status, 201);
}

#[tokio::test(start_paused = true)]
async fn requests_beyond_the_limit_are_answered_busy() {
    let region = fake("eu");
    let api = api(&region);
    region.stuck.send_replace(true);
    let mut at_work = Vec::new();
    for i in 0..novafed::types::limits::API_REQUESTS_MAX {
        let api = api.clone();
        at_work.push(tokio::spawn(async move { ask(&api, "POST", "/v2/vms", &[], vm_body(&format!("v{i}"))).await }));
    }
    tokio::time::sleep(Duration::from_millis(1)).await;
    let reply = api.dispatch(asked("GET", "/v2/vms", &[], b"")).await;
    let (code, _, _, details) = error_of(&(reply.status, serde_json::from_slice(&reply.body).unwrap()));
    assert_eq!((code.as_str(), details["retryAfterMs"].as_u64()), ("BUSY", Some(200)));
    assert!(reply.headers.contains(&("retry-after".into(), "1".into())), "{:?}", reply.headers);
    region.stuck.send_replace(false);
    for task in at_work {
        assert_eq!(task.await.unwrap().0, 201);
    }
    assert_eq!(ask(&api, "GET", "/v2/vms", &[], Value::Null).await.0, 200);
}

#[tokio::test]
async fn a_handler_that_panics_is_one_failed_request() {
    let api = api(&fake("eu"));
    let (code, message, ..) = error_of(&ask(&api, "GET", "/v2/vms/vm-1-1-666", &[], Value::Null).await);
    assert_eq!(code, "INTERNAL", "{message}");
    assert_eq!(ask(&api, "GET", "/v2/vms", &[], Value::Null).await.0, 200);
}

#[tokio::test]
async fn a_request_for_another_regions_object_is_answered_by_its_owner() {
    let (eu, eu_api, us, us_api) = pair();
    let mut body = vm_body("web");
    body["placement"] = json!({ "region": "us" });
    let (status, made) = ask(&eu_api, "POST", "/v2/vms", &[("idempotency-key", "k")], body.clone()).await;
    assert_eq!((status, &made["vm"]["region"]), (201, &json!("us")), "{made}");
    // The key is bound at the owner, by whatever way the request came.
    let (_, direct) = ask(&us_api, "POST", "/v2/vms", &[("idempotency-key", "k")], body).await;
    assert_eq!(made, direct);
    let shown = eu_api.dispatch(asked("GET", "/v2/vms/vm-2-1-1", &[], b"")).await;
    assert_eq!(shown.status, 200);
    assert!(shown.headers.contains(&("etag".into(), "\"1\"".into())));
    let stop = ask(&eu_api, "POST", "/v2/vms/vm-2-1-1/stop", &[("if-match", "\"7\"")], Value::Null).await;
    assert_eq!(error_of(&stop).0, "PRECONDITION_FAILED");
    assert!(stop.1["requestId"].as_str().unwrap().starts_with("req-2-"), "the owner's request: {}", stop.1);
    assert_eq!(ask(&eu_api, "POST", "/v2/vms/vm-2-1-1/stop", &[], Value::Null).await.1["power"], "stopped");
    let seen = us.seen.lock().unwrap().clone();
    assert_eq!(seen[0].caller.via, Some("eu".parse().unwrap()));
    assert_eq!(seen[0].trace, 7, "the trace goes along");
    // Both regions have it in their audit.
    assert_eq!(us.audit_records()[0].caller.via, Some("eu".parse().unwrap()));
    assert_eq!(eu.audit_records()[0].status, 201);
}

#[tokio::test]
async fn a_request_is_forwarded_once_at_most() {
    let (_, eu_api, _, _) = pair();
    // "us" asks eu for a VM of us: by now the two disagree about the owner, and it must not go back and forth.
    let request = asked("GET", "/v2/vms/vm-2-1-1", &[], b"");
    let via = novafed::admin::Caller { via: Some("us".parse().unwrap()), ..request.caller.clone() };
    let reply = eu_api.dispatch(Forwarded { caller: via, ..request }).await;
    assert_eq!(reply.status, 503);
}

#[tokio::test]
async fn an_owner_behind_a_cut_link_makes_reads_and_changes_unavailable() {
    let (eu, eu_api, _, _) = pair();
    eu.cut.store(true, std::sync::atomic::Ordering::Relaxed);
    for method in ["GET", "DELETE"] {
        let (code, message, ..) = error_of(&ask(&eu_api, method, "/v2/vms/vm-2-1-1", &[], Value::Null).await);
        assert!(code == "UNAVAILABLE" && message.contains("cut"), "{method}: {code}: {message}");
    }
}

#[tokio::test]
async fn a_migration_is_planned_started_followed_and_cancelled() {
    let region = fake("eu");
    let api = api(&region);
    ask(&api, "POST", "/v2/vms", &[], vm_body("web")).await;
    let plan = json!({ "vmID": "vm-1-1-1", "targetClusterID": "us/us-a", "options": { "maxDowntimeMs": 50 } });
    let (status, plan) = ask(&api, "POST", "/v2/migration-plans", &[], plan).await;
    assert_eq!((status, &plan["estimatedDowntime"]), (201, &json!(40_000_000)), "{plan}");
    assert_eq!((&plan["sourceClusterID"], &plan["targetClusterID"]), (&json!("eu/eu-a"), &json!("us/us-a")));
    assert_eq!(plan["expiresAt"], "1970-01-01T00:10:00.001Z");
    let (status, job) = ask(&api, "POST", "/v2/migrations", &[], json!({ "planID": plan["id"] })).await;
    assert_eq!((status, &job["state"], &job["status"]), (202, &json!("transferring"), &json!("running")));
    let path = format!("/v2/migrations/{}", job["id"].as_str().unwrap());
    assert_eq!(ask(&api, "GET", &path, &[], Value::Null).await.1["planID"], plan["id"]);
    let (_, page) = ask(&api, "GET", "/v2/migrations?status=running", &[], Value::Null).await;
    assert_eq!(page["items"].as_array().unwrap().len(), 1);
    region.note("copied");
    let (_, events) = ask(&api, "GET", &format!("{path}/events?after=0"), &[], Value::Null).await;
    assert_eq!(events["items"][0]["kind"], "copied");
    let parked = ask(&api, "POST", &format!("{path}/retry"), &[], Value::Null).await;
    assert_eq!(error_of(&parked).0, "PRECONDITION_FAILED");
    let (_, job) = ask(&api, "POST", &format!("{path}/cancel"), &[], json!({ "reason": "changed my mind" })).await;
    assert_eq!((&job["state"], &job["reason"]), (&json!("cancelled"), &json!("changed my mind")));
    let here = json!({ "vmID": "vm-1-1-1", "targetClusterID": "eu/eu-a", "sourceClusterID": "eu/eu-a" });
    assert_eq!(error_of(&ask(&api, "POST", "/v2/migration-plans", &[], here).await).0, "INVALID_ARGUMENT");
}

#[tokio::test]
async fn a_stream_can_not_be_forwarded_and_becomes_a_list() {
    let (_, eu_api, us, us_api) = pair();
    ask(&us_api, "POST", "/v2/vms", &[], vm_body("web")).await;
    let plan = json!({ "vmID": "vm-2-1-1", "targetClusterID": "eu/eu-a" });
    ask(&us_api, "POST", "/v2/migration-plans", &[], plan).await;
    ask(&us_api, "POST", "/v2/migrations", &[], json!({ "planID": "plan-2-1-1" })).await;
    us.set_job_state("job-2-1-1".parse().unwrap(), JobState::Completed);
    let (status, list) = ask(&eu_api, "GET", "/v2/migrations/job-2-1-1/events?watch=true", &[], Value::Null).await;
    assert_eq!((status, list["items"].as_array().unwrap().len()), (200, 1), "{list}");
}

#[tokio::test]
async fn a_fault_is_injected_listed_and_ended_with_its_reason_in_the_audit() {
    let region = fake("eu");
    let api = api(&region);
    let path = "/v2/chaos/faults";
    let body = json!({ "kind": "cut", "parameters": { "peer": "us" }, "durationMs": 5_000, "reason": "a game day" });
    let (status, dry) = ask(&api, "POST", "/v2/chaos/faults?dryRun=true", &[], body.clone()).await;
    assert_eq!((status, &dry["state"]), (200, &json!("planned")));
    let key = [("idempotency-key", "k")];
    let (status, made) = ask(&api, "POST", path, &key, body.clone()).await;
    assert_eq!(
        (status, &made["kind"], &made["parameters"]["direction"]),
        (201, &json!("cut"), &json!("both")),
        "{made}"
    );
    assert_eq!(ask(&api, "POST", path, &key, body.clone()).await.1, made, "the same key, the same fault");
    let mut other = body.clone();
    other["durationMs"] = json!(6_000);
    assert_eq!(error_of(&ask(&api, "POST", path, &key, other).await).0, "CONFLICT");
    let (_, list) = ask(&api, "GET", path, &[], Value::Null).await;
    assert_eq!((list["active"].as_array().unwrap().len(), &list["ended"]), (1, &json!([])));
    let one = format!("{path}/{}", made["id"].as_str().unwrap());
    let (status, over) = ask(&api, "DELETE", &one, &[], Value::Null).await;
    assert_eq!((status, &over["state"]), (200, &json!("ended")));
    assert_eq!(error_of(&ask(&api, "DELETE", "/v2/chaos/faults/fault-1-1-9", &[], Value::Null).await).0, "NOT_FOUND");
    let records = region.audit_records();
    assert_eq!(records.len(), 6);
    assert_eq!((records[0].dry_run, records[0].reason.as_deref()), (true, Some("a game day")));
    assert_eq!((records[4].method.as_str(), records[4].path.as_str()), ("DELETE", one.as_str()));
}

#[tokio::test]
async fn a_fault_that_makes_no_sense_is_refused_with_its_field_and_what_would_do() {
    let api = api(&fake("eu"));
    let good = json!({ "kind": "cut", "parameters": { "peer": "us" }, "durationMs": 5_000, "reason": "why not" });
    let with = |field: &str, value: Value| {
        let mut body = good.clone();
        match value {
            Value::Null => drop(body.as_object_mut().unwrap().remove(field)),
            value => body[field] = value,
        }
        body
    };
    for (body, part) in [
        (with("kind", json!("cutt")), "did you mean 'cut'?"),
        (with("kind", json!("earthquake")), "slow-store"),
        (with("kind", Value::Null), "kind: it is missing"),
        (with("durationMs", Value::Null), "durationMs: a fault 'cut' needs a time"),
        (with("durationMs", json!(0)), "durationMs: a fault 'cut' needs a time"),
        (with("reason", json!(" ")), "reason: say why"),
        (with("reason", json!("x".repeat(501))), "reason: say why"),
        (with("reson", json!("x")), "did you mean 'reason'?"),
        (with("parameters", json!({ "peer": "us", "dirction": "in" })), "did you mean 'direction'?"),
        (with("parameters", json!({ "peer": "us", "direction": "up" })), "`both`, `out`, `in`"),
        (with("parameters", Value::Null), "missing field `peer`"),
        (with("parameters", json!({ "peer": "U S" })), "'U S' is not a name"),
    ] {
        let (code, message, hint, _) = error_of(&ask(&api, "POST", "/v2/chaos/faults", &[], body.clone()).await);
        assert!(code == "INVALID_ARGUMENT" && format!("{message} {hint}").contains(part), "{body}: {message}: {hint}");
    }
    // What is done at once needs no time.
    let kill = json!({ "kind": "kill", "reason": "why not" });
    assert_eq!(ask(&api, "POST", "/v2/chaos/faults", &[], kill).await.0, 201);
}

#[tokio::test]
async fn another_region_injects_nothing_here() {
    let (_, eu_api, us, _) = pair();
    let body = json!({ "kind": "kill", "reason": "why not" }).to_string();
    let asked = asked("POST", "/v2/chaos/faults", &[], body.as_bytes());
    let via = novafed::admin::Caller { via: Some("us".parse().unwrap()), ..asked.caller.clone() };
    let reply = eu_api.dispatch(Forwarded { caller: via, ..asked }).await;
    assert_eq!(error_of(&(reply.status, serde_json::from_slice(&reply.body).unwrap())).0, "PERMISSION_DENIED");
    assert!(us.seen.lock().unwrap().is_empty());
}

#[tokio::test]
async fn the_rest_of_what_can_be_read_answers() {
    let api = api(&fake("eu"));
    for path in [
        "/livez",
        "/readyz",
        "/v2/federation/status",
        "/v2/clusters",
        "/v2/clusters/eu-a",
        "/v2/inventory",
        "/v2/links",
        "/v2/migrations",
        "/v2/chaos/faults",
        "/v2/events",
        "/v2/operations",
        "/v2/tree",
        "/v2/store",
        "/v2/openapi.json",
    ] {
        let (status, document) = ask(&api, "GET", path, &[], Value::Null).await;
        assert!(status == 200 && document.is_object(), "{path}: {status} {document}");
    }
    let metrics = api.dispatch(asked("GET", "/v2/metrics", &[], b"")).await;
    assert_eq!(metrics.body, b"# nothing\n");
}

#[tokio::test]
async fn a_deadline_out_of_range_is_refused() {
    let api = api(&fake("eu"));
    let request = Forwarded { deadline: Millis(0), ..asked("GET", "/v2/vms", &[], b"") };
    assert_eq!(api.dispatch(request).await.status, 400);
}
