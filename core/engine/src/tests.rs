//! The checkpoint's way from guest memory through staging, sender and receiver into the standby's image, over an
//! in-memory channel.

use crate::bytes::Bytes;
use crate::memory::GuestMemory;
use crate::receiver::{self, Buffers, Checkpoint, Image, ReceiveError};
use crate::sender::{self, Back};
use crate::staging::Staging;
use crate::wire::{FrameRx, FrameTx};
use aventine_api::*;
use aventine_protocol::{CheckpointEnd, FrameKind, HEADER_LEN, PayloadHash};
use std::ptr::NonNull;
use std::sync::atomic::AtomicU64;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

/// A channel whose two ends are in this process. It lends memory for what is long.
struct PipeTx(Sender<Vec<u8>>);
struct PipeRx(Receiver<Vec<u8>>, Vec<u8>);

#[derive(Debug, thiserror::Error)]
#[error("the pipe has ended")]
struct Ended;

impl ChannelTx for PipeTx {
    fn send(&mut self, parts: &[&[u8]]) -> Result<(), PluginError> {
        self.0.send(parts.concat()).map_err(|_| PluginError::new(ErrorCode::PeerLost, Ended))
    }
}

impl ChannelRx for PipeRx {
    fn recv(&mut self, buf: &mut [u8]) -> Result<(), PluginError> {
        while self.1.len() < buf.len() {
            self.1.extend(self.0.recv().map_err(|_| PluginError::new(ErrorCode::PeerLost, Ended))?);
        }
        buf.copy_from_slice(&self.1[..buf.len()]);
        self.1.drain(..buf.len());
        Ok(())
    }

    fn recv_lent(&mut self, len: usize) -> Result<Option<Box<dyn LentMemory>>, PluginError> {
        if len < 64 << 10 {
            return Ok(None);
        }
        let mut memory = lend(len);
        self.recv(memory.bytes_mut())?;
        Ok(Some(memory))
    }
}

struct Lent(Vec<u8>);

pub(crate) fn lend(bytes: usize) -> Box<dyn LentMemory> {
    Box::new(Lent(vec![0; bytes]))
}

impl LentMemory for Lent {
    fn bytes(&self) -> &[u8] {
        &self.0
    }

    fn bytes_mut(&mut self) -> &mut [u8] {
        &mut self.0
    }
}

/// Regions of memory that stand for a guest.
pub(crate) struct Memory(pub(crate) Vec<Box<[u8]>>);

impl Memory {
    pub(crate) fn new(pages: &[usize]) -> Memory {
        Memory(pages.iter().map(|&p| vec![0; p * PAGE_SIZE].into_boxed_slice()).collect())
    }

    pub(crate) fn view(&mut self) -> GuestMemory {
        let (mut first_page, files) = (0, self.0.len());
        let regions = self.0.iter_mut().map(|r| {
            let pages = (r.len() / PAGE_SIZE) as u64;
            let region = Region { first_page, pages, host: NonNull::from(&mut r[0]) };
            first_page += pages;
            region
        });
        // SAFETY: the boxes are never moved or dropped before the view's last use.
        unsafe { GuestMemory::from_regions(regions.collect(), &vec![None; files]) }
    }

    pub(crate) fn fill(&mut self, page: usize, byte: u8) {
        let split = self.0[0].len() / PAGE_SIZE;
        let (region, page) = if page < split { (0, page) } else { (1, page - split) };
        self.0[region][page * PAGE_SIZE..(page + 1) * PAGE_SIZE].fill(byte);
    }
}

/// Page number and bytes, as simple as a codec can be.
struct Plain {
    heads: Vec<[u8; 16]>,
}

impl Codec for Plain {
    fn encode<'a>(
        &'a mut self,
        _: Epoch,
        runs: &'a [PageRun<'a>],
        out: &mut Vec<&'a [u8]>,
    ) -> Result<(), PluginError> {
        self.heads = runs
            .iter()
            .map(|r| {
                let mut head = [0; 16];
                head[..8].copy_from_slice(&r.first_page.to_le_bytes());
                head[8..].copy_from_slice(&(r.data.len() as u64).to_le_bytes());
                head
            })
            .collect();
        for (head, run) in self.heads.iter().zip(runs) {
            out.extend([&head[..], run.data]);
        }
        Ok(())
    }

    fn check(&mut self, payload: &[u8], guest_pages: u64) -> Result<u64, PluginError> {
        let mut pages = 0;
        each(payload, |first, data| {
            assert!(first + (data.len() / PAGE_SIZE) as u64 <= guest_pages);
            pages += (data.len() / PAGE_SIZE) as u64;
        });
        Ok(pages)
    }

    fn decode(&mut self, payload: &[u8], sink: &mut dyn PageSink) -> Result<(), PluginError> {
        each(payload, |first, data| {
            // Page by page: a run may cross from one region into the next.
            for (i, page) in data.chunks(PAGE_SIZE).enumerate() {
                sink.pages(first + i as u64, 1).unwrap().copy_from_slice(page);
            }
        });
        Ok(())
    }
}

fn each(mut payload: &[u8], mut run: impl FnMut(u64, &[u8])) {
    while !payload.is_empty() {
        let word = |i: usize| u64::from_le_bytes(payload[i..i + 8].try_into().unwrap());
        let (first, len) = (word(0), word(8) as usize);
        run(first, &payload[16..16 + len]);
        payload = &payload[16 + len..];
    }
}

pub(crate) fn plain() -> Box<dyn Codec> {
    Box::new(Plain { heads: Vec::new() })
}

pub(crate) fn frame_tx(tx: Sender<Vec<u8>>) -> FrameTx {
    FrameTx::new(Box::new(PipeTx(tx)), Arc::new(AtomicU64::new(0)))
}

/// A sender whose loop listens no more.
pub(crate) fn nowhere() -> Back {
    Back { states: channel().0, sent: channel().0 }
}

/// Captures all of `dirty`, waiting for the sender where staging is full; answers how many pages there were.
pub(crate) fn capture(staging: &mut Staging, epoch: Epoch, dirty: &PageBitmap, memory: &GuestMemory) -> u64 {
    let (mut pages, mut from) = (0, Some(0));
    while let Some(at) = from {
        let taken = staging.capture(epoch, dirty, at, memory).unwrap();
        (pages, from) = (pages + taken.pages, taken.rest);
        while from.is_some() && !staging.await_room(Duration::from_secs(1)).unwrap() {}
    }
    pages
}

/// Receives everything there is; answers the checkpoints, applied to a fresh image, and how it ended.
pub(crate) fn receive(rx: Receiver<Vec<u8>>, pages: &[usize]) -> (Vec<Checkpoint>, Memory, ReceiveError) {
    let (whole, mut memory, end) = receive_only(rx, pages, 0);
    let mut image = Image { memory: memory.view(), codec: plain() };
    whole.iter().flat_map(|c| &c.pages).for_each(|p| image.decode(p).unwrap());
    (whole, memory, end)
}

/// Receives everything there is, with hashes of up to `audit_limit` pages in a checkpoint; applies only the initial copy.
pub(crate) fn receive_only(
    rx: Receiver<Vec<u8>>,
    pages: &[usize],
    audit_limit: u64,
) -> (Vec<Checkpoint>, Memory, ReceiveError) {
    let mut memory = Memory::new(pages);
    let image = Mutex::new(Image { memory: memory.view(), codec: plain() });
    let buffers = Buffers::new(1 << 30);
    let whole = Mutex::new(Vec::new());
    let frames = FrameRx::new(Box::new(PipeRx(rx, Vec::new())));
    let staged = |c| whole.lock().unwrap().push(c);
    let end = receiver::run(frames, &image, &buffers, audit_limit, staged, |_| ()).unwrap_err();
    (whole.into_inner().unwrap(), memory, end)
}

#[test]
fn a_checkpoint_arrives_whole_through_staging_that_is_much_smaller() {
    const PAGES: [usize; 2] = [700, 1300];
    let mut guest = Memory::new(&PAGES);
    let view = guest.view();
    let (jobs_tx, jobs) = channel();
    // 2 MiB for checkpoints of 8 MiB, of which a half is lent.
    let mut lent = [None, Some(lend(1 << 20))].into_iter();
    let (mut staging, back) = Staging::new(2 << 20, jobs_tx, |bytes| {
        assert_eq!(bytes, 1 << 20);
        lent.next().unwrap()
    });
    let (wire, arrived) = channel();
    let (states_tx, states) = channel();
    let ways = Back { states: states_tx, sent: channel().0 };
    let (lost, losses) = channel();
    let sending = thread::spawn(move || {
        sender::run(&jobs, frame_tx(wire), plain(), &back, &ways, |e| lost.send(e).unwrap());
    });

    let mut dirty = PageBitmap::new(2000);
    for epoch in 1..=3u8 {
        dirty.clear();
        for page in (0..2000).filter(|p| p % usize::from(epoch) == 0) {
            guest.fill(page, epoch * 50 + (page % 50) as u8);
            dirty.set_range(page as u64, 1);
        }
        let captured = capture(&mut staging, Epoch(epoch.into()), &dirty, &view);
        assert_eq!(captured, dirty.count());
        staging.finish(Epoch(epoch.into()), epoch > 1, vec![epoch; 1000]).unwrap();
    }
    drop(staging);
    sending.join().unwrap();
    assert!(losses.try_recv().is_err(), "the sender had nothing to complain about");
    assert_eq!(states.iter().count(), 3, "device state buffers come back");

    let (whole, image, end) = receive(arrived, &PAGES);
    assert!(matches!(end, ReceiveError::Wire(_)), "{end}");
    let seen: Vec<_> = whole.iter().map(|c| (c.epoch.0, c.armed, c.state[0], c.state.len())).collect();
    assert_eq!(seen, [(1, false, 1, 1000), (2, true, 2, 1000), (3, true, 3, 1000)]);
    assert!(image.0 == guest.0, "the image is the guest's memory");
    let batches = || whole.iter().flat_map(|c| &c.pages);
    assert!(batches().all(|b| matches!(b, Bytes::Lent(_)) == (b.len() >= 64 << 10)));
    assert!(batches().any(|b| matches!(b, Bytes::Lent(_))));
}

/// A channel that takes a frame only when it may, and tells that it was given one.
struct Gated(PipeTx, Sender<()>, Receiver<()>);

impl ChannelTx for Gated {
    fn send(&mut self, parts: &[&[u8]]) -> Result<(), PluginError> {
        self.1.send(()).unwrap();
        self.2.recv().unwrap();
        self.0.send(parts)
    }
}

/// Capture, encode and send, stage: while one epoch is on the wire the next is captured, and the standby stages the one
/// while it has not applied the one before.
#[test]
fn the_stages_of_epochs_overlap() {
    const FRAMES: usize = 3; // pages, device state, end
    let mut guest = Memory::new(&[8, 8]);
    let view = guest.view();
    let (jobs_tx, jobs) = channel();
    let (mut staging, back) = Staging::new(4 << 20, jobs_tx, |_| None);
    let ((wire, arrived), (given, at_wire), (permit, permits)) = (channel(), channel(), channel());
    let (sent_tx, sent) = channel();
    let sending = thread::spawn(move || {
        let tx = FrameTx::new(Box::new(Gated(PipeTx(wire), given, permits)), Arc::default());
        let ways = Back { states: channel().0, sent: sent_tx };
        sender::run(&jobs, tx, plain(), &back, &ways, |e| panic!("{e}"));
    });
    let mut dirty = PageBitmap::new(16);
    dirty.set_range(3, 9);
    let mut captured = Vec::new();
    for epoch in 1..=3 {
        capture(&mut staging, Epoch(epoch), &dirty, &view);
        captured.push(Instant::now());
        staging.finish(Epoch(epoch), true, vec![7; 10]).unwrap();
        // The first frame of the first epoch is under way; the others wait behind it.
        if epoch == 1 {
            at_wire.recv().unwrap();
            assert!(sent.try_recv().is_err(), "nothing is sent yet");
        }
    }
    (0..3 * FRAMES).for_each(|_| permit.send(()).unwrap());
    drop(staging);
    sending.join().unwrap();
    let sent = sent.iter().collect::<Vec<_>>();
    assert_eq!(sent.iter().map(|s| s.epoch.0).collect::<Vec<_>>(), [1, 2, 3]);
    for (earlier, (later, captured)) in sent.iter().zip(sent[1..].iter().zip(&captured[1..])) {
        assert!(*captured < earlier.done && earlier.done <= later.begun, "{earlier:?} {later:?}");
        assert!(later.encode + later.send <= later.done - later.begun);
    }
    let (whole, memory, _) = receive_only(arrived, &[8, 8], 0);
    assert!(memory.0.iter().all(|region| region.iter().all(|b| *b == 0)), "nothing is applied");
    assert_eq!(whole.iter().map(|c| c.epoch.0).collect::<Vec<_>>(), [1, 2, 3]);
}

/// The frames of two small checkpoints, as they go over the wire.
fn frames_of_two_checkpoints() -> Vec<Vec<u8>> {
    let mut guest = Memory::new(&[8, 8]);
    let view = guest.view();
    let (jobs_tx, jobs) = channel();
    let (mut staging, back) = Staging::new(2 << 20, jobs_tx, |_| None);
    let (wire, arrived) = channel();
    let sending = thread::spawn(move || {
        sender::run(&jobs, frame_tx(wire), plain(), &back, &nowhere(), |e| panic!("{e}"));
    });
    let mut dirty = PageBitmap::new(16);
    dirty.set_range(3, 9);
    for epoch in [Epoch(1), Epoch(2)] {
        capture(&mut staging, epoch, &dirty, &view);
        staging.finish(epoch, true, vec![7; 10]).unwrap();
    }
    drop(staging);
    sending.join().unwrap();
    arrived.iter().collect()
}

/// A frame with another number on its channel, as it would have if those before it were missing.
pub(crate) fn renumbered(frames: Vec<Vec<u8>>) -> Receiver<Vec<u8>> {
    let (tx, rx) = channel();
    for (number, frame) in frames.into_iter().enumerate() {
        let (head, payload) = frame.split_at(HEADER_LEN);
        let old = u32::from_le_bytes(head[20..24].try_into().unwrap());
        let header = aventine_protocol::FrameHeader::decode(head.try_into().unwrap(), old).unwrap();
        let header = aventine_protocol::FrameHeader { sequence: number as u32, ..header };
        tx.send([&header.encode()[..], payload].concat()).unwrap();
    }
    rx
}

#[test]
fn a_checkpoint_with_anything_missing_or_foreign_is_refused() {
    let all = frames_of_two_checkpoints();
    assert_eq!(all.len(), 6, "pages, state and end of each");
    let (whole, ..) = receive(renumbered(all.clone()), &[8, 8]);
    assert_eq!(whole.len(), 2);
    for missing in 0..3 {
        let mut frames = all.clone();
        frames.remove(missing);
        let (whole, _, end) = receive(renumbered(frames), &[8, 8]);
        assert!(whole.is_empty(), "frame {missing} is missing");
        assert!(matches!(end, ReceiveError::Incomplete(_) | ReceiveError::Epoch { .. }), "{end}");
    }
    let mut swapped = all.clone();
    swapped.swap(0, 3);
    assert!(matches!(receive(renumbered(swapped), &[8, 8]).2, ReceiveError::Epoch { .. }));
    let mut twice = all.clone();
    twice.insert(1, all[0].clone());
    assert!(matches!(receive(renumbered(twice.clone()), &[80, 80]).2, ReceiveError::Incomplete(Epoch(1))));
    assert!(matches!(receive(renumbered(twice), &[8, 8]).2, ReceiveError::Excess(Epoch(1))));
}

/// A primary that never ends a checkpoint must not fill the standby's memory.
#[test]
fn a_checkpoint_is_no_larger_than_the_guest() {
    let page = [&3_u64.to_le_bytes()[..], &(PAGE_SIZE as u64).to_le_bytes(), &[7; PAGE_SIZE]].concat();
    let refused = |kind: FrameKind, payload: &[u8], times: usize| {
        let (tx, rx) = channel();
        let mut frames = frame_tx(tx);
        for _ in 0..times {
            frames.send(kind, 0, Epoch(1), &[payload]).unwrap();
        }
        drop(frames);
        matches!(receive(rx, &[8, 8]).2, ReceiveError::Excess(Epoch(1)))
    };
    assert!(!refused(FrameKind::Pages, &page, 16));
    assert!(refused(FrameKind::Pages, &page, 17));
    assert!(refused(FrameKind::Pages, b"", 1), "batches of nothing have no end either");
    assert!(!refused(FrameKind::State, b"state", 1));
    assert!(refused(FrameKind::State, b"state", 2));
}

/// Checkpoints without a page wait for room as well, when a disk's part of them never comes.
#[test]
fn device_states_count_as_staging_memory() {
    const STATE: usize = 1 << 20;
    let (tx, rx) = channel();
    let mut frames = frame_tx(tx);
    for epoch in 1..=8 {
        let header = frames.send(FrameKind::State, 0, Epoch(epoch), &[&[7; STATE]]).unwrap();
        let digest = PayloadHash::of(&[&header.payload_hash.to_le_bytes()]);
        let end = CheckpointEnd { armed: true, frames: 1, pages: 0, state_len: STATE as u32, digest };
        frames.send(FrameKind::CheckpointEnd, 0, Epoch(epoch), &[&end.encode()]).unwrap();
    }
    drop(frames);
    let mut memory = Memory::new(&[8, 8]);
    let image = Mutex::new(Image { memory: memory.view(), codec: plain() });
    let buffers = Buffers::new(1 << 30);
    let whole = Mutex::new(Vec::new());
    let rx = FrameRx::new(Box::new(PipeRx(rx, Vec::new())));
    receiver::run(rx, &image, &buffers, 0, |c| whole.lock().unwrap().push(c), |_| ()).unwrap_err();
    assert!(buffers.in_use() > 8 * STATE as u64);
    for mut checkpoint in whole.into_inner().unwrap() {
        checkpoint.state = Vec::new();
        buffers.recycle(checkpoint);
    }
    assert_eq!(buffers.in_use(), 0);
}

#[test]
fn a_frame_of_another_channel_is_refused() {
    let (tx, rx) = channel();
    frame_tx(tx).send(FrameKind::Record, 1, Epoch(1), &[b"x"]).unwrap();
    assert!(matches!(receive(rx, &[8, 8]).2, ReceiveError::Wire(_)));
}
