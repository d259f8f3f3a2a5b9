//! Protection anew, after a standby was lost or this side took over, and went on alone: a new session with whoever
//! answers at the peer's address, while the guest runs.
//!
//! ```text
//!  Alone ── dial ─► linked ── agree · replicate · ready ─► Copying ─► … as in the first session
//!    ▲                                  │ failed
//!    └────────── twice as long ─────────┘
//! ```

use super::{Copy, Loop, Pipe, replicate};
use crate::EngineError;
use crate::link::{self, Terms};
use crate::silence::Silence;
use crate::stall::Stall;
use aventine_api::{Disengage, Link};
use aventine_protocol::{Primary, PrimaryState};
use std::error::Error;
use std::iter;
use std::time::{Duration, Instant};
use tracing::{info, warn};

/// The first wait before a lost standby is looked for.
pub(super) const FIRST_DELAY: Duration = Duration::from_millis(500);
/// The longest.
const LONGEST_DELAY: Duration = Duration::from_secs(60);

impl Loop<'_> {
    /// A standby that failed is looked for later and later, unless it had done well for a while: each attempt costs a full
    /// copy.
    pub(super) fn standby_failed(&mut self) {
        let done_well = |delay: &Duration| self.protected_at.is_some_and(|at| at.elapsed() > *delay * 10);
        self.redial =
            self.redial.map(|d| if done_well(&d) { FIRST_DELAY } else { (d * 2).min(LONGEST_DELAY) });
    }

    /// A standby answered. Failing leaves everything as it was, and looks for a standby again later.
    pub(super) fn linked(&mut self, link: Box<dyn Link>) {
        let Some(delay) = self.redial.filter(|_| *self.machine.state() == PrimaryState::Alone) else {
            return;
        };
        let abort = link.aborter();
        if let Err(error) = self.rejoin(link) {
            // With its causes, as the program prints them.
            let first: &dyn Error = &error;
            let error = iter::successors(Some(first), |&e| e.source());
            let error = error.map(ToString::to_string).collect::<Vec<_>>().join(": ");
            warn!(error, "cannot protect the guest again yet");
            abort.abort();
            if let Err(failure) = self.disengage(Disengage::Owner) {
                warn!(error = failure.chain(), "a buffer did not disengage");
            }
            let delay = (delay * 2).min(LONGEST_DELAY);
            self.redial = Some(delay);
            self.dialer.dial(delay);
        }
    }

    fn rejoin(&mut self, link: Box<dyn Link>) -> Result<(), EngineError> {
        let number = self.link.number + 1;
        self.link.number = number;
        let gives_up = || false; // the operator's commands wait for the loop, and the handshake is short
        let terms = Terms {
            config: self.config,
            signature: &self.signature,
            base: self.base,
            to_loop: self.to_loop,
            events: self.events,
            gives_up: &gives_up,
        };
        let Some(mut link) = link::agree(&terms, link, number, &self.parts)? else { return Ok(()) };
        replicate(&mut self.parts, &mut link)?;
        link::await_ready(&terms, number)?;
        let pages = self.memory.pages();
        let copy = match self.base.take() {
            Some(base) if link.has_base => {
                info!(session = %base.session, epoch = base.epoch.0, "the standby has the memory of");
                Copy::since_base(&mut self.parts, pages)?
            }
            _ => Copy::begin(&mut self.parts, pages)?,
        };
        let pipe = Pipe::start(self.config, copy, self.maker.codec()?, link.pages, number, self.to_loop);
        self.record.begin(link.primary.session)?;
        let config = self.config;
        self.silence =
            Silence::new(link.primary.heard.clone(), config.heartbeat, config.detection, Instant::now());
        self.stall = Stall::new(config.heartbeat, config.detection, Instant::now());
        self.machine = Primary::new(self.parts.depth());
        self.link = link.primary;
        self.pipe = pipe;
        info!(session = %self.link.session, "a new session begins");
        self.report();
        Ok(())
    }
}
