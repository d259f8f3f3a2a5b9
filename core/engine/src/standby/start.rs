//! What a session begins with: the primary's greeting, the channels, the receiver.

use super::Event;
use crate::link::STEP;
use crate::parts::{During, Maker, Parts, PluginFailure, Report};
use crate::receiver::{self, Buffers, Image, LONGEST_BATCH};
use crate::wire::{FrameRx, FrameTx, RecordChannelRx, RecordChannelTx};
use aventine_api::{Link, LinkAbort};
use aventine_protocol::{Hello, Message};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use tracing::warn;

/// The threads of a session: those that read, and the one that may wait for staging memory. Dropping it ends them.
pub(super) struct Threads {
    pub(super) abort: Arc<dyn LinkAbort>,
    pub(super) buffers: Arc<Buffers>,
    pub(super) receiver: Option<JoinHandle<()>>,
}

impl Drop for Threads {
    fn drop(&mut self) {
        self.abort.abort();
        self.buffers.close();
        if let Some(receiver) = self.receiver.take()
            && receiver.join().is_err()
        {
            warn!("the receiver's thread panicked");
        }
    }
}

/// The primary's first message.
pub(super) fn await_hello(events: &Receiver<Event>) -> Result<Hello, String> {
    match events.recv_timeout(STEP) {
        Ok(Event::Message(Message::Hello(hello))) => Ok(hello),
        Ok(Event::Message(other)) => Err(format!("a primary began with {other:?}")),
        Ok(Event::ControlLost(e)) => Err(format!("a primary went away during the handshake: {}", e.chain())),
        Ok(Event::Plugin(Report::Failed(id, e))) => Err(format!("plugin {id} failed: {}", e.chain())),
        Ok(_) => Err("a plugin was early".to_owned()),
        Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => {
            Err(format!("a primary connected and said nothing for {STEP:?}"))
        }
    }
}

/// Brings everything into place for the initial copy; answers the pages channel.
pub(super) fn prepare(
    maker: &Maker<'_>,
    link: &mut dyn Link,
    parts: &mut Parts,
) -> Result<FrameRx, PluginFailure> {
    let transport = &maker.config.transport.id;
    let staged = maker.config.staging as usize / LONGEST_BATCH;
    let pages = link.open_lending("pages", None, STEP, staged, LONGEST_BATCH);
    let (_, pages) = pages.during(transport, "opening the pages channel")?;
    for (id, disk) in &mut parts.disks {
        let name = format!("disk:{id}");
        let (tx, rx) = link.open(&name, None, STEP).during(transport, "opening a disk's channel")?;
        let rx = RecordChannelRx(FrameRx::new(rx));
        let back = RecordChannelTx(FrameTx::new(tx, Arc::default()));
        disk.receive(Box::new(rx), Box::new(back)).during(id, "taking the primary's disk")?;
    }
    for (id, network) in &mut parts.networks {
        let name = format!("net:{id}");
        let (_, rx) = link.open(&name, None, STEP).during(transport, "opening a network's channel")?;
        let rx = RecordChannelRx(FrameRx::new(rx));
        network.receive(Box::new(rx)).during(id, "taking the primary's frames")?;
    }
    parts.start(maker.state_dir)?;
    Ok(FrameRx::new(pages))
}

pub(super) fn spawn_receiver(
    rx: FrameRx,
    image: &Arc<Mutex<Image>>,
    buffers: &Arc<Buffers>,
    audit_limit: u64,
    to_loop: Sender<Event>,
) -> JoinHandle<()> {
    let (image, buffers) = (Arc::clone(image), Arc::clone(buffers));
    thread::spawn(move || {
        // A loop that has ended needs no more news.
        let staged = |c| drop(to_loop.send(Event::Checkpoint(c)));
        let copied = |bytes| drop(to_loop.send(Event::Copied(bytes)));
        if let Err(error) = receiver::run(rx, &image, &buffers, audit_limit, staged, copied) {
            let _ = to_loop.send(Event::ReceiverEnded(error));
        }
    })
}
