//! Two hosts, and the links between them.
//!
//! What a broken transport could hang is done on threads that nobody joins: a case waits for their answers as long as its
//! patience lasts.

use super::TransportBench;
use crate::suite::{Seen, Sleeper, calmly};
use aventine_api::{Channel, ChannelTx, ErrorCode, Link, Listener, PluginError, Side};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread;
use std::time::Duration;

/// After so long without progress a sender counts as stuck.
const STUCK: Duration = Duration::from_millis(150);

pub(super) struct Desk<B> {
    pub(super) bench: B,
    pub(super) module: &'static str,
}

/// A link, seen from both sides.
pub(super) struct Pair {
    pub(super) primary: Box<dyn Link>,
    pub(super) standby: Box<dyn Link>,
}

/// What a thread is to answer.
pub(super) struct Pending<T> {
    what: String,
    begun: Receiver<Sleeper>,
    answer: Receiver<Result<T, String>>,
    patience: Duration,
}

impl<T> Pending<T> {
    /// Waits until it waits itself, or has its answer.
    pub(super) fn await_sleep(&self) {
        if let Ok(thread) = self.begun.recv() {
            thread.await_sleep();
        }
    }

    /// Its answer, which must come in time.
    pub(super) fn wait(self) -> Result<T, String> {
        match self.answer.recv_timeout(self.patience) {
            Ok(answer) => answer,
            Err(RecvTimeoutError::Timeout) => {
                Err(format!("{} did not end in {:?}", self.what, self.patience))
            }
            Err(RecvTimeoutError::Disconnected) => Err(format!("{} ended without an answer", self.what)),
        }
    }
}

impl<B: TransportBench> Desk<B> {
    pub(super) fn start(module: &'static str) -> Desk<B> {
        Desk { bench: B::start(), module }
    }

    /// Does it on a thread of its own.
    pub(super) fn spawn<T: Send + 'static>(
        &self,
        what: &str,
        deed: impl FnOnce() -> Result<T, String> + Send + 'static,
    ) -> Pending<T> {
        let (begin, begun) = channel();
        let (tell, answer) = channel();
        let name = what.to_owned();
        thread::spawn(move || {
            let _ = begin.send(Sleeper::here());
            let done = calmly(&name, deed).and_then(|done| done);
            // The case may have lost its patience.
            let _ = tell.send(done);
        });
        Pending { what: what.to_owned(), begun, answer, patience: B::PATIENCE }
    }

    pub(super) fn listen(&self) -> Result<Box<dyn Listener>, String> {
        let routes: Vec<String> = self.bench.route().into_iter().collect();
        let listener = B::make(&self.bench.place(), Side::Standby).listen(&routes);
        listener.map_err(|e| format!("`listen` failed: {}", e.chain()))
    }

    pub(super) fn connect(&self) -> Pending<Box<dyn Link>> {
        let place = self.bench.place();
        self.spawn("`connect`", move || {
            let link = B::make(&place, Side::Primary).connect(B::PATIENCE);
            link.map_err(|e| format!("`connect` failed: {}", e.chain()))
        })
    }

    /// A primary comes.
    pub(super) fn pair(&self, listener: &mut Box<dyn Listener>) -> Result<Pair, String> {
        let primary = self.connect();
        let standby =
            accept(listener, B::PATIENCE)?.ok_or("a primary connects, and `accept` answers `None`")?;
        Ok(Pair { primary: primary.wait()?, standby })
    }

    /// Both sides open the channel.
    pub(super) fn open(&self, pair: &mut Pair, name: &str) -> Result<(Channel, Channel), String> {
        self.open_at(pair, name, None)
    }

    pub(super) fn open_at(
        &self,
        pair: &mut Pair,
        name: &str,
        route: Option<&str>,
    ) -> Result<(Channel, Channel), String> {
        self.open_by(pair, name, |link| link.open(name, route, B::PATIENCE))
    }

    /// Both sides open the channel with this call.
    fn open_by(
        &self,
        pair: &mut Pair,
        name: &str,
        open: impl Fn(&mut dyn Link) -> Result<Channel, PluginError> + Sync,
    ) -> Result<(Channel, Channel), String> {
        let failed =
            |side: &str, e: PluginError| format!("the {side}'s `open` of {name:?} failed: {}", e.chain());
        thread::scope(|scope| {
            let (standby, open) = (&mut pair.standby, &open);
            let far = scope.spawn(move || calmly("`open`", || open(standby.as_mut())));
            let near = calmly("`open`", || open(pair.primary.as_mut()));
            let far = far.join().map_err(|_| "`open` panicked".to_owned())?;
            let near = near?.map_err(|e| failed("primary", e))?;
            Ok((near, far?.map_err(|e| failed("standby", e))?))
        })
    }

    /// A channel of a link of its own, and all that keeps it.
    pub(super) fn one_channel(
        &self,
        name: &str,
    ) -> Result<(Box<dyn Listener>, Pair, Channel, Channel), String> {
        let mut listener = self.listen()?;
        let mut pair = self.pair(&mut listener)?;
        let (near, far) = self.open(&mut pair, name)?;
        Ok((listener, pair, near, far))
    }

    /// The same, with memory lent on both sides.
    pub(super) fn lending_channel(
        &self,
        name: &str,
        buffers: usize,
        bytes: usize,
    ) -> Result<(Box<dyn Listener>, Pair, Channel, Channel), String> {
        let mut listener = self.listen()?;
        let mut pair = self.pair(&mut listener)?;
        let open = |link: &mut dyn Link| link.open_lending(name, None, B::PATIENCE, buffers, bytes);
        let (near, far) = self.open_by(&mut pair, name, open)?;
        Ok((listener, pair, near, far))
    }

    /// Sends without end, until it fails. On return it is stuck, or has not yet got there.
    pub(super) fn flood(&self, mut tx: Box<dyn ChannelTx>) -> Pending<(PluginError, Box<dyn ChannelTx>)> {
        let (progress, sent) = channel();
        let flood = self.spawn("a `send` that was stuck", move || {
            let block = vec![0x11; 1 << 20];
            loop {
                if let Err(e) = tx.send(&[&block]) {
                    return Ok((e, tx));
                }
                let _ = progress.send(());
            }
        });
        // A transport that takes a few hundred MiB is taken for one that never gets stuck.
        for _ in 0..300 {
            if sent.recv_timeout(STUCK).is_err() {
                break;
            }
        }
        flood
    }
}

pub(super) fn accept(
    listener: &mut Box<dyn Listener>,
    limit: Duration,
) -> Result<Option<Box<dyn Link>>, String> {
    let link = calmly("`accept`", || listener.accept(limit))?;
    link.map_err(|e| format!("`accept` failed: {}", e.chain()))
}

/// The call failed, and with this code.
pub(crate) fn expect_code<T>(done: Result<T, PluginError>, code: ErrorCode, what: &str) -> Seen {
    match done {
        Ok(_) => Err(format!("{what} succeeded; it must be `{code:?}`")),
        Err(e) if e.code() == code => Ok(()),
        Err(e) => Err(format!("{what} failed with `{:?}`, not `{code:?}`: {}", e.code(), e.chain())),
    }
}
