//! The sender: encodes captured pages and sends them while the guest runs.
//!
//! Invariant: what it tells of a checkpoint is told before the checkpoint's last frame goes, so it is there before the
//! acknowledgement can be.

use crate::audit::Sealed;
use crate::staging::{Batch, Job, recycle};
use crate::wire::FrameTx;
use aventine_api::{Codec, Epoch, PluginError};
use aventine_protocol::{CheckpointEnd, FrameHeader, FrameKind, PayloadHash};
use std::sync::mpsc::{Receiver, Sender};
use std::time::{Duration, Instant};

/// Where a checkpoint's time went here.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sent {
    pub(crate) epoch: Epoch,
    /// When its first part was taken up: until then it waited behind an earlier one.
    pub(crate) begun: Instant,
    /// In the codec.
    pub(crate) encode: Duration,
    /// Hashing, and waiting until the transport had taken everything.
    pub(crate) send: Duration,
    /// When nothing was left but the frame that ends it.
    pub(crate) done: Instant,
}

/// The sender's two ways back to the loop, besides the batches'.
pub(crate) struct Back {
    /// Device states, to be used again.
    pub(crate) states: Sender<Vec<u8>>,
    pub(crate) sent: Sender<Sent>,
}

/// What the checkpoint on the wire holds so far.
#[derive(Default)]
struct Tally {
    frames: u32,
    pages: u64,
    hashes: Vec<u8>,
    audit: Option<Sealed>,
    begun: Option<Instant>,
    encode: Duration,
    send: Duration,
}

impl Tally {
    fn add(&mut self, header: FrameHeader) {
        self.frames += 1;
        self.hashes.extend(header.payload_hash.to_le_bytes());
    }
}

/// Runs until the jobs end or the channel fails; the failure goes to `lost`. Dropping `back` then tells a capture
/// that waits for staging memory.
pub(crate) fn run(
    jobs: &Receiver<Job>,
    mut tx: FrameTx,
    mut codec: Box<dyn Codec>,
    back: &Sender<Batch>,
    to_loop: &Back,
    lost: impl FnOnce(PluginError),
) {
    let mut tally = Tally::default();
    for job in jobs {
        tally.begun.get_or_insert_with(Instant::now);
        let sent = match job {
            Job::Audit(sealed) => {
                tally.audit = Some(sealed);
                Ok(())
            }
            Job::Pages(epoch, batch) => send_pages(&mut tx, codec.as_mut(), epoch, batch, &mut tally, back),
            Job::End { epoch, armed, state } => {
                let sent = send_end(&mut tx, epoch, armed, &state, std::mem::take(&mut tally), to_loop);
                let _ = to_loop.states.send(state); // back for the next capture, if the loop still runs
                sent
            }
        };
        if let Err(error) = sent {
            return lost(error);
        }
    }
}

fn send_pages(
    tx: &mut FrameTx,
    codec: &mut dyn Codec,
    epoch: Epoch,
    batch: Batch,
    tally: &mut Tally,
    back: &Sender<Batch>,
) -> Result<(), PluginError> {
    {
        let runs = batch.runs();
        tally.audit.iter().for_each(|audit| audit.captured(&runs));
        let mut payload = Vec::with_capacity(runs.len() + 1);
        let begun = Instant::now();
        codec.encode(epoch, &runs, &mut payload)?;
        let encoded = Instant::now();
        let header = tx.send(FrameKind::Pages, 0, epoch, &payload)?;
        if epoch == Epoch::COPY {
            tally.begun = None;
        } else {
            tally.encode += encoded - begun;
            tally.send += encoded.elapsed();
            tally.pages += batch.pages();
            tally.add(header);
        }
    }
    recycle(back, batch);
    Ok(())
}

fn send_end(
    tx: &mut FrameTx,
    epoch: Epoch,
    armed: bool,
    state: &[u8],
    mut tally: Tally,
    to_loop: &Back,
) -> Result<(), PluginError> {
    let begun = Instant::now();
    if let Some(audit) = tally.audit.take() {
        audit.frames(|payload| {
            tally.add(tx.send(FrameKind::Audit, 0, epoch, &[payload])?);
            Ok::<(), PluginError>(())
        })?;
    }
    let header = tx.send(FrameKind::State, 0, epoch, &[state])?;
    tally.add(header);
    let end = CheckpointEnd {
        armed,
        frames: tally.frames,
        pages: tally.pages,
        state_len: header.length,
        digest: PayloadHash::of(&[&tally.hashes]),
    };
    let done = Instant::now();
    let _ = to_loop.sent.send(Sent {
        epoch,
        begun: tally.begun.unwrap_or(begun),
        encode: tally.encode,
        send: tally.send + (done - begun),
        done,
    });
    tx.send(FrameKind::CheckpointEnd, 0, epoch, &[&end.encode()]).map(drop)
}
