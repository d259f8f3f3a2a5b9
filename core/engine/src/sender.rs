//! The sender: encodes captured pages and sends them while the guest runs.
//!
//! Invariant: what it tells of a checkpoint is told before the checkpoint's last frame goes, so it is there before the
//! acknowledgement can be.

use crate::audit::Sealed;
use crate::staging::{Batch, Job, recycle};
use crate::wire::FrameTx;
use aventine_api::{Codec, Epoch, PluginError};
use aventine_protocol::{CheckpointEnd, FrameHeader, FrameKind, PayloadHash};
use std::sync::mpsc::{Receiver, Sender, TryRecvError};
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

/// The way out, for frames, and back, for batches.
struct Out<'b> {
    tx: FrameTx,
    back: &'b Sender<Batch>,
    /// Sent, and the transport may still read there.
    held: Option<Batch>,
}

impl Out<'_> {
    /// The next job, unless there will be none. Nothing is held while it is waited for: the capture may wait for just that batch.
    fn next(&mut self, jobs: &Receiver<Job>, tally: &mut Tally) -> Result<Option<Job>, PluginError> {
        match jobs.try_recv() {
            Ok(job) => return Ok(Some(job)),
            Err(TryRecvError::Disconnected) => return Ok(None),
            Err(TryRecvError::Empty) => {}
        }
        if let Some(batch) = self.held.take() {
            let begun = Instant::now();
            self.tx.settle(0)?;
            recycle(self.back, batch);
            if tally.begun.is_some() {
                tally.send += begun.elapsed();
            }
        }
        Ok(jobs.recv().ok())
    }

    /// This batch was the last frame. It is free at once if it was copied, and else when the next one has been sent.
    fn sent(&mut self, batch: Batch) -> Result<(), PluginError> {
        let (before, newer) = if batch.is_lent() {
            (self.held.replace(batch), 1)
        } else {
            recycle(self.back, batch);
            (self.held.take(), 0)
        };
        if let Some(before) = before {
            self.tx.settle(newer)?;
            recycle(self.back, before);
        }
        Ok(())
    }
}

/// Runs until the jobs end or the channel fails; the failure goes to `lost`. Dropping `back` then tells a capture
/// that waits for staging memory.
///
/// A batch in the transport's memory is held until the next one is sent, so that this one is encoded while the device reads that.
pub(crate) fn run(
    jobs: &Receiver<Job>,
    tx: FrameTx,
    mut codec: Box<dyn Codec>,
    back: &Sender<Batch>,
    to_loop: &Back,
    lost: impl FnOnce(PluginError),
) {
    let mut out = Out { tx, back, held: None };
    let mut tally = Tally::default();
    loop {
        let done = match out.next(jobs, &mut tally) {
            Ok(Some(job)) => carry_out(job, &mut out, codec.as_mut(), &mut tally, to_loop),
            Ok(None) => return,
            Err(error) => Err(error),
        };
        if let Err(error) = done {
            return lost(error);
        }
    }
}

fn carry_out(
    job: Job,
    out: &mut Out<'_>,
    codec: &mut dyn Codec,
    tally: &mut Tally,
    to_loop: &Back,
) -> Result<(), PluginError> {
    tally.begun.get_or_insert_with(Instant::now);
    match job {
        Job::Audit(sealed) => {
            tally.audit = Some(sealed);
            Ok(())
        }
        Job::Pages(epoch, batch) => send_pages(out, codec, epoch, batch, tally),
        Job::End { epoch, armed, state } => {
            let sent = send_end(&mut out.tx, epoch, armed, &state, std::mem::take(tally), to_loop);
            let _ = to_loop.states.send(state); // back for the next capture, if the loop still runs
            sent
        }
    }
}

fn send_pages(
    out: &mut Out<'_>,
    codec: &mut dyn Codec,
    epoch: Epoch,
    batch: Batch,
    tally: &mut Tally,
) -> Result<(), PluginError> {
    let (begun, encoded, header) = {
        let runs = batch.runs();
        tally.audit.iter().for_each(|audit| audit.captured(&runs));
        let mut payload = Vec::with_capacity(runs.len() + 1);
        let begun = Instant::now();
        codec.encode(epoch, &runs, &mut payload)?;
        (begun, Instant::now(), out.tx.send(FrameKind::Pages, 0, epoch, &payload)?)
    };
    let pages = batch.pages();
    out.sent(batch)?;
    if epoch == Epoch::COPY {
        tally.begun = None;
    } else {
        tally.encode += encoded - begun;
        tally.send += encoded.elapsed();
        tally.pages += pages;
        tally.add(header);
    }
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

#[cfg(test)]
mod tests;
