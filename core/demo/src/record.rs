//! A guest under the checker's writes, recorded instead of protected.

use crate::checker::{self, Load};
use crate::lab::{self, Lab, Parts, Site};
use crate::network::Host;
use crate::node::Role;
use crate::{ANSWERS, DemoError, DemoOptions, GUEST, become_root};
use aventine_engine::Status;
use std::path::PathBuf;

/// Epochs of a recording.
pub const EPOCHS: u64 = 100;
/// Answers to the client before the first of them: what a server does once only is over by then.
const WARM: u64 = 2000;
/// The trace, in the directory of the host.
const TRACE: &str = "whole.trace";

/// What was recorded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Recorded {
    /// The trace: everything since the guest was started.
    pub trace: PathBuf,
    /// The first of [`EPOCHS`] epochs under load.
    pub from: u64,
}

/// Records the demo's guest while a client writes to it; the file is in the directory for the demo's files. Blocks until it is
/// over. Progress goes to standard error. Needs root, or starts the program anew as [`run`](crate::run) does.
pub fn record(options: &DemoOptions) -> Result<Recorded, DemoError> {
    become_root()?;
    let parts = Parts { record: Some(TRACE.into()), ..crate::parts(options)? };
    let lab = Lab::new(&parts)?;
    lab.prepare(Site::FIRST)?;
    eprintln!("Starting the guest; nobody stands by");
    let mut primary = lab.node(Host::A, Site::FIRST, Role::Protect)?;
    let recording = |least: u64| move |s: &Status| s.state == "recording" && s.committed >= least;
    primary.wait_for("the recording", lab::STARTUP, recording(1))?;
    let load = Load::start(checker::connect(lab.client(), GUEST, lab::STARTUP)?, options.seed.unwrap_or(1));
    load.wait_answers(WARM, ANSWERS)?;
    let from = primary.status()?.committed + 1;
    eprintln!("A Redis client writes; recording {EPOCHS} epochs");
    primary.wait_for("the epochs", ANSWERS, recording(from + EPOCHS))?;
    load.finish(lab.client(), GUEST)?;
    primary.stop()?;
    primary.wait_for("the end", ANSWERS, |s| s.state == "unprotected")?;
    Ok(Recorded { trace: lab.dir(Host::A, Site::FIRST).join(TRACE), from })
}
