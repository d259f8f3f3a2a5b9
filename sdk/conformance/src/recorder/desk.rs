//! A link to a record.

use super::RecorderBench;
use crate::suite::{Seen, Sleeper, calmly};
use aventine_api::{Channel, ChannelRx, ErrorCode, Link, PluginError};
use std::sync::mpsc::{Receiver, channel};
use std::thread;
use std::time::Duration;

pub(super) struct Desk<B> {
    pub(super) bench: B,
}

impl<B: RecorderBench> Desk<B> {
    pub(super) fn start(_module: &'static str) -> Desk<B> {
        Desk { bench: B::start() }
    }

    pub(super) fn connect(&self) -> Result<Box<dyn Link>, String> {
        let mut transport = self.bench.make();
        let (tell, link) = channel();
        thread::spawn(move || tell.send(calmly("`connect`", || transport.connect(Duration::ZERO))));
        let link = link.recv_timeout(B::PATIENCE).map_err(|_| "`connect` did not end".to_owned())?;
        link?.map_err(|e| format!("`connect` failed: {}", e.chain()))
    }
}

pub(super) fn open(link: &mut Box<dyn Link>, name: &str) -> Result<Channel, String> {
    let ends = calmly("`open`", || link.open(name, None, Duration::ZERO))?;
    ends.map_err(|e| format!("`open` of {name:?} failed: {}", e.chain()))
}

/// What a `recv` on a thread of its own answers, once it does. On return it waits, or has answered.
pub(super) fn receive(mut rx: Box<dyn ChannelRx>) -> Receiver<Result<(), PluginError>> {
    let (begin, begun) = channel();
    let (tell, answer) = channel();
    thread::spawn(move || {
        let _ = begin.send(Sleeper::here());
        tell.send(rx.recv(&mut [0]))
    });
    if let Ok(thread) = begun.recv() {
        thread.await_sleep();
    }
    answer
}

pub(super) fn expect_lost(done: Result<(), PluginError>, what: &str) -> Seen {
    crate::transport::desk::expect_code(done, ErrorCode::PeerLost, what)
}
