//! What signals do.
//!
//! ```text
//!             SIGINT                  SIGINT or SIGTERM            SIGINT, or 30 s
//!  running ─────────────► asked ─────────────────► shutting down ────────────────► killing
//!          end protection       power button             the guest is ended at once
//!          (if it runs alone already: say so)
//! ```
//! SIGTERM goes from `running` straight to `shutting down`. Where no guest runs yet, the engine takes each of these
//! commands as the wish to end. SIGHUP does nothing: a guest outlives the terminal it was started from.

use crate::admin::reply_of;
use crate::output::tell;
use aventine_engine::{Command, Control, Status};
use std::future::pending;
use std::io;
use std::sync::mpsc::channel;
use std::time::Duration;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::time::{Instant, sleep_until};
use tracing::warn;

/// How long a guest may take to shut down before it is ended.
const POWER_DOWN: Duration = Duration::from_secs(30);

/// A signal that is acted on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Asked {
    Interrupt,
    Terminate,
}

/// What the engine is doing, as far as signals care.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Situation {
    /// No guest of this side runs.
    Idle,
    /// The guest runs here and a standby follows, or is about to.
    Protecting,
    /// The guest runs here alone.
    Alone,
}

impl Situation {
    fn of(status: &Status) -> Situation {
        match (status.side.as_str(), status.state.as_str()) {
            (_, "unprotected" | "active") => Situation::Alone,
            (
                "primary",
                "copying" | "arming" | "protected" | "recording" | "handing-over" | "ending" | "resolving",
            ) => Situation::Protecting,
            _ => Situation::Idle,
        }
    }
}

/// What to do about a signal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Act {
    EndProtection,
    SayAlone,
    PowerDown,
    Kill,
    Nothing,
}

/// How far the user has gone.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Stage {
    #[default]
    Running,
    Asked,
    ShuttingDown,
}

impl Stage {
    fn on(&mut self, asked: Asked, situation: Situation) -> Act {
        let (next, act) = match (*self, asked, situation) {
            (Stage::Running, Asked::Interrupt, Situation::Alone) => (Stage::Asked, Act::SayAlone),
            (Stage::Running, Asked::Interrupt, _) => (Stage::Asked, Act::EndProtection),
            (Stage::Running | Stage::Asked, _, _) => (Stage::ShuttingDown, Act::PowerDown),
            (Stage::ShuttingDown, Asked::Interrupt, _) => (Stage::ShuttingDown, Act::Kill),
            (Stage::ShuttingDown, Asked::Terminate, _) => (Stage::ShuttingDown, Act::Nothing),
        };
        *self = next;
        act
    }
}

/// The signals of this program. From the moment this is made none of them ends the process.
pub(crate) struct Signals {
    interrupt: Signal,
    terminate: Signal,
    hangup: Signal,
}

impl Signals {
    /// Needs the context of a runtime.
    pub(crate) fn new() -> io::Result<Signals> {
        Ok(Signals {
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
            hangup: signal(SignalKind::hangup())?,
        })
    }

    /// Turns signals into commands, for ever.
    pub(crate) async fn obey(mut self, control: Control) {
        let mut stage = Stage::default();
        let mut kill_at: Option<Instant> = None;
        loop {
            let overdue = async {
                match kill_at {
                    Some(at) => sleep_until(at).await,
                    None => pending().await,
                }
            };
            let asked = tokio::select! {
                Some(()) = self.interrupt.recv() => Asked::Interrupt,
                Some(()) = self.terminate.recv() => Asked::Terminate,
                Some(()) = self.hangup.recv() => {
                    warn!("the terminal is gone; nothing changes for the guest");
                    continue;
                }
                () = overdue => {
                    tell(format_args!("The guest did not shut down within {} s: it is ended now.", POWER_DOWN.as_secs()));
                    control.send(Command::Kill);
                    kill_at = None;
                    continue;
                }
            };
            match stage.on(asked, Situation::of(&control.status())) {
                Act::EndProtection => end_protection(&control),
                Act::SayAlone => {
                    tell("The guest runs here, unprotected. Press Ctrl-C again to shut it down.");
                }
                Act::PowerDown => {
                    tell("Shutting down. Press Ctrl-C again to end the guest at once.");
                    control.send(Command::PowerDown);
                    kill_at = Some(Instant::now() + POWER_DOWN);
                }
                Act::Kill => {
                    control.send(Command::Kill);
                }
                Act::Nothing => {}
            }
        }
    }
}

/// Asks for the end of protection and tells the user about it once there is one; meanwhile signals go on.
fn end_protection(control: &Control) {
    let idle = |c: &Control| Situation::of(&c.status()) == Situation::Idle;
    let (reply, answered) = channel();
    if !control.send(Command::Stop { reply }) || idle(control) {
        return;
    }
    tell("Ending protection.");
    let control = control.clone();
    tokio::spawn(async move {
        match reply_of(answered).await {
            Ok(()) if idle(&control) => {}
            Ok(()) => tell(
                "Protection has ended; the guest runs on, unprotected. Press Ctrl-C again to shut the guest down.",
            ),
            Err(why) => tell(format_args!("Could not end protection: {why}")),
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    fn acts(signals: &[(Asked, Situation)]) -> Vec<Act> {
        let mut stage = Stage::default();
        signals.iter().map(|&(asked, situation)| stage.on(asked, situation)).collect()
    }

    #[test]
    fn interrupts_escalate_one_step_at_a_time() {
        use Asked::Interrupt;
        use Situation::{Alone, Protecting};
        assert_eq!(
            acts(&[(Interrupt, Protecting), (Interrupt, Alone), (Interrupt, Alone), (Interrupt, Alone)]),
            [Act::EndProtection, Act::PowerDown, Act::Kill, Act::Kill]
        );
        assert_eq!(acts(&[(Interrupt, Alone), (Interrupt, Alone)]), [Act::SayAlone, Act::PowerDown]);
    }

    #[test]
    fn terminate_shuts_down_once_and_never_kills() {
        use Asked::{Interrupt, Terminate};
        use Situation::{Alone, Protecting};
        assert_eq!(acts(&[(Terminate, Protecting), (Terminate, Alone)]), [Act::PowerDown, Act::Nothing]);
        assert_eq!(
            acts(&[(Interrupt, Protecting), (Terminate, Alone)]),
            [Act::EndProtection, Act::PowerDown]
        );
        assert_eq!(acts(&[(Terminate, Alone), (Interrupt, Alone)]), [Act::PowerDown, Act::Kill]);
    }

    #[test]
    fn situations_follow_the_status() {
        let of = |side: &str, state: &str| {
            Situation::of(&Status { side: side.into(), state: state.into(), ..Status::default() })
        };
        assert_eq!(of("primary", "connecting"), Situation::Idle);
        assert_eq!(of("primary", "copying"), Situation::Protecting);
        assert_eq!(of("primary", "protected"), Situation::Protecting);
        assert_eq!(of("primary", "unprotected"), Situation::Alone);
        assert_eq!(of("standby", "copying"), Situation::Idle);
        assert_eq!(of("standby", "armed"), Situation::Idle);
        assert_eq!(of("standby", "active"), Situation::Alone);
    }
}
