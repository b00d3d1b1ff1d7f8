//! What is active when, by table; that no order of requests and looks makes a fault last too long, by chance.

use proptest::prelude::*;

use super::*;
use crate::types::*;

fn id(number: u64) -> FaultId {
    FaultId { region: RegionNumber(1), incarnation: 1, number }
}

fn us() -> RegionName {
    "us".parse().unwrap()
}

fn cut(direction: Direction) -> FaultSpec {
    FaultSpec::Cut(CutParameters { peer: us(), direction })
}

fn slow(ms: u64) -> FaultSpec {
    FaultSpec::SlowStore(SlowStoreParameters { delay_ms: Millis(ms) })
}

fn board() -> Board<()> {
    Board::new(Millis(1_000))
}

fn begin(board: &mut Board<()>, number: u64, spec: FaultSpec, now: u64, ms: u64) {
    board.begin((id(number), spec, None), Tick(now), Some(Millis(ms)), ()).unwrap();
}

#[test]
fn a_fault_is_active_from_its_beginning_to_its_end_and_not_at_it() {
    let mut board = board();
    begin(&mut board, 1, cut(Direction::Both), 100, 50);
    for (now, active) in [(100, true), (149, true), (150, false), (10_000, false)] {
        assert_eq!(board.is_apart(&us(), Tick(now)), active, "at {now}");
        assert_eq!(board.active(Tick(now)).count(), usize::from(active), "at {now}");
    }
    assert_eq!(board.due(Tick(149)), []);
    assert_eq!(board.due(Tick(150)), [id(1)]);
    assert_eq!(board.next_end(), Some(Tick(150)));
    // Looked at late, it ended when it should.
    assert_eq!(board.end(id(1), Tick(900), "its time is over").unwrap().at, Tick(150));
    assert_eq!((board.due(Tick(900)), board.next_end()), (vec![], None));
    assert!(board.end(id(1), Tick(900), "again").is_none());
}

#[test]
fn one_way_is_not_the_other_and_two_one_ways_are_both() {
    let mut board = board();
    begin(&mut board, 1, cut(Direction::Out), 0, 100);
    let cut_ways = |board: &Board<()>| [Toward::Out, Toward::In].map(|t| board.way(&us(), t, Tick(1)).cut);
    assert_eq!((cut_ways(&board), board.is_apart(&us(), Tick(1))), ([true, false], false));
    begin(&mut board, 2, cut(Direction::In), 0, 100);
    assert_eq!((cut_ways(&board), board.is_apart(&us(), Tick(1))), ([true, true], true));
    assert!(!board.is_apart(&"ap".parse().unwrap(), Tick(1)), "another peer is not meant");
}

#[test]
fn of_several_the_worst_counts() {
    let mut board = board();
    let delay = |ms, jitter| {
        let (delay_ms, jitter_ms) = (Millis(ms), Millis(jitter));
        FaultSpec::Delay(DelayParameters { peer: us(), delay_ms, jitter_ms, direction: Direction::Out })
    };
    let narrow = |bytes_per_second| {
        FaultSpec::Narrow(NarrowParameters { peer: us(), bytes_per_second, direction: Direction::Both })
    };
    let lose = |permille| FaultSpec::Lose(LoseParameters { peer: us(), permille, direction: Direction::In });
    let all = [delay(10, 7), delay(30, 2), narrow(500), narrow(200), lose(3), lose(9), slow(40), slow(5)];
    for (number, spec) in (1..).zip(all) {
        begin(&mut board, number, spec, 0, 100);
    }
    let out = board.way(&us(), Toward::Out, Tick(0));
    let wanted = Way { delay: Millis(30), jitter: Millis(7), bytes_per_second: Some(200), ..Way::default() };
    assert_eq!(out, wanted);
    let back = board.way(&us(), Toward::In, Tick(0));
    assert_eq!(back, Way { lose_permille: 9, bytes_per_second: Some(200), ..Way::default() });
    assert_eq!(board.commit_delay(Tick(0)), Millis(40));
    board.end(id(7), Tick(1), "stopped");
    assert_eq!(board.commit_delay(Tick(1)), Millis(5));
}

#[test]
fn what_may_not_begin_is_told_why() {
    let mut board = board();
    let refused = |board: &Board<()>, spec: &FaultSpec, takes, ms: Option<u64>| {
        board.may_begin(spec, takes, Tick(0), ms.map(Millis)).unwrap_err()
    };
    assert_eq!(
        refused(&board, &slow(1), None, Some(1_001)),
        Refusal::TooLong { asked: Millis(1_001), most: Millis(1_000) }
    );
    assert_eq!(refused(&board, &slow(1), None, None), Refusal::NoTime);
    assert_eq!(refused(&board, &slow(1), None, Some(0)), Refusal::NoTime);
    board.begin((id(1), slow(1), Some("kill".into())), Tick(0), Some(Millis(10)), ()).unwrap();
    assert_eq!(refused(&board, &slow(1), Some("kill"), Some(10)), Refusal::Taken(id(1)));
    // Over its time it has nothing any more, even if nobody has looked.
    board.may_begin(&slow(1), Some("kill"), Tick(10), Some(Millis(10))).unwrap();
    for number in 2..=CHAOS_FAULTS_MAX as u64 {
        begin(&mut board, number, slow(1), 0, 1_000);
    }
    assert_eq!(refused(&board, &slow(1), None, Some(10)), Refusal::Full);
}

#[test]
fn what_does_not_last_needs_no_time_and_has_no_effect_on_what_does() {
    let mut board = board();
    let crash = FaultSpec::Crash(CrashParameters { actor: "links/link-us".into() });
    board.begin((id(1), crash, None), Tick(5), None, ()).unwrap();
    assert_eq!((board.active(Tick(5)).count(), board.next_end(), board.due(Tick(9))), (0, None, vec![]));
    assert_eq!(board.end(id(1), Tick(6), "it is done").unwrap().at, Tick(5));
    let kill = FaultSpec::Kill(KillParameters { at: Some("hold:source:before-write".into()) });
    board.begin((id(2), kill, None), Tick(5), Some(Millis(10)), ()).unwrap();
    assert_eq!(board.kill_point(Tick(14)), Some("hold:source:before-write"));
    assert_eq!(board.kill_point(Tick(15)), None);
}

proptest! {
    #[test]
    fn no_fault_is_active_longer_than_it_may_be_nor_longer_than_asked(
        most in 1u64..5_000,
        asked in proptest::collection::vec((0u64..10_000, 0u64..10_000), 1..40),
        looks in proptest::collection::vec(0u64..30_000, 1..40),
    ) {
        let mut board: Board<()> = Board::new(Millis(most));
        let mut asked: Vec<_> = asked;
        asked.sort_unstable();
        for (number, (now, ms)) in (1..).zip(asked) {
            // Nobody clears the board in between but what is due: as the shell does it, only later.
            for over in board.due(Tick(now)) {
                board.end(over, Tick(now), "its time is over");
            }
            let begun = board.begin((id(number), slow(number), None), Tick(now), Some(Millis(ms)), ());
            prop_assert_eq!(begun.is_ok(), (1..=most).contains(&ms) && board.active(Tick(now)).count() <= CHAOS_FAULTS_MAX
                && begun != Err(Refusal::Full));
            prop_assert!(board.active(Tick(now)).count() <= CHAOS_FAULTS_MAX);
        }
        for look in looks {
            for entry in board.active(Tick(look)) {
                prop_assert!(look < entry.began.0 + most, "{:?} is active at {}", entry, look);
                prop_assert!(look < entry.ends.0);
            }
            let delay = board.active(Tick(look)).map(|entry| entry.id.number).max().unwrap_or(0);
            prop_assert_eq!(board.commit_delay(Tick(look)), Millis(delay));
        }
        for gone in board.ended() {
            prop_assert!(gone.at.0 <= gone.entry.began.0 + most);
        }
    }
}
