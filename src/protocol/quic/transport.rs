//! QUIC's settings. Owns: windows, timers, stream limits, and why each has its value.

use std::io;
use std::net::{SocketAddr, UdpSocket};
use std::sync::Arc;
use std::time::Duration;

use quinn::udp::UdpSocketState;
use quinn::{IdleTimeout, TransportConfig, VarInt};

use super::Class;
use crate::types::limits::{
    FRAME_BYTES_MAX, HEARTBEAT_MS, LINK_IDLE_MS_MAX, PEER_BULK_STREAMS_MAX, PEER_STREAMS_MAX, TRANSFER_BUFFER_BYTES_MAX,
};

/// What one stream may have under way: a transfer holds no more than this at its receiver, and a round trip of 80 ms
/// still carries 100 MB/s.
const STREAM_WINDOW_BYTES: u32 = TRANSFER_BUFFER_BYTES_MAX as u32;
/// Streams that QUIC allows on a bulk connection. A freed one is told to the peer only together with an eighth of all of
/// them, and the hello has one: so many more, for [`PEER_BULK_STREAMS_MAX`] to be there at any time.
const BULK_STREAMS_ALLOWED: u32 = PEER_BULK_STREAMS_MAX + PEER_BULK_STREAMS_MAX / 7 + 2;
const _: () = assert!(BULK_STREAMS_ALLOWED - BULK_STREAMS_ALLOWED / 8 > PEER_BULK_STREAMS_MAX);
/// What a peer that has not said hello may send.
const HELLO_WINDOW_BYTES: u32 = 16 * 1024;
/// What one peer may have unread here on its control connection: several frames of the largest size.
const CONTROL_WINDOW_BYTES: u32 = 4 * FRAME_BYTES_MAX as u32;
/// What one peer may have under way and unread here on its bulk connection, over all its streams, to begin with: what
/// fits into caches is carried faster on a short path (by 6 % on loopback) than a window that does not.
pub(super) const BULK_WINDOW_BYTES_MIN: u32 = 2 * 1024 * 1024;
/// The same on a long path, see [`grown`].
const BULK_WINDOW_BYTES_MAX: u32 = 8 * STREAM_WINDOW_BYTES;
/// Datagrams that wait to be read; heartbeats are small and the latest is worth most.
const DATAGRAM_BUFFER_BYTES: usize = 64 * 1024;

/// The kernel's buffers: a window of bulk arrives faster than we are scheduled.
const SOCKET_BYTES: usize = 4 * 1024 * 1024;

const _: () = assert!(FRAME_BYTES_MAX < STREAM_WINDOW_BYTES as usize, "a frame must fit into a stream's window");

/// The socket of a node.
pub(super) fn socket(listen: SocketAddr) -> io::Result<UdpSocket> {
    let socket = UdpSocket::bind(listen)?;
    let state = UdpSocketState::new((&socket).into())?;
    // Best effort: the machine may allow less, which costs speed and nothing else.
    let _ = state.set_recv_buffer_size((&socket).into(), SOCKET_BYTES);
    let _ = state.set_send_buffer_size((&socket).into(), SOCKET_BYTES);
    Ok(socket)
}

/// MTU discovery stays at quinn's bounds: with jumbo frames its black-hole detection takes losses of congestion for a
/// path that drops large packets, and a full link of 2 MB/s carried a tenth of that (measured through our relay).
fn common() -> TransportConfig {
    let mut transport = TransportConfig::default();
    transport
        .max_concurrent_uni_streams(VarInt::from_u32(0))
        .stream_receive_window(VarInt::from_u32(STREAM_WINDOW_BYTES))
        .datagram_receive_buffer_size(Some(DATAGRAM_BUFFER_BYTES))
        .datagram_send_buffer_size(DATAGRAM_BUFFER_BYTES)
        // Sent by both ends, so each hears from the other even if nothing else is said.
        .keep_alive_interval(Some(HEARTBEAT_MS.duration()))
        .max_idle_timeout(IdleTimeout::try_from(LINK_IDLE_MS_MAX.duration()).ok());
    transport
}

/// For connections that we accept: as little as a hello needs. [`welcome`] raises it.
pub(super) fn accepting() -> Arc<TransportConfig> {
    let mut transport = common();
    transport
        .max_concurrent_bidi_streams(VarInt::from_u32(1))
        .receive_window(VarInt::from_u32(HELLO_WINDOW_BYTES))
        .send_window(u64::from(BULK_WINDOW_BYTES_MAX));
    Arc::new(transport)
}

/// For connections that we dial. The other end opens streams only after its hello, too, but it proved who it is before.
pub(super) fn dialling(class: Class) -> Arc<TransportConfig> {
    let (streams, window, send_window) = limits(class);
    let mut transport = common();
    transport
        .max_concurrent_bidi_streams(VarInt::from_u32(streams))
        .receive_window(VarInt::from_u32(window))
        .send_window(u64::from(send_window));
    Arc::new(transport)
}

/// Raises the limits of an accepted connection whose peer is known now.
pub(super) fn welcome(connection: &quinn::Connection, class: Class) {
    let (streams, window, send_window) = limits(class);
    connection.set_send_window(u64::from(send_window));
    connection.set_receive_window(VarInt::from_u32(window));
    connection.set_max_concurrent_bi_streams(VarInt::from_u32(streams));
}

/// The window of a bulk connection that carried `received_bytes_s` in the last while over a path of `min_rtt`: doubled
/// if the window may be what limits it, which is when a round trip carries half of it or more.
pub(super) fn grown(window: u32, received_bytes_s: u64, min_rtt: Duration) -> u32 {
    let per_round_trip = u128::from(received_bytes_s) * min_rtt.as_micros() / 1_000_000;
    if 2 * per_round_trip >= u128::from(window) { (2 * window).min(BULK_WINDOW_BYTES_MAX) } else { window }
}

/// Streams, receive window and send window.
fn limits(class: Class) -> (u32, u32, u32) {
    match class {
        Class::Control => (PEER_STREAMS_MAX, CONTROL_WINDOW_BYTES, CONTROL_WINDOW_BYTES),
        Class::Bulk => (BULK_STREAMS_ALLOWED, BULK_WINDOW_BYTES_MIN, BULK_WINDOW_BYTES_MAX),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bulk_window_grows_with_the_path_and_no_further() {
        // Loopback: nothing to gain.
        assert_eq!(grown(BULK_WINDOW_BYTES_MIN, 500_000_000, Duration::from_micros(50)), BULK_WINDOW_BYTES_MIN);
        // 100 ms: 2 MiB per round trip is 20 MB/s, so the window limits until the path does.
        let mut window = BULK_WINDOW_BYTES_MIN;
        for _ in 0..10 {
            let carried = (u64::from(window) * 10).min(120_000_000);
            window = grown(window, carried, Duration::from_millis(100));
        }
        assert!((12_000_000 * 2..=64 << 20).contains(&(u64::from(window))), "{window}");
        assert_eq!(grown(BULK_WINDOW_BYTES_MAX, u64::MAX, Duration::from_secs(2)), BULK_WINDOW_BYTES_MAX);
    }
}
