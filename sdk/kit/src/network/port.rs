//! The guest's port: its socket, and the threads that move frames.
//!
//! ```text
//!  serve:  accept ──► [ wait for the guest ──► wait for room ──► take frames ]… ──► accept
//!  feed:            ► [ wait for the tap ──► write to the guest ]…              ─┘
//! ```
//! Invariants: one guest at a time, and what one has left of a frame is not the next one's. Both threads end once the listening
//! socket is shut down, whatever they wait for.
#![forbid(unsafe_code)]

use super::state::State;
use super::{Failure, LONGEST, Store};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use std::fs::remove_file;
use std::io::{self, ErrorKind, Read, Write};
use std::net::Shutdown;
use std::os::fd::AsFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;

/// A socket for the guest, in place of what a dead process has left there.
pub(super) fn listen(path: &Path) -> io::Result<UnixListener> {
    match remove_file(path) {
        Err(e) if e.kind() != ErrorKind::NotFound => Err(e),
        _ => UnixListener::bind(path),
    }
}

/// What the epoch verbs and the threads share.
pub(super) struct Shared<S> {
    state: Mutex<State<S>>,
    /// There may be room again.
    room: Condvar,
    /// Shut down at the end.
    listener: UnixListener,
}

impl<S: Store> Shared<S> {
    pub(super) fn new(state: State<S>, listener: UnixListener) -> Shared<S> {
        Shared { state: Mutex::new(state), room: Condvar::new(), listener }
    }

    pub(super) fn state(&self) -> MutexGuard<'_, State<S>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Does what may make room.
    pub(super) fn with(&self, verb: impl FnOnce(&mut State<S>) -> io::Result<()>) -> io::Result<()> {
        let done = verb(&mut self.state());
        self.room.notify_all();
        done
    }

    /// Makes the threads end.
    pub(super) fn end(&self) {
        let _ = rustix::net::shutdown(&self.listener, rustix::net::Shutdown::Both);
    }

    fn fail(&self, failure: Failure) {
        let host = Arc::clone(&self.state().host);
        host.failed(failure.into());
    }

    /// Serves one connection of the guest after the other.
    pub(super) fn serve(&self) {
        while wait(&self.listener, &self.listener) {
            let Ok((guest, _)) = self.listener.accept() else { continue };
            let guest = Arc::new(guest);
            self.state().connect(Arc::clone(&guest));
            thread::scope(|scope| {
                scope.spawn(|| self.feed(&guest));
                while wait(&*guest, &self.listener) && self.take() {}
                // Wakes the other thread; the guest may have done it.
                let _ = guest.shutdown(Shutdown::Both);
            });
        }
    }

    /// Takes what the guest sends; whether it is still there.
    fn take(&self) -> bool {
        let room = self.room.wait_while(self.state(), |state| state.is_full());
        let mut state = room.unwrap_or_else(PoisonError::into_inner);
        // Not all of it at once: who else wants the state would wait as long as the guest sends.
        let (done, guest) = (state.drain(16), state.has_guest());
        drop(state);
        done.unwrap_or_else(|e| self.fail(Failure::Guest(e)));
        guest
    }

    /// Brings frames from the tap to the guest.
    fn feed(&self, mut guest: &UnixStream) {
        let (tap, mut frame) = (Arc::clone(&self.state().tap), [0; LONGEST]);
        while wait(&*tap, guest) {
            match (&*tap).read(&mut frame[4..]) {
                Ok(length) if self.state().passes_inward() => {
                    frame[..4].copy_from_slice(&(length as u32).to_be_bytes());
                    // One that has gone gets nothing.
                    let _ = guest.write_all(&frame[..4 + length]);
                }
                Ok(_) => {}
                Err(e) if e.kind() == ErrorKind::WouldBlock => {}
                Err(e) => return self.fail(Failure::Tap(e)),
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
