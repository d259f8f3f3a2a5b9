use super::*;
use aventine_api::{Epoch, Host};
use std::fs;
use std::io::Write;
use std::path::Path;
use std::process::Command;
use std::sync::{Arc, Mutex};

struct Nobody;

impl Host for Nobody {
    fn request_epoch(&self) {}
    fn staged(&self, _: Epoch) {}
    fn failed(&self, _: PluginError) {}
}

fn manual(dir: &Path, config: &str) -> Manual {
    let context = Context {
        guest: "web".into(),
        id: "arbiter".into(),
        side: Side::Standby,
        state_dir: dir.join("state"),
        config_dir: dir.join("etc"),
        host: Arc::new(Nobody),
    };
    fs::create_dir_all(&context.state_dir).unwrap();
    fs::create_dir_all(&context.config_dir).unwrap();
    Manual::new(parse(config).unwrap(), &context)
}

const SESSION: SessionId = SessionId([0x5a; 16]);
const OLD: SessionId = SessionId([0x01; 16]);

/// What a subscriber to the log sees.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl Write for Log {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().write(bytes)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// Runs `what` and answers with what it logged.
fn logged(what: impl FnOnce()) -> String {
    let log = Log::default();
    let writer = log.clone();
    let subscriber = tracing_subscriber::fmt()
        .with_ansi(false)
        .with_writer(move || writer.clone())
        .without_time()
        .finish();
    tracing::subscriber::with_default(subscriber, what);
    String::from_utf8(log.0.lock().unwrap().clone()).unwrap()
}

#[test]
fn the_logged_lines_can_be_typed_and_are_logged_once() {
    let root = tempfile::tempdir().unwrap();
    for (number, winner) in [Side::Primary, Side::Standby].into_iter().enumerate() {
        // A directory that a shell must not read as several words.
        let dir = root.path().join(format!("it's number {number}"));
        let (mut here, mut there) = (manual(&dir, ""), manual(&dir, ""));
        let log = logged(|| {
            for _ in 0..3 {
                assert_eq!(here.claim(SESSION, Side::Standby).unwrap(), Verdict::Undecided);
            }
        });
        assert_eq!(log.matches("a person must decide").count(), 1, "{log}");
        let end = format!("{SESSION} {} >>", winner.name());
        let line = log.lines().find(|l| l.contains(&end)).unwrap().trim();
        assert!(Command::new("sh").args(["-c", line]).status().unwrap().success());
        let expected = |side| if side == winner { Verdict::Won } else { Verdict::Lost };
        for _ in 0..2 {
            assert_eq!(here.claim(SESSION, Side::Standby).unwrap(), expected(Side::Standby));
            assert_eq!(there.claim(SESSION, Side::Primary).unwrap(), expected(Side::Primary));
        }
    }
}

#[test]
fn each_new_session_is_asked_about() {
    let dir = tempfile::tempdir().unwrap();
    let mut manual = manual(dir.path(), "");
    let log = logged(|| {
        for session in [OLD, OLD, SESSION, SESSION] {
            manual.claim(session, Side::Primary).unwrap();
        }
    });
    assert_eq!(log.matches("a person must decide").count(), 2, "{log}");
}

#[test]
fn a_decision_of_another_session_decides_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let mut manual = manual(dir.path(), "decision = 'decided.txt'");
    let file = dir.path().join("etc/decided.txt");
    fs::write(&file, format!("{OLD} primary\n\n")).unwrap();
    assert_eq!(manual.claim(SESSION, Side::Primary).unwrap(), Verdict::Undecided);
    // Appended by hand: capital letters, other blanks, no end of line.
    fs::write(&file, format!("{OLD} primary\n  {}\t standby ", SESSION.to_string().to_uppercase())).unwrap();
    assert_eq!(manual.claim(SESSION, Side::Primary).unwrap(), Verdict::Lost);
    assert_eq!(manual.claim(OLD, Side::Primary).unwrap(), Verdict::Won);
}

#[test]
fn what_cannot_be_read_is_an_error_that_names_it() {
    let dir = tempfile::tempdir().unwrap();
    let mut manual = manual(dir.path(), "");
    let file = dir.path().join("state/verdict");
    for (text, word) in [
        ("primary".to_owned(), "Line 1"),
        (format!("{OLD} primary\n{SESSION} stand"), "Line 2"),
        (format!("{SESSION} primary now"), "Line 1"),
        (format!("{SESSION}"), "Line 1"),
        (format!("{SESSION}0 primary"), "Line 1"),
        (format!("{SESSION} primary\n{SESSION} standby\n"), "says both"),
        (" ".repeat(2 << 20), "more than"),
    ] {
        fs::write(&file, &text).unwrap();
        let error = manual.claim(SESSION, Side::Primary).unwrap_err();
        assert_eq!(error.code(), ErrorCode::Corrupt);
        let said = error.to_string();
        assert!(said.contains(word) && said.contains(file.to_str().unwrap()), "{said}");
    }
    fs::write(&file, b"\xff\xfe").unwrap();
    assert_eq!(manual.probe().unwrap_err().code(), ErrorCode::Corrupt);
    fs::remove_file(&file).unwrap();
    fs::create_dir(&file).unwrap();
    assert_eq!(manual.claim(SESSION, Side::Primary).unwrap_err().code(), ErrorCode::Io);
}

#[test]
fn probe_wants_the_directory() {
    let dir = tempfile::tempdir().unwrap();
    manual(dir.path(), "").probe().unwrap();
    let error = manual(dir.path(), "decision = 'nowhere/file'").probe().unwrap_err();
    assert_eq!(error.code(), ErrorCode::Unavailable);
    assert!(error.to_string().contains("nowhere"), "{error}");
    assert_eq!(parse("decision = ''").unwrap_err().path, ["decision"]);
    assert!(parse("path = 'x'").is_err());
}

#[path = "../testing/bench.rs"]
mod bench;

mod conformance {
    aventine_conformance::arbiter!(super::bench::Person<aventine_conformance::form::Native>);
}
