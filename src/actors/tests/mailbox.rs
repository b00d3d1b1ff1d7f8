//! Who is admitted, in which order messages are handled, and what becomes of calls.

use super::super::{CallError, SendError, with_trace};
use super::*;

const SOON: Millis = Millis(1_000);

#[tokio::test(start_paused = true)]
async fn a_full_class_answers_busy_and_a_higher_class_still_gets_through_first() {
    let stage = Stage::new(Strategy::OneForOne).await;
    let handle = stage.add("a").await;
    handle.cast(Class::Control, Tell::Sleep(SOON)).expect("it is taken");
    tokio::time::sleep(Millis(100).duration()).await;
    for _ in 0..8 {
        handle.cast(Class::Telemetry, Tell::Note("telemetry")).expect("there is room");
    }
    let refused = handle.cast(Class::Telemetry, Tell::Note("telemetry"));
    assert!(matches!(refused, Err(SendError::Busy { retry_after_ms: 5..=1_000 })), "{refused:?}");
    let refused: Result<u64, _> = handle.call(Class::Telemetry, SOON, Tell::Incarnation).await;
    assert!(matches!(refused, Err(CallError::Busy { .. })), "{refused:?}");
    handle.cast(Class::Control, Tell::Note("control")).expect("its class has room");
    handle.cast(Class::Fencing, Tell::Note("fencing")).expect("its class has room");
    assert_eq!(handle.load().queued, 11);
    assert_eq!(handle.load().counts.refused, 2);
    tokio::time::sleep(SOON.duration()).await;
    assert_eq!(stage.log.all()[1..4], ["fencing", "control", "telemetry"]);
    assert_eq!(handle.load().queued, 0);
    handle.cast(Class::Telemetry, Tell::Note("telemetry")).expect("there is room again");
}

#[tokio::test(start_paused = true)]
async fn an_expired_message_is_not_executed() {
    let stage = Stage::new(Strategy::OneForOne).await;
    let handle = stage.add("a").await;
    handle.cast(Class::Control, Tell::Sleep(SOON)).expect("it is taken");
    handle.cast_within(Class::Control, Millis(500), Tell::Note("expired")).expect("it is taken");
    handle.cast_within(Class::Control, Millis(5_000), Tell::Note("in time")).expect("it is taken");
    let before = stage.clock.now();
    let late: Result<u64, _> = handle.call(Class::Control, Millis(500), Tell::Incarnation).await;
    assert_eq!(late, Err(CallError::Deadline));
    assert_eq!(stage.clock.now().since(before), Millis(500));
    tokio::time::sleep(SOON.duration()).await;
    assert_eq!(stage.log.all(), ["start a 1", "in time"]);
    assert_eq!(handle.load().counts.expired, 2);
}

#[tokio::test(start_paused = true)]
async fn a_late_answer_of_a_dead_life_is_dropped() {
    let stage = Stage::new(Strategy::OneForOne).await;
    let handle = stage.add("a").await;
    let asked = tokio::spawn({
        let handle = handle.clone();
        async move { handle.call(Class::Control, Millis(60_000), |reply| Tell::AnswerLate(Millis(5_000), reply)).await }
    });
    tokio::time::sleep(Millis(10).duration()).await;
    handle.cast(Class::Control, Tell::Panic).expect("it is taken");
    tokio::time::sleep(Millis(10).duration()).await;
    stage.until_running("a").await;
    assert_eq!(asked.await.expect("it does not panic"), Err(CallError::Gone));
    assert_eq!(stage.log.count("late answer delivered: false"), 1);
    let answer: Result<u64, _> = handle.call(Class::Control, SOON, Tell::Incarnation).await;
    assert_eq!(answer, Ok(2));
}

#[tokio::test(start_paused = true)]
async fn what_waited_in_a_dead_life_is_gone_at_once() {
    let stage = Stage::new(Strategy::OneForOne).await;
    let handle = stage.add("a").await;
    handle.cast(Class::Control, Tell::Panic).expect("it is taken");
    let before = stage.clock.now();
    let answer: Result<u64, _> = handle.call(Class::Control, Millis(60_000), Tell::Incarnation).await;
    assert_eq!(answer, Err(CallError::Gone));
    assert!(stage.clock.now().since(before) < SOON);
}

#[tokio::test(start_paused = true)]
async fn timers_end_with_their_life() {
    let stage = Stage::new(Strategy::OneForOne).await;
    let handle = stage.add("a").await;
    handle.cast(Class::Control, Tell::Remind(Millis(100), "first")).expect("it is taken");
    handle.cast(Class::Control, Tell::Remind(Millis(2_000), "second")).expect("it is taken");
    tokio::time::sleep(SOON.duration()).await;
    handle.cast(Class::Control, Tell::Panic).expect("it is taken");
    tokio::time::sleep(Millis(10_000).duration()).await;
    assert_eq!(stage.log.all(), ["start a 1", "first", "drop a", "start a 2"]);
}

#[tokio::test(start_paused = true)]
async fn a_trace_goes_along_with_messages() {
    let stage = Stage::new(Strategy::OneForOne).await;
    let handle = stage.add("a").await;
    let trace: Result<u128, _> = with_trace(42, handle.call(Class::Control, SOON, Tell::Trace)).await;
    assert_eq!(trace, Ok(42));
    assert_eq!(handle.call(Class::Control, SOON, Tell::Trace).await, Ok(0));
}
