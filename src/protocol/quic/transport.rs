//! QUIC's settings. Owns: windows, timers, stream limits, and why each has its value.

use std::io;
use std::net::{SocketAddr, UdpSocket};
use std::sync::Arc;

use quinn::udp::UdpSocketState;
use quinn::{IdleTimeout, TransportConfig, VarInt};

use super::Class;
use crate::types::limits::{
    FRAME_BYTES_MAX, HEARTBEAT_MS, LINK_IDLE_MS_MAX, PEER_BULK_STREAMS_MAX, PEER_STREAMS_MAX, TRANSFER_BUFFER_BYTES_MAX,
};

/// What one stream may have under way: a transfer holds no more than this at its receiver, and a round trip of 80 ms
/// still carries 100 MB/s.
const STREAM_WINDOW_BYTES: u32 = TRANSFER_BUFFER_BYTES_MAX as u32;
/// What a peer that has not said hello may send.
const HELLO_WINDOW_BYTES: u32 = 16 * 1024;
/// What one peer may have unread here on its control connection: several frames of the largest size.
const CONTROL_WINDOW_BYTES: u32 = 4 * FRAME_BYTES_MAX as u32;
/// What one peer may have unread here on its bulk connection, over all its streams.
const BULK_WINDOW_BYTES: u32 = 8 * STREAM_WINDOW_BYTES;
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
        .send_window(u64::from(BULK_WINDOW_BYTES));
    Arc::new(transport)
}

/// For connections that we dial. The other end opens streams only after its hello, too, but it proved who it is before.
pub(super) fn dialling(class: Class) -> Arc<TransportConfig> {
    let (streams, window) = limits(class);
    let mut transport = common();
    transport
        .max_concurrent_bidi_streams(VarInt::from_u32(streams))
        .receive_window(VarInt::from_u32(window))
        .send_window(u64::from(window));
    Arc::new(transport)
}

/// Raises the limits of an accepted connection whose peer is known now.
pub(super) fn welcome(connection: &quinn::Connection, class: Class) {
    let (streams, window) = limits(class);
    connection.set_send_window(u64::from(window));
    connection.set_receive_window(VarInt::from_u32(window));
    connection.set_max_concurrent_bi_streams(VarInt::from_u32(streams));
}

fn limits(class: Class) -> (u32, u32) {
    match class {
        Class::Control => (PEER_STREAMS_MAX, CONTROL_WINDOW_BYTES),
        Class::Bulk => (PEER_BULK_STREAMS_MAX, BULK_WINDOW_BYTES),
    }
}
