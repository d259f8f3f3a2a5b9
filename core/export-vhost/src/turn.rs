//! Requests one at a time, and who wants none under way goes before the next.
//!
//! ```text
//!          begin            end of the turn
//!  idle ─────────► serving ─────────────────► idle
//!    └── stop: begun only when all who stop have gone on ──┘
//! ```
//! A lock alone would not do: it lets the worker of a full queue take it again and again before whoever waits is awake.

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

/// Whose turn it is.
#[derive(Default)]
pub(crate) struct Turn {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
pub(crate) struct State {
    serving: bool,
    stopping: usize,
}

impl Turn {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait<'a>(&self, state: MutexGuard<'a, State>) -> MutexGuard<'a, State> {
        self.changed.wait(state).unwrap_or_else(PoisonError::into_inner)
    }

    /// The turn of a request, until the answer is dropped.
    pub(crate) fn begin(&self) -> Serving<'_> {
        let mut state = self.lock();
        while state.serving || state.stopping > 0 {
            state = self.wait(state);
        }
        state.serving = true;
        Serving(self)
    }

    /// Waits for the request under way, and for no other. None begins until the answer is dropped.
    pub(crate) fn stop(&self) -> MutexGuard<'_, State> {
        let mut state = self.lock();
        state.stopping += 1;
        while state.serving {
            state = self.wait(state);
        }
        state.stopping -= 1;
        self.changed.notify_all();
        state
    }
}

/// A request under way.
pub(crate) struct Serving<'a>(&'a Turn);

impl Drop for Serving<'_> {
    fn drop(&mut self) {
        self.0.lock().serving = false;
        self.0.changed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::thread;

    #[test]
    fn who_stops_goes_before_the_next_request() {
        let turn = Turn::default();
        let order = Mutex::new(Vec::new());
        let serving = turn.begin();
        thread::scope(|scope| {
            scope.spawn(|| {
                let _still = turn.stop();
                order.lock().unwrap().push("stop");
            });
            while turn.lock().stopping == 0 {
                thread::yield_now();
            }
            drop(serving);
            let _serving = turn.begin();
            order.lock().unwrap().push("request");
        });
        assert_eq!(order.into_inner().unwrap(), ["stop", "request"]);
    }
}
