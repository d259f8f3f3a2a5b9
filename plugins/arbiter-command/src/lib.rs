//! Arbiter plugin `command`: a program of one's own decides, such as a fence agent.
//!
//! ```toml
//! [arbiter]
//! plugin = "command"
//! command = ["/usr/local/sbin/fence", "--bmc", "10.0.0.9"]    # program and arguments; no shell reads them
//! timeout = "10s"                                             # default; 100ms to 300s
//! ```
//! What the program is told, in its environment:
//!
//! | variable | value |
//! |---|---|
//! | `AVENTINE_ACTION` | `claim`, or `probe`: could a claim be answered now? A probe claims nothing |
//! | `AVENTINE_GUEST` | the guest's name |
//! | `AVENTINE_SIDE` | who asks: `primary` or `standby` |
//! | `AVENTINE_OTHER_SIDE` | the other one |
//! | `AVENTINE_SESSION` | claims: names the question, 32 hex digits; never used again for another one |
//!
//! What it answers, by its exit code:
//!
//! | code | claim | probe |
//! |---|---|---|
//! | 0 | the asking side owns the guest | claims can be answered |
//! | 10 | the **other side** owns the guest | an error |
//! | 75 | undecided: ask again | an error |
//! | any other, or a signal | an error: nothing is known, ask again | an error |
//!
//! It starts in the directory of the configuration, with the environment of `aventine`, an empty standard input and no
//! other descriptors. Its standard output is dropped; the last lines of its standard error are shown with an error.
//! When it has ended, or at the timeout, its whole process group is killed: work that must go on needs a session of
//! its own (`setsid`).
//!
//! **What it must guarantee**, since nobody else can: for each session, the first side that claims wins, for ever. Both
//! hosts get the same answer however often, whenever and in whatever order they ask, also after crashes of either host
//! and of whatever the program asks, and also after a claim that was killed half-way. So it needs an atomic
//! test-and-set, with a durable record, in a place that survives either host. Power alone is none: a host that was
//! switched off asks about its last session when it comes back, and must hear 10. That code is one with which programs do not
//! end by accident: a failure, which is 1 for most of them, must never look like a verdict.
//!
//! ```text
//!  claim ─► verdict remembered? ─ yes ──────────────────────────────────────────────────────► the verdict
//!                 └ no ─► run ─► ended ────────► its group is killed ─► collected ─► 0, 10 ─► remembered ─┘
//!                          └───► timeout ──────► its group is killed ─► collected ─► an error
//! ```
//! Invariants:
//! - A verdict is remembered for the life of this process: the program is not asked again about a session it decided.
//! - No two runs at once. A program that does not even die when it is killed (its file system hangs) is an error until
//!   it is gone.
//! - A run is bounded: by the timeout, and one second for dying.
//! - Nothing of a run stays behind: no process of its group, no zombie, no descriptor.

mod config;
mod run;

use aventine_api::{
    Arbiter, Context, ErrorCode, Factory, PluginEntry, PluginError, SessionId, Side, Verdict, schema,
};
use config::Settings;
use run::{Ended, RunError, Runner};
use std::collections::HashMap;
use std::process::ExitStatus;

aventine_api::inventory::submit! {
    PluginEntry {
        name: "command",
        version: env!("CARGO_PKG_VERSION"),
        summary: "A program of one's own, such as a fence agent, decides",
        validate: &|text| Settings::parse(text).map(drop),
        schema: &schema::<config::Keys>,
        factory: Factory::Arbiter(&|text, context| {
            let settings = Settings::parse(text).map_err(|e| PluginError::new(ErrorCode::Config, e))?;
            Ok(Box::new(Command::new(settings, &context)))
        }),
        upkeep: None,
    }
}

const WON: i32 = 0;
const LOST: i32 = 10;
/// `EX_TEMPFAIL` of sysexits.h.
const UNDECIDED: i32 = 75;

/// Why there is no answer. In every case nothing is known.
#[derive(Debug, thiserror::Error)]
enum AskError {
    #[error(transparent)]
    Run(#[from] RunError),
    #[error("The arbiter's command {program} failed ({status}){}", shown(.said))]
    Failed { program: String, status: ExitStatus, said: String },
}

/// What a command said, after a message.
fn shown(said: &str) -> String {
    if said.is_empty() { ", and said nothing".to_owned() } else { format!("; it said last: {said}") }
}

struct Command {
    runner: Runner,
    guest: String,
    side: Side,
    /// Who owns the guest, by session.
    decided: HashMap<SessionId, Side>,
}

impl Command {
    fn new(settings: Settings, context: &Context) -> Command {
        let runner = Runner::new(settings, &context.config_dir);
        Command { runner, guest: context.guest.clone(), side: context.side, decided: HashMap::new() }
    }

    fn run(&mut self, action: &str, side: Side, session: Option<SessionId>) -> Result<Ended, RunError> {
        let mut told = vec![
            ("AVENTINE_ACTION", action.to_owned()),
            ("AVENTINE_GUEST", self.guest.clone()),
            ("AVENTINE_SIDE", side.name().to_owned()),
            ("AVENTINE_OTHER_SIDE", side.other().name().to_owned()),
        ];
        told.extend(session.map(|s| ("AVENTINE_SESSION", s.to_string())));
        self.runner.run(&told)
    }

    fn failed(&self, Ended { status, said }: Ended) -> AskError {
        AskError::Failed { program: self.runner.program(), status, said }
    }
}

impl Arbiter for Command {
    fn claim(&mut self, session: SessionId, side: Side) -> Result<Verdict, PluginError> {
        let owner = match self.decided.get(&session) {
            Some(owner) => *owner,
            None => {
                let ended = self.run("claim", side, Some(session)).map_err(AskError::from)?;
                let owner = match ended.status.code() {
                    Some(WON) => side,
                    Some(LOST) => side.other(),
                    Some(UNDECIDED) => return Ok(Verdict::Undecided),
                    _ => return Err(self.failed(ended).into()),
                };
                tracing::info!(%session, owner = owner.name(), "The arbiter's command says who owns the guest");
                self.decided.insert(session, owner);
                owner
            }
        };
        Ok(if owner == side { Verdict::Won } else { Verdict::Lost })
    }

    fn probe(&mut self) -> Result<(), PluginError> {
        let ended = self.run("probe", self.side, None).map_err(AskError::from)?;
        if ended.status.success() { Ok(()) } else { Err(self.failed(ended).into()) }
    }
}

impl From<AskError> for PluginError {
    fn from(error: AskError) -> PluginError {
        let code = match &error {
            AskError::Run(RunError::TimedOut { .. }) => ErrorCode::TimedOut,
            AskError::Run(RunError::Watch { .. }) => ErrorCode::Io,
            AskError::Run(_) | AskError::Failed { .. } => ErrorCode::Unavailable,
        };
        PluginError::new(code, error)
    }
}

#[cfg(test)]
mod tests;
