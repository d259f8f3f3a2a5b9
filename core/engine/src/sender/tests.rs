//! What becomes of batches in memory that the transport lends: its device reads them late.

use super::*;
use crate::memory::GuestMemory;
use crate::receiver::ReceiveError;
use crate::staging::{SenderGone, Staging};
use crate::tests::{Memory, capture, lend, nowhere, plain, receive};
use aventine_api::{ChannelTx, ErrorCode, LentMemory, PageBitmap};
use std::ops::Range;
use std::sync::mpsc::channel;
use std::sync::{Arc, Mutex};
use std::thread;

/// What is called, in order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Call {
    Send,
    Settle(usize),
}

/// A part of what was sent.
enum Part {
    Copied(Vec<u8>),
    /// In lent memory, and not read yet.
    Lies(Range<usize>),
}

#[derive(Debug, thiserror::Error)]
#[error("the cable is pulled")]
struct Pulled;

/// A channel whose device reads lent memory when it is settled, and no earlier.
struct Late {
    wire: Sender<Vec<u8>>,
    calls: Sender<Call>,
    lent: Arc<Mutex<Vec<Range<usize>>>>,
    unread: Vec<Vec<Part>>,
    /// Whether nothing can be read any more.
    lost: bool,
}

impl Late {
    fn read(&mut self, sends: usize) {
        for parts in self.unread.drain(..sends) {
            let bytes = |part| match part {
                Part::Copied(bytes) => bytes,
                Part::Lies(Range { start, end }) => {
                    // SAFETY: the sender may not drop it before it was settled, and nobody writes to it without that.
                    unsafe { std::slice::from_raw_parts(start as *const u8, end - start) }.to_vec()
                }
            };
            let _ = self.wire.send(parts.into_iter().flat_map(bytes).collect());
        }
    }
}

impl ChannelTx for Late {
    fn send(&mut self, parts: &[&[u8]]) -> Result<(), PluginError> {
        let lent = self.lent.lock().unwrap();
        let part = |part: &&[u8]| {
            let Range { start, end } = part.as_ptr_range();
            let place = start as usize..end as usize;
            match lent.iter().any(|memory| memory.start <= place.start && place.end <= memory.end) {
                true => Part::Lies(place),
                false => Part::Copied(part.to_vec()),
            }
        };
        self.unread.push(parts.iter().map(part).collect());
        let _ = self.calls.send(Call::Send);
        Ok(())
    }

    fn settle(&mut self, sends: usize) -> Result<(), PluginError> {
        let _ = self.calls.send(Call::Settle(sends));
        if self.lost {
            self.unread.clear();
            return Err(PluginError::new(ErrorCode::PeerLost, Pulled));
        }
        self.read(self.unread.len().saturating_sub(sends));
        Ok(())
    }
}

impl Drop for Late {
    fn drop(&mut self) {
        self.read(self.unread.len());
    }
}

/// A sender on such a channel, with staging memory of so many batches, of which so many are lent.
struct Way {
    staging: Staging,
    jobs: Receiver<Job>,
    back: Sender<Batch>,
    tx: Late,
    calls: Receiver<Call>,
    arrived: Receiver<Vec<u8>>,
}

fn way(batches: u64, mut lends: usize) -> Way {
    let (jobs_tx, jobs) = channel();
    let lent = Arc::new(Mutex::new(Vec::new()));
    let (staging, back) = Staging::new(batches << 20, jobs_tx, |bytes| {
        lends = lends.checked_sub(1)?;
        let memory: Box<dyn LentMemory> = lend(bytes);
        let Range { start, end } = memory.bytes().as_ptr_range();
        lent.lock().unwrap().push(start as usize..end as usize);
        Some(memory)
    });
    let ((wire, arrived), (told, calls)) = (channel(), channel());
    Way {
        staging,
        jobs,
        back,
        tx: Late { wire, calls: told, lent, unread: Vec::new(), lost: false },
        calls,
        arrived,
    }
}

fn tx(late: Late) -> FrameTx {
    FrameTx::new(Box::new(late), Arc::default())
}

fn all(pages: u64) -> PageBitmap {
    let mut dirty = PageBitmap::new(pages);
    dirty.set_range(0, pages);
    dirty
}

/// Captures epoch 1: these pages, and ends it.
fn checkpoint(staging: &mut Staging, memory: &GuestMemory, pages: u64) {
    assert_eq!(capture(staging, Epoch(1), &all(pages), memory), pages);
    staging.finish(Epoch(1), true, vec![7; 10]).unwrap();
}

#[test]
fn what_is_read_late_arrives_as_it_was_captured() {
    const PAGES: [usize; 2] = [700, 1300];
    for lends in 0..=3 {
        let mut guest = Memory::new(&PAGES);
        (0..2000).for_each(|page| guest.fill(page, page as u8));
        let view = guest.view();
        // For 8 batches: each is used again and again.
        let Way { mut staging, jobs, back, tx: late, arrived, .. } = way(3, lends);
        let sending =
            thread::spawn(move || run(&jobs, tx(late), plain(), &back, &nowhere(), |e| panic!("{e}")));
        checkpoint(&mut staging, &view, 2000);
        drop(staging);
        sending.join().unwrap();
        let (whole, image, end) = receive(arrived, &PAGES);
        assert!(matches!(end, ReceiveError::Wire(_)), "{end}");
        assert_eq!(whole.len(), 1);
        assert!(image.0 == guest.0, "the image is the guest's memory, with {lends} batches lent");
    }
}

#[test]
fn a_batch_is_read_while_the_next_is_encoded_and_none_is_held_while_there_is_no_job() {
    let mut guest = Memory::new(&[700, 1300]);
    let view = guest.view();
    let Way { mut staging, jobs, back, tx: late, calls, .. } = way(4, 4);
    // Three batches of pages, all there before the sender looks.
    checkpoint(&mut staging, &view, 600);
    let sending = thread::spawn(move || run(&jobs, tx(late), plain(), &back, &nowhere(), |e| panic!("{e}")));
    use Call::{Send, Settle};
    let mut called = Vec::new();
    while called.last() != Some(&Settle(0)) {
        called.push(calls.recv_timeout(Duration::from_secs(10)).unwrap());
    }
    // Three times pages, device state, end.
    assert_eq!(called, [Send, Send, Settle(1), Send, Settle(1), Send, Send, Settle(0)]);
    // All four are free again, though nothing more is sent.
    for _ in 0..4 {
        assert!(staging.await_room(Duration::from_secs(10)).unwrap());
        staging.capture(Epoch(2), &all(256), 0, &view).unwrap();
    }
    drop(staging);
    sending.join().unwrap();
    assert_eq!(calls.iter().count(), 0);
}

#[test]
fn what_was_copied_is_never_waited_for() {
    let mut guest = Memory::new(&[700, 1300]);
    let view = guest.view();
    let Way { mut staging, jobs, back, tx: late, calls, .. } = way(4, 0);
    checkpoint(&mut staging, &view, 600);
    drop(staging);
    run(&jobs, tx(late), plain(), &back, &nowhere(), |e| panic!("{e}"));
    assert_eq!(calls.iter().collect::<Vec<_>>(), [Call::Send; 5]);
}

#[test]
fn who_waits_for_a_batch_that_is_never_read_is_told() {
    let mut guest = Memory::new(&[700, 1300]);
    let view = guest.view();
    let Way { mut staging, jobs, back, tx: mut late, .. } = way(2, 2);
    late.lost = true;
    let (lost, losses) = channel();
    let sending = thread::spawn(move || {
        let back = back;
        run(&jobs, tx(late), plain(), &back, &nowhere(), |e| lost.send(e).unwrap());
    });
    let taken = staging.capture(Epoch(1), &all(2000), 0, &view).unwrap();
    assert_eq!(taken.pages, 512);
    assert!(matches!(staging.await_room(Duration::from_secs(10)), Err(SenderGone)));
    sending.join().unwrap();
    assert_eq!(losses.recv().unwrap().code(), ErrorCode::PeerLost);
}
