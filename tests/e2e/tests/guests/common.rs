//! What the tests share: a lab with a protected guest, clients at work in it, and what they must find.

use aventine_demo::checker::{self, Load, Outcome};
use aventine_demo::lab::{Lab, Pair, Parts, STARTUP, Site};
use aventine_e2e::guest::{Guest, PORT};
use aventine_engine::Status;
use std::env;
use std::net::TcpStream;
use std::path::PathBuf;
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// Longest that anything may take on a busy machine.
pub(crate) const LIMIT: Duration = Duration::from_secs(60);
/// Answers that show that a client is served.
pub(crate) const SOME: u64 = 300;

pub(crate) fn given(variable: &str) -> PathBuf {
    match env::var_os(variable) {
        Some(path) => path.into(),
        None => panic!("{variable} is not set: run these tests with `cargo xtask test`"),
    }
}

pub(crate) fn parts(test: &str) -> Parts {
    Parts {
        program: given("AVENTINE_PROGRAM"),
        kernel: given("AVENTINE_KERNEL"),
        initrd: given("AVENTINE_INITRD"),
        work: given("AVENTINE_WORK").join(test),
        // A machine busy with other things must not look like a lost one.
        detection: "1s".into(),
        ..Parts::default()
    }
}

pub(crate) fn lab(test: &str) -> Lab {
    Lab::new(&parts(test)).unwrap()
}

/// A protected guest with a client at work.
pub(crate) fn with_load(lab: &Lab) -> (Pair, Load) {
    let pair = lab.start().unwrap();
    let load = load(lab, Site::FIRST);
    (pair, load)
}

/// A client at work in a guest.
pub(crate) fn load(lab: &Lab, site: Site) -> Load {
    let connection = checker::connect(lab.client(), site.address(), STARTUP).unwrap();
    let load = Load::start(connection, 1 + site.guest as u64);
    load.wait_answers(SOME, LIMIT).unwrap();
    load
}

/// The client goes on for a while, ends and reads everything back.
pub(crate) fn finish(lab: &Lab, load: Load) -> Outcome {
    finish_at(lab, Site::FIRST, load)
}

/// The same in a guest of one's choice.
pub(crate) fn finish_at(lab: &Lab, site: Site, load: Load) -> Outcome {
    load.wait_answers(SOME, LIMIT).unwrap();
    load.finish(lab.client(), site.address()).unwrap()
}

/// Waits until something has happened that no status tells.
#[track_caller]
pub(crate) fn wait_until(event: &str, happened: impl Fn() -> bool) {
    let end = Instant::now() + LIMIT;
    while !happened() {
        assert!(Instant::now() < end, "{event} did not happen within {LIMIT:?}");
        thread::sleep(Duration::from_millis(5));
    }
}

#[track_caller]
pub(crate) fn assert_undisturbed(outcome: &Outcome) {
    assert!(outcome.lost == 0 && !outcome.broken && outcome.acknowledged > SOME, "{outcome:?}");
}

/// A generator whose start is told, so that a run can be repeated.
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new() -> Random {
        Random(seed() | 1)
    }

    pub(crate) fn below(&mut self, limit: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % limit
    }
}

/// Where a generator starts, which is told.
pub(crate) fn seed() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    let seed = env::var("AVENTINE_SEED").map_or(now.as_micros() as u64, |seed| seed.parse().unwrap());
    println!("AVENTINE_SEED={seed} repeats the moments of this run");
    seed
}

/// The routine number of times, or as often as the environment wants it.
pub(crate) fn rounds(routine: u64) -> u64 {
    env::var("AVENTINE_ROUNDS").map_or(routine, |rounds| rounds.parse().unwrap())
}

/// Whether a side has taken the guest over.
pub(crate) fn took_over(status: &Status) -> bool {
    status.side == "primary"
}

/// A connection to the guest's own workload.
pub(crate) fn connect(lab: &Lab, port: u16) -> Guest {
    let end = Instant::now() + STARTUP;
    loop {
        match lab.network().client.enter(|| TcpStream::connect((Site::FIRST.address(), port))).unwrap() {
            Ok(stream) => return Guest::new(stream).unwrap(),
            Err(error) => assert!(Instant::now() < end, "nothing is there on port {port}: {error}"),
        }
        thread::sleep(Duration::from_millis(20));
    }
}

/// A client of the guest's own workload, or of another program there that talks in lines.
pub(crate) struct Workload(Guest);

impl Workload {
    pub(crate) fn connect(lab: &Lab) -> Workload {
        Workload::on_port(lab, PORT)
    }

    pub(crate) fn on_port(lab: &Lab, port: u16) -> Workload {
        Workload(connect(lab, port))
    }

    /// Whether some of the next answer is here.
    pub(crate) fn is_answered(&self) -> bool {
        self.0.is_answered().unwrap()
    }

    pub(crate) fn send(&mut self, request: &str) {
        self.0.send(request).unwrap();
    }

    /// Asks, and answers the number in the answer, which must begin with `word`.
    #[track_caller]
    pub(crate) fn ask(&mut self, request: &str, word: &str) -> u64 {
        self.send(request);
        self.answer(word)
    }

    /// Asks, and answers the whole answer.
    pub(crate) fn line(&mut self, request: &str) -> String {
        self.send(request);
        self.0.line().unwrap()
    }

    /// The number in the next answer, which must begin with `word`.
    #[track_caller]
    pub(crate) fn answer(&mut self, word: &str) -> u64 {
        let line = self.0.line().unwrap();
        let number = line.strip_prefix(word).and_then(|rest| rest.trim().parse().ok());
        number.unwrap_or_else(|| panic!("the guest says {line:?}"))
    }
}
