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

#[cfg(test)]
mod tests {
    use super::*;
    use aventine_api::PluginError;
    use std::os::fd::OwnedFd;
    use std::os::unix::net::UnixDatagram;
    use std::sync::atomic::{AtomicU32, Ordering::SeqCst};

    #[derive(Default)]
    struct Engine(AtomicU32);

    impl Host for Engine {
        fn request_epoch(&self) {
            self.0.fetch_add(1, SeqCst);
        }
        fn staged(&self, _: Epoch) {}
        fn failed(&self, error: PluginError) {
            panic!("{}", error.chain());
        }
    }

    /// Memory for so many frames, which can be lost.
    struct Memory(VecDeque<Vec<u8>>, usize);

    impl Store for Memory {
        fn push(&mut self, framed: &[u8]) -> io::Result<()> {
            if self.0.len() == self.1 {
                return Err(ErrorKind::StorageFull.into());
            }
            self.0.push_back(framed.to_vec());
            Ok(())
        }

        fn pop(&mut self, framed: &mut Vec<u8>) -> io::Result<()> {
            *framed = self.0.pop_front().ok_or(ErrorKind::UnexpectedEof)?;
            Ok(())
        }

        fn clear(&mut self) {
            self.0.clear();
        }
    }

    /// A state with a guest, and the other ends of both; datagrams are the tap's frames.
    fn start(room: usize) -> (State<Memory>, UnixStream, UnixDatagram, Arc<Engine>) {
        let (host, dir) = (Arc::new(Engine::default()), std::env::temp_dir());
        let context = Context {
            guest: "web".into(),
            id: "net0".into(),
            side: Side::Primary,
            state_dir: dir.clone(),
            config_dir: dir,
            host: Arc::clone(&host) as Arc<dyn Host>,
        };
        let ((tap, world), (guest, ours)) = (UnixDatagram::pair().unwrap(), UnixStream::pair().unwrap());
        world.set_nonblocking(true).unwrap();
        let tap = File::from(OwnedFd::from(tap));
        let mut state = State::new(Memory(VecDeque::new(), room), 64, tap, &context);
        state.connect(Arc::new(ours));
        (state, guest, world, host)
    }

    fn framed(bytes: &[u8]) -> Vec<u8> {
        [&(bytes.len() as u32).to_be_bytes()[..], bytes].concat()
    }

    fn received(world: &UnixDatagram) -> Vec<Vec<u8>> {
        let mut frame = [0; 100];
        std::iter::from_fn(|| world.recv(&mut frame).ok().map(|n| frame[..n].to_vec())).collect()
    }

    #[test]
    fn a_frame_in_pieces_is_sealed_with_the_epoch_in_which_it_became_whole() {
        let (mut state, mut guest, world, _) = start(9);
        assert!(state.engage());
        let bytes = [framed(b"first"), framed(b"second")].concat();
        guest.write_all(&bytes[..12]).unwrap();
        state.seal(Epoch(1)).unwrap();
        guest.write_all(&bytes[12..]).unwrap();
        state.seal(Epoch(2)).unwrap();
        assert!(received(&world).is_empty());
        state.release(Epoch(1)).unwrap();
        assert_eq!(received(&world), [b"first"]);
        state.release(Epoch(2)).unwrap();
        assert_eq!(received(&world), [b"second"]);
        assert_eq!(state.stats, NetworkStats { sent_frames: 2, ..NetworkStats::default() });
    }

    #[test]
    fn at_half_the_limit_an_epoch_is_asked_for_once_and_at_the_limit_nothing_is_read() {
        let (mut state, mut guest, world, host) = start(9);
        assert!(state.engage());
        for asked in [0, 1, 1] {
            guest.write_all(&framed(&[7; 18])).unwrap();
            state.drain(9).unwrap();
            assert_eq!(host.0.load(SeqCst), asked);
        }
        assert!(state.is_full());
        guest.write_all(&framed(b"later")).unwrap();
        state.seal(Epoch(1)).unwrap();
        assert_eq!(state.stats.held_frames, 3);
        state.release(Epoch(1)).unwrap();
        assert_eq!(received(&world).len(), 3);
        state.drain(9).unwrap();
        assert_eq!(state.stats.held_frames, 1);
    }

    #[test]
    fn what_a_store_does_not_take_or_give_back_is_an_error_and_counted() {
        let (mut state, mut guest, world, _) = start(2);
        assert!(state.engage());
        guest.write_all(&[framed(b"a"), framed(b"b"), framed(b"c")].concat()).unwrap();
        assert_eq!(state.drain(9).unwrap_err().kind(), ErrorKind::StorageFull);
        assert_eq!((state.stats.held_frames, state.stats.dropped_frames), (2, 1));
        state.store.0.pop_back();
        assert_eq!(state.disengage(Disengage::Owner).unwrap_err().kind(), ErrorKind::UnexpectedEof);
        assert_eq!(received(&world), [b"a"]);
        assert_eq!((state.stats.held_frames, state.stats.dropped_frames), (0, 2));
    }

    #[test]
    fn a_guest_that_speaks_nonsense_is_left() {
        for nonsense in [0, LONGEST as u32 - 3] {
            let (mut state, mut guest, _world, _) = start(9);
            guest.write_all(&nonsense.to_be_bytes()).unwrap();
            assert_eq!(state.drain(9).unwrap_err().kind(), ErrorKind::InvalidData);
            assert!(!state.has_guest());
        }
    }
}
