//! The asking side of a stream. Owns: which failure means *surely not done* and which *not known*.

use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use quinn::RecvStream;
use tokio::time::timeout;

use super::conn::{Conn, InUse};
use super::peer::Peer;
use super::serve::{bulk_prefix, datagram_request};
use super::stream::{QuicStream, Sending};
use super::{Class, Shared};
use crate::protocol::envelope::{REPLY_HEAD_BYTES, ReplyHead, frame};
use crate::protocol::link::{BULK_HELLO_BYTES_MAX, BulkStream, LinkError, Refusal, RefusalCode, Request};
use crate::protocol::messages::Kind;
use crate::types::Millis;
use crate::types::limits::FRAME_BYTES_MAX;

impl Peer {
    fn not_sent(&self, why: &'static str) -> LinkError {
        LinkError::NotSent { peer: self.region.clone(), why }
    }
    fn unknown(&self, why: &'static str) -> LinkError {
        LinkError::Unknown { peer: self.region.clone(), why }
    }
    fn refused(&self, refusal: Refusal) -> LinkError {
        self.refuse(refusal.code.name(), &refusal);
        LinkError::Refused { peer: self.region.clone(), refusal }
    }
    fn conn(&self, class: Class) -> Result<Arc<Conn>, LinkError> {
        self.current(class).ok_or_else(|| self.not_sent("not connected"))
    }
}

pub(super) async fn request(shared: &Shared, peer: &Peer, request: Request) -> Result<Bytes, LinkError> {
    request.check().map_err(|refusal| peer.refused(refusal))?;
    let conn = peer.conn(Class::Control)?;
    let used = InUse::of(&conn);
    let mut sent = false;
    let asking = async {
        let (send, recv) = conn.quinn.open_bi().await.map_err(|_| peer.not_sent("the connection broke"))?;
        let mut send = Sending::new(send);
        send.prioritise(request.kind);
        let whole = frame(&request.head(&shared.us), &request.body);
        // The other end acts on a whole message only, so one that could not be written as a whole is not done.
        send.stream.write_chunk(whole).await.map_err(|_| peer.not_sent("the connection broke"))?;
        send.finish();
        sent = true;
        read_reply(peer, recv).await
    };
    let answer = timeout(request.deadline.duration(), asking).await;
    drop(used);
    match answer {
        Ok(answer) => answer,
        Err(_) if sent => Err(peer.unknown("no answer within the deadline")),
        Err(_) => Err(peer.not_sent("the link was too busy to send it within the deadline")),
    }
}

async fn read_reply(peer: &Peer, mut recv: RecvStream) -> Result<Bytes, LinkError> {
    let broke = || peer.unknown("the connection or the handler broke before the answer");
    let mut bytes = next(&mut recv).await.ok_or_else(broke)?;
    while bytes.len() < REPLY_HEAD_BYTES {
        let more = next(&mut recv).await.ok_or_else(broke)?;
        bytes = [bytes, more].concat().into();
    }
    let malformed = || peer.unknown("the answer can't be read");
    let head = ReplyHead::decode(bytes.first_chunk().ok_or_else(malformed)?).map_err(|_| malformed())?;
    let whole = REPLY_HEAD_BYTES + head.length as usize;
    if bytes.len() < whole {
        let mut buffer = BytesMut::with_capacity(whole);
        buffer.extend_from_slice(&bytes);
        while buffer.len() < whole {
            buffer.extend_from_slice(&next(&mut recv).await.ok_or_else(broke)?);
        }
        bytes = buffer.freeze();
    }
    // Reads the end, so that quinn need not tell the other end to stop.
    if bytes.len() > whole || !matches!(recv.read_chunk(1, true).await, Ok(None)) {
        return Err(malformed());
    }
    let body = bytes.slice(REPLY_HEAD_BYTES..);
    match head.refusal {
        None => Ok(body),
        Some(code) => {
            let retry_after = Some(head.retry_after).filter(|after| after.0 > 0);
            let reason = String::from_utf8_lossy(&body).into_owned();
            Err(peer.refused(Refusal { code, reason, retry_after }))
        }
    }
}

async fn next(recv: &mut RecvStream) -> Option<Bytes> {
    recv.read_chunk(FRAME_BYTES_MAX + REPLY_HEAD_BYTES + 1, true).await.ok().flatten().map(|chunk| chunk.bytes)
}

pub(super) fn datagram(shared: &Shared, peer: &Peer, kind: Kind, body: Bytes) -> Result<(), LinkError> {
    let conn = peer.conn(Class::Control)?;
    let request = datagram_request(kind, body);
    let whole = frame(&request.head(&shared.us), &request.body);
    conn.quinn.send_datagram(whole).map_err(|error| match error {
        quinn::SendDatagramError::TooLarge => {
            peer.refused(Refusal::new(RefusalCode::TOO_LARGE, "it does not fit into a datagram"))
        }
        quinn::SendDatagramError::ConnectionLost(_) => peer.not_sent("the connection broke"),
        quinn::SendDatagramError::UnsupportedByPeer | quinn::SendDatagramError::Disabled => {
            peer.not_sent("the other end takes no datagrams")
        }
    })
}

pub(super) async fn open_bulk(peer: &Peer, hello: Bytes, deadline: Millis) -> Result<BulkStream, LinkError> {
    if hello.len() > BULK_HELLO_BYTES_MAX {
        return Err(peer.refused(Refusal::new(RefusalCode::TOO_LARGE, "the hello of a bulk stream is too long")));
    }
    let conn = peer.conn(Class::Bulk)?;
    let used = InUse::of(&conn);
    let expired = tokio::time::sleep(deadline.duration());
    tokio::pin!(expired);
    let opened = tokio::select! {
        biased;
        opened = conn.quinn.open_bi() => opened.map_err(|_| peer.not_sent("the connection broke"))?,
        () = &mut expired => return Err(peer.not_sent("as many streams as the peer allows stayed open")),
    };
    let opening = async {
        let (send, mut recv) = opened;
        let mut send = Sending::new(send);
        let opening: Bytes = [&bulk_prefix(conn.version, &hello)[..], &hello[..]].concat().into();
        send.stream.write_chunk(opening).await.map_err(|_| peer.not_sent("the connection broke"))?;
        let broke = || peer.unknown("the connection broke before the stream was taken");
        let mut head = [0; REPLY_HEAD_BYTES];
        recv.read_exact(&mut head).await.map_err(|_| broke())?;
        let head = ReplyHead::decode(&head).map_err(|_| peer.unknown("the answer can't be read"))?;
        let Some(code) = head.refusal else { return Ok((send, recv)) };
        let mut reason = vec![0; head.length as usize];
        recv.read_exact(&mut reason).await.map_err(|_| broke())?;
        let reason = String::from_utf8_lossy(&reason).into_owned();
        let retry_after = Some(head.retry_after).filter(|after| after.0 > 0);
        Err(peer.refused(Refusal { code, reason, retry_after }))
    };
    tokio::select! {
        biased;
        opened = opening => opened.map(|(send, recv)| Box::new(QuicStream::new(send, recv, used)) as BulkStream),
        () = &mut expired => Err(peer.unknown("no answer within the deadline")),
    }
}
