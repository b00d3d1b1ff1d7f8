//! Limits of the system, tied to each other at compile time.
//! Owns: how much is allowed. Why a limit has its value stands beside it.
//! Not here: some that one module alone needs; they stand in that module.

use super::units::{KIB, MIB, Millis};

/// Length of a name (architecture §10).
pub const NAME_BYTES_MAX: usize = 63;

// -- protocol ---------------------------------------------------------------
/// Body of one control message. An inventory of a few thousand VMs fits.
pub const FRAME_BYTES_MAX: usize = 4 * MIB as usize;
/// Head of a frame, laid by hand (see `protocol/envelope.rs`), upper bound.
pub const FRAME_HEAD_BYTES_MAX: usize = 256;
/// Streams that one peer may have open on its control connection.
pub const PEER_STREAMS_MAX: u32 = 1024;
/// Bulk streams that one peer may have open: channels of the migrations that run at once. A region that is configured to
/// run more has the rest wait for a stream.
pub const PEER_BULK_STREAMS_MAX: u32 = 64;
/// Handshakes under way at once, of all peers.
pub const HANDSHAKES_MAX: usize = 64;
/// A handshake that takes longer is dropped.
pub const HANDSHAKE_MS_MAX: Millis = Millis(5_000);
/// QUIC keeps a connection alive this often. Also how long the node waits for an actor of its own to say how it stands.
pub const HEARTBEAT_MS: Millis = Millis(1_000);
/// A connection on which nothing was heard for so long is closed and dialled again.
pub const LINK_IDLE_MS_MAX: Millis = Millis(5_000);
/// First and last pause between two dials.
pub const REDIAL_MS_MIN: Millis = Millis(50);
/// See [`REDIAL_MS_MIN`].
pub const REDIAL_MS_MAX: Millis = Millis(5_000);
/// Deadline of a control request unless the caller says otherwise.
pub const REQUEST_MS: Millis = Millis(5_000);

// -- transfer ---------------------------------------------------------------
/// The unit in which a transfer is acknowledged and repeated after a cut.
pub const BLOCK_BYTES_MAX: usize = MIB as usize;
/// Page of a guest's memory.
pub const PAGE_BYTES: usize = 4 * KIB as usize;
/// Block of a guest's disk.
pub const DISK_BLOCK_BYTES: usize = 64 * KIB as usize;
/// What one transfer may hold in memory at each end.
pub const TRANSFER_BUFFER_BYTES_MAX: usize = 8 * MIB as usize;

// -- store ------------------------------------------------------------------
/// One value in the store, before encryption.
pub const VALUE_BYTES_MAX: usize = MIB as usize;
/// One key in the store.
pub const STORE_KEY_BYTES_MAX: usize = 512;
/// One journal entry.
pub const JOURNAL_ENTRY_BYTES_MAX: usize = 64 * KIB as usize;
/// Transactions that may wait for the writer.
pub const STORE_QUEUE_MAX: usize = 4096;
/// Transactions that one commit takes.
pub const STORE_BATCH_MAX: usize = 512;
/// Memory for pages of the state file.
pub const STORE_CACHE_BYTES: usize = 64 * MIB as usize;
/// Below so much free space new work is refused; what runs may finish.
pub const STORE_RESERVE_BYTES: u64 = 64 * MIB;

// -- actors -----------------------------------------------------------------
/// Restarts of one child inside [`RESTART_WINDOW_MS`] before its supervisor gives up.
pub const RESTARTS_MAX: u32 = 5;
/// The sliding window of [`RESTARTS_MAX`].
pub const RESTART_WINDOW_MS: Millis = Millis(10_000);
/// Shortest and longest pause before a restart.
pub const RESTART_PAUSE_MS_MIN: Millis = Millis(50);
/// See [`RESTART_PAUSE_MS_MIN`]. So short that a child which fails at once does exhaust its budget.
pub const RESTART_PAUSE_MS_MAX: Millis = Millis(1_000);
/// Longest pause before a child whose dependency was down is tried again.
pub const RESTART_WAIT_MS_MAX: Millis = Millis(5_000);
/// How long a child may take to start: it may have to fold a journal.
pub const START_MS_MAX: Millis = Millis(30_000);
/// Crashes of one job, over all lives of the process, before it parks itself.
pub const JOB_CRASHES_MAX: u32 = 3;
/// Crashes before its supervisor gives it up: one more, for a job that crashes even while it parks.
pub const JOB_CRASHES_IN_TREE_MAX: u32 = JOB_CRASHES_MAX + 1;
/// How long a child may take to stop before it is killed.
pub const STOP_MS_MAX: Millis = Millis(5_000);
/// How long a whole region may take to stop, however many children it has; then the process ends with what hangs.
pub const REGION_STOP_MS_MAX: Millis = Millis(60_000);
/// Requests (add, stop, restart a child) that may wait at one supervisor.
pub const SUPERVISOR_REQUESTS_MAX: usize = 1024;
/// Messages that may wait in one mailbox, by class: fencing and heartbeat, consensus, control, migration, telemetry.
pub const MAILBOX_MAX: [usize; 5] = [1024, 4096, 1024, 1024, 1024];
/// Messages of an actor to itself (answers, timers, results) that may wait in its mailbox.
pub const MAILBOX_OWN_MAX: usize = 16_384;
/// First and last advice of a mailbox that is full when to try again.
pub const BUSY_RETRY_MS_MIN: Millis = Millis(5);
/// See [`BUSY_RETRY_MS_MIN`].
pub const BUSY_RETRY_MS_MAX: Millis = Millis(1_000);
/// Jobs that one region runs at once unless its configuration says otherwise; more wait in line.
pub const JOBS_RUNNING: usize = 64;
/// Jobs that may be open in one region, those in line included: each has an actor, some 10 KB.
pub const JOBS_OPEN_MAX: usize = 4096;

/// Jobs that are over and can still be looked at, newest first, with their journals: some 5 KB each.
pub const JOBS_ENDED_MAX: usize = 2_000;
/// Plans that are kept, newest first: some 4 KB each.
pub const PLANS_MAX: usize = 2_000;
/// Records of the audit that are kept, newest first: some 200 bytes each.
pub const AUDIT_MAX: usize = 100_000;

// -- migration --------------------------------------------------------------
/// Blackout that a plan may take unless the request says otherwise.
pub const DOWNTIME_MS_MAX: Millis = Millis(300);
/// From `pauseForSwitch` to the watchdog, unless the request says otherwise.
pub const SWITCH_DEADLINE_MS: Millis = Millis(10_000);
/// The longest: no request and no configuration pauses a guest for more.
pub const SWITCH_DEADLINE_MS_MAX: Millis = Millis(120_000);
/// Rounds of pre-copy before the job gives up converging.
pub const ROUNDS_MAX: u32 = 30;
/// Attempts of one job before it is rolled back.
pub const ATTEMPTS_PER_JOB_MAX: u32 = 5;
/// How long a plan may be started.
pub const PLAN_EXPIRES_MS: Millis = Millis(600_000);
/// How long a side of a job hears nothing before it gives up, and the promise of room at its target with it.
pub const RESERVATION_MS: Millis = Millis(300_000);
/// How long a retired source disk is kept (law 7.3).
pub const RETENTION_MS: Millis = Millis(3_600_000);

// -- admin ------------------------------------------------------------------
/// Body of one API request.
pub const API_BODY_BYTES_MAX: usize = MIB as usize;
/// Head of one API request: request line and headers.
pub const API_HEAD_BYTES_MAX: usize = 16 * KIB as usize;
/// Headers of one API request.
pub const API_HEADERS_MAX: usize = 64;
/// A head or a body that takes longer to arrive is given up.
pub const API_READ_MS_MAX: Millis = Millis(10_000);
/// Connections to the admin socket at once; one more is answered `BUSY` and closed.
pub const API_CONNECTIONS_MAX: usize = 256;
/// Requests at work at once; one more is answered `BUSY`.
pub const API_REQUESTS_MAX: usize = 128;
/// Clients that follow events at once.
pub const API_WATCHES_MAX: usize = 64;
/// Deadline of an API request unless the client says otherwise.
pub const API_DEADLINE_MS: Millis = Millis(30_000);
/// The longest deadline that a client may ask for.
pub const API_DEADLINE_MS_MAX: Millis = Millis(300_000);
/// What a client that was answered `BUSY` is asked to wait.
pub const API_RETRY_MS: Millis = Millis(200);
/// Items on one page of a list.
pub const API_PAGE_MAX: usize = 500;
/// Idempotency keys that are remembered, newest first.
pub const IDEMPOTENCY_KEYS_MAX: usize = 10_000;
/// Length of an idempotency key.
pub const IDEMPOTENCY_KEY_BYTES_MAX: usize = 128;

// -- chaos ------------------------------------------------------------------
/// How long one injected fault may last unless the configuration says otherwise: a game day's exercise.
pub const CHAOS_MS: Millis = Millis(600_000);
/// The longest that a configuration may allow: nothing that is forgotten lasts over the next day.
pub const CHAOS_MS_MAX: Millis = Millis(86_400_000);
/// Faults that are active at once: more than a person can follow.
pub const CHAOS_FAULTS_MAX: usize = 16;
/// Faults that are over and still listed, newest first.
pub const CHAOS_ENDED_MAX: usize = 64;
/// The longest delay of a message: longer than any request waits, it would only be lost.
pub const CHAOS_DELAY_MS_MAX: Millis = Millis(60_000);
/// The longest that a commit is held up: the request that ends the fault commits, too.
pub const CHAOS_COMMIT_MS_MAX: Millis = Millis(10_000);
/// Length of the reason for a fault.
pub const CHAOS_REASON_CHARS_MAX: usize = 500;

const _: () = assert!(JOURNAL_ENTRY_BYTES_MAX < FRAME_BYTES_MAX);
const _: () = assert!(JOURNAL_ENTRY_BYTES_MAX <= VALUE_BYTES_MAX);
const _: () =
    assert!(API_BODY_BYTES_MAX + API_HEAD_BYTES_MAX < FRAME_BYTES_MAX, "a forwarded request must fit into a frame");
const _: () = assert!(API_REQUESTS_MAX < API_CONNECTIONS_MAX && API_WATCHES_MAX < API_CONNECTIONS_MAX);
const _: () = assert!(BLOCK_BYTES_MAX.is_multiple_of(PAGE_BYTES) && BLOCK_BYTES_MAX.is_multiple_of(DISK_BLOCK_BYTES));
const _: () = assert!(TRANSFER_BUFFER_BYTES_MAX >= 4 * BLOCK_BYTES_MAX);
const _: () = assert!(RESTART_PAUSE_MS_MAX.0 * (RESTARTS_MAX as u64) < RESTART_WINDOW_MS.0);
const _: () = assert!(STOP_MS_MAX.0 < REGION_STOP_MS_MAX.0);
const _: () = assert!(RESTART_PAUSE_MS_MIN.0 <= RESTART_PAUSE_MS_MAX.0);
const _: () = assert!(HEARTBEAT_MS.0 * 2 < LINK_IDLE_MS_MAX.0);
const _: () = assert!(JOBS_RUNNING <= PEER_BULK_STREAMS_MAX as usize && JOBS_RUNNING <= JOBS_OPEN_MAX);
const _: () = assert!(DOWNTIME_MS_MAX.0 < SWITCH_DEADLINE_MS.0 && SWITCH_DEADLINE_MS.0 <= SWITCH_DEADLINE_MS_MAX.0);
const _: () = assert!(CHAOS_MS.0 <= CHAOS_MS_MAX.0 && CHAOS_COMMIT_MS_MAX.0 * 2 < API_DEADLINE_MS.0);
