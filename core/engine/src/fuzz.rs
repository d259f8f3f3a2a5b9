//! Fuzz targets; see `tests/fuzz`.

use crate::arbiter;
use crate::memory::GuestMemory;
use crate::receiver::{self, Buffers, Checkpoint, Image};
use crate::wire::FrameRx;
use aventine_api::{ChannelRx, Codec, Epoch, ErrorCode, PAGE_SIZE, PageRun, PluginError, Region};
use aventine_protocol::{CheckpointEnd, FrameHeader, FrameKind, PayloadHash};
use std::cell::RefCell;
use std::ptr::NonNull;
use std::sync::{Mutex, PoisonError};

/// Pages of the guest's two regions.
const REGIONS: [usize; 2] = [3, 5];
const PAGES: usize = 8;

#[derive(Debug, thiserror::Error)]
#[error("The channel has ended")]
struct Ended;

/// A channel that carries these bytes.
struct Stream(std::vec::IntoIter<u8>);

impl ChannelRx for Stream {
    fn recv(&mut self, buf: &mut [u8]) -> Result<(), PluginError> {
        if self.0.len() < buf.len() {
            return Err(PluginError::new(ErrorCode::PeerLost, Ended));
        }
        buf.copy_from_slice(&self.0.as_slice()[..buf.len()]);
        self.0.by_ref().take(buf.len()).for_each(drop);
        Ok(())
    }
}

fn stream(bytes: Vec<u8>) -> FrameRx {
    FrameRx::new(Box::new(Stream(bytes.into_iter())))
}

/// Makes a stream from a script of steps, mostly of sound frames, so that what is behind the checksums is reached.
struct Script<'a> {
    rest: &'a [u8],
    wire: Vec<u8>,
    sequence: u32,
    epoch: u64,
    end: CheckpointEnd,
    hashes: Vec<u8>,
}

const EMPTY: CheckpointEnd = CheckpointEnd { armed: false, frames: 0, pages: 0, state_len: 0, digest: 0 };

impl<'a> Script<'a> {
    fn new(rest: &'a [u8]) -> Script<'a> {
        Script { rest, wire: Vec::new(), sequence: 0, epoch: 0, end: EMPTY, hashes: Vec::new() }
    }

    fn byte(&mut self) -> u8 {
        self.rest.split_off_first().copied().unwrap_or(0)
    }

    fn bytes(&mut self) -> &'a [u8] {
        let len = usize::from(u16::from_le_bytes([self.byte(), self.byte()])).min(self.rest.len());
        self.rest.split_off(..len).unwrap_or_default()
    }

    fn frame(&mut self, kind: FrameKind, payload: &[u8]) {
        let header = FrameHeader::of(kind, 0, Epoch(self.epoch), self.sequence, &[payload]);
        self.sequence += 1;
        self.wire.extend(header.encode());
        self.wire.extend(payload);
        if self.epoch != Epoch::COPY.0
            && matches!(kind, FrameKind::Pages | FrameKind::State | FrameKind::Audit)
        {
            self.end.frames += 1;
            self.hashes.extend(header.payload_hash.to_le_bytes());
        }
    }

    /// Carries out the next step.
    fn step(&mut self, codec: &mut dyn Codec) {
        match self.byte() % 10 {
            0 => self.pages(codec),
            1 => {
                let payload = self.bytes();
                self.frame(FrameKind::Pages, payload);
            }
            2 => {
                let state = self.bytes();
                self.end.state_len = state.len() as u32;
                self.frame(FrameKind::State, state);
            }
            3 => {
                self.end.armed = self.byte() & 1 == 1;
                self.end.digest = PayloadHash::of(&[&std::mem::take(&mut self.hashes)]);
                let end = std::mem::replace(&mut self.end, EMPTY);
                self.frame(FrameKind::CheckpointEnd, &end.encode());
                self.epoch = self.epoch.wrapping_add(1);
            }
            4 => {
                let end = self.bytes();
                self.frame(FrameKind::CheckpointEnd, &end[..end.len().min(FrameKind::CheckpointEnd.limit())]);
            }
            5 => {
                let payload = self.bytes();
                let kind = [FrameKind::Record, FrameKind::Message][usize::from(self.byte() % 2)];
                self.frame(kind, payload);
            }
            6 => {
                let raw = self.bytes();
                self.wire.extend(raw);
            }
            7 => {
                let (at, value) = (usize::from(self.byte()), self.byte());
                if let Some(byte) = self.wire.iter_mut().rev().nth(at) {
                    *byte ^= value;
                }
            }
            8 => {
                self.epoch = match self.byte() {
                    0xff => u64::MAX,
                    step => self.epoch.wrapping_add(u64::from(step)),
                }
            }
            _ => {
                let record = self.bytes();
                self.frame(FrameKind::Audit, &record[..record.len().min(FrameKind::Audit.limit())]);
            }
        }
    }

    /// Pages as the codec encodes them, inside the guest's memory or not.
    fn pages(&mut self, codec: &mut dyn Codec) {
        let runs = (0..self.byte() % 4).map(|_| {
            let (first, count, fill) = (self.byte(), self.byte() % 10, self.byte());
            (u64::from(first % 10), vec![fill; usize::from(count) * PAGE_SIZE])
        });
        let runs = runs.collect::<Vec<_>>();
        let runs = runs.iter().map(|(first_page, data)| PageRun { first_page: *first_page, data });
        let runs = runs.collect::<Vec<_>>();
        let mut payload = Vec::new();
        codec.encode(Epoch(self.epoch), &runs, &mut payload).expect("whole pages can be encoded");
        if self.epoch != Epoch::COPY.0 {
            self.end.pages += runs.iter().map(|run| (run.data.len() / PAGE_SIZE) as u64).sum::<u64>();
        }
        self.frame(FrameKind::Pages, &payload.concat());
    }
}

/// The `pages` channel from the first byte on, as a script of [`Script`]. Checkpoints come whole and in order; each fits
/// the guest, and can be applied. `codec` makes the decoder and the encoder.
pub fn receiver(data: &[u8], codec: fn() -> Box<dyn Codec>) {
    let mut script = Script::new(data);
    let mut encoder = codec();
    while !script.rest.is_empty() {
        script.step(encoder.as_mut());
    }
    let mut memory = REGIONS.map(|pages| vec![0_u8; pages * PAGE_SIZE]);
    let mut first_page = 0;
    let regions = memory.iter_mut().map(|bytes| {
        let pages = (bytes.len() / PAGE_SIZE) as u64;
        let host = NonNull::new(bytes.as_mut_ptr()).expect("a vector's memory");
        let region = Region { first_page, pages, host };
        first_page += pages;
        region
    });
    // SAFETY: `memory` outlives the image and is not touched meanwhile.
    let memory = unsafe { GuestMemory::from_regions(regions.collect(), &[None; REGIONS.len()]) };
    let image = Mutex::new(Image { memory, codec: codec() });
    let buffers = Buffers::new(1 << 20);
    let committed = RefCell::new(Epoch::COPY);
    let whole = |checkpoint: Checkpoint| {
        let due = committed.borrow().next();
        assert_eq!(checkpoint.epoch, due);
        committed.replace(due);
        let held = checkpoint.pages.iter().map(|p| p.len()).sum::<usize>();
        assert!(held <= PAGES * (PAGE_SIZE + 64), "{held} bytes for a guest of {PAGES} pages");
        assert!(checkpoint.pages.len() <= PAGES, "{} batches", checkpoint.pages.len());
        let mut image = image.lock().unwrap_or_else(PoisonError::into_inner);
        for batch in &checkpoint.pages {
            image.decode(batch).expect("a checkpoint that is whole can be applied");
        }
        buffers.recycle(checkpoint);
    };
    // However it ends, it ends.
    let _ = receiver::run(stream(script.wire), &image, &buffers, PAGES as u64, whole, |_| ());
}

/// The `control` channel: frames with right checksums around the messages that the bytes hold, each after two bytes of
/// its length, and in the end the bytes as they are.
pub fn control(data: &[u8]) {
    let mut script = Script::new(data);
    while !script.rest.is_empty() {
        let payload = script.bytes();
        script.frame(FrameKind::Message, &payload[..payload.len().min(FrameKind::Message.limit())]);
    }
    for wire in [script.wire, data.to_vec()] {
        let length = wire.len();
        let mut rx = stream(wire);
        let mut used = 0;
        while let Ok((_, message)) = rx.message() {
            used += aventine_protocol::HEADER_LEN + message.encode().len();
        }
        assert!(used <= length, "{used} bytes of messages came out of {length}");
    }
}

/// The record of the session that was open when this host crashed.
pub fn session(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    if let Some(session) = arbiter::parse(&text) {
        assert!(session.to_string().eq_ignore_ascii_case(&text), "{text:?} was read as {session}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use aventine_api::{Context, Factory, Host, PluginEntry, SessionId, Side};
    use aventine_codec_raw as _;
    use aventine_fuzz::replay;
    use aventine_protocol::{Hello, Message};
    use std::sync::Arc;

    struct Silent;

    impl Host for Silent {
        fn request_epoch(&self) {}
        fn staged(&self, _: Epoch) {}
        fn failed(&self, _: PluginError) {}
    }

    fn raw() -> Box<dyn Codec> {
        let mut entries = aventine_api::inventory::iter::<PluginEntry>.into_iter();
        let entry = entries.find(|e| e.name == "raw").expect("it is linked in");
        let Factory::Codec(make) = entry.factory else { unreachable!("`raw` is a codec") };
        let host = Arc::new(Silent);
        let (guest, id, dir) = ("web".to_owned(), "codec".to_owned(), std::path::PathBuf::from("/"));
        let context =
            Context { guest, id, side: Side::Standby, state_dir: dir.clone(), config_dir: dir, host };
        make("", context).expect("it needs nothing")
    }

    #[test]
    fn checkpoints_are_whole_or_refused() {
        let copy = [0, 1, 0, 8, 7];
        let first =
            [&copy[..], &[8, 1, 0, 2, 1, 1, 0x11, 2, 3, 0x22, 2, 3, 0, b'd', b'e', b'v', 3, 0]].concat();
        let second = [0, 1, 7, 1, 0x33, 2, 1, 0, b'd', 3, 1];
        // The same page over and over, and batches of nothing.
        let endless =
            [&first[..], &[0, 1, 0, 8, 1].repeat(3), &[1, 0, 0].repeat(9), &[2, 0, 0, 3, 1]].concat();
        let seeds = [
            ("copy", copy.to_vec()),
            ("first", first.clone()),
            ("two", [&first[..], &second].concat()),
            ("damaged", [&first[..], &second, &[7, 30, 1]].concat()),
            ("endless", endless),
            ("foreign", [&first[..], &[5, 1, 0, 5, 0, 6, 4, 0, b'A', b'V', b'N', b'T']].concat()),
        ];
        replay("receiver", &seeds, |data| receiver(data, raw));
    }

    #[test]
    fn messages_come_out_as_they_were_sent() {
        let hello = Hello {
            session: SessionId([3; 16]),
            signature: vec![("codec".into(), "raw".into())],
            base: None,
        };
        let said = |messages: &[Message]| {
            let framed = |m: &Message| [&(m.encode().len() as u16).to_le_bytes()[..], &m.encode()].concat();
            messages.iter().flat_map(framed).collect::<Vec<_>>()
        };
        let seeds = [
            ("primary", said(&[Message::Hello(hello), Message::Heartbeat, Message::Yield])),
            (
                "standby",
                said(&[
                    Message::Accept { base: true },
                    Message::Ready,
                    Message::Acknowledge,
                    Message::EndAck,
                ]),
            ),
        ];
        replay("control", &seeds, control);
    }

    #[test]
    fn a_session_is_read_as_it_was_written() {
        let seeds = [
            ("session", SessionId(*b"0123456789abcdef").to_string().into_bytes()),
            ("signs", b"+a+b+c+d+e+f+0+1+2+3+4+5+6+7+8+9".to_vec()),
        ];
        replay("session", &seeds, session);
    }
}
