//! Runs in the guest: serves clients on port 7777, a line for each line.
//!
//! | request | answer |
//! |---|---|
//! | `put` | `done N`: a burst of writes up to N is on stable storage; or `failed …` |
//! | `verify` | `same N`: the disk is as writes 1 to N left it; or `differs …` |
//! | `dirty N` | `dirtying N`: from now on N pages of memory are written over and over |
//! | `dirty N RATE` | the same, but only RATE pages in a second |
//! | `pages` | `wrote N`: so many pages were written so far, each as often as it was |
//! | `passes` | `passed N`: they were, N times; or `broken`: a page was not as it had been left |
//! | `exercise PATH FROM BYTES` | `exercising N`: from now on a file, or that part of a device, is read and changed in all ways, as the Nth |
//! | `exercised` | `exercised N`: that was done N times, and all that was read was right; or `failed …` |
//! | `compare` | `same N`: all N that are exercised are as they were left; or `failed …` |
//! | `rest` | `resting N`: none of the N is any more |
//! | `database PROGRAM FILE` | `open`: `sqlite3` has it open; `database`: it is closed |
//! | `sql STATEMENTS` | `sql …`: what `sqlite3` answered; or `failed …`: it ended at a statement that failed |
//! | `run PROGRAM ARGUMENTS` | `ended CODE …`: what it printed |
//! | `panic` | none: the kernel panics |
//! | `reboot` | none: the machine is reset |
#![forbid(unsafe_code)]

use aventine_e2e::LIBRARIES;
use aventine_e2e::database::Database;
use aventine_e2e::disk::Workload;
use aventine_e2e::exercise::{Exercise, ExerciseError};
use aventine_e2e::memory::Dirtying;
use std::error::Error;
use std::io::{self, BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Command, ExitCode};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

const PORT: u16 = 7777;
/// What is written there the kernel does at once.
const TRIGGER: &str = "/proc/sysrq-trigger";
/// Between two operations of an exercise: the guest has but one processor, which others need as well.
const PAUSE: Duration = Duration::from_millis(2);

/// What all clients share.
struct State {
    disk: Mutex<Workload>,
    dirtying: Mutex<Dirtying>,
    exercises: Mutex<Vec<Running>>,
    database: Mutex<Option<Database>>,
}

fn main() -> ExitCode {
    let Some(path) = std::env::args_os().nth(1) else {
        eprintln!("Usage: guest-workload DISK");
        return ExitCode::FAILURE;
    };
    match serve(path.as_ref()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("The workload failed: {error}");
            ExitCode::FAILURE
        }
    }
}

fn serve(path: &Path) -> io::Result<()> {
    let state = Arc::new(State {
        disk: Mutex::new(Workload::open(path)?),
        dirtying: Mutex::default(),
        exercises: Mutex::default(),
        database: Mutex::default(),
    });
    let listener = TcpListener::bind(("0.0.0.0", PORT))?;
    loop {
        let (stream, _) = listener.accept()?;
        let state = Arc::clone(&state);
        thread::spawn(move || state.serve(stream));
    }
}

impl State {
    fn serve(&self, stream: TcpStream) {
        let mut reader = BufReader::new(stream);
        let mut line = String::new();
        while matches!(reader.read_line(&mut line), Ok(1..)) {
            let answer = self.answer(line.trim());
            let answer = answer.unwrap_or_else(|error| format!("failed {}", chain(&*error)));
            line.clear();
            // In one piece: the next one would wait for an acknowledgement of the first, and that for an epoch.
            if reader.get_mut().write_all(format!("{answer}\n").as_bytes()).is_err() {
                break;
            }
        }
    }

    fn answer(&self, request: &str) -> Result<String, Box<dyn Error>> {
        let (verb, rest) = request.split_once(' ').unwrap_or((request, ""));
        let words = rest.split_whitespace().collect::<Vec<_>>();
        Ok(match (verb, &words[..]) {
            ("put", _) => format!("done {}", lock(&self.disk).burst()?),
            ("verify", _) => {
                let mut disk = lock(&self.disk);
                match disk.verify()? {
                    None => format!("same {}", disk.last()),
                    Some(difference) => format!("differs {difference:?}"),
                }
            }
            ("dirty", [pages, rate @ ..]) => {
                let rate = rate.first().map(|rate| rate.parse()).transpose()?;
                *lock(&self.dirtying) = Dirtying::start(pages.parse()?, rate);
                format!("dirtying {pages}")
            }
            ("pages", _) => format!("wrote {}", lock(&self.dirtying).pages()),
            ("passes", _) => {
                lock(&self.dirtying).passes().map_or("broken".into(), |passes| format!("passed {passes}"))
            }
            ("exercise", [path, from, bytes]) => {
                let exercise = Exercise::open(path.as_ref(), from.parse()?, bytes.parse()?)?;
                let mut exercises = lock(&self.exercises);
                exercises.push(Running::start(exercise));
                format!("exercising {}", exercises.len())
            }
            ("exercised" | "compare" | "rest", _) => self.exercise(verb)?,
            ("database", [program, file]) => {
                *lock(&self.database) = Some(Database::open(program.as_ref(), file.as_ref())?);
                "open".into()
            }
            ("database", []) => {
                *lock(&self.database) = None;
                "closed".into()
            }
            ("sql", _) => {
                let mut database = lock(&self.database);
                let database = database.as_mut().ok_or("no database is open")?;
                format!("sql {}", database.ask(rest)?)
            }
            ("run", [program, arguments @ ..]) => run(program, arguments)?,
            ("panic", _) => std::fs::write(TRIGGER, "c").map(|()| "the kernel lives".into())?,
            ("reboot", _) => std::fs::write(TRIGGER, "b").map(|()| "the machine runs on".into())?,
            _ => format!("unknown request {request:?}"),
        })
    }

    /// What is asked of all exercises.
    fn exercise(&self, verb: &str) -> Result<String, Box<dyn Error>> {
        let mut exercises = lock(&self.exercises);
        let count = exercises.len();
        let mut done = 0;
        for running in exercises.iter() {
            let mut work = running.work.lock().map_err(|_| "an exercise has panicked")?;
            if let Some(failure) = &work.failure {
                return Err(chain(failure).into());
            }
            if verb == "compare" {
                work.exercise.compare()?;
            }
            done += work.exercise.done();
        }
        Ok(match verb {
            "compare" => format!("same {count}"),
            "rest" => {
                exercises.drain(..).for_each(Running::stop);
                format!("resting {count}")
            }
            _ => format!("exercised {done}"),
        })
    }
}

/// Runs a program to its end.
fn run(program: &str, arguments: &[&str]) -> io::Result<String> {
    let output = Command::new(program).args(arguments).env("LD_LIBRARY_PATH", LIBRARIES).output()?;
    let text = [output.stdout, output.stderr].concat();
    let text = String::from_utf8_lossy(&text).split_whitespace().collect::<Vec<_>>().join(" ");
    Ok(format!("ended {} {text}", output.status.code().unwrap_or(-1)))
}

/// An exercise on a thread of its own.
struct Running {
    work: Arc<Mutex<Work>>,
    stop: Arc<AtomicBool>,
    thread: JoinHandle<()>,
}

struct Work {
    exercise: Exercise,
    failure: Option<ExerciseError>,
}

impl Running {
    fn start(exercise: Exercise) -> Running {
        let work = Arc::new(Mutex::new(Work { exercise, failure: None }));
        let stop = Arc::new(AtomicBool::new(false));
        let (shared, until) = (Arc::clone(&work), Arc::clone(&stop));
        let thread = thread::spawn(move || {
            while !until.load(Ordering::Relaxed) {
                let mut work = lock(&shared);
                if let Err(error) = work.exercise.step() {
                    work.failure = Some(error);
                    return;
                }
                drop(work);
                thread::sleep(PAUSE);
            }
        });
        Running { work, stop, thread }
    }

    fn stop(self) {
        self.stop.store(true, Ordering::Relaxed);
        // One that has panicked was told of when it was looked at.
        let _ = self.thread.join();
    }
}

/// What a client's thread left behind when it panicked is as good as before.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// An error and its causes.
fn chain(error: &dyn Error) -> String {
    let causes = std::iter::successors(error.source(), |cause| (*cause).source());
    causes.fold(error.to_string(), |text, cause| format!("{text}: {cause}"))
}
