//! Frames over the transport's channels.

use crate::bytes::Bytes;
use aventine_api::{
    ChannelRx, ChannelTx, Epoch, ErrorCode, LentMemory, PluginError, RecordHead, RecordRx, RecordTx,
};
use aventine_protocol::{FrameError, FrameHeader, FrameKind, HEADER_LEN, Message, MessageError};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

/// Why a frame could not be sent or received.
#[derive(Debug, thiserror::Error)]
pub(crate) enum WireError {
    /// The channel failed.
    #[error(transparent)]
    Channel(#[from] PluginError),
    /// The other side's bytes are not what they should be.
    #[error("Damaged or foreign data arrived")]
    Frame(#[from] FrameError),
    /// The other side's message makes no sense.
    #[error(transparent)]
    Message(#[from] MessageError),
    /// A frame of a kind that does not belong on this channel.
    #[error("A frame of kind {0:?} arrived on the wrong channel")]
    Kind(FrameKind),
}

impl WireError {
    /// The same as a plugin's error: a lost peer stays one, everything else is damage.
    pub(crate) fn into_plugin_error(self) -> PluginError {
        match self {
            WireError::Channel(e) => e,
            other => PluginError::new(ErrorCode::Corrupt, other),
        }
    }
}

/// The sending end of a channel. Numbers its frames and counts the bytes.
pub(crate) struct FrameTx {
    tx: Box<dyn ChannelTx>,
    sequence: u32,
    sent: Arc<AtomicU64>,
}

impl FrameTx {
    pub(crate) fn new(tx: Box<dyn ChannelTx>, sent: Arc<AtomicU64>) -> FrameTx {
        FrameTx { tx, sequence: 0, sent }
    }

    /// Sends one frame; answers its header.
    pub(crate) fn send(
        &mut self,
        kind: FrameKind,
        sub: u8,
        epoch: Epoch,
        payload: &[&[u8]],
    ) -> Result<FrameHeader, PluginError> {
        let header = FrameHeader::of(kind, sub, epoch, self.sequence, payload);
        let head = header.encode();
        let mut parts = Vec::with_capacity(payload.len() + 1);
        parts.push(&head[..]);
        parts.extend_from_slice(payload);
        self.tx.send(&parts)?;
        self.sequence = self.sequence.wrapping_add(1);
        self.sent.fetch_add((HEADER_LEN + header.length as usize) as u64, Ordering::Relaxed);
        Ok(header)
    }

    /// As [`ChannelTx::memory`].
    pub(crate) fn memory(&mut self, bytes: usize) -> Option<Box<dyn LentMemory>> {
        self.tx.memory(bytes)
    }

    /// As [`ChannelTx::settle`]; each frame is one `send`.
    pub(crate) fn settle(&mut self, frames: usize) -> Result<(), PluginError> {
        self.tx.settle(frames)
    }
}

/// The receiving end of a channel.
pub(crate) struct FrameRx {
    rx: Box<dyn ChannelRx>,
    sequence: u32,
    begun: Instant,
}

impl FrameRx {
    pub(crate) fn new(rx: Box<dyn ChannelRx>) -> FrameRx {
        FrameRx { rx, sequence: 0, begun: Instant::now() }
    }

    /// When the head of the last frame was here.
    pub(crate) fn begun(&self) -> Instant {
        self.begun
    }

    /// Waits for the next frame and replaces `payload` with its checked payload.
    pub(crate) fn recv(&mut self, payload: &mut Vec<u8>) -> Result<FrameHeader, WireError> {
        let header = self.head()?;
        self.payload(&header, payload)?;
        Ok(header)
    }

    /// Waits for the next frame and answers its checked payload: in memory that the transport lends, or else in `spare`, which it
    /// takes.
    pub(crate) fn recv_lent(&mut self, spare: &mut Vec<u8>) -> Result<(FrameHeader, Bytes), WireError> {
        let header = self.head()?;
        match self.rx.recv_lent(header.length as usize)? {
            Some(memory) => {
                header.verify(memory.bytes())?;
                Ok((header, Bytes::Lent(memory)))
            }
            None => {
                self.payload(&header, spare)?;
                Ok((header, Bytes::Own(std::mem::take(spare))))
            }
        }
    }

    fn head(&mut self) -> Result<FrameHeader, WireError> {
        let mut head = [0; HEADER_LEN];
        self.rx.recv(&mut head)?;
        self.begun = Instant::now();
        let header = FrameHeader::decode(&head, self.sequence)?;
        self.sequence = self.sequence.wrapping_add(1);
        Ok(header)
    }

    fn payload(&mut self, header: &FrameHeader, payload: &mut Vec<u8>) -> Result<(), WireError> {
        payload.resize(header.length as usize, 0);
        self.rx.recv(payload)?;
        header.verify(payload)?;
        Ok(())
    }

    /// Waits for the next message.
    pub(crate) fn message(&mut self) -> Result<(Epoch, Message), WireError> {
        let mut payload = Vec::new();
        let header = self.recv(&mut payload)?;
        match header.kind {
            FrameKind::Message => Ok((header.epoch, Message::decode(&payload)?)),
            other => Err(WireError::Kind(other)),
        }
    }
}

/// The control channel's sending end, shared by the loop and the heartbeat.
#[derive(Clone)]
pub(crate) struct ControlTx(Arc<Mutex<FrameTx>>);

impl ControlTx {
    pub(crate) fn new(tx: FrameTx) -> ControlTx {
        ControlTx(Arc::new(Mutex::new(tx)))
    }

    pub(crate) fn send(&self, epoch: Epoch, message: &Message) -> Result<(), PluginError> {
        let mut tx = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        tx.send(FrameKind::Message, 0, epoch, &[&message.encode()]).map(drop)
    }
}

/// A disk's or a network's channel, as its plugin sees it.
pub(crate) struct RecordChannelTx(pub(crate) FrameTx);

impl RecordTx for RecordChannelTx {
    fn send(&mut self, head: RecordHead, parts: &[&[u8]]) -> Result<(), PluginError> {
        self.0.send(FrameKind::Record, head.kind, head.epoch, parts).map(drop)
    }
}

/// A disk's or a network's channel, as its plugin sees it.
pub(crate) struct RecordChannelRx(pub(crate) FrameRx);

impl RecordRx for RecordChannelRx {
    fn recv(&mut self, payload: &mut Vec<u8>) -> Result<RecordHead, PluginError> {
        let header = self.0.recv(payload).map_err(WireError::into_plugin_error)?;
        match header.kind {
            FrameKind::Record => Ok(RecordHead { epoch: header.epoch, kind: header.sub }),
            other => Err(WireError::Kind(other).into_plugin_error()),
        }
    }
}
