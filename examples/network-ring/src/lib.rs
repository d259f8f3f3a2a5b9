//! Network plugin `ring`: holds the guest's frames in a file, between QEMU's `stream` netdev and a tap.
//!
//! Build with `cargo build --release`; then in the guest's file:
//!
//! ```toml
//! [plugins]
//! load = ["target/release/libaventine_network_ring.so"]
//! [[network]]
//! id = "net0"
//! plugin = "ring"
//! device = "tap-web"    # a tap that exists on each host
//! limit = "64MiB"       # most bytes held, in a file in the state directory; 1MiB to 64GiB
//! ```
//! It shows the life of a network buffer, threads of its own with what they must tell the engine, and metrics. What is held is in
//! the page cache, which a full disk or a slow one can make wait: a state directory in memory cannot.
//!
//! ```text
//!  QEMU ══► unix socket ──► [ file: start … seal(n) … seal(n+1) … end ] ──► tap ──► world
//!       ◄══             ◄────────────────────────────────────────────────── tap ◄──
//! ```
//! One thread takes frames from the guest, another brings it those from the tap; the epoch verbs work on the same state, under its
//! lock, and let frames out themselves: a tap makes nobody wait.
//!
//! Invariants: while holding, a frame leaves the file by `release` of its epoch or `disengage(Owner)` alone, in the order in
//! which the guest sent it. At the limit the guest's socket is not read, and QEMU waits. What was held by a process that
//! died never leaves: the next one begins with an empty file.

use aventine_api::schemars::JsonSchema;
use aventine_api::units::Quantity;
use aventine_api::{
    ConfigError, Context, Disengage, Epoch, ErrorCode, Factory, Host, Metric, NetAttachment, NetworkBuffer,
    NetworkStats, PluginEntry, PluginError, Side, parse_config, schema,
};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{FallocateFlags, fallocate};
use rustix::io::Errno;
use rustix::ioctl::{IntegerSetter, Updater, ioctl};
use rustix::net::{RecvFlags, Shutdown, netdevice, recv, shutdown};
use serde::Deserialize;
use std::collections::VecDeque;
use std::fs::{File, remove_file};
use std::io::{self, ErrorKind, Read, Write};
use std::mem::{replace, take};
use std::os::fd::AsFd;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};

aventine_abi::export_plugin!();

aventine_api::inventory::submit! {
    PluginEntry {
        name: "ring",
        version: env!("CARGO_PKG_VERSION"),
        summary: "Holds frames in a file, between a QEMU stream netdev and a tap",
        validate: &|text| parse(text).map(drop),
        schema: &schema::<Keys>,
        factory: Factory::Network(&|text, context| {
            let (device, limit) = parse(text).map_err(|e| PluginError::new(ErrorCode::Config, e))?;
            Ok(Box::new(Buffer::start(&device, limit, &context)?))
        }),
        upkeep: None,
    }
}

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(crate = "aventine_api::schemars")]
struct Keys {
    /// The tap by which the guest's frames leave.
    device: String,
    /// Most bytes held, 1MiB to 64GiB; 64MiB if not set.
    #[schemars(with = "Option<aventine_api::SizeText>")]
    limit: Option<String>,
}

fn parse(text: &str) -> Result<(String, u64), ConfigError> {
    let keys: Keys = parse_config(text)?;
    if !(1..16).contains(&keys.device.len()) {
        let (message, help) = (format!("{:?} is no device name", keys.device), "use 1 to 15 characters");
        return Err(ConfigError::bad_value(&["device"], message, Some(help)));
    }
    let limit = keys.limit.as_deref().unwrap_or("64MiB");
    Ok((keys.device, u64::parse_key(&["limit"], limit, &(1 << 20..=64 << 30))?))
}

/// What failed, and why.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Failed(&'static str, #[source] io::Error);

fn failed(code: ErrorCode, what: &'static str) -> impl Fn(io::Error) -> PluginError {
    move |error| PluginError::new(code, Failed(what, error))
}

/// The longest frame that QEMU sends: a segment of 64 KiB with its headers.
const LONGEST: usize = 4096 + 65536;

struct State {
    /// Frames, each after its length in 4 bytes.
    file: File,
    /// Where a round ends: a frame that begins before may go on beyond.
    size: u64,
    /// Where the oldest frame begins, and the next one.
    start: u64,
    end: u64,
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
    tap: Arc<File>,
    stats: NetworkStats,
    level: Arc<dyn Metric>,
    host: Arc<dyn Host>,
}

impl State {
    /// Bytes of the file in use.
    fn used(&self) -> u64 {
        self.stats.held_bytes + 4 * self.stats.held_frames
    }

    /// Takes what the guest has sent, as far as there is room.
    fn drain(&mut self) -> io::Result<()> {
        let mut bytes = [0; 1 << 15];
        while let Some(guest) = self.guest.as_ref().filter(|_| self.used() < self.limit) {
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
        while let Some((length, after)) = rest.split_first_chunk() {
            let length = u32::from_be_bytes(*length) as usize;
            if length == 0 || length > LONGEST {
                self.guest = None;
                return Err(ErrorKind::InvalidData.into());
            }
            let Some((frame, after)) = after.split_at_checked(length) else { break };
            match (self.silent, self.holding) {
                (true, _) => {}
                (_, true) => done = done.and(self.push(&rest[..4 + length])),
                (_, false) => done = done.and(self.send(frame)),
            }
            rest = after;
        }
        self.input.extend(rest);
        done
    }

    fn push(&mut self, framed: &[u8]) -> io::Result<()> {
        self.file.write_all_at(framed, self.end)?;
        self.end = self.behind(self.end, framed.len());
        self.frames += 1;
        self.stats.held_frames += 1;
        self.stats.held_bytes += framed.len() as u64 - 4;
        Ok(())
    }

    /// Sends held frames until there were so many, ever.
    fn let_out(&mut self, frames: u64) -> io::Result<()> {
        let (mut length, mut frame, mut done) = ([0; 4], vec![0; LONGEST], Ok(()));
        while self.stats.held_frames > self.frames - frames {
            self.file.read_exact_at(&mut length, self.start)?;
            let frame = &mut frame[..LONGEST.min(u32::from_be_bytes(length) as usize)];
            self.file.read_exact_at(frame, self.start + 4)?;
            self.start = self.behind(self.start, 4 + frame.len());
            self.stats.held_frames -= 1;
            self.stats.held_bytes -= frame.len() as u64;
            done = done.and(self.send(frame));
        }
        done
    }

    fn behind(&self, at: u64, length: usize) -> u64 {
        let next = at + length as u64;
        if next < self.size { next } else { 0 }
    }

    /// Gives a frame to the tap, which never makes anybody wait. Fails where the tap is gone; one that is down or full loses
    /// frames, as a wire does.
    fn send(&mut self, frame: &[u8]) -> io::Result<()> {
        let sent = (&*self.tap).write(frame).map(drop);
        match &sent {
            Ok(()) => self.stats.sent_frames += 1,
            Err(_) => self.stats.dropped_frames += 1,
        }
        sent.or_else(|e| if e.raw_os_error() == Some(libc::EBADFD) { Err(e) } else { Ok(()) })
    }
}

struct Shared {
    state: Mutex<State>,
    /// There may be room again.
    room: Condvar,
    /// Shut down at the end.
    listener: UnixListener,
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn fail(&self, what: &'static str, error: io::Error) {
        self.state().host.failed(failed(ErrorCode::Io, what)(error));
    }

    /// Serves one connection of the guest after the other.
    fn run(&self) {
        while wait(&self.listener, &self.listener) {
            let Ok((guest, _)) = self.listener.accept() else { continue };
            let guest = Arc::new(guest);
            self.state().guest = Some(Arc::clone(&guest));
            thread::scope(|scope| {
                scope.spawn(|| self.feed(&guest));
                while wait(&*guest, &self.listener) && self.take() {}
                // Wakes the other thread; the guest may have done it.
                let _ = guest.shutdown(std::net::Shutdown::Both);
            });
            self.state().input.clear();
        }
    }

    /// Takes what the guest sends; whether it is still there.
    fn take(&self) -> bool {
        let room = self.room.wait_while(self.state(), |state| state.used() >= state.limit);
        let mut state = room.unwrap_or_else(PoisonError::into_inner);
        let (done, guest) = (state.drain(), state.guest.is_some());
        drop(state);
        done.unwrap_or_else(|e| self.fail("frames cannot be taken", e));
        guest
    }

    /// Brings frames from the tap to the guest.
    fn feed(&self, mut guest: &UnixStream) {
        let (tap, mut frame) = (Arc::clone(&self.state().tap), [0; 4 + LONGEST]);
        while wait(&*tap, guest) {
            match (&*tap).read(&mut frame[4..]) {
                Ok(_) if self.state().silent => {}
                Ok(length) => {
                    self.state().stats.received_frames += 1;
                    frame[..4].copy_from_slice(&(length as u32).to_be_bytes());
                    // One that has gone gets nothing.
                    let _ = guest.write_all(&frame[..4 + length]);
                }
                Err(e) if e.kind() == ErrorKind::WouldBlock => {}
                Err(e) => return self.fail("the tap is gone", e),
            }
        }
    }
}

/// Waits until there may be something to read from `source`; `false` once `end` was shut down.
fn wait(source: &impl AsFd, end: &impl AsFd) -> bool {
    let mut fds = [PollFd::new(source, PollFlags::IN), PollFd::new(end, PollFlags::empty())];
    // Where it fails, or takes long, the caller looks in vain and comes back: a tap that goes away is not always an event.
    let _ = poll(&mut fds, Some(&Timespec { tv_sec: 1, tv_nsec: 0 }));
    fds[1].revents().is_empty()
}

/// The tap of this name, non-blocking. A missing one is not made: no bridge would know it.
fn open_tap(name: &str, any_socket: &UnixListener) -> io::Result<Arc<File>> {
    netdevice::name_to_index(any_socket, name)?;
    let tap = File::options().read(true).write(true).custom_flags(libc::O_NONBLOCK).open("/dev/net/tun")?;
    // SAFETY: all-zero bytes are a valid ifreq.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    request.ifr_name.iter_mut().zip(name.bytes()).for_each(|(to, from)| *to = from as libc::c_char);
    request.ifr_ifru.ifru_flags = (libc::IFF_TAP | libc::IFF_NO_PI) as libc::c_short;
    // SAFETY: TUNSETIFF updates an ifreq, which `request` is, with a name of at most 15 bytes and a zero. TUNSETOFFLOAD takes
    // a number: whoever had the tap before may have left it with offloads that frames here do not carry.
    unsafe {
        ioctl(&tap, Updater::<{ libc::TUNSETIFF as _ }, _>::new(&mut request))?;
        ioctl(&tap, IntegerSetter::<{ libc::TUNSETOFFLOAD as _ }>::new_usize(0))?;
    }
    Ok(Arc::new(tap))
}

/// An empty file with room for so many bytes: a disk that is full says so now, and not when frames must be held.
fn create(path: &Path, size: u64) -> io::Result<File> {
    let file = File::options().read(true).write(true).create(true).truncate(true).mode(0o600).open(path)?;
    fallocate(&file, FallocateFlags::empty(), 0, size)?;
    Ok(file)
}

struct Buffer {
    attachment: NetAttachment,
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

impl Buffer {
    fn start(device: &str, limit: u64, context: &Context) -> Result<Buffer, PluginError> {
        let unavailable = |what| failed(ErrorCode::Unavailable, what);
        let path = |end| context.state_dir.join(format!("{}.{end}", context.id));
        // The state directory is this guest's and this side's alone: what lies there is from a dead process.
        let _ = remove_file(path("sock"));
        let listener =
            UnixListener::bind(path("sock")).map_err(unavailable("cannot listen for the guest"))?;
        let tap = open_tap(device, &listener)
            .map_err(unavailable("cannot use `device`: it must be a tap that nothing else uses"))?;
        // What one reading may bring beyond the limit.
        let size = limit + 2 * LONGEST as u64;
        let file = create(&path("ring"), size + 4 + LONGEST as u64);
        let state = State {
            file: file.map_err(unavailable("cannot make a file in the state directory"))?,
            size,
            start: 0,
            end: 0,
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
            tap,
            stats: NetworkStats::default(),
            level: context
                .host
                .metric("sealed_bytes", "bytes of the file in use when the last epoch was sealed"),
            host: Arc::clone(&context.host),
        };
        let shared = Arc::new(Shared { state: Mutex::new(state), room: Condvar::new(), listener });
        let (run, thread) =
            (Arc::clone(&shared), thread::Builder::new().name(format!("ring {}", context.id)));
        let thread = thread.spawn(move || run.run()).map_err(unavailable("cannot start a thread"))?;
        Ok(Buffer { attachment: NetAttachment::Stream(path("sock")), shared, thread: Some(thread) })
    }

    fn with(&self, verb: impl FnOnce(&mut State) -> io::Result<()>) -> Result<(), PluginError> {
        let done = verb(&mut self.shared.state());
        self.shared.room.notify_all();
        done.map_err(failed(ErrorCode::Io, "frames cannot be held, or not be sent"))
    }
}

impl NetworkBuffer for Buffer {
    fn depth(&self) -> u32 {
        16
    }

    fn attachment(&self) -> NetAttachment {
        self.attachment.clone()
    }

    fn engage(&mut self) -> Result<(), PluginError> {
        let mut state = self.shared.state();
        if state.silent {
            let why = io::Error::other("the other side owns the guest, or nobody does yet");
            return Err(failed(ErrorCode::Refused, "frames are not held here")(why));
        }
        if !replace(&mut state.holding, true) {
            state.seals.clear();
            (state.sealed, state.asked, state.over) = (Epoch::COPY, false, false);
        }
        Ok(())
    }

    fn seal(&mut self, epoch: Epoch) -> Result<(), PluginError> {
        self.with(|state| {
            if epoch > state.sealed {
                state.drain()?;
                state.seals.push_back((epoch, state.frames));
                state.level.set(state.used());
                (state.sealed, state.asked) = (epoch, false);
            }
            Ok(())
        })
    }

    fn release(&mut self, epoch: Epoch) -> Result<(), PluginError> {
        self.with(|state| {
            let due = state.seals.partition_point(|(sealed, _)| *sealed <= epoch);
            let last = state.seals.drain(..due).next_back();
            last.map_or(Ok(()), |(_, frames)| state.let_out(frames))
        })
    }

    fn disengage(&mut self, why: Disengage) -> Result<(), PluginError> {
        self.with(|state| {
            if replace(&mut state.over, true) {
                return Ok(());
            }
            state.seals.clear();
            (state.holding, state.silent) = (false, why == Disengage::NotOwner);
            let done = if state.silent { Ok(()) } else { state.let_out(state.frames) };
            (state.start, state.stats.held_frames, state.stats.held_bytes) = (state.end, 0, 0);
            done
        })
    }

    fn activate(&mut self, _: Epoch) -> Result<(), PluginError> {
        self.with(|state| {
            state.silent &= state.over;
            Ok(())
        })
    }

    fn stats(&self) -> NetworkStats {
        self.shared.state().stats
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        let _ = self.disengage(Disengage::NotOwner);
        let _ = shutdown(&self.shared.listener, Shutdown::Both);
        // A thread that panicked has nothing left to clean up.
        let _ = self.thread.take().map(JoinHandle::join);
    }
}
