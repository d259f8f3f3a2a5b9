//! The sender: encodes captured pages and sends them while the guest runs.

use crate::audit::Sealed;
use crate::staging::{Batch, Job, recycle};
use crate::wire::FrameTx;
use aventine_api::{Codec, Epoch, PluginError};
use aventine_protocol::{CheckpointEnd, FrameHeader, FrameKind, PayloadHash};
use std::sync::mpsc::{Receiver, Sender};

/// What the checkpoint on the wire holds so far.
#[derive(Default)]
struct Tally {
    frames: u32,
    pages: u64,
    hashes: Vec<u8>,
    audit: Option<Sealed>,
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
    states: &Sender<Vec<u8>>,
    lost: impl FnOnce(PluginError),
) {
    let mut tally = Tally::default();
    for job in jobs {
        let sent = match job {
            Job::Audit(sealed) => {
                tally.audit = Some(sealed);
                Ok(())
            }
            Job::Pages(epoch, batch) => send_pages(&mut tx, codec.as_mut(), epoch, batch, &mut tally, back),
            Job::End { epoch, armed, state } => {
                let sent = send_end(&mut tx, epoch, armed, &state, std::mem::take(&mut tally));
                let _ = states.send(state); // back for the next capture, if the loop still runs
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
        codec.encode(epoch, &runs, &mut payload)?;
        let header = tx.send(FrameKind::Pages, 0, epoch, &payload)?;
        if epoch != Epoch::COPY {
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
) -> Result<(), PluginError> {
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
    tx.send(FrameKind::CheckpointEnd, 0, epoch, &[&end.encode()]).map(drop)
}
