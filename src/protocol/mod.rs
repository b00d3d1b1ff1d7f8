//! Between regions (architecture §8). Owns: the envelope, which kinds of messages exist, how two regions prove who
//! they are, and [`Link`] with its two implementations, QUIC and in memory.
//! Always: nothing is decoded or allocated before its limits were checked; who a peer is comes from its certificate,
//! never from what it says; only `quic/` names quinn (outside of this folder, `chaos/` does for sockets alone).
//! Not here: what the bodies mean (`decision/`), the durable outbox and the dedup rows (`store/`).

pub mod bodies;
pub mod envelope;
pub mod hello;
pub mod link;
pub mod memory;
pub mod messages;
pub mod quic;
pub mod refusals;
pub mod trust;

pub use envelope::{MessageId, TraceId};
pub use link::{
    BoxFuture, BulkOffer, BulkStream, ByteStream, Inbound, Link, LinkError, LinkState, PeerId, Refusal, RefusalCode,
    Request,
};
pub use messages::Kind;
