//! What the standby says during a session, as the primary's threads wait for it.

use crate::blocks::{Blocks, block_of};
use crate::meta::Id;
use crate::verify::MOST_CHECKS;
use crate::wire::{AnswerRecord, RecordError, parse_answer};
use aventine_api::{ErrorCode, PluginError, RecordHead, RecordRx};
use aventine_disk_common::{lock, wait_while};
use std::collections::VecDeque;
use std::sync::{Condvar, Mutex, PoisonError};
use std::time::Duration;

/// What has to be copied.
pub(crate) enum Plan {
    /// Everything; why.
    Full(String),
    /// What this side has changed, and these blocks that the other one has.
    Changed(Blocks),
}

/// What was heard and not looked at.
#[derive(Default)]
pub(crate) struct Talk {
    heard: Mutex<Heard>,
    changed: Condvar,
}

#[derive(Default)]
struct Heard {
    plan: Option<Plan>,
    reached: Option<Id>,
    /// Whether each checked range differs, in their order; as many as can be under way.
    compared: VecDeque<bool>,
    ended: bool,
}

impl Talk {
    /// Reads the standby's answers until the channel ends, or something does not make sense. That the channel has ended is an
    /// error only while an answer is due: later on, whoever sends finds out.
    pub(crate) fn listen(&self, rx: &mut dyn RecordRx, size: u64) -> Result<(), PluginError> {
        let corrupt = |error| PluginError::new(ErrorCode::Corrupt, ListenError(error));
        let mut payload = Vec::new();
        // Until the answer.
        let mut theirs = Some(Blocks::of(size, block_of(size)));
        loop {
            let RecordHead { kind, epoch } = match rx.recv(&mut payload) {
                Err(error) if theirs.is_none() && error.code() == ErrorCode::PeerLost => {
                    self.end();
                    return Ok(());
                }
                head => head?,
            };
            let answer = parse_answer(kind, &payload).map_err(corrupt)?;
            match (answer, theirs.take()) {
                (Some(AnswerRecord::Blocks { at, words }), Some(blocks)) => {
                    let mut words = words.into_iter().enumerate();
                    if !words.all(|(i, word)| blocks.or_word(at.saturating_add(i), word)) {
                        return Err(corrupt(RecordError::Short));
                    }
                    theirs = Some(blocks);
                }
                (Some(AnswerRecord::Full(why)), Some(_)) => self.hear(|h| h.plan = Some(Plan::Full(why))),
                (Some(AnswerRecord::Changed), Some(blocks)) => {
                    self.hear(|h| h.plan = Some(Plan::Changed(blocks)));
                }
                (Some(AnswerRecord::Reached(id)), None) => self.hear(|h| h.reached = Some(id)),
                (Some(AnswerRecord::Compared(differ)), None) => {
                    self.hear(|h| h.compared.extend(differ));
                    if lock(&self.heard).compared.len() > MOST_CHECKS {
                        return Err(corrupt(RecordError::Unexpected { kind, epoch }));
                    }
                }
                _ => return Err(corrupt(RecordError::Unexpected { kind, epoch })),
            }
        }
    }

    fn hear(&self, f: impl FnOnce(&mut Heard)) {
        f(&mut lock(&self.heard));
        self.changed.notify_all();
    }

    /// The session has ended: nobody waits any more.
    pub(crate) fn end(&self) {
        self.hear(|h| h.ended = true);
    }

    /// Waits for what is to be copied; `None`: the session has ended.
    pub(crate) fn plan(&self) -> Option<Plan> {
        wait_while(&self.changed, lock(&self.heard), |h| !h.ended && h.plan.is_none()).plan.take()
    }

    /// Waits for a point that the standby has reached; `None`: the session has ended.
    pub(crate) fn reached(&self) -> Option<Id> {
        let mut heard = wait_while(&self.changed, lock(&self.heard), |h| !h.ended && h.reached.is_none());
        let reached = heard.reached.take();
        reached.filter(|_| !heard.ended)
    }

    /// Waits for the standby to compare another range, and answers whether it differs; `None`: the session has ended.
    pub(crate) fn compared(&self) -> Option<bool> {
        let waiting = |h: &mut Heard| !h.ended && h.compared.is_empty();
        wait_while(&self.changed, lock(&self.heard), waiting).compared.pop_front()
    }

    /// Waits; `false`: the session has ended.
    pub(crate) fn wait(&self, time: Duration) -> bool {
        let waited = self.changed.wait_timeout_while(lock(&self.heard), time, |h| !h.ended);
        !waited.unwrap_or_else(PoisonError::into_inner).0.ended
    }
}

/// The standby's answer makes no sense.
#[derive(Debug, thiserror::Error)]
#[error("The disk's way back carries what does not make sense")]
struct ListenError(#[source] RecordError);
