use super::*;
use aventine_api::{Epoch, Host};
use std::fs;
use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Barrier};
use std::thread;

struct Nobody;

impl Host for Nobody {
    fn request_epoch(&self) {}
    fn staged(&self, _: Epoch) {}
    fn failed(&self, _: PluginError) {}
}

fn context(config_dir: &Path, guest: &str) -> Context {
    Context {
        guest: guest.into(),
        id: "arbiter".into(),
        side: Side::Primary,
        state_dir: config_dir.into(),
        config_dir: config_dir.into(),
        host: Arc::new(Nobody),
    }
}

fn arbiter(dir: &Path) -> SharedFile {
    SharedFile::new(dir, &context(Path::new("/"), "web")).unwrap()
}

fn session(number: u64) -> SessionId {
    let mut id = [0xab; 16];
    id[8..].copy_from_slice(&number.to_be_bytes());
    SessionId(id)
}

fn names(dir: &Path) -> Vec<String> {
    let mut names: Vec<_> =
        fs::read_dir(dir).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[test]
fn the_first_claim_wins_for_ever_and_leaves_only_the_verdict() {
    let dir = tempfile::tempdir().unwrap();
    assert_eq!(arbiter(dir.path()).claim(session(1), Side::Standby).unwrap(), Verdict::Won);
    for _ in 0..2 {
        assert_eq!(arbiter(dir.path()).claim(session(1), Side::Primary).unwrap(), Verdict::Lost);
        assert_eq!(arbiter(dir.path()).claim(session(1), Side::Standby).unwrap(), Verdict::Won);
    }
    // Another session and another guest are other questions.
    assert_eq!(arbiter(dir.path()).claim(session(2), Side::Primary).unwrap(), Verdict::Won);
    let mut other = SharedFile::new(dir.path(), &context(Path::new("/"), "db")).unwrap();
    assert_eq!(other.claim(session(1), Side::Primary).unwrap(), Verdict::Won);
    let expected = [(2, "web"), (1, "web"), (1, "db")].map(|(n, guest)| format!("{guest}.{}", session(n)));
    let mut expected = expected.to_vec();
    expected.sort();
    assert_eq!(names(dir.path()), expected);
}

#[test]
fn a_relative_path_is_meant_from_the_configuration() {
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir(dir.path().join("shared")).unwrap();
    let path = parse("path = 'shared'").unwrap();
    let mut arbiter = SharedFile::new(&path, &context(dir.path(), "web")).unwrap();
    arbiter.claim(session(1), Side::Primary).unwrap();
    assert_eq!(names(&dir.path().join("shared")).len(), 1);
}

#[test]
fn what_a_crash_leaves_behind_decides_nothing() {
    let dir = tempfile::tempdir().unwrap();
    // Crashes before, within and after writing the temporary file, before linking.
    for (random, contents) in [("0", ""), ("1", "abab"), ("2", &*format!("{} primary\n", session(1)))] {
        fs::write(dir.path().join(format!(".web.{}.{random:0>16}.tmp", session(1))), contents).unwrap();
    }
    assert_eq!(arbiter(dir.path()).claim(session(1), Side::Standby).unwrap(), Verdict::Won);
    // A crash after linking: the verdict stands.
    fs::write(dir.path().join(format!("web.{}", session(2))), verdict::line(session(2), Side::Primary))
        .unwrap();
    assert_eq!(arbiter(dir.path()).claim(session(2), Side::Standby).unwrap(), Verdict::Lost);
    assert_eq!(arbiter(dir.path()).claim(session(2), Side::Primary).unwrap(), Verdict::Won);
}

#[test]
fn a_damaged_verdict_is_an_error_and_stays_as_it_is() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join(format!("web.{}", session(1)));
    let long = "x".repeat(10_000);
    let other = format!("{} primary\n", session(2));
    let cut = format!("{} primary", session(1));
    for damaged in ["", "primary\n", &other, &cut, &long] {
        fs::write(&file, damaged).unwrap();
        for side in [Side::Primary, Side::Standby] {
            let error = arbiter(dir.path()).claim(session(1), side).unwrap_err();
            assert_eq!(error.code(), ErrorCode::Corrupt);
            assert!(error.to_string().contains(file.to_str().unwrap()), "{error}");
        }
        assert_eq!(fs::read_to_string(&file).unwrap(), damaged);
    }
}

#[test]
fn a_missing_directory_is_named_by_probe_and_claim() {
    let dir = tempfile::tempdir().unwrap();
    let missing = dir.path().join("not-mounted");
    fs::write(dir.path().join("file"), "").unwrap();
    for path in [missing, dir.path().join("file")] {
        for error in [
            arbiter(&path).probe().unwrap_err(),
            arbiter(&path).claim(session(1), Side::Primary).unwrap_err(),
        ] {
            assert!(error.to_string().contains(path.to_str().unwrap()), "{error}");
        }
    }
    arbiter(dir.path()).probe().unwrap();
    assert_eq!(names(dir.path()), ["file"], "probe leaves nothing");
}

#[test]
fn names_that_could_leave_the_directory_are_refused() {
    let long = "x".repeat(MAX_GUEST + 1);
    for guest in ["", "a/b", "..", ".web", "a b", "a\0b", "größe", &long] {
        let Err(error) = SharedFile::new(Path::new("/"), &context(Path::new("/"), guest)) else {
            panic!("{guest:?} was accepted");
        };
        assert_eq!(error.code(), ErrorCode::Config);
    }
    assert_eq!(parse("path = ''").unwrap_err().path, ["path"]);
    assert!(parse("").is_err());
}

#[test]
fn of_many_threads_one_side_wins_each_session() {
    const THREADS: usize = 8;
    const SESSIONS: u64 = 40;
    let dir = tempfile::tempdir().unwrap();
    let barrier = Barrier::new(THREADS);
    let answers: Vec<Vec<(Side, Verdict)>> = thread::scope(|scope| {
        let run = |i: usize| {
            let (dir, barrier) = (dir.path(), &barrier);
            move || {
                let side = if i.is_multiple_of(2) { Side::Primary } else { Side::Standby };
                let mut arbiter = arbiter(dir);
                (0..SESSIONS)
                    .map(|n| {
                        barrier.wait();
                        (side, arbiter.claim(session(n), side).unwrap())
                    })
                    .collect()
            }
        };
        let threads: Vec<_> = (0..THREADS).map(|i| scope.spawn(run(i))).collect();
        threads.into_iter().map(|t| t.join().unwrap()).collect()
    });
    for n in 0..SESSIONS as usize {
        let owner = owner_of(answers[0][n]);
        assert!(answers.iter().all(|a| owner_of(a[n]) == owner), "session {n}: two owners");
    }
    assert_eq!(names(dir.path()).len(), SESSIONS as usize, "nothing but the verdicts is left");
}

fn owner_of((side, verdict): (Side, Verdict)) -> Side {
    match verdict {
        Verdict::Won => side,
        Verdict::Lost => side.other(),
        Verdict::Undecided => panic!("a file decides at once"),
    }
}

const RACE_DIR: &str = "AVENTINE_TEST_RACE_DIR";
const RACE_SIDE: &str = "AVENTINE_TEST_RACE_SIDE";
const RACE_SESSIONS: u64 = 60;

/// Not a test by itself: what each process of the next one runs.
#[test]
fn racer() {
    let Ok(dir) = std::env::var(RACE_DIR) else { return };
    let primary = std::env::var(RACE_SIDE).is_ok_and(|s| s == "primary");
    let side = if primary { Side::Primary } else { Side::Standby };
    let mut arbiter = arbiter(Path::new(&dir));
    for n in 0..RACE_SESSIONS {
        let owner = owner_of((side, arbiter.claim(session(n), side).unwrap()));
        println!("\nowner {n} {}", owner.name());
    }
}

fn race(dir: &Path, side: Side) -> Child {
    Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "tests::racer", "--nocapture"])
        .env(RACE_DIR, dir)
        .env(RACE_SIDE, side.name())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap()
}

#[test]
fn processes_killed_at_any_moment_agree_with_those_that_come_later() {
    let dir = tempfile::tempdir().unwrap();
    let mut said: Vec<String> = Vec::new();
    let sides = [Side::Primary, Side::Standby, Side::Primary, Side::Standby];
    let children: Vec<_> = sides.map(|side| race(dir.path(), side)).into();
    for (i, mut child) in children.into_iter().enumerate() {
        let stdout = child.stdout.take().unwrap();
        for line in BufReader::new(stdout).lines() {
            let line = line.unwrap();
            let at = line.strip_prefix("owner ").and_then(|l| l.split(' ').next()?.parse::<u64>().ok());
            said.extend(at.map(|_| line.clone()));
            // Three of the four are killed on their way, each at another place.
            if i < 3 && at.is_some_and(|n| n >= 7 * (i as u64 + 1)) {
                child.kill().unwrap();
            }
        }
        child.wait().unwrap();
    }
    assert!(said.len() as u64 >= RACE_SESSIONS, "the last one answers every session");
    for side in [Side::Primary, Side::Standby] {
        let mut arbiter = arbiter(dir.path());
        for n in 0..RACE_SESSIONS {
            let owner = owner_of((side, arbiter.claim(session(n), side).unwrap()));
            let other = format!("owner {n} {}", owner.other().name());
            assert!(!said.contains(&other), "session {n} changed its owner to {}", owner.name());
        }
    }
}

#[path = "../testing/bench.rs"]
mod bench;

mod conformance {
    aventine_conformance::arbiter!(super::bench::Directory<aventine_conformance::form::Native>);
}
