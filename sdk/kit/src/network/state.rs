//! What a buffer knows: its mode, its epochs, and the frames between the guest and the tap.
//!
//! ```text
//!   input: [ length │ frame │ length │ fra…   ──► silent: dropped
//!                                             ──► passing: tap
//!                                             ──► holding: store ── release ──► tap
//! ```
//! Invariants: `held_frames` of the statistics are those in the store; a seal's count is of all frames that were held until
//! then, ever, so the difference to `frames` is what may not leave yet.
#![forbid(unsafe_code)]

use super::{LONGEST, READING, Store};
use aventine_api::{Context, Disengage, Epoch, Host, NetworkStats, Side};
use rustix::io::Errno;
use rustix::net::{RecvFlags, recv};
use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, ErrorKind, Write};
use std::mem::{replace, take};
use std::os::unix::net::UnixStream;
use std::sync::Arc;

pub(super) struct State<S> {
    store: S,
    limit: u64,
    /// Each sealed epoch, and how many frames of it and of earlier ones there were.
    seals: VecDeque<(Epoch, u64)>,
    /// How many frames were held, ever.
    frames: u64,
    sealed: Epoch,
    /// Whether the open epoch was asked to end.
    asked: bool,
    holding: bool,
    /// Nothing passes: another side owns the guest, or nobody does yet.
    silent: bool,
    /// Whether the session was ended.
    over: bool,
    guest: Option<Arc<UnixStream>>,
    /// What the guest has sent of a frame that is not whole.
    input: Vec<u8>,
    pub(super) tap: Arc<File>,
    pub(super) stats: NetworkStats,
    pub(super) host: Arc<dyn Host>,
}

impl<S: Store> State<S> {
    pub(super) fn new(store: S, limit: u64, tap: File, context: &Context) -> State<S> {
        State {
            store,
            limit,
            seals: VecDeque::new(),
            frames: 0,
            sealed: Epoch::COPY,
            asked: false,
            holding: false,
            silent: context.side == Side::Standby,
            over: false,
            guest: None,
            input: Vec::new(),
            tap: Arc::new(tap),
            stats: NetworkStats::default(),
            host: Arc::clone(&context.host),
        }
    }

    pub(super) fn connect(&mut self, guest: Arc<UnixStream>) {
        self.input.clear();
        self.guest = Some(guest);
    }

    pub(super) fn has_guest(&self) -> bool {
        self.guest.is_some()
    }

    /// Bytes held, framed.
    fn used(&self) -> u64 {
        self.stats.held_bytes + 4 * self.stats.held_frames
    }

    pub(super) fn is_full(&self) -> bool {
        self.used() >= self.limit
    }

    /// Counts a frame from the tap; whether the guest gets it.
    pub(super) fn passes_inward(&mut self) -> bool {
        self.stats.received_frames += u64::from(!self.silent);
        !self.silent
    }

    /// Takes what the guest has sent, as far as there is room, with at most so many readings.
    pub(super) fn drain(&mut self, readings: usize) -> io::Result<()> {
        let mut bytes = [0; READING];
        for _ in 0..readings {
            let Some(guest) = self.guest.as_ref().filter(|_| !self.is_full()) else { break };
            match recv(guest, &mut bytes, RecvFlags::DONTWAIT) {
                Ok((length, _)) if length > 0 => self.input.extend(&bytes[..length]),
                Err(Errno::AGAIN) => break,
                _ => self.guest = None,
            }
            self.take_frames()?;
        }
        if self.used() >= self.limit / 2 && !replace(&mut self.asked, true) {
            self.host.request_epoch();
        }
        Ok(())
    }

    /// Takes the whole frames from the input. One that cannot be held is lost, and that is told.
    fn take_frames(&mut self) -> io::Result<()> {
        let input = take(&mut self.input);
        let (mut rest, mut done) = (&input[..], Ok(()));
        while let Some((length, _)) = rest.split_first_chunk() {
            let length = u32::from_be_bytes(*length) as usize;
            if length == 0 || length > LONGEST - 4 {
                self.guest = None;
                return Err(ErrorKind::InvalidData.into());
            }
            let Some((framed, after)) = rest.split_at_checked(4 + length) else { break };
            match (self.silent, self.holding) {
                (true, _) => {}
                (_, true) => done = done.and(self.hold(framed)),
                (_, false) => done = done.and(self.send(&framed[4..])),
            }
            rest = after;
        }
        self.input.extend(rest);
        done
    }

    fn hold(&mut self, framed: &[u8]) -> io::Result<()> {
        if let Err(e) = self.store.push(framed) {
            self.stats.dropped_frames += 1;
            return Err(e);
        }
        self.frames += 1;
        self.stats.held_frames += 1;
        self.stats.held_bytes += framed.len() as u64 - 4;
        Ok(())
    }

    /// Sends held frames until there were so many, ever.
    fn let_out(&mut self, frames: u64) -> io::Result<()> {
        let (mut framed, mut done) = (Vec::with_capacity(LONGEST), Ok(()));
        while self.stats.held_frames > self.frames - frames {
            self.store.pop(&mut framed)?;
            let Some((_, frame)) = framed.split_at_checked(4) else {
                return Err(ErrorKind::InvalidData.into());
            };
            self.stats.held_frames -= 1;
            self.stats.held_bytes = self.stats.held_bytes.saturating_sub(frame.len() as u64);
            done = done.and(self.send(frame));
        }
        done
    }

    /// Gives a frame to the tap, which never makes anybody wait. Fails where the tap is gone; one that is down or full loses
    /// frames, as a wire does.
    fn send(&mut self, frame: &[u8]) -> io::Result<()> {
        match (&*self.tap).write(frame) {
            Ok(_) => self.stats.sent_frames += 1,
            Err(e) => {
                self.stats.dropped_frames += 1;
                if Errno::from_io_error(&e) == Some(Errno::BADFD) {
                    return Err(e);
                }
            }
        }
        Ok(())
    }

    /// Whether this side may hold frames.
    pub(super) fn engage(&mut self) -> bool {
        if !self.silent && !replace(&mut self.holding, true) {
            self.seals.clear();
            (self.sealed, self.asked, self.over) = (Epoch::COPY, false, false);
        }
        !self.silent
    }

    pub(super) fn seal(&mut self, epoch: Epoch) -> io::Result<()> {
        if epoch > self.sealed {
            // The guest is paused: it has an end.
            self.drain(usize::MAX)?;
            self.seals.push_back((epoch, self.frames));
            self.store.sealed(epoch, self.used());
            (self.sealed, self.asked) = (epoch, false);
        }
        Ok(())
    }

    pub(super) fn release(&mut self, epoch: Epoch) -> io::Result<()> {
        let due = self.seals.partition_point(|(sealed, _)| *sealed <= epoch);
        let last = self.seals.drain(..due).next_back();
        last.map_or(Ok(()), |(_, frames)| self.let_out(frames))
    }

    pub(super) fn disengage(&mut self, why: Disengage) -> io::Result<()> {
        if replace(&mut self.over, true) {
            return Ok(());
        }
        self.seals.clear();
        (self.holding, self.silent) = (false, why == Disengage::NotOwner);
        let mut done = Ok(());
        if why == Disengage::Owner {
            done = self.let_out(self.frames);
            // What the store did not give back.
            self.stats.dropped_frames += self.stats.held_frames;
        }
        self.store.clear();
        (self.stats.held_frames, self.stats.held_bytes) = (0, 0);
        done
    }

    pub(super) fn activate(&mut self) {
        self.silent &= self.over;
    }
}
