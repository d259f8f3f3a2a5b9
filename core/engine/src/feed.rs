//! Gives a standby what was recorded of a primary.
//!
//! ```text
//!            ┌─ pages ──► one thread ═══►┐
//!  recording ├─ disk:… ─► one thread ═══►├─ standby ─ acknowledgements ─► this thread
//!            └─ net:… ──► one thread ═══►┘
//! ```
//! The standby sees a session like any other. It ends as the recorded one did: where the primary ended protection, so does this;
//! where the recording breaks off, the link does, and the standby does what it does when its primary is lost.
//!
//! Invariants:
//! - At most [`WINDOW`] epochs are under way, as a primary has it.
//! - Only the recording itself can end as a lost primary does. Whoever stops feeding, or cannot go on, tells the standby to stand
//!   down: half a recording is nobody's guest.

use crate::control::Quantiles;
use crate::link::{HandshakeError, Heartbeat, STEP, spawn_control_reader};
use crate::metrics::Metrics;
use crate::parts::{During, Maker, PluginFailure, Reports};
use crate::silence::Heard;
use crate::stats::Samples;
use crate::wire::{ControlTx, FrameTx};
use aventine_api::{Epoch, Link, PluginError, SessionId, Side};
use aventine_config::Config;
use aventine_protocol::{EndReason, FrameKind, Hello, Message};
use std::collections::VecDeque;
use std::error::Error;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

/// Epochs that are sent and not acknowledged, at most.
const WINDOW: usize = 8;
/// How long the standby may take to be there.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long it may take to acknowledge what it was sent, its guest's start included.
const SILENCE: Duration = Duration::from_secs(120);
/// How often is looked whether to stop.
const LOOK: Duration = Duration::from_millis(50);

/// A frame that a primary has sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RecordedFrame {
    /// What the payload is.
    pub kind: FrameKind,
    /// The plugin's kind of record.
    pub sub: u8,
    /// The epoch it belongs to.
    pub epoch: Epoch,
    /// The payload.
    pub payload: Vec<u8>,
}

/// Why a recording cannot be read.
pub type RecordingError = Box<dyn Error + Send + Sync>;

/// The frames of one channel.
pub type RecordedFrames = Box<dyn Iterator<Item = Result<RecordedFrame, RecordingError>>>;

/// What was recorded of a primary: one session.
pub trait Recorded: Sync {
    /// What it said at first.
    fn hello(&self) -> &Hello;

    /// Why it ended protection, if it did.
    fn end(&self) -> Option<EndReason>;

    /// The channels besides `control`, in the order in which they were opened.
    fn channels(&self) -> &[String];

    /// The frames of a channel, in their order.
    fn frames(&self, channel: &str) -> Result<RecordedFrames, RecordingError>;
}

/// What a standby made of a recording.
#[derive(Clone, Debug, Default)]
pub struct Fed {
    /// Epochs that it has acknowledged.
    pub epochs: u64,
    /// Bytes sent, all channels.
    pub bytes: u64,
    /// From the first byte to the last acknowledgement.
    pub time: Duration,
    /// From the end of a checkpoint to its acknowledgement, in microseconds.
    pub commit_us: Quantiles,
}

/// Why a standby did not take the whole recording.
#[derive(Debug, thiserror::Error)]
pub enum FeedError {
    /// The transport.
    #[error(transparent)]
    Plugin(#[from] PluginFailure),
    /// No agreement.
    #[error(transparent)]
    Handshake(#[from] HandshakeError),
    /// The standby refuses.
    #[error("The standby refuses: {0}")]
    Refused(String),
    /// The standby gave up.
    #[error("The standby has given up: {0}")]
    Failed(String),
    /// The link.
    #[error("The link to the standby was lost")]
    Lost(#[source] PluginError),
    /// It does not answer.
    #[error("The standby acknowledged nothing for {SILENCE:?}")]
    Silent,
    /// The recording.
    #[error("The recording cannot be read; the standby was told to stand down")]
    Recording(#[source] RecordingError),
    /// The operator.
    #[error("Stopped; the standby was told to stand down")]
    Stopped,
}

impl FeedError {
    /// What the standby is told.
    fn reason(&self) -> EndReason {
        match self {
            FeedError::Stopped => EndReason::Stopped,
            other => EndReason::LocalError(other.to_string()),
        }
    }
}

/// What the channels and the standby tell.
enum Event {
    Said(Epoch, Message),
    Lost(PluginError),
    /// A channel is through.
    Fed(Result<(), FeedError>),
}

/// Sends a recording to the standby of `config`, by its transport and with a session of its own; everything else that both hosts
/// must have in common is as it was recorded. Blocks until the standby has acknowledged all of it, or `stop` is set. `state_dir`
/// is for the transport.
pub fn feed(
    config: &Config,
    state_dir: &Path,
    recorded: &dyn Recorded,
    stop: &AtomicBool,
) -> Result<Fed, FeedError> {
    let (reports, metrics) = (Reports::nowhere(), Metrics::default());
    let maker = Maker { config, side: Side::Primary, state_dir, reports, metrics };
    let mut link = maker.transport()?.connect(PATIENCE).during("transport", "looking for the standby")?;
    let sent = Arc::new(AtomicU64::new(0));
    let (to_us, events) = channel();
    let control = greet(config, link.as_mut(), recorded.hello(), &sent, &to_us)?;
    match events.recv_timeout(STEP) {
        Ok(Event::Said(_, Message::Accept { .. })) => {}
        Ok(Event::Said(_, Message::Refuse(reason))) => return Err(FeedError::Refused(reason)),
        Ok(Event::Said(_, other)) => return Err(HandshakeError::Unexpected(other).into()),
        Ok(Event::Lost(error)) => return Err(HandshakeError::Lost(error).into()),
        Ok(Event::Fed(_)) | Err(_) => return Err(HandshakeError::Silent(STEP).into()),
    }
    let mut channels = Vec::new();
    for name in recorded.channels() {
        let (tx, _) = link.open(name, None, STEP).during("transport", "opening a channel")?;
        channels.push((name, FrameTx::new(tx, Arc::clone(&sent))));
    }
    let heartbeat = Heartbeat::start(control.clone(), config.heartbeat);
    let (flow, began) = (Flow::default(), Instant::now());
    let count = channels.len();
    let heard = thread::scope(|scope| {
        for (name, mut tx) in channels {
            let (flow, done) = (&flow, to_us.clone());
            scope.spawn(move || drop(done.send(Event::Fed(send(recorded, name, &mut tx, flow)))));
        }
        let heard = flow.listen(&events, count, stop);
        flow.stop();
        heard.inspect_err(|error| {
            // One that has gone, or given up, needs no word.
            let _ = bid_farewell(&control, error.reason(), &events);
            // A channel that waits for the standby must not be waited for.
            link.aborter().abort();
        })
    });
    let commits = heard?;
    let fed = Fed {
        epochs: commits.0,
        bytes: sent.load(Ordering::Relaxed),
        time: began.elapsed(),
        commit_us: commits.1.quantiles(),
    };
    match recorded.end() {
        Some(reason) => bid_farewell(&control, reason, &events)?,
        None => link.aborter().abort(),
    }
    drop(heartbeat);
    Ok(fed)
}

/// Opens the control channel and says what the recorded primary said.
fn greet(
    config: &Config,
    link: &mut dyn Link,
    hello: &Hello,
    sent: &Arc<AtomicU64>,
    to_us: &Sender<Event>,
) -> Result<ControlTx, FeedError> {
    let (tx, rx) = link.open("control", None, STEP).during("transport", "opening the control channel")?;
    let control = ControlTx::new(FrameTx::new(tx, Arc::clone(sent)));
    let (said, lost) = (to_us.clone(), to_us.clone());
    spawn_control_reader(
        rx,
        Heard::new(Instant::now()),
        move |epoch, message| said.send(Event::Said(epoch, message)).is_ok(),
        move |error| drop(lost.send(Event::Lost(error))),
    );
    let mut session = [0; 16];
    rustix::rand::getrandom(&mut session, rustix::rand::GetRandomFlags::empty())
        .map_err(HandshakeError::Random)?;
    let mut signature = hello.signature.clone();
    // The recorded transport was the one that records.
    let transport = format!("{} {}", config.transport.entry.name, config.transport.entry.version);
    signature
        .iter_mut()
        .filter(|(name, _)| name == "transport")
        .for_each(|(_, value)| transport.clone_into(value));
    let hello = Hello { session: SessionId(session), signature, base: None };
    control.send(Epoch::COPY, &Message::Hello(hello)).during("transport", "greeting the standby")?;
    Ok(control)
}

/// Sends one channel's frames.
fn send(recorded: &dyn Recorded, name: &str, tx: &mut FrameTx, flow: &Flow) -> Result<(), FeedError> {
    for frame in recorded.frames(name).map_err(FeedError::Recording)? {
        let RecordedFrame { kind, sub, epoch, payload } = frame.map_err(FeedError::Recording)?;
        if kind == FrameKind::CheckpointEnd && !flow.seal(epoch) {
            return Ok(());
        }
        tx.send(kind, sub, epoch, &[&payload]).map_err(FeedError::Lost)?;
    }
    Ok(())
}

fn bid_farewell(control: &ControlTx, reason: EndReason, events: &Receiver<Event>) -> Result<(), FeedError> {
    control.send(Epoch::COPY, &Message::End(reason)).map_err(FeedError::Lost)?;
    loop {
        match events.recv_timeout(STEP) {
            Ok(Event::Said(_, Message::EndAck)) => return Ok(()),
            Ok(Event::Lost(error)) => return Err(FeedError::Lost(error)),
            Ok(_) => {}
            Err(_) => return Err(HandshakeError::Silent(STEP).into()),
        }
    }
}

/// The epochs under way.
#[derive(Default)]
struct Flow {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    under_way: VecDeque<(Epoch, Instant)>,
    stopped: bool,
}

impl Flow {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until there is room for one more; `false`: it is over.
    fn seal(&self, epoch: Epoch) -> bool {
        let mut state = self.lock();
        while state.under_way.len() >= WINDOW && !state.stopped {
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        state.under_way.push_back((epoch, Instant::now()));
        !state.stopped
    }

    fn stop(&self) {
        self.lock().stopped = true;
        self.changed.notify_all();
    }

    /// Until all `channels` are through and all their epochs acknowledged: how many these were, and how long each took.
    fn listen(
        &self,
        events: &Receiver<Event>,
        mut channels: usize,
        stop: &AtomicBool,
    ) -> Result<(u64, Samples), FeedError> {
        let (mut epochs, mut commits, mut heard) = (0, Samples::default(), Instant::now());
        while channels > 0 || !self.lock().under_way.is_empty() {
            if stop.load(Ordering::Relaxed) {
                return Err(FeedError::Stopped);
            }
            let Ok(event) = events.recv_timeout(LOOK) else {
                if heard.elapsed() > SILENCE {
                    return Err(FeedError::Silent);
                }
                continue;
            };
            heard = Instant::now();
            match event {
                Event::Fed(result) => {
                    result?;
                    channels -= 1;
                }
                Event::Said(epoch, Message::Acknowledge) => {
                    let mut state = self.lock();
                    let acknowledged = state.under_way.iter().take_while(|(e, _)| *e <= epoch).count();
                    for (_, sealed) in state.under_way.drain(..acknowledged) {
                        epochs += 1;
                        commits.push_time(sealed.elapsed());
                    }
                    self.changed.notify_all();
                }
                Event::Said(_, Message::Failed(why) | Message::Refuse(why)) => {
                    return Err(FeedError::Failed(why));
                }
                Event::Said(..) => {}
                Event::Lost(error) => return Err(FeedError::Lost(error)),
            }
        }
        Ok((epochs, commits))
    }
}
