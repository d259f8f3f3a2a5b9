use super::*;
use aventine_api::{Epoch, Host};
use std::fs;
use std::os::fd::AsRawFd;
use std::path::Path;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

/// Generous: reaching it is a failure.
const LONG: Duration = Duration::from_secs(60);

struct Nobody;

impl Host for Nobody {
    fn request_epoch(&self) {}
    fn staged(&self, _: Epoch) {}
    fn failed(&self, _: PluginError) {}
}

fn command(dir: &Path, config: &str) -> Command {
    let context = Context {
        guest: "web".into(),
        id: "arbiter".into(),
        side: Side::Standby,
        state_dir: dir.into(),
        config_dir: dir.into(),
        host: Arc::new(Nobody),
    };
    Command::new(Settings::parse(config).unwrap(), &context)
}

/// The script is read by a shell, so that no test executes a file that another one's child still has open.
fn script(dir: &Path, text: &str) -> Command {
    fs::write(dir.join("script"), text).unwrap();
    command(dir, "command = ['/bin/sh', 'script', 'one argument']\ntimeout = '60s'")
}

fn session(number: u64) -> SessionId {
    let mut id = [0xab; 16];
    id[8..].copy_from_slice(&number.to_be_bytes());
    SessionId(id)
}

fn read(dir: &Path, file: &str) -> String {
    fs::read_to_string(dir.join(file)).unwrap()
}

/// Waits for the end of a process that is not this one's child.
fn wait_gone(pid: &str) {
    let end = Instant::now() + LONG;
    let is_there = || {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        // What is behind the name in parentheses begins with the state. Nobody may collect it here.
        stat.rsplit_once(") ").is_some_and(|(_, rest)| !rest.starts_with('Z'))
    };
    while is_there() {
        assert!(Instant::now() < end, "process {pid} stays behind");
        thread::sleep(Duration::from_millis(10));
    }
}

#[test]
fn exit_codes_are_answers() {
    let dir = tempfile::tempdir().unwrap();
    let mut arbiter =
        script(dir.path(), "echo first >&2; echo ignored; echo 'it said' >&2; exit $(cat code)");
    let mut number = 0;
    let mut claim = |code: &str, side| {
        fs::write(dir.path().join("code"), code).unwrap();
        number += 1;
        arbiter.claim(session(number), side)
    };
    for side in [Side::Primary, Side::Standby] {
        assert_eq!(claim("0", side).unwrap(), Verdict::Won);
        assert_eq!(claim("10", side).unwrap(), Verdict::Lost);
        assert_eq!(claim("75", side).unwrap(), Verdict::Undecided);
        for code in ["1", "2", "74", "76", "127", "255"] {
            let error = claim(code, side).unwrap_err();
            assert_eq!(error.code(), ErrorCode::Unavailable);
            let text = error.to_string();
            assert!(text.contains(&format!("exit status: {code}")), "{text}");
            assert!(text.contains("first / it said") && !text.contains("ignored"), "{text}");
        }
    }
    let killed = script(dir.path(), "kill -9 $$").claim(session(0), Side::Primary).unwrap_err();
    assert!(
        killed.to_string().contains("signal: 9") && killed.to_string().contains("said nothing"),
        "{killed}"
    );
}

#[test]
fn a_probe_is_answered_by_zero_alone() {
    let dir = tempfile::tempdir().unwrap();
    let mut arbiter = script(dir.path(), "exit $(cat code)");
    for (code, is_fine) in [("0", true), ("10", false), ("1", false), ("75", false), ("9", false)] {
        fs::write(dir.path().join("code"), code).unwrap();
        assert_eq!(arbiter.probe().is_ok(), is_fine, "{code}");
    }
}

#[test]
fn the_command_is_told_what_is_asked() {
    let dir = tempfile::tempdir().unwrap();
    let mut arbiter = script(
        dir.path(),
        "pwd >told; echo \"$1\" >>told; env | grep -E '^AVENTINE_(ACTION|GUEST|SIDE|OTHER_SIDE|SESSION)=' | sort >>told; cat >>told",
    );
    let place = fs::canonicalize(dir.path()).unwrap();
    let place = place.display();
    assert_eq!(arbiter.claim(session(1), Side::Primary).unwrap(), Verdict::Won);
    let expected = format!(
        "{place}\none argument\nAVENTINE_ACTION=claim\nAVENTINE_GUEST=web\nAVENTINE_OTHER_SIDE=standby\n\
         AVENTINE_SESSION={}\nAVENTINE_SIDE=primary\n",
        session(1)
    );
    assert_eq!(read(dir.path(), "told"), expected);
    arbiter.probe().unwrap();
    let expected = format!(
        "{place}\none argument\nAVENTINE_ACTION=probe\nAVENTINE_GUEST=web\nAVENTINE_OTHER_SIDE=primary\n\
         AVENTINE_SIDE=standby\n"
    );
    assert_eq!(read(dir.path(), "told"), expected);
}

#[test]
fn a_verdict_is_remembered_and_nothing_else() {
    let dir = tempfile::tempdir().unwrap();
    let mut arbiter = script(dir.path(), "echo >>runs; exit $(cat code)");
    let mut claim = |code: &str, number, side| {
        fs::write(dir.path().join("code"), code).unwrap();
        arbiter.claim(session(number), side)
    };
    assert_eq!(claim("75", 1, Side::Primary).unwrap(), Verdict::Undecided);
    claim("9", 1, Side::Primary).unwrap_err();
    assert_eq!(claim("10", 1, Side::Primary).unwrap(), Verdict::Lost);
    assert_eq!(claim("0", 2, Side::Primary).unwrap(), Verdict::Won);
    for _ in 0..2 {
        assert_eq!(claim("0", 1, Side::Primary).unwrap(), Verdict::Lost);
        assert_eq!(claim("0", 1, Side::Standby).unwrap(), Verdict::Won);
        assert_eq!(claim("10", 2, Side::Primary).unwrap(), Verdict::Won);
    }
    assert_eq!(read(dir.path(), "runs").len(), 4);
}

#[test]
fn at_the_timeout_the_whole_group_is_killed() {
    let dir = tempfile::tempdir().unwrap();
    // It ignores everything that can be ignored, and so does its child.
    let text = "trap '' TERM INT HUP; echo working on it >&2; sh -c 'trap \"\" TERM; echo $$ >inner; while :; do sleep 1; done' & \
                echo $$ >outer; wait; wait";
    fs::write(dir.path().join("script"), text).unwrap();
    let mut arbiter = command(dir.path(), "command = ['/bin/sh', 'script']\ntimeout = '1s'");
    let begun = Instant::now();
    let error = arbiter.claim(session(1), Side::Primary).unwrap_err();
    assert!(begun.elapsed() < LONG);
    assert_eq!(error.code(), ErrorCode::TimedOut);
    assert!(error.to_string().contains("after 1s") && error.to_string().contains("working on it"), "{error}");
    wait_gone(read(dir.path(), "inner").trim());
    let outer = read(dir.path(), "outer");
    assert!(!Path::new(&format!("/proc/{}", outer.trim())).exists(), "it was not collected");
    // Nothing is known, and it can be asked again.
    fs::write(dir.path().join("script"), "exit 10").unwrap();
    assert_eq!(arbiter.claim(session(1), Side::Primary).unwrap(), Verdict::Lost);
}

#[test]
fn what_a_command_leaves_running_holds_nothing_up_and_ends() {
    let dir = tempfile::tempdir().unwrap();
    let mut arbiter = script(dir.path(), "sleep 1000 & echo $! >left; echo $$ >own; exit 0");
    let begun = Instant::now();
    assert_eq!(arbiter.claim(session(1), Side::Primary).unwrap(), Verdict::Won);
    assert!(begun.elapsed() < LONG, "it waited for what holds its standard error");
    wait_gone(read(dir.path(), "left").trim());
    assert!(!Path::new(&format!("/proc/{}", read(dir.path(), "own").trim())).exists(), "a zombie");
}

#[test]
fn much_said_is_bounded_and_the_end_is_shown() {
    let dir = tempfile::tempdir().unwrap();
    let text = "head -c 3000000 /dev/zero >&2; echo >&2; for n in 1 2 3 4 5 6; do echo \"line $n\" >&2; done; exit 9";
    let error = script(dir.path(), text).claim(session(1), Side::Primary).unwrap_err().to_string();
    assert!(error.ends_with("line 2 / line 3 / line 4 / line 5 / line 6"), "{error}");
    let error = script(dir.path(), "printf '\\033[2J%5000s' x >&2; printf '\\033[2Jend' >&2; exit 9");
    let error = { error }.claim(session(1), Side::Primary).unwrap_err().to_string();
    assert!(error.len() < 5000 && error.ends_with("\u{fffd}[2Jend"), "{error}");
}

#[test]
fn no_descriptor_is_inherited() {
    let dir = tempfile::tempdir().unwrap();
    let open = fs::File::open(dir.path()).unwrap();
    rustix::io::fcntl_setfd(&open, rustix::io::FdFlags::empty()).unwrap();
    let text =
        format!("[ -e /proc/self/fd/0 ] && [ ! -e /proc/$$/fd/{} ] && exit 0; exit 9", open.as_raw_fd());
    assert_eq!(script(dir.path(), &text).claim(session(1), Side::Primary).unwrap(), Verdict::Won);
}

#[test]
fn a_command_that_cannot_be_run_is_named_at_once() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("plain"), "#!/bin/sh\n").unwrap();
    let fails = |program: &str| {
        let mut arbiter = command(dir.path(), &format!("command = ['{program}']\ntimeout = '300s'"));
        let error = arbiter.claim(session(1), Side::Primary).unwrap_err();
        assert_eq!(error.code(), ErrorCode::Unavailable);
        error.chain()
    };
    let here = |file: &str| dir.path().join(file).display().to_string();
    assert!(fails("./missing").contains(&format!("{} is not there", here("./missing"))));
    assert!(fails("no-such-program-of-aventine").contains("no-such-program-of-aventine is not there"));
    assert!(fails("./plain").contains(&format!("{} cannot be run: Permission denied", here("./plain"))));
    assert!(fails("/").contains("/ cannot be run"));
}

#[test]
fn a_missing_interpreter_is_told_apart_from_a_missing_command() {
    let dir = tempfile::tempdir().unwrap();
    // Written by another process: a child of another test could still have it open here.
    let write = "echo '#!/no/such/shell' >script && chmod +x script";
    let made = std::process::Command::new("sh").args(["-c", write]).current_dir(dir.path()).status();
    assert!(made.unwrap().success());
    let error = command(dir.path(), "command = ['./script']").probe().unwrap_err();
    assert!(error.to_string().contains("interpreter"), "{error}");
}

#[path = "../testing/bench.rs"]
mod bench;

mod conformance {
    aventine_conformance::arbiter!(super::bench::Program<aventine_conformance::form::Native>);
}
