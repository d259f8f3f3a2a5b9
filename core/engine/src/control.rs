//! How the program talks to a running engine: commands in, a status snapshot out.

use crate::metrics::{MetricStatus, Metrics};
use crate::stats::{Measured, Shared};
use serde::{Deserialize, Serialize};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};

/// What an operator can ask of a running engine.
#[derive(Debug)]
pub enum Command {
    /// End protection; the guest runs on, unprotected. The standby stands down. Before the guest has started, and on
    /// a standby that has not taken over: end.
    Stop {
        /// Answered once protection has ended, with an error text if it could not be ended.
        reply: Sender<Result<(), String>>,
    },
    /// Primary: let the standby's host run the guest, and follow it from then on.
    HandOver {
        /// Answered once the guest runs there, or with the reason why it does not.
        reply: Sender<Result<(), String>>,
    },
    /// Primary, while the guest is protected: compare both images of every disk.
    Verify {
        /// Whether what differs is sent again.
        repair: bool,
        /// Answered once it has begun, or with the reason why it has not; how it goes is in the status.
        reply: Sender<Result<(), String>>,
    },
    /// End protection, ask the guest to shut down, and return when it has.
    PowerDown,
    /// End protection, end the guest at once, and return.
    Kill,
    /// Primary: times the guest's own pause + save state + resume, `rounds` times, between epochs.
    Floor {
        /// How often; 1 to 1000.
        rounds: u32,
        /// The answer.
        reply: Sender<Result<Quantiles, String>>,
    },
}

/// Median, 99th percentile and maximum of the most recent samples, in microseconds unless said otherwise.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Quantiles {
    /// Median.
    pub p50: u64,
    /// 99th percentile.
    pub p99: u64,
    /// Longest.
    pub max: u64,
}

/// What the audit has found so far, over all sessions; standby: what this side compared, primary: what the standby has
/// answered for.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct AuditStatus {
    /// Within how many epochs every page shall be compared.
    pub every: u64,
    /// Guest pages compared, each as often as it was.
    pub pages: u64,
    /// Complete passes over all of guest memory.
    pub passes: u64,
    /// The epoch in which the last complete pass ended.
    pub last_pass_epoch: u64,
    /// How many epochs it took.
    pub last_pass_epochs: u64,
    /// How long it took, in milliseconds.
    pub last_pass_ms: u64,
    /// Processor time spent on hashing since the session's first checkpoint, in percent of one processor.
    pub hashing_percent: f64,
    /// Guest pages that were found to differ.
    pub mismatches: u64,
    /// The last time that any did: which, and in which epoch.
    pub last_mismatch: String,
}

/// The newest comparison of a disk's two images, in bytes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct VerificationStatus {
    /// `id` of the disk.
    pub disk: String,
    /// Whether it goes on. If not, and `compared` is less than `total`, protection ended before it was complete.
    pub running: bool,
    /// To be compared.
    pub total: u64,
    /// Compared so far.
    pub compared: u64,
    /// In pieces that were found to differ.
    pub differing: u64,
    /// Of those, in pieces that were sent again and are the same now.
    pub repaired: u64,
}

/// A snapshot of a running engine; what `aventine status --json` prints.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Status {
    /// Name of the guest.
    pub guest: String,
    /// `primary` or `standby`: the role that this side plays now.
    pub side: String,
    /// Primary: `connecting`, `copying`, `arming`, `protected`, `handing-over`, `ending`, `resolving`, `unprotected`,
    /// `fenced`, `handed-over`, `ended`. Standby: `waiting`, `copying`, `armed`, `resolving`, `active`, `ended`.
    pub state: String,
    /// Why it is in this state, where that needs a word.
    pub detail: String,
    /// The other side.
    pub peer: String,
    /// Process of the guest on this side, if it is one.
    pub guest_pid: Option<u32>,
    /// Last sealed epoch.
    pub sealed: u64,
    /// Last committed epoch: acknowledged (primary) or held (standby).
    pub committed: u64,
    /// Initial copy: bytes done.
    pub copied_bytes: u64,
    /// Initial copy: bytes known so far.
    pub copy_total_bytes: u64,
    /// Primary: how long the guest was paused for an epoch.
    pub pause_us: Quantiles,
    /// The part of the pause spent finding dirty pages.
    pub scan_us: Quantiles,
    /// The part of the pause spent copying them.
    pub copy_us: Quantiles,
    /// The part of the pause spent waiting until the link had taken enough of earlier epochs.
    pub room_us: Quantiles,
    /// The part of the pause spent on device state: having it saved begin, and waiting for it after the copy.
    pub device_us: Quantiles,
    /// Primary: from the end of the pause until the sender took the epoch up; earlier ones were being sent.
    pub queue_us: Quantiles,
    /// Primary: the codec's time, on the sender's thread.
    pub encode_us: Quantiles,
    /// Primary: hashing an epoch's frames and giving them to the transport, on the sender's thread. A slow link shows here.
    pub send_us: Quantiles,
    /// Primary: from the last page or device state given to the transport to the acknowledgement: what the transport still
    /// held, the standby's checks and disks, and the way back.
    pub standby_us: Quantiles,
    /// Primary: from the start of the pause to the acknowledgement, which lets output go.
    pub commit_us: Quantiles,
    /// Standby: from the head of an epoch's first frame to the end of the checkpoint, received and checked.
    pub receive_us: Quantiles,
    /// Standby: from there to the commit: the disks' parts of the epoch, and earlier epochs that were being applied.
    pub disks_us: Quantiles,
    /// Standby: bringing an epoch into memory and the disks, after its acknowledgement.
    pub apply_us: Quantiles,
    /// Dirty pages of an epoch (not microseconds).
    pub dirty_pages: Quantiles,
    /// Bytes sent to the other side, all channels.
    pub bytes_sent: u64,
    /// Bytes of frames held by the network buffers.
    pub held_bytes: u64,
    /// Frames that a network buffer lost.
    pub dropped_frames: u64,
    /// Primary: frames of which the standby was given no copy to repeat at a takeover. Nothing is lost by it.
    pub uncopied_frames: u64,
    /// After a takeover: microseconds from the decision to take over to the running guest.
    pub activation_us: u64,
    /// The audit, if there is one and a session has begun.
    pub audit: Option<AuditStatus>,
    /// Primary: disks that were verified.
    pub verifications: Vec<VerificationStatus>,
    /// What the plugins have registered.
    pub metrics: Vec<MetricStatus>,
}

/// The program's handle to an engine.
#[derive(Clone)]
pub struct Control {
    commands: Sender<Command>,
    shared: Shared,
    metrics: Metrics,
}

/// The engine's end of it.
pub struct Inbox {
    pub(crate) commands: Receiver<Command>,
    pub(crate) shared: Shared,
    pub(crate) metrics: Metrics,
}

/// Makes both ends.
pub fn command_channel() -> (Control, Inbox) {
    let (tx, rx) = channel();
    let shared = Arc::new(Mutex::new(Measured::default()));
    let metrics = Metrics::default();
    let control = Control { commands: tx, shared: Arc::clone(&shared), metrics: metrics.clone() };
    (control, Inbox { commands: rx, shared, metrics })
}

impl Control {
    /// Hands a command to the engine; `false` when the engine has ended.
    pub fn send(&self, command: Command) -> bool {
        self.commands.send(command).is_ok()
    }

    /// The newest snapshot. At most a tenth of a second old while the engine runs.
    pub fn status(&self) -> Status {
        // Copied under the lock, sorted outside it: the epoch loop waits for nobody.
        let copy = self.shared.lock().unwrap_or_else(PoisonError::into_inner).clone();
        Status { metrics: self.metrics.status(), ..copy.into_status() }
    }
}
