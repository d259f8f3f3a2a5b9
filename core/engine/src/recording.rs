//! A link on which nobody answers, and what the primary needs to hear all the same.
//!
//! ```text
//!  primary ── control, pages, disks, networks ─► the transport, which records them
//!     ▲                  │
//!     └── Accept, Ready, Heartbeat, Acknowledge at each end of a checkpoint, EndAck
//! ```
//! So the loop is the same with and without a standby. Nobody claims the guest: the arbiter has one side to hear.

use aventine_api::{Channel, ChannelRx, ChannelTx, Epoch, ErrorCode, Link, LinkAbort, PluginError};
use aventine_protocol::{FrameHeader, FrameKind, HEADER_LEN, Message};
use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Duration;

/// The link has ended.
#[derive(Debug, thiserror::Error)]
#[error("The recording has ended")]
struct Ended;

/// A transport's link that only records.
pub(crate) struct Recording {
    link: Box<dyn Link>,
    answers: Arc<Answers>,
}

impl Recording {
    pub(crate) fn new(link: Box<dyn Link>) -> Recording {
        let answers = Answers { said: Mutex::default(), changed: Condvar::new(), abort: link.aborter() };
        Recording { link, answers: Arc::new(answers) }
    }
}

impl Link for Recording {
    fn open(&mut self, name: &str, route: Option<&str>, limit: Duration) -> Result<Channel, PluginError> {
        let (tx, rx) = self.link.open(name, route, limit)?;
        if !["control", "pages"].contains(&name) {
            return Ok((tx, rx));
        }
        let tap = Box::new(Tap { tx, answers: Arc::clone(&self.answers), sequence: 0 });
        Ok((tap, if name == "control" { Box::new(AnswersRx(Arc::clone(&self.answers))) } else { rx }))
    }

    fn aborter(&self) -> Arc<dyn LinkAbort> {
        Arc::clone(&self.answers) as Arc<dyn LinkAbort>
    }

    fn peer(&self) -> String {
        self.link.peer()
    }

    fn answers(&self) -> bool {
        false
    }
}

/// What a standby would say.
struct Answers {
    said: Mutex<Said>,
    changed: Condvar,
    abort: Arc<dyn LinkAbort>,
}

#[derive(Default)]
struct Said {
    bytes: VecDeque<u8>,
    frames: u32,
    ended: bool,
}

impl Answers {
    fn say(&self, epoch: Epoch, message: &Message) {
        let mut said = self.said.lock().unwrap_or_else(PoisonError::into_inner);
        let payload = message.encode();
        let header = FrameHeader::of(FrameKind::Message, 0, epoch, said.frames, &[&payload]);
        said.frames = said.frames.wrapping_add(1);
        said.bytes.extend(header.encode());
        said.bytes.extend(payload);
        self.changed.notify_all();
    }

    fn answer(&self, epoch: Epoch, message: &Message) {
        match message {
            Message::Hello(_) => {
                self.say(epoch, &Message::Accept { base: false });
                self.say(epoch, &Message::Ready);
            }
            Message::Heartbeat => self.say(epoch, &Message::Heartbeat),
            Message::End(_) => self.say(epoch, &Message::EndAck),
            Message::HandOver => {
                self.say(epoch, &Message::Failed("a recording cannot run a guest".to_owned()));
            }
            _ => {}
        }
    }
}

impl LinkAbort for Answers {
    fn abort(&self) {
        self.abort.abort();
        self.said.lock().unwrap_or_else(PoisonError::into_inner).ended = true;
        self.changed.notify_all();
    }
}

/// Hears what the primary sends: one frame in each call.
struct Tap {
    tx: Box<dyn ChannelTx>,
    answers: Arc<Answers>,
    sequence: u32,
}

impl ChannelTx for Tap {
    fn send(&mut self, parts: &[&[u8]]) -> Result<(), PluginError> {
        let head = parts.first().and_then(|head| <&[u8; HEADER_LEN]>::try_from(*head).ok());
        let header = head.and_then(|head| FrameHeader::decode(head, self.sequence).ok());
        self.sequence = self.sequence.wrapping_add(1);
        let message = header.filter(|h| h.kind == FrameKind::Message);
        let message = message.and_then(|_| Message::decode(&parts[1..].concat()).ok());
        // That the primary lives is nothing to record.
        if message != Some(Message::Heartbeat) {
            self.tx.send(parts)?;
        }
        match (header, message) {
            (Some(header), Some(message)) => self.answers.answer(header.epoch, &message),
            // What is written is committed.
            (Some(FrameHeader { kind: FrameKind::CheckpointEnd, epoch, .. }), None) => {
                self.answers.say(epoch, &Message::Acknowledge);
            }
            _ => {}
        }
        Ok(())
    }
}

struct AnswersRx(Arc<Answers>);

impl ChannelRx for AnswersRx {
    fn recv(&mut self, buf: &mut [u8]) -> Result<(), PluginError> {
        let Answers { said, changed, .. } = &*self.0;
        let mut said = said.lock().unwrap_or_else(PoisonError::into_inner);
        while said.bytes.len() < buf.len() && !said.ended {
            said = changed.wait(said).unwrap_or_else(PoisonError::into_inner);
        }
        if said.ended {
            return Err(PluginError::new(ErrorCode::PeerLost, Ended));
        }
        let length = buf.len();
        buf.iter_mut().zip(said.bytes.drain(..length)).for_each(|(to, byte)| *to = byte);
        Ok(())
    }
}
