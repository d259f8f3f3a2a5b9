//! What moves frames: one thread, and the epoch verbs, which work on the same state under a lock.

use crate::Failed;
use crate::ring::{LONGEST, Ring};
use aventine_api::{Context, Disengage, Epoch, ErrorCode, Host, Metric, NetworkStats, PluginError};
use rustix::event::{EventfdFlags, PollFd, PollFlags, eventfd, poll};
use std::collections::VecDeque;
use std::fs::{self, File, Permissions};
use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

/// What happens to a frame from the guest.
#[derive(Clone, Copy, PartialEq)]
pub(crate) enum Mode {
    /// It leaves at once.
    Passing,
    /// It waits for the release of its epoch.
    Holding,
    /// It is dropped, for another side owns the guest or none does yet; nothing goes to the guest either.
    Silent,
}

pub(crate) struct State {
    ring: Ring,
    mode: Mode,
    /// Where each sealed epoch ends in the ring.
    seals: VecDeque<(Epoch, u64)>,
    sealed: Epoch,
    ended: bool,
    asked: bool,
    guest: Option<Arc<UnixStream>>,
    /// What the guest has sent of a frame that is not whole.
    input: Vec<u8>,
    /// What the guest has not taken yet of the last frame to it.
    output: Vec<u8>,
    tap: Option<Arc<File>>,
    stats: NetworkStats,
    level: Arc<dyn Metric>,
    host: Arc<dyn Host>,
    pub(crate) stop: bool,
}

impl State {
    pub(crate) fn new(ring: Ring, tap: File, mode: Mode, context: &Context) -> State {
        let (host, tap) = (Arc::clone(&context.host), Some(Arc::new(tap)));
        let level = host.metric("sealed_bytes", "bytes of the file in use when the last epoch was sealed");
        let (seals, input, output, stats) = Default::default();
        let (sealed, ended, asked, guest, stop) = (Epoch::COPY, false, false, None, false);
        State { ring, mode, seals, sealed, ended, asked, guest, input, output, tap, stats, level, host, stop }
    }

    pub(crate) fn engage(&mut self) -> bool {
        if self.mode == Mode::Passing {
            self.seals.clear();
            (self.mode, self.sealed, self.ended) = (Mode::Holding, Epoch::COPY, false);
        }
        self.mode == Mode::Holding
    }

    pub(crate) fn seal(&mut self, epoch: Epoch) -> io::Result<()> {
        if epoch > self.sealed {
            self.read_guest()?;
            self.seals.push_back((epoch, self.ring.end));
            self.level.set(self.ring.held());
            (self.sealed, self.asked) = (epoch, false);
        }
        Ok(())
    }

    pub(crate) fn release(&mut self, epoch: Epoch) -> io::Result<()> {
        let sealed = self.seals.iter().take_while(|(sealed, _)| *sealed <= epoch).count();
        let end = self.seals.drain(..sealed).next_back();
        end.map_or(Ok(()), |(_, end)| self.let_out(end))
    }

    pub(crate) fn disengage(&mut self, why: Disengage) -> io::Result<()> {
        if std::mem::replace(&mut self.ended, true) {
            return Ok(());
        }
        self.seals.clear();
        match why {
            Disengage::Owner => {
                self.mode = Mode::Passing;
                self.let_out(self.ring.end)
            }
            Disengage::NotOwner => {
                (self.mode, self.tap) = (Mode::Silent, None);
                self.ring.clear();
                Ok(())
            }
        }
    }

    pub(crate) fn activate(&mut self) {
        if self.mode == Mode::Silent && !self.ended {
            self.mode = Mode::Passing;
        }
    }

    pub(crate) fn stats(&self) -> NetworkStats {
        let (held_frames, held_bytes) = (self.ring.frames, self.ring.held() - 4 * self.ring.frames);
        NetworkStats { held_frames, held_bytes, ..self.stats }
    }

    fn let_out(&mut self, end: u64) -> io::Result<()> {
        while self.ring.start < end {
            let frame = self.ring.pop()?;
            self.send(&frame);
        }
        Ok(())
    }

    /// Gives a frame to the tap, which never makes anybody wait.
    fn send(&mut self, frame: &[u8]) {
        match self.tap.as_ref().map(|tap| (&**tap).write(frame)) {
            Some(Ok(_)) => self.stats.sent_frames += 1,
            Some(Err(e)) if e.raw_os_error() == Some(libc::EBADFD) => self.tap_gone(e),
            _ => self.stats.dropped_frames += 1,
        }
    }

    fn tap_gone(&mut self, why: io::Error) {
        self.tap = None;
        self.host.failed(PluginError::new(ErrorCode::Io, Failed("the tap is gone", why)));
    }

    /// Takes what the guest has sent, as far as there is room.
    fn read_guest(&mut self) -> io::Result<()> {
        let mut bytes = [0; 1 << 16];
        while let Some(guest) = self.guest.clone().filter(|_| self.ring.has_room()) {
            match (&*guest).read(&mut bytes) {
                Ok(0) => self.guest = None,
                Ok(n) => self.input.extend(&bytes[..n]),
                Err(e) if e.kind() == ErrorKind::WouldBlock => break,
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(_) => self.guest = None,
            }
            self.take_frames()?;
        }
        if self.mode == Mode::Holding && self.ring.is_half_full() && !std::mem::replace(&mut self.asked, true)
        {
            self.host.request_epoch();
        }
        Ok(())
    }

    /// Takes the whole frames from the input.
    fn take_frames(&mut self) -> io::Result<()> {
        let input = std::mem::take(&mut self.input);
        let (mut rest, mut done) = (&input[..], Ok(()));
        while let Some((length, after)) = rest.split_first_chunk::<4>() {
            let length = u32::from_be_bytes(*length) as usize;
            if length == 0 || length > LONGEST {
                self.guest = None;
                return Err(io::Error::new(
                    ErrorKind::InvalidData,
                    format!("the guest sends a frame of {length} bytes"),
                ));
            }
            let Some((frame, after)) = after.split_at_checked(length) else { break };
            match self.mode {
                Mode::Passing => self.send(frame),
                Mode::Holding => done = done.and(self.ring.push(frame)),
                Mode::Silent => {}
            }
            rest = after;
        }
        self.input.extend_from_slice(rest);
        done
    }

    /// Gives frames to the guest, as long as both go on.
    fn feed_guest(&mut self) {
        let mut frame = [0; LONGEST];
        loop {
            if let Some(guest) = self.guest.clone().filter(|_| !self.output.is_empty()) {
                match (&*guest).write(&self.output) {
                    Ok(n) => drop(self.output.drain(..n)),
                    Err(e) if e.kind() == ErrorKind::WouldBlock => return,
                    Err(_) => self.guest = None,
                }
                continue;
            }
            let Some(tap) = self.tap.clone() else { return };
            match (&*tap).read(&mut frame) {
                Ok(n) if self.guest.is_some() && self.mode != Mode::Silent => {
                    self.output.clear();
                    self.output.extend((n as u32).to_be_bytes());
                    self.output.extend(&frame[..n]);
                    self.stats.received_frames += 1;
                }
                Ok(_) => {}
                Err(e) if e.raw_os_error() == Some(libc::EBADFD) => return self.tap_gone(e),
                // Nothing there, or a tap that is down.
                Err(_) => return,
            }
        }
    }
}

pub(crate) struct Pump {
    state: Mutex<State>,
    listener: UnixListener,
    wake: OwnedFd,
}

impl Pump {
    pub(crate) fn listen(socket: &Path, state: State) -> io::Result<Pump> {
        // The state directory is this guest's and this side's alone: what lies there is from a dead process.
        let _ = fs::remove_file(socket);
        let listener = UnixListener::bind(socket)?;
        fs::set_permissions(socket, Permissions::from_mode(0o600))?;
        listener.set_nonblocking(true)?;
        let wake = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        Ok(Pump { state: Mutex::new(state), listener, wake })
    }

    pub(crate) fn with<T>(&self, f: impl FnOnce(&mut State) -> T) -> T {
        f(&mut self.state.lock().unwrap_or_else(PoisonError::into_inner))
    }

    pub(crate) fn wake(&self) {
        // Only a full counter can fail, and then the thread is awake anyway.
        let _ = rustix::io::write(&self.wake, &1u64.to_ne_bytes());
    }

    /// Moves frames until it is stopped.
    pub(crate) fn run(&self) {
        while self.with(|state| !state.stop) {
            self.wait();
            let moved = self.with(|state| {
                if state.guest.is_none() {
                    state.input.clear();
                    state.output.clear();
                    state.guest = self.listener.accept().ok().map(|(socket, _)| Arc::new(socket));
                    state.guest.iter().try_for_each(|guest| guest.set_nonblocking(true))?;
                }
                state.read_guest()?;
                state.feed_guest();
                Ok(())
            });
            if let Err(e) = moved {
                self.with(|state| {
                    state.host.failed(PluginError::new(ErrorCode::Io, Failed("frames cannot be held", e)))
                });
            }
        }
    }

    /// Waits until something can move.
    fn wait(&self) {
        let (guest, tap, room, waiting) =
            self.with(|s| (s.guest.clone(), s.tap.clone(), s.ring.has_room(), !s.output.is_empty()));
        let mut fds = vec![PollFd::new(&self.wake, PollFlags::IN)];
        match &guest {
            None => fds.push(PollFd::new(&self.listener, PollFlags::IN)),
            Some(guest) => {
                let mut flags = PollFlags::empty();
                flags.set(PollFlags::IN, room);
                flags.set(PollFlags::OUT, waiting);
                // Without interest it is left out: a connection that has ended would wake the thread without end.
                fds.extend((!flags.is_empty()).then(|| PollFd::new(guest, flags)));
            }
        }
        fds.extend(tap.as_ref().filter(|_| !waiting).map(|tap| PollFd::new(tap, PollFlags::IN)));
        // Whatever it says, everything is looked at again.
        let _ = poll(&mut fds, None);
        let _ = rustix::io::read(&self.wake, &mut [0; 8]);
    }
}
