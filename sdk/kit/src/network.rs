//! A network buffer in user space, between QEMU's `stream` netdev and a tap. What it holds is in a [`Store`]; that of
//! `examples/network-ring` is a file.
//!
//! ```text
//!  QEMU ══► unix socket ──► [ store: oldest … seal(n) … seal(n+1) … newest ] ──► tap ──► world
//!       ◄══             ◄─────────────────────────────────────────────────────── tap ◄──
//!
//!  passing ── engage ──► holding ── disengage(Owner) ──► passing
//!  silent (standby) ── activate ──► passing              any ── disengage(NotOwner) ──► silent, for good
//! ```
//! One thread takes frames from the guest, another brings it those from the tap; the epoch verbs work on the same state, under its
//! lock, and let frames out themselves: a tap makes nobody wait. That lock is never held while the guest's socket is waited for.
//!
//! Invariants:
//! - While holding, a frame leaves the store by `release` of its epoch or `disengage(Owner)` alone, in the order in which the
//!   guest sent it.
//! - At the limit the guest's socket is not read, and QEMU waits: [`BEYOND`] bounds what is held beyond it.
//! - A frame that is lost is counted, and what cannot be held is told.
//! - A buffer that cannot have its tap changes nothing of the one that has it.

mod port;
mod state;
#[expect(unsafe_code, reason = "an ioctl")]
mod tap;

use aventine_api::{
    Context, Disengage, Epoch, ErrorCode, NetAttachment, NetworkBuffer, NetworkStats, PluginError,
};
use port::Shared;
use state::State;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::thread::{self, JoinHandle};

/// Bytes of the longest frame as QEMU sends it: 4 of its length, and a segment of 64 KiB with its headers.
pub const LONGEST: usize = 4 + 4096 + 65536;
/// Bytes that one reading of the guest's socket brings at most.
const READING: usize = 1 << 15;
/// Most bytes that are held beyond a buffer's limit: what one reading may complete.
pub const BEYOND: u64 = (READING + LONGEST) as u64;

/// Where a [`Buffer`] holds frames: a queue of them, first in, first out.
///
/// A frame is given and taken *framed*: 4 bytes of its length, big-endian, then the Ethernet frame; at most [`LONGEST`] bytes in all,
/// and at most the buffer's limit and [`BEYOND`] held at once. All methods are called under the buffer's lock, also while the
/// guest is paused, so none may wait for anything slower than what it holds the frames in. Errors end protection.
pub trait Store: Send + 'static {
    /// Adds a frame as the newest. One that fails has added nothing.
    fn push(&mut self, framed: &[u8]) -> io::Result<()>;

    /// Takes the oldest frame out and puts it into `framed`, in place of what is there. Called only while frames are held.
    /// One that fails has taken nothing.
    fn pop(&mut self, framed: &mut Vec<u8>) -> io::Result<()>;

    /// Drops all that is held, if anything is.
    fn clear(&mut self);

    /// `epoch` has been sealed: all frames held now belong to it or to earlier ones, `held` bytes in all with their framing.
    /// Called with the guest paused, once for each epoch. For what a store does or tells at that point; the buffer keeps account of
    /// the epochs itself.
    fn sealed(&mut self, epoch: Epoch, held: u64) {
        let _ = (epoch, held);
    }
}

/// What failed.
#[derive(Debug, thiserror::Error)]
enum Failure {
    #[error("cannot use `{device}`: it must be a tap that nothing else uses")]
    Device { device: String, source: io::Error },
    #[error("cannot listen for the guest at {}", .path.display())]
    Listen { path: PathBuf, source: io::Error },
    #[error("cannot start a thread")]
    Thread(#[source] io::Error),
    #[error("frames are not held here: the other side owns the guest, or nobody does yet")]
    NotOwner,
    #[error("frames cannot be held, or not be sent")]
    Frames(#[source] io::Error),
    #[error("frames from the guest cannot be taken")]
    Guest(#[source] io::Error),
    #[error("the tap is gone")]
    Tap(#[source] io::Error),
}

impl From<Failure> for PluginError {
    fn from(failure: Failure) -> PluginError {
        let code = match failure {
            Failure::Device { .. } | Failure::Listen { .. } | Failure::Thread(_) => ErrorCode::Unavailable,
            Failure::NotOwner => ErrorCode::Refused,
            Failure::Frames(_) | Failure::Guest(_) | Failure::Tap(_) => ErrorCode::Io,
        };
        PluginError::new(code, failure)
    }
}

/// A network buffer that holds frames in `S`. Its threads end when it is dropped, and what it holds then never leaves.
pub struct Buffer<S: Store> {
    path: PathBuf,
    shared: Arc<Shared<S>>,
    thread: Option<JoinHandle<()>>,
}

impl<S: Store> Buffer<S> {
    /// Opens the tap `device`, which must exist, makes the store with `store`, and listens for the guest at `ID.sock` in the
    /// state directory. Passing on the primary, silent on the standby.
    ///
    /// `limit` is in bytes, with 4 for each frame's length; at half of it the engine is asked for an epoch. `store` is called once,
    /// and only when the tap is ours: what an earlier process has left in the state directory is nobody's then.
    ///
    /// `Unavailable` where the tap is missing or in use, or the socket cannot be made; what `store` returns otherwise.
    pub fn start(
        device: &str,
        limit: u64,
        context: &Context,
        store: impl FnOnce() -> Result<S, PluginError>,
    ) -> Result<Buffer<S>, PluginError> {
        let tap = tap::open(device);
        let tap = tap.map_err(|source| Failure::Device { device: device.to_owned(), source })?;
        let state = State::new(store()?, limit, tap, context);
        let path = context.state_dir.join(format!("{}.sock", context.id));
        let listener = port::listen(&path);
        let listener = listener.map_err(|source| Failure::Listen { path: path.clone(), source })?;
        let shared = Arc::new(Shared::new(state, listener));
        let (serve, thread) =
            (Arc::clone(&shared), thread::Builder::new().name(format!("net {}", context.id)));
        let thread = thread.spawn(move || serve.serve()).map_err(Failure::Thread)?;
        Ok(Buffer { path, shared, thread: Some(thread) })
    }

    fn with(&self, verb: impl FnOnce(&mut State<S>) -> io::Result<()>) -> Result<(), PluginError> {
        self.shared.with(verb).map_err(|e| Failure::Frames(e).into())
    }
}

impl<S: Store> NetworkBuffer for Buffer<S> {
    /// The engine has one or two sealed; more cost a few bytes each.
    fn depth(&self) -> u32 {
        16
    }

    fn attachment(&self) -> NetAttachment {
        NetAttachment::Stream(self.path.clone())
    }

    fn engage(&mut self) -> Result<(), PluginError> {
        match self.shared.state().engage() {
            true => Ok(()),
            false => Err(Failure::NotOwner.into()),
        }
    }

    fn seal(&mut self, epoch: Epoch) -> Result<(), PluginError> {
        self.with(|state| state.seal(epoch))
    }

    fn release(&mut self, epoch: Epoch) -> Result<(), PluginError> {
        self.with(|state| state.release(epoch))
    }

    fn disengage(&mut self, why: Disengage) -> Result<(), PluginError> {
        self.with(|state| state.disengage(why))
    }

    fn activate(&mut self, _: Epoch) -> Result<(), PluginError> {
        self.shared.state().activate();
        Ok(())
    }

    fn stats(&self) -> NetworkStats {
        self.shared.state().stats
    }
}

impl<S: Store> Drop for Buffer<S> {
    fn drop(&mut self) {
        let _ = self.disengage(Disengage::NotOwner);
        self.shared.end();
        // A thread that panicked has nothing left to clean up.
        let _ = self.thread.take().map(JoinHandle::join);
    }
}
