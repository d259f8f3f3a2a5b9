//! `aventine protect` and `aventine standby`.
//!
//! ```text
//!  main thread      configuration ─► state directory ─► [ engine …………………………… ] ─► outcome
//!  second thread                                        [ admin socket, signals, progress ]
//! ```
//! The engine runs on the main thread because the guest's process is tied to the thread that started it.

use crate::admin;
use crate::cli::Run;
use crate::exit::Exit;
use crate::output::{tell, tell_error};
use crate::place::{self, Place, PlaceError};
use crate::progress::{Line, Progress};
use crate::signals::Signals;
use aventine_api::{ErrorCode, Side};
use aventine_config::{Config, ConfigErrors};
use aventine_engine::{Control, End, EngineError, command_channel};
use std::io;
use std::path::Path;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};
use tokio::runtime::Builder;
use tokio::sync::watch;
use tracing::info;

/// How often the status is looked at for something to tell.
const LOOK: Duration = Duration::from_millis(200);

/// Why the program could not get as far as starting the engine.
#[derive(Debug, thiserror::Error)]
enum StartError {
    #[error(transparent)]
    Place(#[from] PlaceError),
    #[error("Could not make the admin socket {path}")]
    Socket { path: String, source: io::Error },
    #[error("Could not start the admin thread")]
    Thread(#[source] io::Error),
}

/// Runs a side until its guest or the operator ends it.
pub(crate) fn run(args: &Run, side: Side) -> Exit {
    let config = match load(&args.config) {
        Ok(config) => config,
        Err(exit) => return exit,
    };
    let (control, inbox) = command_channel();
    let (place, attendant) = match start(args, &config.name, control) {
        Ok(started) => started,
        Err(e) => {
            tell_error(&e);
            return Exit::Error;
        }
    };
    info!(guest = config.name, side = side.name(), state_dir = %place.dir().display(), "starting");
    let end = aventine_engine::run(&config, place.dir(), &inbox, side);
    // Requests that nobody will answer any more end here.
    drop(inbox);
    attendant.finish();
    match end {
        Ok(End::Stopped) => {
            tell("Ended; no guest runs here.");
            Exit::Done
        }
        Ok(End::LetGo) => {
            tell("The guest runs on; its network waits for the next `protect`.");
            Exit::Done
        }
        Ok(End::GuestEnded) => {
            tell("The guest has ended.");
            Exit::Done
        }
        Err(e) => {
            tell_error(&e);
            exit_of(&e)
        }
    }
}

fn exit_of(error: &EngineError) -> Exit {
    match error {
        EngineError::Refused { .. } => Exit::Refused,
        EngineError::Plugin(failure) if failure.source.code() == ErrorCode::Config => Exit::Configuration,
        _ => Exit::Error,
    }
}

/// Loads a configuration or tells what is wrong with it.
pub(crate) fn load(path: &Path) -> Result<Config, Exit> {
    loaded(Config::load(path))
}

/// What was loaded; what is wrong with it is told.
pub(crate) fn loaded<T>(result: Result<T, ConfigErrors>) -> Result<T, Exit> {
    result.map_err(|e| {
        match &e {
            // The report has its own layout, `error:` included.
            ConfigErrors::Invalid(report) => tell(report),
            other => tell_error(other),
        }
        Exit::Configuration
    })
}

fn start(args: &Run, guest: &str, control: Control) -> Result<(Place, Attendant), StartError> {
    let dir = match &args.state_dir {
        Some(dir) => dir.clone(),
        None => place::default(guest)?,
    };
    let place = Place::take(&dir)?;
    let attendant = Attendant::start(place.dir(), control)?;
    Ok((place, attendant))
}

/// The second thread: admin socket, signals, progress.
struct Attendant {
    ended: watch::Sender<bool>,
    thread: JoinHandle<()>,
}

impl Attendant {
    /// On return signals are handled and the admin socket answers.
    fn start(state_dir: &Path, control: Control) -> Result<Attendant, StartError> {
        let failed =
            |source| StartError::Socket { path: state_dir.join(admin::SOCKET).display().to_string(), source };
        let listener = admin::bind(state_dir).map_err(failed)?;
        let runtime = Builder::new_current_thread().enable_all().build().map_err(StartError::Thread)?;
        let (listener, signals) = {
            let _context = runtime.enter();
            let listener = tokio::net::UnixListener::from_std(listener).map_err(failed)?;
            (listener, Signals::new().map_err(StartError::Thread)?)
        };
        let (ended, watch) = watch::channel(false);
        let work = async move {
            let mut progress = Progress::new(Instant::now());
            tokio::select! {
                () = admin::serve(listener, control.clone(), watch) => {}
                () = signals.obey(control.clone()) => {}
                () = tell_progress(&control, &mut progress) => {}
            }
            // What happened since the last look is told as well.
            look(&control, &mut progress);
        };
        let thread = thread::Builder::new()
            .name("admin".into())
            .spawn(move || {
                runtime.block_on(work);
                // A thread that still waits for the engine's reply must not keep the program.
                runtime.shutdown_background();
            })
            .map_err(StartError::Thread)?;
        Ok(Attendant { ended, thread })
    }

    /// The engine has ended: answers what is under way and stops.
    fn finish(self) {
        let _ = self.ended.send(true);
        let _ = self.thread.join();
    }
}

/// Tells about the status, for ever.
async fn tell_progress(control: &Control, progress: &mut Progress) {
    let mut due = tokio::time::interval(LOOK);
    loop {
        due.tick().await;
        look(control, progress);
    }
}

/// Tells what is new in the status.
fn look(control: &Control, progress: &mut Progress) {
    match progress.line(&control.status(), Instant::now()) {
        Some(Line::Tell(text)) => tell(text),
        Some(Line::Log(text)) => info!("{text}"),
        None => {}
    }
}
