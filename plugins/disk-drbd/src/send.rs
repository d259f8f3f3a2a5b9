//! The primary's sending thread: what is kept goes into the channel in the guest's order.

use crate::ahead::{Ahead, Item};
use crate::device::Device;
use crate::resource::Resource;
use crate::wire::{Change, Tally, describe, kind};
use aventine_api::{Epoch, ErrorCode, MAX_RECORD, PluginError, RecordHead, RecordTx};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

/// Most changes in a record: two parts each, well under what one system call takes.
const MAX_CHANGES: usize = 256;
/// How long DRBD may take to have on both sides what it was given before the first epoch.
const PATIENCE: Duration = Duration::from_secs(60);
/// How often it is asked meanwhile.
const LOOK: Duration = Duration::from_millis(20);

/// Why the first epoch does not begin.
#[derive(Debug, thiserror::Error)]
#[error(
    "DRBD did not have the disk on both sides within {PATIENCE:?} of the first epoch: resource {resource} is {word}"
)]
struct NotOnBoth {
    resource: String,
    word: String,
}

pub(crate) struct Sender {
    pub(crate) ahead: Arc<Ahead>,
    pub(crate) device: Arc<Device>,
    pub(crate) resource: Arc<dyn Resource>,
    pub(crate) tx: Box<dyn RecordTx>,
    tally: Tally,
}

impl Sender {
    pub(crate) fn new(
        ahead: Arc<Ahead>,
        device: Arc<Device>,
        resource: Arc<dyn Resource>,
        tx: Box<dyn RecordTx>,
    ) -> Sender {
        Sender { ahead, device, resource, tx, tally: Tally::default() }
    }

    /// Until replication or the channel ends.
    pub(crate) fn run(mut self) {
        while let Some(items) = self.ahead.next_items() {
            if let Err(error) = self.send_all(items) {
                self.ahead.fail(error);
                return;
            }
        }
    }

    fn send_all(&mut self, items: impl IntoIterator<Item = Item>) -> Result<(), PluginError> {
        let mut run: Vec<Arc<Change>> = Vec::new();
        let (mut of, mut bytes) = (Epoch::COPY, 0);
        for item in items {
            match item {
                Item::Change(epoch, change) => {
                    let len = change.wire_len();
                    if of != epoch || run.len() == MAX_CHANGES || bytes + len > MAX_RECORD {
                        self.changes(of, &mut run)?;
                        bytes = 0;
                    }
                    of = epoch;
                    bytes += len;
                    run.push(change);
                }
                note => {
                    self.changes(of, &mut run)?;
                    bytes = 0;
                    self.note(&note)?;
                }
            }
        }
        self.changes(of, &mut run)
    }

    fn changes(&mut self, epoch: Epoch, run: &mut Vec<Arc<Change>>) -> Result<(), PluginError> {
        if run.is_empty() {
            return Ok(());
        }
        let mut parts = Vec::with_capacity(run.len() * 2);
        let mut payload = 0;
        for change in run.iter() {
            self.tally.add(change);
            payload += change.wire_len();
            parts.extend([&change.head[..], &change.data[..]]);
        }
        parts.retain(|p| !p.is_empty());
        self.tx.send(RecordHead { epoch, kind: kind::CHANGES }, &parts)?;
        self.ahead.count_sent(payload);
        run.clear();
        Ok(())
    }

    fn note(&mut self, note: &Item) -> Result<(), PluginError> {
        match note {
            Item::Describe => {
                let description = describe(self.device_size(), self.resource.name());
                self.tx.send(RecordHead { epoch: Epoch::COPY, kind: kind::DESCRIBE }, &[&description])
            }
            Item::Barrier(epoch) => {
                if *epoch == Epoch::FIRST {
                    self.bring_to_both()?;
                }
                let summary = self.tally.finish().encode();
                self.tx.send(RecordHead { epoch: *epoch, kind: kind::BARRIER }, &[&summary])
            }
            Item::Both { on_both, open } => {
                let head = RecordHead { epoch: *open, kind: kind::BOTH };
                self.tx.send(head, &[&on_both.0.to_le_bytes()])
            }
            Item::Change(..) => Ok(()),
        }
    }

    fn device_size(&self) -> u64 {
        aventine_api::BlockDevice::size(&*self.device)
    }

    /// What the guest wrote before the first epoch is part of it, and is in no record.
    fn bring_to_both(&self) -> Result<(), PluginError> {
        if let Some(image) = self.device.image() {
            image.sync()?;
        }
        let start = Instant::now();
        loop {
            let state = self.resource.state()?;
            if state.on_both() {
                return Ok(());
            }
            if start.elapsed() > PATIENCE || self.ahead.ends_as().is_some() {
                let resource = self.resource.name().to_owned();
                return Err(PluginError::new(
                    ErrorCode::Unavailable,
                    NotOnBoth { resource, word: state.word },
                ));
            }
            thread::sleep(LOOK);
        }
    }
}
