//! The fault catalogue: what is to be survived, and how each row stands. Owns: the rows, the invariants, which tests
//! look after them, and what is open.
//! Always: which kinds inject a row is asked of the kinds themselves; a test that is named exists; what exists and is
//! not tried stands here as missing, what can't be tried yet says what it waits for.
//! Not here: the kinds (`sim/faults.rs`), the checks (`invariants.rs`). `docs/chaos.md` has the same rows.

use std::fmt::{self, Write as _};

use super::invariants as names;
use super::sim::faults::Kind;

/// What rows have in common.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Family {
    /// Rows 1 to 14.
    Processes,
    /// Rows 15 to 25.
    Storage,
    /// Rows 26 to 37.
    Network,
    /// Rows 38 to 41.
    Time,
    /// Rows 42 to 51.
    Peers,
    /// Rows 52 to 64.
    Federation,
}

impl Family {
    /// All of them, in order.
    pub const ALL: [Family; 6] =
        [Family::Processes, Family::Storage, Family::Network, Family::Time, Family::Peers, Family::Federation];

    /// Of the row with this number.
    pub const fn of(number: u8) -> Family {
        match number {
            0..=14 => Family::Processes,
            15..=25 => Family::Storage,
            26..=37 => Family::Network,
            38..=41 => Family::Time,
            42..=51 => Family::Peers,
            _ => Family::Federation,
        }
    }

    /// Its name.
    pub const fn name(self) -> &'static str {
        match self {
            Family::Processes => "Processes and actors",
            Family::Storage => "Storage",
            Family::Network => "Network",
            Family::Time => "Time",
            Family::Peers => "Identity and hostile peers",
            Family::Federation => "Federation and hosts",
        }
    }
}

/// One way in which a row stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Stands {
    /// Simulations inject it, by these kinds.
    Simulated(Vec<Kind>),
    /// Every run looks at it, under these names.
    Checked(&'static [&'static str]),
    /// Real processes meet it, in these tests.
    Processes(&'static [&'static str]),
    /// These tests try it on the part that it concerns.
    Unit(&'static [&'static str]),
    /// It, or the rest of it, can't be tried before something else is there.
    Pending {
        /// What.
        waits_for: &'static str,
    },
    /// What it concerns is there, and it, or the rest of it, is not tried.
    Missing {
        /// What exactly.
        why: &'static str,
    },
}

impl fmt::Display for Stands {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let list = |f: &mut fmt::Formatter<'_>, names: &[&str]| {
            let quoted: Vec<String> = names.iter().map(|name| format!("`{name}`")).collect();
            f.write_str(&quoted.join(", "))
        };
        match self {
            Stands::Simulated(kinds) => {
                f.write_str("simulated: ")?;
                list(f, &kinds.iter().map(|kind| kind.name()).collect::<Vec<_>>())
            }
            Stands::Checked(names) => {
                f.write_str("checked: ")?;
                list(f, names)
            }
            Stands::Processes(tests) => {
                f.write_str("processes: ")?;
                list(f, tests)
            }
            Stands::Unit(tests) => {
                f.write_str("tests: ")?;
                list(f, tests)
            }
            Stands::Pending { waits_for } => write!(f, "**waits for** {waits_for}"),
            Stands::Missing { why } => write!(f, "**missing:** {why}"),
        }
    }
}

/// What is known of a row or of an invariant beside what the simulation says.
#[derive(Debug, Clone, Copy)]
struct Beside {
    checked: &'static [&'static str],
    processes: &'static [&'static str],
    unit: &'static [&'static str],
    pending: Option<&'static str>,
    missing: Option<&'static str>,
}

const NOTHING: Beside = Beside { checked: &[], processes: &[], unit: &[], pending: None, missing: None };

impl Beside {
    fn stands(&self) -> Vec<Stands> {
        let mut found = Vec::new();
        if !self.checked.is_empty() {
            found.push(Stands::Checked(self.checked));
        }
        if !self.processes.is_empty() {
            found.push(Stands::Processes(self.processes));
        }
        if !self.unit.is_empty() {
            found.push(Stands::Unit(self.unit));
        }
        found.extend(self.pending.map(|waits_for| Stands::Pending { waits_for }));
        found.extend(self.missing.map(|why| Stands::Missing { why }));
        found
    }
}

/// A fault.
#[derive(Debug, Clone, Copy)]
pub struct Row {
    /// Its number.
    pub number: u8,
    /// Its name.
    pub name: &'static str,
    beside: Beside,
}

impl Row {
    /// The kinds of the simulation that inject it.
    pub fn kinds(&self) -> Vec<Kind> {
        Kind::ALL.into_iter().filter(|kind| kind.rows().contains(&self.number)).collect()
    }

    /// How it stands: what looks after it, then what is open of it.
    pub fn stands(&self) -> Vec<Stands> {
        let kinds = self.kinds();
        let simulated = (!kinds.is_empty()).then_some(Stands::Simulated(kinds));
        simulated.into_iter().chain(self.beside.stands()).collect()
    }
}

/// An invariant.
#[derive(Debug, Clone, Copy)]
pub struct Promise {
    /// Its number: I1, I2 and so on.
    pub number: u8,
    /// What it says.
    pub says: &'static str,
    beside: Beside,
}

impl Promise {
    /// How it stands.
    pub fn stands(&self) -> Vec<Stands> {
        self.beside.stands()
    }
}

macro_rules! rows {
    ($($number:literal $name:literal $({ $($field:ident: $value:expr),* $(,)? })?;)*) => {
        &[$(Row { number: $number, name: $name, beside: Beside { $($($field: $value,)*)? ..NOTHING } }),*]
    };
}

/// The rows.
#[rustfmt::skip]
pub const ROWS: &[Row] = rows! {
    1 "a node dies at any boundary of any step, on either side" {
        processes: &["a_node_that_dies_at_any_boundary_comes_back_and_the_move_completes"],
        unit: &["a_death_at_each_point_of_the_way_forward_ends_as_its_row_promises"],
    };
    2 "both sides die together; one dies again while it recovers" {
        unit: &["any_two_deaths_end_as_promised", "a_crash_while_recovering_from_a_crash_changes_nothing"],
    };
    3 "all regions lose their power at once";
    4 "a process stands still for a while and then goes on" {
        unit: &["a_process_that_stands_still_for_a_moment_keeps_its_links_and_one_that_sleeps_long_gets_them_back"],
        processes: &["a_short_run_holds_under_many_kinds_of_faults_and_leaves_nothing_behind"],
        missing: Some("nobody stands still for longer than a minute"),
    };
    5 "the leader dies or steps down in the middle of a command" {
        pending: Some("consensus"),
    };
    6 "for a minute, some of all messages make their actor panic" {
        unit: &["no_child_ever_has_two_lives_at_once_on_many_threads"],
    };
    7 "a part of the tree of actors uses up its restarts" {
        unit: &["an_exhausted_budget_escalates_exactly_one_level", "a_root_that_gives_up_says_why",
                "a_child_that_fails_at_once_does_exhaust_its_budget"],
        missing: Some("no test sees the exit code of a node whose root gave up"),
    };
    8 "a panic at a start, in a handler, in a task, in a drop or in a supervisor" {
        unit: &["a_crash_is_a_restart_after_a_pause_and_the_handle_finds_the_new_life",
                "no_child_ever_has_two_lives_at_once_on_many_threads"],
        missing: Some("no supervisor panics, and no actor does at its start or in its drop"),
    };
    9 "a hundred times more requests than are answered" {
        unit: &["a_full_class_answers_busy_and_a_higher_class_still_gets_through_first",
                "requests_beyond_the_limit_are_answered_busy", "a_full_queue_answers_busy_at_once"],
    };
    10 "a message that kills whoever handles it, each time" {
        unit: &["progress_forgives_crashes_and_poison_is_parked_at_once",
                "a_job_that_crashes_again_and_again_is_parked_even_over_a_restart_of_the_process"],
    };
    11 "an actor that never returns" {
        unit: &["a_start_that_hangs_is_given_up_and_a_stop_cuts_it",
                "a_child_that_does_not_stop_is_killed_at_its_deadline",
                "the_tree_shows_what_waits_and_what_hangs"],
        missing: Some("one that hangs at work is shown, and nobody restarts it"),
    };
    12 "no files, tasks or threads are left to open" {
        missing: Some("no node runs with a limit on open files or threads"),
    };
    13 "the machine is out of memory" {
        missing: Some("no node runs with a limit on memory; being killed for it is row 1"),
    };
    14 "a node that is many times slower than the others" {
        pending: Some("consensus, for changes of leader that slowness must not cause"),
        missing: Some("disks are slowed and processors are not"),
    };
    15 "of writes that were not synced, any part is on the disk" {
        unit: &["a_crash_at_every_write_and_sync_keeps_what_was_acknowledged", "a_crash_keeps_the_chosen_sectors"],
    };
    16 "writes that were not synced reach the disk in another order" {
        unit: &["a_crash_at_every_write_and_sync_keeps_what_was_acknowledged"],
    };
    17 "a sync fails once, and the next says that all is well" {
        unit: &["a_failed_sync_is_never_repeated_and_acknowledges_nothing",
                "what_a_failed_sync_gave_up_no_later_sync_saves"],
    };
    18 "the disk is full, at any write" {
        unit: &["a_full_disk_stops_the_store_and_a_restart_goes_on",
                "below_the_reserve_new_work_is_refused_and_running_work_ends"],
        processes: &["a_short_run_holds_under_many_kinds_of_faults_and_leaves_nothing_behind"],
    };
    19 "each sync takes a second" {
        unit: &["while_one_group_is_written_the_next_gathers_and_reads_go_on"],
        missing: Some("it is survived, and no status says that a disk is slow"),
    };
    20 "a bit of a stored page flips" {
        unit: &["a_flipped_bit_in_a_page_of_any_type_is_found_or_harmless",
                "a_flipped_bit_in_the_header_is_found_or_harmless",
                "every_flipped_bit_and_every_cut_of_a_sealed_value_is_refused"],
    };
    21 "the store's file is cut off, empty or gone" {
        unit: &["a_truncated_file_is_refused_or_whole", "a_region_that_lost_its_state_is_not_started_empty"],
    };
    22 "an older copy of the store is put in its place" {
        processes: &["an_older_copy_is_refused_by_its_host_for_ever_and_the_latest_is_not",
                     "a_whole_node_from_an_older_copy_is_shut_out_by_its_peers_and_says_so"],
        unit: &["a_copy_that_is_started_again_and_again_is_never_accepted_by_its_peers"],
    };
    23 "two processes open one directory" {
        processes: &["a_second_process_does_not_serve_the_same_directory_and_garbage_ends_only_its_connection"],
        unit: &["a_second_process_is_told_who_has_the_state"],
    };
    24 "a read or a write fails once, and the process would like to go on" {
        unit: &["a_full_disk_stops_the_store_and_a_restart_goes_on"],
    };
    25 "a record that a later version wrote" {
        unit: &["a_value_of_a_newer_version_is_refused_and_left_as_it_is", "a_newer_version_is_refused_by_name"],
    };
    26 "the federation is cut in two, or one region is cut off, for seconds or hours" {
        unit: &["a_partition_is_noticed_and_healed_within_the_limits",
                "a_region_that_is_cut_off_is_nothing_to_the_others"],
        pending: Some("consensus and quota, for what a minority may do on its own"),
    };
    27 "one way of a link is lost, the other is not" {
        unit: &["a_link_that_is_cut_one_way_is_noticed_at_both_ends",
                "a_one_way_cut_leaves_an_outcome_unknown_and_is_noticed_at_both_ends"],
        pending: Some("consensus, for elections that this must not cause"),
    };
    28 "two regions can't reach each other, and a third reaches both" {
        pending: Some("consensus, for progress by way of a majority"),
    };
    29 "a link comes and goes every few seconds" {
        unit: &["a_flapping_link_is_not_redialled_in_a_storm", "a_flapping_path_is_not_redialled_in_a_storm"],
    };
    30 "messages take a third of a second, or two seconds" {
        unit: &["a_request_takes_the_time_of_both_ways"],
        pending: Some("consensus, for elections that this must not cause"),
    };
    31 "a tenth or a third of all datagrams is lost, or all for three seconds" {
        unit: &["a_burst_of_loss_that_is_shorter_than_the_idle_time_breaks_nothing",
                "a_link_works_through_a_bad_relay_and_nothing_of_it_shows"],
    };
    32 "datagrams change their order, come twice or come damaged" {
        unit: &["each_reply_is_right_on_a_path_that_loses_reorders_duplicates_and_corrupts",
                "a_link_works_through_a_bad_relay_and_nothing_of_it_shows"],
    };
    33 "a command is sent again because its reply was lost" {
        unit: &["a_repeated_command_has_no_second_effect_also_after_the_pruning",
                "a_client_asks_again_with_its_key_after_a_lost_reply",
                "a_command_with_a_key_is_done_once_however_often_it_is_given"],
    };
    34 "a peer is gone without a word, or has another address" {
        unit: &["a_nat_that_forgets_does_not_break_the_link", "a_peer_that_moved_is_found_at_its_new_address",
                "a_restarted_peer_takes_over_from_its_former_life_at_once",
                "thirty_cuts_over_quic_through_the_relay_lose_at_most_a_block_each"],
    };
    35 "a path is much narrower than what is copied over it" {
        unit: &["a_heartbeat_is_not_delayed_by_bulk",
                "a_full_slow_path_delays_neither_heartbeats_nor_requests_beyond_their_deadlines"],
    };
    36 "long datagrams vanish" {
        unit: &["a_path_that_begins_to_swallow_long_datagrams_still_carries"],
    };
    37 "all peers connect at once when a cut is over" {
        unit: &["a_flood_of_handshakes_is_answered_with_retry_and_good_peers_still_get_in"],
    };
    38 "a wall clock is set by an hour, a day or ten years" {
        pending: Some("consensus, for leases that this must not touch"),
        missing: Some("no real node's clock is set"),
    };
    39 "a clock goes too fast or too slow, or trembles" {
        pending: Some("consensus, for leases and the drift that they allow"),
        missing: Some("simulated clocks jump and do not drift, so a host's watchdog and its node agree on a second"),
    };
    40 "a machine is suspended and resumed" {
        unit: &["a_process_that_stands_still_for_a_moment_keeps_its_links_and_one_that_sleeps_long_gets_them_back"],
    };
    41 "certificates are not valid yet by a clock that is wrong" {
        unit: &["every_wrong_certificate_is_refused_by_name_and_the_node_goes_on"],
    };
    42 "a certificate ends, or is renewed, under a living connection" {
        unit: &["a_connection_ends_with_its_certificates",
                "a_renewed_leaf_takes_over_without_a_dropped_request_or_stream",
                "renewed_leaves_move_all_links_over_without_a_break"],
        pending: Some("identity, for two authorities that overlap"),
    };
    43 "a peer or a token is revoked, open streams too" {
        unit: &["revoking_a_region_closes_its_open_connections_at_once",
                "a_region_that_is_revoked_is_cut_off_at_once_and_may_come_back"],
        pending: Some("identity, for tokens"),
    };
    44 "somebody with the wrong certificate says that it is a region" {
        unit: &["every_wrong_certificate_is_refused_by_name_and_the_node_goes_on",
                "no_certificate_no_protocol_and_wrong_names_are_refused",
                "a_dialler_believes_only_the_region_that_it_dialled"],
    };
    45 "a token to join is used twice, too late or elsewhere" {
        pending: Some("membership: peers stand in the configuration"),
    };
    46 "versions that differ, or that somebody pushes down" {
        unit: &["a_version_that_is_not_spoken_or_below_the_floor_is_refused",
                "unknown_kinds_get_a_typed_refusal_and_truncated_messages_are_not_acted_on",
                "what_a_later_revision_appends_to_the_head_is_skipped"],
        pending: Some("a second release, to run beside the first"),
    };
    47 "frames that are malformed, cut off or far too long" {
        unit: &["garbage_and_oversize_frames_close_the_connection_and_are_counted",
                "any_bytes_decode_or_are_refused", "mutated_heads_decode_to_something_valid_or_are_refused"],
    };
    48 "floods of connections and handshakes, streams that drip, peers that never read" {
        unit: &["a_flood_of_handshakes_is_answered_with_retry_and_good_peers_still_get_in",
                "a_peer_that_connects_again_and_again_keeps_few_connections",
                "more_streams_than_allowed_can_not_be_opened", "a_stream_that_drips_is_given_up",
                "a_peer_that_never_reads_holds_a_bounded_amount"],
    };
    49 "early data is sent again" {
        missing: Some("early data and tickets are switched off, and no test tries to use them"),
    };
    50 "the admin socket: wrong users, planted files, garbage, ten thousand connections" {
        processes: &["another_user_is_refused_by_the_modes_and_behind_them_by_name"],
        unit: &["what_was_planted_in_its_place_is_refused_and_never_followed_or_touched",
                "garbage_heads_of_any_size_and_cut_requests_leave_the_server_standing",
                "connections_beyond_the_limit_are_told_so_and_ten_thousand_leave_the_server_standing"],
    };
    51 "a region lies about what others own" {
        unit: &["the_sender_in_a_hello_or_frame_is_not_believed_against_the_certificate"],
        missing: Some("no peer with a good certificate claims the VMs or the epochs of others"),
    };
    52 "both sides of a cut spend one quota" {
        pending: Some("quota"),
    };
    53 "a transfer of quota is lost, doubled or cut in the middle" {
        pending: Some("quota"),
    };
    54 "the source is cut off after the decision, and lives" {
        unit: &["the_ways_to_break_the_switch_are_refused", "no_world_breaks_the_law_and_each_has_a_way_out",
                "a_start_before_the_decision_is_found_by_the_same_walk"],
    };
    55 "the target's room is taken between plan and start" {
        unit: &["a_cluster_takes_no_more_than_it_has", "a_promise_is_counted_once_and_given_back_once",
                "a_failure_at_each_step_ends_as_its_line_says"],
    };
    56 "a host refuses, hangs, dies, forgets, or does what it says it did not" {
        processes: &["a_host_that_dies_in_the_middle_of_a_copy_has_an_honest_end",
                     "a_memory_that_is_lost_after_the_decision_waits_for_a_persons_word",
                     "a_killed_host_reports_its_guests_lost_and_restarts_them_from_their_disks",
                     "planned_faults_strike_as_often_as_planned"],
    };
    57 "an update of DNS fails half way, or is applied late" {
        pending: Some("DNS"),
    };
    58 "a cluster with VMs is taken out, or comes back as another" {
        processes: &["vms_of_a_region_that_is_away_are_said_to_be_missing_and_ones_of_an_unnamed_cluster_unserved"],
        pending: Some("membership: clusters stand in the configuration"),
    };
    59 "several people change one VM at once" {
        unit: &["a_change_of_an_old_version_is_refused",
                "of_competing_decisions_the_first_recorded_wins_and_all_hear_of_it"],
    };
    60 "the coordinator changes in the middle of a job" {
        pending: Some("consensus: the owner of a VM coordinates its moves"),
    };
    61 "members change during a cut, and one that was removed comes back" {
        pending: Some("consensus and membership"),
    };
    62 "a snapshot is cut in the middle, a follower is too slow for the log" {
        pending: Some("consensus"),
    };
    63 "a region is gone for ever" {
        pending: Some("membership: a region can't be declared lost"),
    };
    64 "millions of finished jobs and records of the audit" {
        unit: &["the_newest_of_a_kind_are_kept_and_each_older_one_is_told_once"],
        missing: Some("no load of that size; how many are kept is bounded"),
    };
};

macro_rules! promises {
    ($($number:literal $says:literal { $($field:ident: $value:expr),* $(,)? };)*) => {
        &[$(Promise { number: $number, says: $says, beside: Beside { $($field: $value,)* ..NOTHING } }),*]
    };
}

/// The invariants.
#[rustfmt::skip]
pub const PROMISES: &[Promise] = promises! {
    1 "a VM runs in one place at most" {
        checked: &[names::ONE_PLACE, names::RUNS_WHERE_OWNED],
        unit: &["a_double_run_is_seen", "a_planted_double_run_makes_it_fail"],
    };
    2 "each job comes to one end, in time, and leaves nothing behind" {
        checked: &[names::ALL_SETTLED],
        pending: Some("DNS and quota, for what they could leave behind"),
    };
    3 "what was acknowledged is so" {
        checked: &[names::NOTHING_LOST],
    };
    4 "nobody uses more than is granted, and grants add up" {
        checked: &[names::ROOM_ADDS_UP],
        pending: Some("quota: until then it is the room of clusters that adds up"),
    };
    5 "the audit is a chain that shows what was changed in it" {
        pending: Some("a chained audit: it is kept, and its records are not linked"),
    };
    6 "who is revoked is refused within seconds" {
        unit: &["revoking_a_region_closes_its_open_connections_at_once",
                "a_region_that_is_revoked_is_cut_off_at_once_and_may_come_back"],
        pending: Some("identity, for tokens and for regions that are cut off"),
    };
    7 "who owns what could be the work of one register" {
        checked: &[names::ONE_OWNER, names::LINEARIZABLE],
        unit: &["every_checker_accepts_what_a_register_did_and_refuses_each_illegal_lie"],
    };
    8 "fences only rise" {
        checked: &[names::FENCE_RISES],
        unit: &["lost_ticks_old_fences_and_garbage_are_seen_and_a_boot_may_skip_ahead"],
    };
    9 "a crash reaches as far as its strategy says, and no further" {
        unit: &["the_rules_hold_in_every_history", "an_exhausted_budget_escalates_exactly_one_level"],
        missing: Some("simulations do not look at the trees of their nodes"),
    };
    10 "memory, files, tasks and queues stay within their bounds" {
        unit: &["a_peer_that_never_reads_holds_a_bounded_amount",
                "a_full_class_answers_busy_and_a_higher_class_still_gets_through_first"],
        missing: Some("no long run samples its processes"),
    };
    11 "a member never goes back behind its own vote and log" {
        unit: &["a_peer_that_presents_an_earlier_incarnation_is_refused_also_after_a_restart"],
        pending: Some("consensus: until then it is the incarnation of a store that never goes back"),
    };
    12 "a request under one key has one effect" {
        checked: &[names::ONCE_PER_KEY],
        unit: &["a_repeated_command_has_no_second_effect_also_after_the_pruning"],
    };
    13 "no version below the floor is spoken, and mixed versions come to the same end" {
        unit: &["a_version_that_is_not_spoken_or_below_the_floor_is_refused",
                "the_newest_common_version_is_spoken_and_none_below_the_floor"],
        pending: Some("a second release, to run beside the first"),
    };
    14 "when faults are over, what regions know of each other is so" {
        checked: &[names::ALL_SETTLED],
        pending: Some("DNS and quota, for their views"),
    };
    15 "a seed gives the same events each time" {
        unit: &["a_seed_gives_the_same_events_each_time", "the_same_seed_gives_the_same_run"],
    };
    16 "what a client was shown is not older than what it was shown before" {
        checked: &[names::SESSIONS_GO_ON],
    };
};

/// What every run checks beside them.
pub const BESIDE: &[&str] = &[names::MEMORY_GOES_ON, names::EVERY_BYTE];

/// A row of a table: number, words, how it stands.
fn line(table: &mut String, number: &str, words: &str, stands: &[Stands]) {
    let stands: Vec<String> = stands.iter().map(ToString::to_string).collect();
    let _ = writeln!(table, "| {number} | {words} | {} |", stands.join("; "));
}

/// The table of faults of one family, as Markdown.
pub fn faults(family: Family) -> String {
    let mut table = String::from("| # | fault | how it stands |\n|---|---|---|\n");
    for row in ROWS.iter().filter(|row| Family::of(row.number) == family) {
        line(&mut table, &row.number.to_string(), row.name, &row.stands());
    }
    table
}

/// The table of invariants, as Markdown.
pub fn promises() -> String {
    let mut table = String::from("| # | what must hold | how it stands |\n|---|---|---|\n");
    for promise in PROMISES {
        line(&mut table, &format!("I{}", promise.number), promise.says, &promise.stands());
    }
    table
}
