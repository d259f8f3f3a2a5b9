//! `aventine reclaim`: what a crash has left of a guest on this host.

use crate::cli::Run;
use crate::exit::Exit;
use crate::output::{print, tell_error};
use crate::place::{self, Place, PlaceError};
use crate::run::load;
use aventine_engine::{Reclaimed, Settled};
use std::path::Path;

/// Clears the state directory of a guest that does not run here.
pub(crate) fn reclaim(args: &Run, json: bool) -> Exit {
    let config = match load(&args.config) {
        Ok(config) => config,
        Err(exit) => return exit,
    };
    let place = match take(args, &config.name) {
        Ok(place) => place,
        Err(error) => {
            tell_error(&error);
            return Exit::Error;
        }
    };
    let reclaimed = match aventine_engine::reclaim(&config, place.dir()) {
        Ok(reclaimed) => reclaimed,
        Err(error) => {
            tell_error(&error);
            return Exit::Error;
        }
    };
    if json {
        print(serde_json::to_string(&reclaimed).unwrap_or_else(|e| format!("{{\"error\":\"{e}\"}}")));
    } else {
        print(as_text(&config.name, place.dir(), &reclaimed));
    }
    match reclaimed.session {
        Some(Settled::Open(_)) => Exit::Error,
        _ => Exit::Done,
    }
}

fn take(args: &Run, guest: &str) -> Result<Place, PlaceError> {
    match &args.state_dir {
        Some(dir) => Place::take(dir),
        None => Place::take(&place::default(guest)?),
    }
}

fn as_text(guest: &str, dir: &Path, reclaimed: &Reclaimed) -> String {
    let mut lines = Vec::new();
    lines.extend(reclaimed.sockets.iter().map(|socket| format!("  removed the socket {}", socket.display())));
    lines.extend(reclaimed.leftovers.iter().map(|(id, what)| format!("  {id}: removed {what}")));
    lines.extend(reclaimed.session.as_ref().map(|session| match session {
        Settled::Ours(id) => {
            format!("  session {id} was open: this host owns the guest; `aventine protect` starts it")
        }
        Settled::Theirs(why) => {
            format!("  {why}\n  `aventine standby` makes this host the other one's standby")
        }
        Settled::Open(why) => format!("  a session was open and is not settled: {why}"),
    }));
    lines.extend(reclaimed.disks.iter().map(|(id, why)| format!("  disk {id}: {why}")));
    if lines.is_empty() {
        lines.push("  nothing was left behind".to_owned());
    }
    format!("{guest}, {}\n{}", dir.display(), lines.join("\n"))
}
