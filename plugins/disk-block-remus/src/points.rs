//! How both sides agree on what is copied, and move from point to point: see `history` for what that means.

use crate::device::Medium;
use crate::history::{History, HistoryError};
use crate::meta::Id;
use crate::outbox::Outbox;
use crate::wire::{Description, answer, changed_records, kind};
use aventine_api::{Epoch, PluginError, RecordHead, RecordTx};
use aventine_disk_common::{lock, wait_while};
use std::collections::VecDeque;
use std::sync::{Condvar, Mutex};
use std::time::Duration;

/// How long a point serves before the next one is due: after a loss, what the guest wrote in that time is copied again.
pub(crate) const INTERVAL: Duration = Duration::from_secs(5);

/// Standby: decides what the primary has to copy, notes that the image will be in between, and puts the answer into
/// `answers`. Answers why everything is needed, if it is.
pub(crate) fn begin(
    description: &Description,
    history: &History,
    answers: &Answers,
) -> Result<Option<&'static str>, HistoryError> {
    let (point, previous) = history.points();
    let full = match description.why_full(point, previous) {
        _ if !description.asks => Some("the primary does not ask for less"),
        Some(_) if description.point.is_some() && history.void().is_some() => history.void(),
        why => why,
    };
    history.begin_copy(full.is_none())?;
    if description.asks {
        if full.is_none() {
            for record in changed_records(&history.changed()) {
                answers.push(kind::BLOCKS, record);
            }
        }
        answers.push(kind::ANSWER, answer(full));
    }
    Ok(full)
}

/// Primary: has the next barrier carry a point.
pub(crate) fn offer(Medium { image, history }: &Medium) {
    if let Err(error) = history.offer() {
        let (image, error) = (image.path().display(), PluginError::from(error));
        tracing::warn!(%image, error = error.chain(), "changes are noted on, and not forgotten");
    }
}

/// Primary, once the copy is queued: moves to a point that the standby has reached, and offers the next, until the session
/// ends.
pub(crate) fn keep(medium: &Medium, outbox: &Outbox, interval: Duration) {
    let Medium { image, history } = medium;
    let path = image.path().display();
    loop {
        let Some(point) = outbox.talk.reached() else { return };
        if let Err(error) = image.sync() {
            // The guest hears of it with its next flush; nothing is forgotten any more.
            let error = PluginError::from(error);
            tracing::error!(image = %path, error = error.chain(), "the image is not on stable storage");
            return;
        }
        while let Err(error) = history.retire(point) {
            let error = PluginError::from(error);
            tracing::warn!(image = %path, error = error.chain(), "changes are noted on, and not forgotten yet");
            if !outbox.talk.wait(INTERVAL) {
                return;
            }
        }
        if !outbox.talk.wait(interval) {
            return;
        }
        offer(medium);
    }
}

/// What a standby says, on its way to the thread that may wait in the channel.
#[derive(Default)]
pub(crate) struct Answers {
    queue: Mutex<Queue>,
    changed: Condvar,
}

#[derive(Default)]
struct Queue {
    records: VecDeque<(u8, Vec<u8>)>,
    ended: bool,
}

impl Answers {
    fn push(&self, kind: u8, payload: Vec<u8>) {
        lock(&self.queue).records.push_back((kind, payload));
        self.changed.notify_one();
    }

    pub(crate) fn reached(&self, point: Id) {
        self.push(kind::REACHED, point.0.to_vec());
    }

    /// An epoch's checks, in their order.
    pub(crate) fn compared(&self, differ: &[bool]) {
        if !differ.is_empty() {
            self.push(kind::COMPARED, differ.iter().map(|d| u8::from(*d)).collect());
        }
    }

    /// Nothing more is said.
    pub(crate) fn end(&self) {
        lock(&self.queue).ended = true;
        self.changed.notify_one();
    }

    /// Says it, until the end or until nobody hears it any more: the primary's other channels tell that.
    pub(crate) fn run(&self, mut tx: Box<dyn RecordTx>) {
        loop {
            let idle = |q: &mut Queue| q.records.is_empty() && !q.ended;
            let record = wait_while(&self.changed, lock(&self.queue), idle).records.pop_front();
            let Some((kind, payload)) = record else { return };
            if tx.send(RecordHead { epoch: Epoch::COPY, kind }, &[&payload]).is_err() {
                return;
            }
        }
    }
}
