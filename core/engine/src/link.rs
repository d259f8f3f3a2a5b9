//! The link between the two hosts: connecting, agreeing, heartbeats.

use crate::EngineError;
use crate::control::{Command, Inbox, Status};
use crate::parts::{During, Parts, PluginFailure, Report};
use crate::primary::Event;
use crate::recording::Recording;
use crate::silence::Heard;
use crate::wire::{ControlTx, FrameRx, FrameTx, RecordChannelRx, RecordChannelTx, WireError};
use aventine_api::{ChannelRx, Epoch, ErrorCode, Link, LinkAbort, PluginError, SessionId, Transport};
use aventine_config::Config;
use aventine_protocol::{Base, Hello, Message};
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread;
use std::time::{Duration, Instant};
use tracing::{debug, info, warn};

/// How long the other side may take for one step of the handshake.
pub(crate) const STEP: Duration = Duration::from_secs(10);
/// How long the standby may take to start its guest.
const READY: Duration = Duration::from_secs(120);
/// How long one attempt to connect may take before the operator's commands are looked at.
const ATTEMPT: Duration = Duration::from_millis(500);

/// How often a lost standby is looked for.
const REDIAL: Duration = Duration::from_millis(500);

/// The primary's link without its bulk channels.
pub(crate) struct PrimaryLink {
    /// Tells its events from those of links before it.
    pub(crate) number: u32,
    pub(crate) session: SessionId,
    pub(crate) control: ControlTx,
    /// From the agreement on: the standby listens for it while this side still prepares. `None` once the
    /// link is given up or nothing is heard on it.
    pub(crate) heartbeat: Option<Heartbeat>,
    pub(crate) heard: Heard,
    pub(crate) abort: Arc<dyn LinkAbort>,
    /// Bytes sent on the control channel and the networks'.
    pub(crate) sent: Arc<AtomicU64>,
    /// Bytes sent on the channels that checkpoints wait for.
    pub(crate) bulk: Arc<AtomicU64>,
    pub(crate) peer: String,
    /// Whether the link leads to a recording, not to a standby.
    pub(crate) records: bool,
    /// Keeps the channels alive.
    _link: Box<dyn Link>,
}

impl PrimaryLink {
    /// What a takeover leaves of the link to the old primary: nothing is said or heard on it any more.
    pub(crate) fn ended(
        session: SessionId,
        control: ControlTx,
        abort: Arc<dyn LinkAbort>,
        link: Box<dyn Link>,
    ) -> PrimaryLink {
        PrimaryLink {
            number: 0,
            session,
            control,
            heartbeat: None,
            heard: Heard::new(Instant::now()),
            abort,
            sent: Arc::default(),
            bulk: Arc::default(),
            peer: String::new(),
            records: false,
            _link: link,
        }
    }
}

/// A disk's channel, with the way back where somebody answers.
pub(crate) type DiskChannel = (RecordChannelTx, Option<RecordChannelRx>);

/// A link that both sides have agreed on.
pub(crate) struct Connected {
    pub(crate) primary: PrimaryLink,
    pub(crate) pages: FrameTx,
    pub(crate) disks: Vec<DiskChannel>,
    pub(crate) networks: Vec<RecordChannelTx>,
    /// Whether the standby has the memory of the base that it was offered.
    pub(crate) has_base: bool,
}

/// Why the handshake failed.
#[derive(Debug, thiserror::Error)]
pub enum HandshakeError {
    /// The control channel failed.
    #[error("The other side ended the connection during the handshake")]
    Lost(#[source] PluginError),
    /// The other side did not answer.
    #[error("The other side did not answer within {0:?}")]
    Silent(Duration),
    /// The other side said something else than expected.
    #[error("The other side sent {0:?} during the handshake")]
    Unexpected(Message),
    /// No random numbers.
    #[error("Cannot make a session id")]
    Random(#[from] rustix::io::Errno),
}

/// Connects to the standby; `None` when the operator gave up meanwhile. Waits for a standby for as long as it takes.
pub(crate) fn connect(
    config: &Config,
    transport: &mut dyn Transport,
    inbox: &Inbox,
) -> Result<Option<Box<dyn Link>>, PluginFailure> {
    inbox.say("connecting", "waiting for the standby");
    loop {
        match transport.connect(ATTEMPT) {
            Ok(link) => return Ok(Some(link)),
            Err(e) if is_absence(&e) => inbox.say("connecting", &e.chain()),
            Err(e) => return Err(e).during(&config.transport.id, "connecting"),
        }
        if inbox.wants_end() {
            return Ok(None);
        }
    }
}

/// Whether the error only says that no standby is there.
fn is_absence(error: &PluginError) -> bool {
    matches!(error.code(), ErrorCode::TimedOut | ErrorCode::PeerLost)
}

/// Connects again after the standby was lost, on a thread of its own: the guest's loop goes on.
pub(crate) struct Dialer {
    delays: Sender<Duration>,
}

impl Dialer {
    pub(crate) fn start(mut transport: Box<dyn Transport>, to_loop: Sender<Event>) -> Dialer {
        let (delays, asked) = channel();
        thread::spawn(move || {
            let mut told = String::new();
            for delay in asked {
                thread::sleep(delay);
                let link = loop {
                    match transport.connect(ATTEMPT) {
                        Ok(link) => break link,
                        Err(e) if is_absence(&e) => debug!(error = e.chain(), "no standby yet"),
                        Err(e) => {
                            let error = e.chain();
                            if error != told {
                                warn!(error, "cannot look for a standby; trying again");
                                told = error;
                            }
                        }
                    }
                    thread::sleep(REDIAL);
                };
                if to_loop.send(Event::Linked(link)).is_err() {
                    return;
                }
            }
        });
        Dialer { delays }
    }

    /// Looks for a standby after `delay`, until there is one; it comes as [`Event::Linked`].
    pub(crate) fn dial(&self, delay: Duration) {
        // The thread ends only with the loop.
        let _ = self.delays.send(delay);
    }
}

/// What the two sides agree on, and where the answers go.
pub(crate) struct Terms<'a> {
    pub(crate) config: &'a Config,
    pub(crate) signature: &'a [(String, String)],
    pub(crate) base: Option<Base>,
    pub(crate) to_loop: &'a Sender<Event>,
    pub(crate) events: &'a Receiver<Event>,
    /// Whether the operator has given up.
    pub(crate) gives_up: &'a dyn Fn() -> bool,
}

/// Agrees with the standby and opens the channels; `None` when the operator gave up meanwhile. `number` tells this
/// link's events from those of links before it.
pub(crate) fn agree(
    terms: &Terms<'_>,
    mut link: Box<dyn Link>,
    number: u32,
    parts: &Parts,
) -> Result<Option<Connected>, EngineError> {
    let transport_id = &terms.config.transport.id;
    let records = !link.answers();
    if records {
        link = Box::new(Recording::new(link));
    }
    let sent = Arc::new(AtomicU64::new(0));
    let heard = Heard::new(Instant::now());
    let (tx, rx) = link.open("control", None, STEP).during(transport_id, "opening the control channel")?;
    let control = ControlTx::new(FrameTx::new(tx, Arc::clone(&sent)));
    let (to_loop, ended) = (terms.to_loop.clone(), terms.to_loop.clone());
    spawn_control_reader(
        rx,
        heard.clone(),
        move |epoch, message| to_loop.send(Event::Message(number, epoch, message)).is_ok(),
        move |error| drop(ended.send(Event::ChannelLost(number, error))),
    );
    let mut session = [0; 16];
    rustix::rand::getrandom(&mut session, rustix::rand::GetRandomFlags::empty())
        .map_err(HandshakeError::Random)?;
    let session = SessionId(session);
    let hello = Hello { session, signature: terms.signature.to_vec(), base: terms.base };
    control.send(Epoch::COPY, &Message::Hello(hello)).during(transport_id, "greeting the standby")?;
    let has_base = match await_message(terms, number, STEP)? {
        Some(Message::Accept { base }) => base && terms.base.is_some(),
        Some(Message::Refuse(reason)) => return Err(EngineError::Refused { reason }),
        Some(other) => return Err(HandshakeError::Unexpected(other).into()),
        None => return Ok(None),
    };
    let (tx, _) = link.open("pages", None, STEP).during(transport_id, "opening the pages channel")?;
    let bulk = Arc::new(AtomicU64::new(0));
    let pages = FrameTx::new(tx, Arc::clone(&bulk));
    let mut open = |name: String, route: Option<String>, doing, sent: &Arc<AtomicU64>| {
        let (tx, rx) = link.open(&name, route.as_deref(), STEP).during(transport_id, doing)?;
        let back = (!records).then(|| RecordChannelRx(FrameRx::new(rx)));
        Ok((RecordChannelTx(FrameTx::new(tx, Arc::clone(sent))), back))
    };
    let disks = parts
        .disks
        .iter()
        .map(|(id, disk)| open(format!("disk:{id}"), disk.route(), "opening a disk's channel", &bulk));
    let disks = disks.collect::<Result<_, PluginFailure>>()?;
    let networks = parts
        .networks
        .iter()
        .map(|(id, _)| Ok(open(format!("net:{id}"), None, "opening a network's channel", &sent)?.0));
    let networks = networks.collect::<Result<_, PluginFailure>>()?;
    info!(%session, peer = link.peer(), "the standby has accepted");
    let (abort, peer) = (link.aborter(), link.peer());
    let heartbeat = Some(Heartbeat::start(control.clone(), terms.config.heartbeat));
    let primary = PrimaryLink {
        number,
        session,
        control,
        heartbeat,
        heard,
        abort,
        sent,
        bulk,
        peer,
        records,
        _link: link,
    };
    Ok(Some(Connected { primary, pages, disks, networks, has_base }))
}

/// Waits until the standby is ready for the initial copy; `false` when the operator gave up meanwhile.
pub(crate) fn await_ready(terms: &Terms<'_>, number: u32) -> Result<bool, EngineError> {
    match await_message(terms, number, READY)? {
        Some(Message::Ready) => Ok(true),
        Some(Message::Refuse(reason)) => Err(EngineError::Refused { reason }),
        Some(other) => Err(HandshakeError::Unexpected(other).into()),
        None => Ok(false),
    }
}

/// The next message of the handshake; `None` when the operator gave up.
fn await_message(terms: &Terms<'_>, number: u32, limit: Duration) -> Result<Option<Message>, EngineError> {
    let deadline = Instant::now() + limit;
    loop {
        match terms.events.recv_timeout(Duration::from_millis(100)) {
            Ok(Event::Message(of, _, message)) if of == number => return Ok(Some(message)),
            Ok(Event::ChannelLost(of, e)) if of == number => return Err(HandshakeError::Lost(e).into()),
            Ok(Event::Plugin(Report::Failed(id, source))) => {
                return Err(PluginFailure { id, doing: "the hosts were agreeing", source }.into());
            }
            Ok(_) | Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => {}
        }
        if (terms.gives_up)() {
            return Ok(None);
        }
        if Instant::now() > deadline {
            return Err(HandshakeError::Silent(limit).into());
        }
    }
}

/// Reads the control channel until it ends, on a thread of its own: whatever the loop is busy with, what was heard is
/// heard.
pub(crate) fn spawn_control_reader(
    rx: Box<dyn ChannelRx>,
    heard: Heard,
    message: impl Fn(Epoch, Message) -> bool + Send + 'static,
    ended: impl FnOnce(PluginError) + Send + 'static,
) {
    thread::spawn(move || {
        go_first();
        let mut rx = FrameRx::new(rx);
        loop {
            match rx.message() {
                Ok((epoch, m)) => {
                    heard.set(Instant::now());
                    if m != Message::Heartbeat && !message(epoch, m) {
                        return;
                    }
                }
                Err(error) => return ended(WireError::into_plugin_error(error)),
            }
        }
    });
}

/// Lets this thread run before ordinary work where that is permitted: the other side takes a late sign of life for
/// none. These threads do next to nothing, so nobody else waits for them.
pub(crate) fn go_first() {
    let _ = rustix::process::setpriority_process(None, -15);
}

/// Says that this side is alive until it is dropped or the channel fails.
pub(crate) struct Heartbeat {
    _stop: Sender<()>,
}

impl Heartbeat {
    pub(crate) fn start(control: ControlTx, interval: Duration) -> Heartbeat {
        let (stop, stopped) = channel::<()>();
        thread::spawn(move || {
            go_first();
            while control.send(Epoch::COPY, &Message::Heartbeat).is_ok() {
                if stopped.recv_timeout(interval) != Err(RecvTimeoutError::Timeout) {
                    return;
                }
            }
        });
        Heartbeat { _stop: stop }
    }
}

impl Inbox {
    /// Sets what never changes in the status.
    pub(crate) fn introduce(&self, guest: &str, side: &str) {
        let mut measured = self.shared.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        guest.clone_into(&mut measured.status.guest);
        side.clone_into(&mut measured.status.side);
    }

    /// Before a guest runs: whether the operator wants to end. Answers every command.
    pub(crate) fn wants_end(&self) -> bool {
        let mut end = false;
        while let Ok(command) = self.commands.try_recv() {
            match command {
                Command::Stop { reply } => {
                    let _ = reply.send(Ok(()));
                    end = true;
                }
                Command::PowerDown | Command::Kill => end = true,
                Command::HandOver { reply } => {
                    let why = "no guest runs here: hand it over on the host that runs it";
                    let _ = reply.send(Err(why.to_owned()));
                }
                Command::Verify { reply, .. } => {
                    let why = "no guest runs here: verify its disks on the host that runs it";
                    let _ = reply.send(Err(why.to_owned()));
                }
                Command::Floor { reply, .. } => {
                    let _ = reply.send(Err("no guest runs here yet".to_owned()));
                }
            }
        }
        end
    }

    /// Begins a phase before or between sessions: nothing of an earlier one is shown any more, but what audits found.
    pub(crate) fn say(&self, state: &str, detail: &str) {
        let mut measured = self.shared.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let Status { guest, side, audit, .. } = std::mem::take(&mut measured.status);
        let (state, detail) = (state.to_owned(), detail.to_owned());
        measured.status = Status { guest, side, state, detail, audit, ..Status::default() };
    }
}
