//! The thread that moves bytes, and the state it shares with the epoch verbs.

use crate::attract::{Addresses, By, Kept};
use crate::buffer::{Buffer, Mode};
use crate::copier::Copier;
use crate::port::{Outcome, Port, PortError};
use crate::recent::Repeat;
use crate::settings::{Settings, UplinkKey};
use crate::uplink::{Sent, Uplink, UplinkError};
use crate::wire::Way;
use aventine_api::{Context, Disengage, Epoch, ErrorCode, Host, NetAttachment, NetworkStats, PluginError};
use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use rustix::fd::{AsFd, OwnedFd};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
use std::fs::{self, Permissions};
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use tracing::{debug, info, warn};

/// How long the end of holding waits for a stuck uplink.
const FLUSH_LIMIT: Duration = Duration::from_millis(900);
/// How often a guest that must be connected to is tried.
const KNOCK: Timespec = Timespec { tv_sec: 0, tv_nsec: 100_000_000 };
/// Frames written in one go, so that a seal does not wait behind a flood.
const BATCH: usize = 512;

/// Why the buffer could not be set up.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PumpError {
    /// The uplink.
    #[error(transparent)]
    Uplink(#[from] UplinkError),
    /// The guest's socket.
    #[error("Cannot listen for the guest on {0}")]
    Listen(PathBuf, #[source] io::Error),
    /// The wake-up descriptor.
    #[error("Cannot make an eventfd")]
    Wake(#[from] Errno),
}

impl From<PumpError> for PluginError {
    fn from(error: PumpError) -> PluginError {
        PluginError::new(ErrorCode::Unavailable, error)
    }
}

/// The uplink went away while it was needed.
#[derive(Debug, thiserror::Error)]
enum RunError {
    #[error("The uplink is gone")]
    Uplink(#[source] io::Error),
    #[error("The guest's side of the stream netdev is damaged")]
    Guest(#[source] PortError),
    #[error("Waiting for network events failed")]
    Poll(#[source] Errno),
}

/// State under the lock.
pub(crate) struct Plumbing {
    pub(crate) buffer: Buffer,
    guest: Option<Port>,
    uplink: Option<Uplink>,
    /// The guest's addresses, as far as they are known.
    addresses: Addresses,
    /// Standby: what the world sent since the primary is suspected.
    kept: Option<Kept>,
    /// Primary: while the standby gets copies of frames.
    copier: Option<Copier>,
    /// Frames that earlier copiers did not copy.
    uncopied: u64,
    host: Arc<dyn Host>,
    stop: bool,
}

/// Where the guest's connection comes from.
enum Door {
    Listening(UnixListener),
    /// The guest's side listens there.
    Knocking(PathBuf),
}

/// The shared half of the plugin.
pub(crate) struct Pump {
    plumbing: Mutex<Plumbing>,
    door: Door,
    wake: OwnedFd,
}

impl Pump {
    /// `socket` is where the guest's side connects, or listens already.
    pub(crate) fn new(
        socket: &NetAttachment,
        settings: &Settings,
        context: &Context,
        buffer: Buffer,
    ) -> Result<Pump, PumpError> {
        let key = match &settings.uplink {
            UplinkKey::Stream(path) => UplinkKey::Stream(context.config_dir.join(path)),
            tap => tap.clone(),
        };
        let uplink = Uplink::open(&key)?;
        let listen = |socket: &Path| {
            // The state directory is this guest's and this side's alone: what lies there is from a dead process.
            match fs::remove_file(socket) {
                Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
                _ => {}
            }
            let listener = UnixListener::bind(socket)?;
            fs::set_permissions(socket, Permissions::from_mode(0o600))?;
            listener.set_nonblocking(true)?;
            Ok(listener)
        };
        let door = match socket {
            NetAttachment::Served(path) => Door::Knocking(path.clone()),
            NetAttachment::Stream(path) => {
                Door::Listening(listen(path).map_err(|e| PumpError::Listen(path.clone(), e))?)
            }
            NetAttachment::Tap(_) => unreachable!("this plugin offers sockets"),
        };
        let wake = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        let host = Arc::clone(&context.host);
        let uplink = Some(uplink);
        let plumbing = Plumbing {
            buffer,
            guest: None,
            uplink,
            addresses: Addresses::default(),
            kept: None,
            copier: None,
            uncopied: 0,
            host,
            stop: false,
        };
        Ok(Pump { plumbing: Mutex::new(plumbing), door, wake })
    }

    /// Works on the shared state.
    pub(crate) fn with<T>(&self, f: impl FnOnce(&mut Plumbing) -> T) -> T {
        f(&mut self.plumbing.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Makes the thread look at the state again.
    pub(crate) fn wake(&self) {
        // Only a full counter can fail, and then the thread is awake anyway.
        let _ = rustix::io::write(&self.wake, &1u64.to_ne_bytes());
    }

    pub(crate) fn stop(&self) {
        self.with(|p| p.stop = true);
        self.wake();
    }

    /// Waits until everything let out is with the uplink. What an uplink that is stuck does not take in time, the
    /// thread hands over later: the guest must go on.
    pub(crate) fn flush_uplink(&self) {
        let deadline = Instant::now() + FLUSH_LIMIT;
        loop {
            let waiting = self.with(|p| {
                p.write_uplink();
                let uplink = p.uplink.as_ref().filter(|u| !p.buffer.out.is_empty() || u.has_backlog())?;
                uplink.fd().try_clone_to_owned().ok()
            });
            let Some(fd) = waiting else { return };
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                warn!("the uplink does not take frames; what was held waits for it");
                return;
            }
            let limit = Timespec { tv_sec: 0, tv_nsec: left.as_nanos().min(999_999_999) as _ };
            // Whatever it says, the state is looked at again.
            let _ = poll(&mut [PollFd::new(&fd, PollFlags::OUT)], Some(&limit));
        }
    }

    /// Moves frames until told to stop.
    pub(crate) fn run(&self) {
        loop {
            if let Err(error) = self.wait() {
                self.with(|p| p.host.failed(PluginError::new(ErrorCode::Io, error)));
                return;
            }
            let mut counter = [0; 8];
            let _ = rustix::io::read(&self.wake, &mut counter);
            let go_on = self.with(|p| {
                if p.guest.is_none() {
                    p.open(&self.door);
                }
                p.move_frames();
                !p.stop
            });
            if !go_on {
                return;
            }
        }
    }

    /// Waits until something can move.
    fn wait(&self) -> Result<(), RunError> {
        // The descriptors are owned copies: a verb may close the originals meanwhile.
        let (guest, guest_flags, uplink) =
            self.with(|p| (p.guest_fd(), p.guest_interest(), p.uplink_interest()));
        let mut limit = None;
        let mut fds = vec![PollFd::from_borrowed_fd(self.wake.as_fd(), PollFlags::IN)];
        match &guest {
            // Without interest it is left out: a connection that has ended would wake the thread without end.
            Some(_) if guest_flags.is_empty() => {}
            Some(fd) => fds.push(PollFd::new(fd, guest_flags)),
            None => match &self.door {
                Door::Listening(listener) => fds.push(PollFd::new(listener, PollFlags::IN)),
                Door::Knocking(_) => limit = Some(&KNOCK),
            },
        }
        fds.extend(uplink.as_ref().map(|(fd, flags)| PollFd::new(fd, *flags)));
        match poll(&mut fds, limit) {
            Ok(_) | Err(Errno::INTR) => Ok(()),
            Err(e) => Err(RunError::Poll(e)),
        }
    }
}

/// Connects without ever waiting: the lock is held.
fn knock(path: &Path) -> io::Result<UnixStream> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    rustix::net::connect(&socket, &SocketAddrUnix::new(path)?)?;
    Ok(socket.into())
}

impl Plumbing {
    fn open(&mut self, door: &Door) {
        let socket = match door {
            Door::Listening(listener) => listener.accept().map(|(socket, _)| socket),
            Door::Knocking(path) => knock(path),
        };
        match (socket.and_then(Port::new), door) {
            (Ok(port), _) => self.guest = Some(port),
            (Err(e), Door::Listening(_)) if e.kind() == io::ErrorKind::WouldBlock => {}
            (Err(e), Door::Listening(_)) => warn!(%e, "cannot accept the guest's connection"),
            // The guest plugin says so where it matters.
            (Err(e), Door::Knocking(path)) => debug!(%e, path = %path.display(), "the guest does not answer"),
        }
    }

    #[cfg(test)]
    pub(crate) fn kept(&self) -> usize {
        self.kept.as_ref().map_or(0, Kept::len)
    }

    #[cfg(test)]
    pub(crate) fn has_guest(&self) -> bool {
        self.guest.is_some()
    }

    fn guest_fd(&self) -> Option<OwnedFd> {
        self.guest.as_ref()?.socket().as_fd().try_clone_to_owned().ok()
    }

    fn guest_interest(&self) -> PollFlags {
        let mut flags = PollFlags::empty();
        flags.set(PollFlags::IN, self.buffer.has_room());
        flags.set(PollFlags::OUT, self.guest.as_ref().is_some_and(|g| g.backlog() > 0));
        flags
    }

    fn uplink_interest(&self) -> Option<(OwnedFd, PollFlags)> {
        let uplink = self.uplink.as_ref()?;
        let mut flags = PollFlags::IN;
        flags.set(PollFlags::OUT, !self.buffer.out.is_empty() || uplink.has_backlog());
        Some((uplink.fd().try_clone_to_owned().ok()?, flags))
    }

    fn move_frames(&mut self) {
        if self.buffer.has_room() {
            self.read_guest();
        }
        self.write_uplink();
        self.read_uplink();
        if let Some(guest) = &mut self.guest
            && guest.flush().is_err()
        {
            self.guest = None;
        }
    }

    /// From now on copies of frames go to `copier`; `None`: nowhere.
    pub(crate) fn copy_to(&mut self, copier: Option<Copier>) {
        let earlier = std::mem::replace(&mut self.copier, copier);
        self.uncopied += earlier.map_or(0, |c| c.uncopied());
    }

    /// The guest is about to be paused.
    pub(crate) fn pausing(&mut self) {
        self.look_at_guest();
        self.copier.iter_mut().for_each(Copier::pausing);
    }

    /// Notes it if the guest's side has read everything so far.
    fn look_at_guest(&mut self) {
        if let (Some(guest), Some(copier)) = (&self.guest, &mut self.copier)
            && guest.all_read()
        {
            copier.all_taken();
        }
    }

    /// Seals the buffer; the guest is paused, and what it sent before is in its socket.
    pub(crate) fn seal(&mut self, epoch: Epoch) {
        self.read_guest();
        self.buffer.seal(epoch);
        self.copier.iter_mut().for_each(|c| c.seal(epoch));
    }

    pub(crate) fn release(&mut self, epoch: Epoch) {
        self.buffer.release(epoch);
        self.copier.iter_mut().for_each(|c| c.released(epoch));
        self.write_uplink();
    }

    /// Standby: the primary is suspected, and the guest's addresses are these; `None`: no more.
    pub(crate) fn suspect(&mut self, suspected: Option<Addresses>) {
        self.kept = None;
        if let Some(addresses) = suspected.filter(|_| self.buffer.mode() == Mode::Silent) {
            self.addresses = addresses;
            self.kept = Some(Kept::default());
            self.announce(By::Standby);
        }
    }

    /// Has the world's frames for the guest come here.
    fn announce(&mut self, by: By) {
        self.buffer.out.extend(self.addresses.announcements(by));
        self.write_uplink();
    }

    /// This side owns the guest; `repeat` goes before all other frames, then what was kept.
    pub(crate) fn activate(&mut self, repeat: Repeat, addresses: Addresses) {
        let kept = self.kept.take().unwrap_or_default().into_frames();
        if self.buffer.mode() == Mode::Silent {
            info!(
                to_guest = repeat.to_guest.len(),
                from_guest = repeat.from_guest.len(),
                kept = kept.len(),
                "frames are repeated for the guest that is taken over"
            );
            self.addresses = addresses;
            // As the one that runs the guest: an old primary that lives must not draw the frames back.
            self.announce(By::Primary);
        }
        self.buffer.activate(repeat.from_guest);
        if self.buffer.mode() == Mode::Passing {
            repeat.to_guest.iter().chain(&kept).for_each(|frame| self.give(frame));
            self.write_uplink();
        }
    }

    pub(crate) fn stats(&self) -> NetworkStats {
        let uncopied = self.uncopied + self.copier.as_ref().map_or(0, Copier::uncopied);
        NetworkStats { uncopied_frames: uncopied, ..self.buffer.stats }
    }

    /// Ends holding. When the other side owns the guest the uplink is closed with what it still had to send.
    pub(crate) fn disengage(&mut self, why: Disengage) {
        self.copy_to(None);
        self.buffer.disengage(why);
        if self.buffer.mode() == Mode::Silent {
            self.uplink = None;
        }
    }

    /// Reads what the guest has sent, up to the limit.
    pub(crate) fn read_guest(&mut self) {
        let mut closed = false;
        if let Some(guest) = &mut self.guest {
            while self.buffer.has_room() && !closed {
                let (copier, addresses) = (&mut self.copier, &mut self.addresses);
                let take = |frame: &[u8]| {
                    addresses.learn(frame);
                    if self.buffer.push(frame) {
                        copier.iter_mut().for_each(|c| c.copy(Way::FromGuest, frame));
                    }
                };
                match guest.read(take) {
                    Ok(Outcome::More) => {}
                    Ok(Outcome::Empty) => break,
                    Ok(Outcome::Closed) => closed = true,
                    Err(error) => {
                        closed = true;
                        let error = PluginError::new(ErrorCode::Corrupt, RunError::Guest(error));
                        self.host.failed(error);
                    }
                }
            }
        }
        if closed {
            self.guest = None;
        }
        self.copier.iter().for_each(Copier::flush);
        if self.buffer.wants_epoch() {
            self.host.request_epoch();
        }
    }

    /// Writes what was let out, as far as the uplink takes it.
    pub(crate) fn write_uplink(&mut self) {
        let Some(uplink) = &mut self.uplink else {
            while !self.buffer.out.is_empty() {
                self.buffer.sent(false);
            }
            return;
        };
        let mut gone = uplink.flush().err();
        for _ in 0..BATCH {
            if gone.is_some() {
                break;
            }
            let Some(frame) = self.buffer.out.front() else { return };
            match uplink.send(frame) {
                Sent::Taken => self.buffer.sent(true),
                Sent::Refused => self.buffer.sent(false),
                Sent::Later => return,
                Sent::Gone(e) => gone = Some(e),
            }
        }
        self.uplink_gone(gone);
    }

    fn read_uplink(&mut self) {
        self.look_at_guest();
        let Some(mut uplink) = self.uplink.take() else { return };
        let mut answer = false;
        let result = uplink.read(|frame| match self.addresses.announced(frame) {
            Some(by) => answer |= by == By::Standby,
            None => self.take(frame),
        });
        self.uplink = Some(uplink);
        // A standby takes this side for lost. It lives, and the guest is here.
        if answer && self.buffer.mode() != Mode::Silent {
            debug!("a standby has announced the guest's addresses");
            self.announce(By::Primary);
        }
        self.copier.iter().for_each(Copier::flush);
        self.uplink_gone(result.err());
    }

    /// Takes a frame from the world.
    fn take(&mut self, frame: &[u8]) {
        // Before a takeover, and after the other side's, they are not this guest's.
        if self.buffer.mode() != Mode::Silent {
            self.give(frame);
        } else if let Some(kept) = &mut self.kept {
            kept.keep(frame);
        }
    }

    /// Gives a frame to the guest.
    fn give(&mut self, frame: &[u8]) {
        let Some(guest) = &mut self.guest else { return };
        match guest.send(frame) {
            Ok(true) => {
                self.buffer.stats.received_frames += 1;
                self.copier.iter_mut().for_each(|c| c.copy(Way::ToGuest, frame));
            }
            Ok(false) => {
                self.buffer.stats.dropped_frames += 1;
                debug!("a frame for the guest was lost: the guest does not read");
            }
            Err(error) => debug!(%error, "a frame for the guest was lost: its connection is ending"),
        }
    }

    fn uplink_gone(&mut self, why: Option<io::Error>) {
        if let Some(error) = why {
            self.uplink = None;
            self.host.failed(PluginError::new(ErrorCode::Io, RunError::Uplink(error)));
        }
    }
}
