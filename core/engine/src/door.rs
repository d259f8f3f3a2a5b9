//! Where this host can be reached: a standby waits there for a primary; while the guest runs here, whoever comes is told so.

use crate::link::STEP;
use crate::parts::{During, PluginFailure};
use crate::wire::{ControlTx, FrameTx};
use aventine_api::{Epoch, Link, Listener, Transport};
use aventine_protocol::Message;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;
use tracing::warn;

/// How long one look for somebody lasts.
const LOOK: Duration = Duration::from_millis(50);

/// The listening end of this host. Opened when this side is the standby for the first time, and open from then on.
pub(crate) struct Door {
    transport: Box<dyn Transport>,
    listener: Option<Box<dyn Listener>>,
    refusing: Option<Refusing>,
}

struct Refusing {
    over: Arc<AtomicBool>,
    thread: JoinHandle<Box<dyn Listener>>,
}

impl Door {
    pub(crate) fn new(transport: Box<dyn Transport>) -> Door {
        Door { transport, listener: None, refusing: None }
    }

    /// The listener, for a standby; `id` is that of the transport.
    pub(crate) fn listener(
        &mut self,
        id: &str,
        routes: &[String],
    ) -> Result<&mut Box<dyn Listener>, PluginFailure> {
        if let Some(Refusing { over, thread }) = self.refusing.take() {
            over.store(true, Ordering::Relaxed);
            // A thread that panicked has lost the listener, and a new one is made.
            self.listener = thread.join().ok();
        }
        match &mut self.listener {
            Some(listener) => Ok(listener),
            empty => Ok(empty.insert(self.transport.listen(routes).during(id, "listening")?)),
        }
    }

    /// Refuses every primary from now on, on a thread of its own: the guest runs here.
    pub(crate) fn refuse(&mut self) {
        let Some(listener) = self.listener.take() else { return };
        let over = Arc::new(AtomicBool::new(false));
        let stop = Arc::clone(&over);
        let thread = thread::spawn(move || refuse_all(listener, &stop));
        self.refusing = Some(Refusing { over, thread });
    }
}

fn refuse_all(mut listener: Box<dyn Listener>, stop: &AtomicBool) -> Box<dyn Listener> {
    while !stop.load(Ordering::Relaxed) {
        // Strangers and late primaries must not disturb the guest: whatever goes wrong here, this goes on.
        match listener.accept(LOOK) {
            Ok(Some(link)) => drop(thread::spawn(move || refuse_link(link))),
            Ok(None) => {}
            Err(e) => {
                warn!(error = e.chain(), "cannot listen for the old primary");
                thread::sleep(LOOK);
            }
        }
    }
    listener
}

fn refuse_link(mut link: Box<dyn Link>) {
    if let Ok((tx, mut rx)) = link.open("control", None, STEP) {
        let control = ControlTx::new(FrameTx::new(tx, Arc::new(AtomicU64::new(0))));
        refuse(&control, "the guest runs on this host: use `aventine standby` on the other one".to_owned());
        // The primary closes; closing first could lose the answer.
        let _ = rx.recv(&mut [0; 1 << 16]);
    }
}

/// Refuses a primary; answers the reason.
pub(crate) fn refuse(control: &ControlTx, reason: String) -> String {
    warn!(reason, "refusing the primary");
    // A primary that is gone needs no answer.
    let _ = control.send(Epoch::COPY, &Message::Refuse(reason.clone()));
    reason
}
