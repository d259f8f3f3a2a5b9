//! The messages of the `control` channel and the end-of-checkpoint record.
//!
//! ```text
//! primary                                   standby
//!   Hello(session, signature, base) ────────►  compares
//!   ◄──────────────── Refuse(reason) | Accept(base)
//!   (channels open, disks described)          (guest process started)
//!   ◄─────────────────────────────────── Ready
//!   Heartbeat ◄────────────────────────► Heartbeat
//!   ◄──────────────────── Acknowledge(epoch in the frame)
//!   End(reason) ───────────────────────────►  disarms
//!   ◄───────────────────────────────── EndAck
//!   Yield ─────────────────────────────────►  takes over
//!   HandOver ──────────────────────────────►  takes over, as planned
//!   ◄──────────────────────────────── TookOver
//!   ◄─────────────────────────── Failed(reason): the standby has disarmed itself
//!   ◄─ Diverged(pages), then Failed(reason): because an audit found these pages to differ
//! ```

use crate::EndReason;
use crate::audit::AUDIT_NAMED;
use aventine_api::{Epoch, SessionId};

/// What a primary says first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hello {
    /// The session that begins.
    pub session: SessionId,
    /// What must be the same on both hosts, as `(name, value)`.
    pub signature: Vec<(String, String)>,
    /// What the guest's memory was when it began to run here: a standby that still has it needs only what was written
    /// since.
    pub base: Option<Base>,
}

/// An image of the guest's memory that both hosts may have: that of a committed epoch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Base {
    /// The session in which the guest was handed over.
    pub session: SessionId,
    /// Its last committed epoch.
    pub epoch: Epoch,
}

/// A message on `control`. The epoch that a message speaks of stands in the frame's header.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Message {
    /// Primary: the first message of a session.
    Hello(Hello),
    /// Standby: the signature agrees. With `base`: it has the memory that the primary named, and needs no copy of it.
    Accept {
        /// Whether it has the base.
        base: bool,
    },
    /// Standby: it will not stand by, and why. Nothing has been started.
    Refuse(String),
    /// Standby: its guest and disks are ready for the initial copy.
    Ready,
    /// Either: alive.
    Heartbeat,
    /// Standby: holds the frame's epoch, complete and checked, and has committed it.
    Acknowledge,
    /// Primary: protection ends. The standby must not promote any more.
    End(EndReason),
    /// Standby: has disarmed itself after `End`.
    EndAck,
    /// Primary: its guest is gone and silenced; the standby shall take over.
    Yield,
    /// Primary: the guest waits, paused, for the standby to run it.
    HandOver,
    /// Standby: the guest that was handed over runs here.
    TookOver,
    /// Standby: cannot go on, has disarmed itself and will never promote in this session.
    Failed(String),
    /// Standby: guest pages differ from the primary's at the frame's epoch. [`Message::Failed`] follows.
    Diverged {
        /// How many were found.
        total: u64,
        /// The numbers of the first of them, at most [`AUDIT_NAMED`].
        pages: Vec<u64>,
    },
}

/// What closes the stream of a checkpoint on `pages`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CheckpointEnd {
    /// Whether all output since the checkpoint before was held: only then may the standby promote from this one.
    pub armed: bool,
    /// Frames in the checkpoint before this one.
    pub frames: u32,
    /// Pages in them.
    pub pages: u64,
    /// Bytes of device state.
    pub state_len: u32,
    /// Hash over the payload hashes of all frames of the checkpoint, in order.
    pub digest: u64,
}

/// Why the payload of a message was not accepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("A message of the other side does not make sense")]
pub struct MessageError;

impl Message {
    /// The payload for the wire. Texts are cut so that every message fits a frame.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = vec![self.tag()];
        match self {
            Message::Hello(hello) => {
                out.extend(hello.session.0);
                out.extend((hello.signature.len() as u16).to_le_bytes());
                for (name, value) in &hello.signature {
                    put_text(&mut out, name);
                    put_text(&mut out, value);
                }
                if let Some(base) = hello.base {
                    out.extend(base.session.0);
                    out.extend(base.epoch.0.to_le_bytes());
                }
            }
            Message::Accept { base } => out.push(u8::from(*base)),
            Message::Refuse(text) | Message::Failed(text) => put_text(&mut out, text),
            Message::End(reason) => match reason {
                EndReason::Stopped => out.push(1),
                EndReason::GuestShutDown => out.push(2),
                EndReason::LocalError(text) => {
                    out.push(3);
                    put_text(&mut out, text);
                }
            },
            Message::Diverged { total, pages } => {
                let named = &pages[..pages.len().min(AUDIT_NAMED)];
                out.extend(total.to_le_bytes());
                out.push(named.len() as u8);
                named.iter().for_each(|page| out.extend(page.to_le_bytes()));
            }
            _ => {}
        }
        out
    }

    /// Decodes a payload; nothing may follow the message.
    pub fn decode(payload: &[u8]) -> Result<Message, MessageError> {
        let mut r = Reader(payload);
        let message = match r.byte()? {
            1 => {
                let session = SessionId(r.array()?);
                let count = r.u16()?;
                let signature = (0..count).map(|_| Ok((r.text()?, r.text()?))).collect::<Result<_, _>>()?;
                let base = match r.0.is_empty() {
                    true => None,
                    false => Some(Base { session: SessionId(r.array()?), epoch: Epoch(r.u64()?) }),
                };
                Message::Hello(Hello { session, signature, base })
            }
            2 => Message::Accept { base: r.flag()? },
            3 => Message::Refuse(r.text()?),
            4 => Message::Ready,
            5 => Message::Heartbeat,
            6 => Message::Acknowledge,
            7 => Message::End(match r.byte()? {
                1 => EndReason::Stopped,
                2 => EndReason::GuestShutDown,
                3 => EndReason::LocalError(r.text()?),
                _ => return Err(MessageError),
            }),
            8 => Message::EndAck,
            9 => Message::Yield,
            10 => Message::Failed(r.text()?),
            11 => Message::HandOver,
            12 => Message::TookOver,
            13 => {
                let (total, named) = (r.u64()?, usize::from(r.byte()?));
                if named > AUDIT_NAMED {
                    return Err(MessageError);
                }
                let pages = (0..named).map(|_| r.u64()).collect::<Result<_, _>>()?;
                Message::Diverged { total, pages }
            }
            _ => return Err(MessageError),
        };
        if r.0.is_empty() { Ok(message) } else { Err(MessageError) }
    }

    fn tag(&self) -> u8 {
        match self {
            Message::Hello(_) => 1,
            Message::Accept { .. } => 2,
            Message::Refuse(_) => 3,
            Message::Ready => 4,
            Message::Heartbeat => 5,
            Message::Acknowledge => 6,
            Message::End(_) => 7,
            Message::EndAck => 8,
            Message::Yield => 9,
            Message::Failed(_) => 10,
            Message::HandOver => 11,
            Message::TookOver => 12,
            Message::Diverged { .. } => 13,
        }
    }
}

impl CheckpointEnd {
    /// The payload for the wire.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = vec![u8::from(self.armed)];
        out.extend(self.frames.to_le_bytes());
        out.extend(self.pages.to_le_bytes());
        out.extend(self.state_len.to_le_bytes());
        out.extend(self.digest.to_le_bytes());
        out
    }

    /// Decodes a payload.
    pub fn decode(payload: &[u8]) -> Result<CheckpointEnd, MessageError> {
        let mut r = Reader(payload);
        let armed = r.flag()?;
        let end =
            CheckpointEnd { armed, frames: r.u32()?, pages: r.u64()?, state_len: r.u32()?, digest: r.u64()? };
        if r.0.is_empty() { Ok(end) } else { Err(MessageError) }
    }
}

/// Where two signatures differ, a line each; empty when they agree.
pub fn differences(primary: &[(String, String)], standby: &[(String, String)]) -> Vec<String> {
    let find = |list: &[(String, String)], name: &str| {
        list.iter().find(|(n, _)| n == name).map_or("nothing".to_owned(), |(_, v)| format!("`{v}`"))
    };
    let mut names: Vec<_> = primary.iter().map(|(n, _)| n).collect();
    names.extend(standby.iter().map(|(n, _)| n).filter(|n| !primary.iter().any(|(p, _)| p == *n)));
    let differs = |name: &&String| find(primary, name) != find(standby, name);
    let line =
        |n: &String| format!("{n}: {} on the primary, {} on the standby", find(primary, n), find(standby, n));
    names.into_iter().filter(differs).map(line).collect()
}

/// Most bytes of one text in a message: a signature of a dozen texts fits a frame.
const TEXT_LIMIT: usize = 4096;

fn put_text(out: &mut Vec<u8>, text: &str) {
    let mut end = text.len().min(TEXT_LIMIT);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    out.extend((end as u16).to_le_bytes());
    out.extend(&text.as_bytes()[..end]);
}

struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, n: usize) -> Result<&'a [u8], MessageError> {
        let (head, tail) = self.0.split_at_checked(n).ok_or(MessageError)?;
        self.0 = tail;
        Ok(head)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], MessageError> {
        self.take(N)?.try_into().map_err(|_| MessageError)
    }

    fn byte(&mut self) -> Result<u8, MessageError> {
        Ok(self.array::<1>()?[0])
    }

    fn flag(&mut self) -> Result<bool, MessageError> {
        match self.byte()? {
            0 => Ok(false),
            1 => Ok(true),
            _ => Err(MessageError),
        }
    }

    fn u16(&mut self) -> Result<u16, MessageError> {
        Ok(u16::from_le_bytes(self.array()?))
    }

    fn u32(&mut self) -> Result<u32, MessageError> {
        Ok(u32::from_le_bytes(self.array()?))
    }

    fn u64(&mut self) -> Result<u64, MessageError> {
        Ok(u64::from_le_bytes(self.array()?))
    }

    fn text(&mut self) -> Result<String, MessageError> {
        let len = usize::from(self.u16()?);
        if len > TEXT_LIMIT {
            return Err(MessageError);
        }
        String::from_utf8(self.take(len)?.to_vec()).map_err(|_| MessageError)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn signature(value: &str) -> Vec<(String, String)> {
        vec![("memory".into(), "256 MiB".into()), ("codec".into(), value.into())]
    }

    #[test]
    fn messages_survive_the_wire() {
        for message in [
            Message::Hello(Hello { session: SessionId([7; 16]), signature: signature("raw"), base: None }),
            Message::Hello(Hello {
                session: SessionId([7; 16]),
                signature: signature("raw"),
                base: Some(Base { session: SessionId([8; 16]), epoch: Epoch(9) }),
            }),
            Message::Accept { base: false },
            Message::Accept { base: true },
            Message::Refuse("no".into()),
            Message::Ready,
            Message::Heartbeat,
            Message::Acknowledge,
            Message::End(EndReason::Stopped),
            Message::End(EndReason::GuestShutDown),
            Message::End(EndReason::LocalError("disk".into())),
            Message::EndAck,
            Message::Yield,
            Message::Failed("full".into()),
            Message::HandOver,
            Message::TookOver,
            Message::Diverged { total: 1000, pages: vec![0, u64::MAX] },
        ] {
            assert_eq!(Message::decode(&message.encode()), Ok(message));
        }
        let end = CheckpointEnd { armed: true, frames: 1, pages: 2, state_len: 3, digest: 4 };
        assert_eq!(CheckpointEnd::decode(&end.encode()), Ok(end));
    }

    #[test]
    fn a_long_text_is_cut_between_characters() {
        let Ok(Message::Failed(text)) = Message::decode(&Message::Failed("é".repeat(5000)).encode()) else {
            panic!("a long text still decodes");
        };
        assert_eq!(text.len(), TEXT_LIMIT);
    }

    #[test]
    fn differences_name_both_values() {
        assert!(differences(&signature("raw"), &signature("raw")).is_empty());
        let mut standby = signature("lz4");
        standby.push(("disk0".into(), "block-remus".into()));
        assert_eq!(
            differences(&signature("raw"), &standby),
            [
                "codec: `raw` on the primary, `lz4` on the standby",
                "disk0: nothing on the primary, `block-remus` on the standby"
            ]
        );
    }

    proptest! {
        #[test]
        fn hostile_payloads_never_panic(payload in proptest::collection::vec(any::<u8>(), 0..200)) {
            if let Ok(message) = Message::decode(&payload) {
                prop_assert_eq!(message.encode(), payload);
            } else {
                let _ = CheckpointEnd::decode(&payload);
            }
        }
    }
}
