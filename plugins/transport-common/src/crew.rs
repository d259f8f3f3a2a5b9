//! Threads that work on what a caller has borrowed, one for each connection but the caller's own.
//!
//! ```text
//!  caller   hand out the tasks ─ do the first ─ wait for the others ─► all done
//!  thread   ······· wait ······· task ··················· done ──┘ ··· wait ···
//! ```
//! Invariants:
//! - Every task has a thread of its own: one that blocks keeps no other waiting.
//! - [`Crew::run`] returns, or unwinds, only when every task has ended, so tasks may borrow.
#![allow(unsafe_code, reason = "a thread that outlives a call works on what the caller lent for the call")]

use std::io;
use std::panic::{self, AssertUnwindSafe};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Mutex, PoisonError};
use std::thread::{self, JoinHandle};

/// Whether a task panicked.
type Done = bool;
type Task<'a> = Box<dyn FnOnce() + Send + 'a>;

/// The threads. They end when it is dropped.
pub(crate) struct Crew {
    workers: Vec<Worker>,
    /// In a lock that nobody ever waits for: ends of channels are `Sync`.
    done: Mutex<Receiver<Done>>,
}

struct Worker {
    /// `None` once it shall end.
    tasks: Option<Sender<Task<'static>>>,
    thread: Option<JoinHandle<()>>,
}

impl Worker {
    fn start(name: &str, done: Sender<Done>) -> io::Result<Worker> {
        let (tasks, waiting) = channel::<Task<'static>>();
        let work = move || {
            for task in waiting {
                let panicked = panic::catch_unwind(AssertUnwindSafe(task)).is_err();
                // The crew waits for it, or this thread would not have got the task.
                let _ = done.send(panicked);
            }
        };
        let thread = thread::Builder::new().name(name.into()).spawn(work)?;
        Ok(Worker { tasks: Some(tasks), thread: Some(thread) })
    }
}

/// Waits for what was handed out, even when the caller's own task unwinds.
struct Waits<'a> {
    done: &'a Receiver<Done>,
    out: usize,
    panicked: bool,
}

impl Waits<'_> {
    fn wait(&mut self) {
        while self.out > 0 {
            // A thread that holds a task also holds a sender, and sends.
            self.panicked |= self.done.recv().expect("a thread of the crew does not end before its tasks");
            self.out -= 1;
        }
    }
}

impl Drop for Waits<'_> {
    fn drop(&mut self) {
        self.wait();
    }
}

impl Crew {
    /// Starts `count` threads.
    pub(crate) fn start(name: &str, count: usize) -> io::Result<Crew> {
        let (sender, done) = channel();
        let workers =
            (0..count).map(|_| Worker::start(name, sender.clone())).collect::<io::Result<Vec<_>>>()?;
        Ok(Crew { workers, done: Mutex::new(done) })
    }

    /// Runs all of `tasks` at the same time, the first on the calling thread; at most one more than there are threads.
    ///
    /// # Panics
    /// When a task does, once all have ended.
    pub(crate) fn run<'a>(&mut self, tasks: impl IntoIterator<Item = Task<'a>>) {
        let mut tasks = tasks.into_iter();
        let Some(own) = tasks.next() else { return };
        let mut workers = self.workers.iter();
        let done = self.done.get_mut().unwrap_or_else(PoisonError::into_inner);
        let mut waits = Waits { done, out: 0, panicked: false };
        for task in tasks {
            let worker = workers.next().expect("a thread for each task");
            // SAFETY: only the lifetime changes. `waits` lets nobody leave this function, by return or by unwinding, before the
            // thread has said that the task has ended; the task, which it consumes, and all that it borrows are gone then. A
            // task that is not taken over is dropped here.
            let task = unsafe { std::mem::transmute::<Task<'a>, Task<'static>>(task) };
            let tasks = worker.tasks.as_ref().expect("the crew is not being dropped");
            tasks.send(task).unwrap_or_else(|_| unreachable!("a thread of the crew ends with the crew"));
            waits.out += 1;
        }
        own();
        waits.wait();
        assert!(!waits.panicked, "a task on another thread panicked");
    }
}

impl Drop for Crew {
    fn drop(&mut self) {
        for worker in &mut self.workers {
            worker.tasks = None;
        }
        for thread in self.workers.iter_mut().filter_map(|w| w.thread.take()) {
            // Panics of tasks were caught.
            let _ = thread.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Barrier;
    use std::sync::atomic::{AtomicUsize, Ordering};

    #[test]
    fn tasks_run_at_the_same_time_on_what_they_borrow() {
        let mut crew = Crew::start("crew", 3).unwrap();
        for round in 0..100u8 {
            let (mut bytes, met) = (vec![0; 4000], Barrier::new(4));
            crew.run(bytes.chunks_mut(1000).map(|piece| {
                let met = &met;
                Box::new(move || {
                    // Nobody passes unless all four are at work.
                    met.wait();
                    piece.fill(round);
                }) as Task<'_>
            }));
            assert!(bytes.iter().all(|b| *b == round));
        }
        crew.run([]);
    }

    #[test]
    fn a_panic_is_told_when_all_have_ended_and_the_crew_works_on() {
        let mut crew = Crew::start("crew", 2).unwrap();
        for bad in 0..3 {
            let ended = AtomicUsize::new(0);
            let told = panic::catch_unwind(AssertUnwindSafe(|| {
                crew.run((0..3).map(|at| {
                    let ended = &ended;
                    Box::new(move || {
                        ended.fetch_add(1, Ordering::SeqCst);
                        assert!(at != bad, "on purpose");
                    }) as Task<'_>
                }));
            }));
            assert!(told.is_err());
            assert_eq!(ended.load(Ordering::SeqCst), 3);
        }
    }
}
