//! The socket between a node and its host. Owns: frames, and what is said in them.
//! Always: a length is checked before anything is allocated; the first frame says who speaks and what for.
//!
//! A frame is a length (`u32`, little-endian) and so many bytes of postcard. The client's first frame is [`Hello`], the
//! host answers [`Welcome`]; then a session exchanges [`Request`] and [`Response`] in any order, matched by their
//! serial number, and a channel's connection turns into the raw stream.

use serde::{Deserialize, Serialize, de::DeserializeOwned};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use super::faults::{CallKind, Fault};
use crate::drivers::{Channel, End, HostCall, HostError, HostReply, SwitchKey};
use crate::types::limits::FRAME_BYTES_MAX;
use crate::types::{ClusterId, HostName, Lineage, OperationId, RegionName, Resources};

/// Version of this protocol; a host refuses others.
pub const HOST_PROTOCOL: u16 = 1;

/// A cluster that a node runs on a host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClusterOffer {
    /// Its id.
    pub cluster: ClusterId,
    /// What it may use of the host.
    pub capacity: Resources,
}

/// The first frame.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Hello {
    /// [`HOST_PROTOCOL`].
    pub protocol: u16,
    /// What the connection is for.
    pub purpose: Purpose,
}

/// What a connection is for.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum Purpose {
    /// Calls of a region's node.
    Session {
        /// The region.
        region: RegionName,
        /// Of its store.
        lineage: Lineage,
        /// Its clusters on this host.
        clusters: Vec<ClusterOffer>,
    },
    /// One end of a transfer.
    Channel {
        /// The region.
        region: RegionName,
        /// Of its store.
        lineage: Lineage,
        /// The cluster.
        cluster: ClusterId,
        /// The attempt.
        key: SwitchKey,
        /// Which stream.
        channel: Channel,
        /// Which end.
        end: End,
    },
    /// Looking after the process itself.
    Admin(AdminCall),
    /// One call of somebody who only looks, whoever runs the cluster: calls that change anything are refused.
    Observe {
        /// The cluster.
        cluster: ClusterId,
        /// The call.
        call: HostCall,
    },
}

/// What may be asked of the process.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum AdminCall {
    /// Who are you?
    Status,
    /// End in good order.
    Stop,
    /// The next calls of this kind go wrong; refused unless the host allows faults.
    PlanFault { kind: CallKind, fault: Fault, times: u32 },
    /// All is well again.
    ClearFaults,
}

/// The host's first frame.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Welcome {
    /// The host.
    pub host: HostName,
    /// Its process.
    pub pid: u32,
}

/// A call.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Request {
    /// Chosen by the client, unique on the connection.
    pub serial: u64,
    /// The cluster.
    pub cluster: ClusterId,
    /// Names the effect.
    pub operation: OperationId,
    /// The call.
    pub call: HostCall,
}

/// Its answer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Response {
    /// Of the request.
    pub serial: u64,
    /// The outcome.
    pub result: Result<HostReply, HostError>,
}

/// Why a frame could not be exchanged.
#[derive(Debug, thiserror::Error)]
pub enum WireError {
    /// The connection broke.
    #[error("the connection to the host broke")]
    Io(#[from] std::io::Error),
    /// Longer than allowed.
    #[error("a frame of {0} bytes is longer than {FRAME_BYTES_MAX}")]
    TooLong(usize),
    /// Not what was expected.
    #[error("a frame makes no sense: {0}")]
    Garbage(#[from] postcard::Error),
}

/// Lays a frame.
pub fn frame<T: Serialize>(message: &T) -> Result<Vec<u8>, WireError> {
    let mut bytes = postcard::to_extend(message, vec![0; 4])?;
    let length = bytes.len() - 4;
    if length > FRAME_BYTES_MAX {
        return Err(WireError::TooLong(length));
    }
    let length = u32::try_from(length).map_err(|_| WireError::TooLong(length))?;
    bytes[..4].copy_from_slice(&length.to_le_bytes());
    Ok(bytes)
}

/// Writes a frame.
pub async fn write<T: Serialize>(writer: &mut (impl AsyncWrite + Unpin), message: &T) -> Result<(), WireError> {
    writer.write_all(&frame(message)?).await?;
    writer.flush().await?;
    Ok(())
}

/// Reads a frame; `None` at the end of the stream.
pub async fn read<T: DeserializeOwned>(reader: &mut (impl AsyncRead + Unpin)) -> Result<Option<T>, WireError> {
    let mut head = [0; 4];
    match reader.read_exact(&mut head).await {
        Err(e) if e.kind() == std::io::ErrorKind::UnexpectedEof => return Ok(None),
        other => other?,
    };
    let length = u32::from_le_bytes(head) as usize;
    if length > FRAME_BYTES_MAX {
        return Err(WireError::TooLong(length));
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body).await?;
    Ok(Some(postcard::from_bytes(&body)?))
}
