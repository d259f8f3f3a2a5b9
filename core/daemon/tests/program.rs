//! The built program from outside: its words, its exit codes, its signals.

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use std::ffi::OsStr;
use std::fs;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::thread;
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// Far longer than anything here takes.
const LIMIT: Duration = Duration::from_secs(60);

fn command<S: AsRef<OsStr>>(args: &[S]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_aventine"));
    command.args(args).env_remove("AVENTINE_LOG").env_remove("RUST_LOG");
    command
}

/// Exit code, stdout, stderr.
fn run<S: AsRef<OsStr>>(args: &[S]) -> (i32, String, String) {
    outcome(command(args).output().unwrap())
}

fn outcome(output: Output) -> (i32, String, String) {
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (output.status.code().unwrap_or(-1), text(output.stdout), text(output.stderr))
}

fn path(dir: &TempDir, name: &str) -> PathBuf {
    dir.path().join(name)
}

/// A configuration without networks and disks, for a port that nothing uses.
fn config(dir: &TempDir) -> PathBuf {
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let file = path(dir, "web.toml");
    let text = format!(
        "name = 'web'
[guest]
plugin = 'qemu'
command = ['qemu-system-x86_64', '-accel', 'tcg', '-m', '64M', '-nodefaults', '-display', 'none']
[transport]
plugin = 'tcp'
listen = '127.0.0.1:{port}'
peer = '127.0.0.1:{port}'
unsafe_plaintext = true
[arbiter]
plugin = 'shared-file'
path = '{}'
",
        dir.path().display()
    );
    fs::write(&file, text).unwrap();
    file
}

/// A running `protect` or `standby`, killed when dropped.
struct Running {
    child: Option<Child>,
    state_dir: PathBuf,
}

impl Running {
    /// Starts it and waits until it is in `state`.
    fn start(side: &str, config: &Path, state_dir: PathBuf, state: &str) -> Running {
        let args = [side.as_ref(), config.as_os_str(), "--state-dir".as_ref(), state_dir.as_os_str()];
        let child = command(&args).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let mut running = Running { child: Some(child), state_dir };
        let deadline = Instant::now() + LIMIT;
        loop {
            if let Ok(status) = running.status()
                && status["state"] == state
            {
                return running;
            }
            let over = running.child.as_mut().unwrap().try_wait().unwrap().is_some();
            if over || Instant::now() > deadline {
                panic!("not {state}: {:?}", running.end());
            }
            thread::sleep(Duration::from_millis(20));
        }
    }

    fn status(&self) -> Result<Value, String> {
        let (code, out, err) =
            run(&["status".as_ref(), "--json".as_ref(), "--state-dir".as_ref(), self.state_dir.as_os_str()]);
        if code == 0 { Ok(serde_json::from_str(&out).unwrap()) } else { Err(err) }
    }

    fn pid(&self) -> u32 {
        self.child.as_ref().unwrap().id()
    }

    fn signal(&self, signal: Signal) {
        kill_process(Pid::from_raw(i32::try_from(self.pid()).unwrap()).unwrap(), signal).unwrap();
    }

    /// Waits for its end; a program that does not end is killed.
    fn end(&mut self) -> (i32, String, String) {
        let mut child = self.child.take().unwrap();
        let deadline = Instant::now() + LIMIT;
        while child.try_wait().unwrap().is_none() {
            if Instant::now() > deadline {
                child.kill().unwrap();
            }
            thread::sleep(Duration::from_millis(10));
        }
        outcome(child.wait_with_output().unwrap())
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

#[test]
fn check_accepts_the_example() {
    let example = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../examples/two-hosts.toml");
    let (code, out, err) = run(&["check".as_ref(), example.as_os_str()]);
    assert_eq!((code, err.as_str()), (0, ""), "{out}{err}");
    assert!(out.contains("two-hosts.toml is valid\n  name         web\n  guest        qemu\n"), "{out}");
    assert!(out.contains("  network      userspace (net0)\n  disk         block-remus (disk0)\n"), "{out}");
}

#[test]
fn check_reports_every_problem_and_exits_with_2() {
    let dir = tempfile::tempdir().unwrap();
    let file = config(&dir);
    let text = fs::read_to_string(&file).unwrap().replace("listen", "listn").replace("'qemu'", "'qemo'");
    fs::write(&file, text).unwrap();
    let (code, out, err) = run(&["check".as_ref(), file.as_os_str()]);
    assert_eq!((code, out.as_str()), (2, ""));
    for part in [
        "error: unknown guest plugin `qemo`",
        "web.toml:3:10",
        "did you mean `qemu`?",
        "error: unknown key `listn`",
        "web.toml:7:1",
        "did you mean `listen`?",
        "web.toml is not valid: 2 problems",
    ] {
        assert!(err.contains(part), "{part}:\n{err}");
    }
}

#[test]
fn a_missing_configuration_is_the_same_error_everywhere() {
    let dir = tempfile::tempdir().unwrap();
    let file = path(&dir, "none.toml");
    let wanted = format!("error: There is no configuration file {}\n", file.display());
    for subcommand in ["check", "protect", "standby", "status", "stop", "handover"] {
        let (code, out, err) = run(&[subcommand.as_ref(), file.as_os_str()]);
        assert_eq!((code, out.as_str(), err.as_str()), (2, "", wanted.as_str()), "{subcommand}");
    }
    let (code, _, err) = run(&["check".as_ref(), dir.path().as_os_str()]);
    assert_eq!(code, 2);
    assert!(err.contains("is a directory"), "{err}");
}

#[test]
fn wrong_usage_exits_with_64_and_help_with_0() {
    assert_eq!(run(&["chekc"]).0, 64);
    assert_eq!(run(&["check"]).0, 64);
    assert_eq!(run(&["stop"]).0, 64);
    assert_eq!(run(&["handover"]).0, 64);
    assert_eq!(run(&["status", "web.toml", "--state-dir", "x"]).0, 64);
    let (code, out, _) = run(&["--help"]);
    assert_eq!(code, 0);
    assert!(out.contains("Exit codes:\n") && out.contains("64  wrong usage"), "{out}");
    assert_eq!(run(&["--version"]).0, 0);
}

#[test]
fn a_file_that_is_no_plugin_is_told_apart() {
    let dir = TempDir::new().unwrap();
    let file = path(&dir, "net.so");
    fs::write(&file, "not a shared object").unwrap();
    let (code, out, err) = run(&["plugins".as_ref(), "inspect".as_ref(), file.as_os_str()]);
    assert_eq!((code, out.as_str()), (1, ""), "{err}");
    assert!(err.contains("net.so is not a shared object"), "{err}");
    let web = config(&dir);
    let text = fs::read_to_string(&web).unwrap();
    fs::write(&web, format!("{text}[plugins]\nload = ['absent.so']\n")).unwrap();
    for command in ["check", "plugins"] {
        let (code, _, err) = run(&[command.as_ref(), web.as_os_str()]);
        assert_eq!(code, 2, "{err}");
        let line = text.lines().count() + 2;
        assert!(err.contains("there is no file") && err.contains(&format!("web.toml:{line}:9")), "{err}");
    }
}

#[test]
fn plugins_are_listed_for_people_and_programs() {
    let (code, out, _) = run(&["plugins", "--json"]);
    assert_eq!(code, 0);
    let plugins: Vec<Value> = out.lines().map(|l| serde_json::from_str(l).unwrap()).collect();
    let qemu =
        plugins.iter().find(|p| p["kind"] == "guest" && p["name"] == "qemu").expect("qemu is built in");
    assert_eq!(qemu["origin"], "built in");
    assert!(qemu["version"].is_string() && qemu["summary"].is_string());
    let (code, table, _) = run(&["plugins"]);
    assert_eq!(code, 0);
    assert_eq!(table.lines().count(), plugins.len() + 1);
}

#[test]
fn the_programs_own_plugins_can_be_left_out() {
    let dir = TempDir::new().unwrap();
    let file = config(&dir);
    let text = fs::read_to_string(&file).unwrap();
    fs::write(&file, format!("plugins = {{ built_in = false }}\n{text}")).unwrap();
    let (code, _, told) = run(&["check".as_ref(), file.as_os_str()]);
    assert_eq!(code, 2);
    assert!(told.contains("unknown guest plugin `qemu`") && told.contains("has no guest plugin"), "{told}");
}

#[test]
fn the_schema_is_for_all_plugins_or_one() {
    let json = |args: &[&str]| serde_json::from_str::<Value>(&run(args).1).unwrap();
    assert!(json(&["schema"])["properties"]["guest"]["oneOf"].is_array());
    assert_eq!(json(&["schema", "policy/fixed"])["properties"]["plugin"]["const"], "fixed");
    let (code, _, told) = run(&["schema", "fixd"]);
    assert!(code == 64 && told.contains("policy/fixed"), "{code} {told}");
}

/// The recorded guest that comes with the sources.
#[test]
fn the_shipped_trace_is_replayed() {
    let trace = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../examples/redis-set.trace");
    let dir = TempDir::new().unwrap();
    let file = path(&dir, "strategies.toml");
    fs::write(
        &file,
        format!("trace = {trace:?}\n[[policy]]\ninterval = '25ms'\nplugin = 'fixed'\n[[policy]]\nplugin = 'fixed'\ninterval = '1s'"),
    )
    .unwrap();
    let (code, rows, told) = run(&["replay".as_ref(), file.as_os_str(), "--json".as_ref()]);
    assert_eq!(code, 0, "{told}");
    let rows: Vec<Value> = rows.lines().map(|row| serde_json::from_str(row).unwrap()).collect();
    let [short, long] = &rows[..] else { panic!("{rows:?}") };
    assert_eq!((&short["recorded_epochs"], &long["recorded_epochs"]), (&100.into(), &100.into()));
    assert!(
        short["pages"].as_u64() > long["pages"].as_u64() && short["pages"].as_u64() > Some(5000),
        "{rows:?}"
    );
    assert_eq!(long["epochs"], 3, "{rows:?}");
}

#[test]
fn asking_where_nothing_runs_exits_with_3() {
    let dir = tempfile::tempdir().unwrap();
    for subcommand in ["status", "stop", "handover"] {
        let (code, out, err) = run(&[subcommand.as_ref(), "--state-dir".as_ref(), dir.path().as_os_str()]);
        assert_eq!((code, out.as_str()), (3, ""));
        assert!(
            err.contains("error: Nothing is running") && err.contains(dir.path().to_str().unwrap()),
            "{err}"
        );
    }
}

#[test]
fn a_standby_answers_refuses_a_second_one_and_stops() {
    let dir = tempfile::tempdir().unwrap();
    let (config, state_dir) = (config(&dir), path(&dir, "standby"));
    let mut first = Running::start("standby", &config, state_dir.clone(), "waiting");
    let status = first.status().unwrap();
    assert_eq!((&status["guest"], &status["side"]), (&"web".into(), &"standby".into()));
    let (_, table, _) = run(&["status".as_ref(), "--state-dir".as_ref(), state_dir.as_os_str()]);
    assert!(table.starts_with("web, standby: waiting\n"), "{table}");

    let again = ["standby".as_ref(), config.as_os_str(), "--state-dir".as_ref(), state_dir.as_os_str()];
    let (code, _, err) = run(&again);
    assert_eq!(code, 1);
    assert!(err.contains(&format!("Already running for this guest: process {}", first.pid())), "{err}");

    let (code, out, err) = run(&["stop".as_ref(), "--state-dir".as_ref(), state_dir.as_os_str()]);
    assert_eq!((code, out.as_str()), (0, "Protection has ended.\n"), "{err}");
    let (code, _, err) = first.end();
    assert_eq!(code, 0);
    assert!(
        err.contains("waiting: for a primary\n") && err.ends_with("Ended; no guest runs here.\n"),
        "{err}"
    );
}

#[test]
fn a_standby_ends_on_signals_and_what_a_killed_one_leaves_is_no_obstacle() {
    let dir = tempfile::tempdir().unwrap();
    let (config, state_dir) = (config(&dir), path(&dir, "standby"));
    let mut killed = Running::start("standby", &config, state_dir.clone(), "waiting");
    killed.signal(Signal::KILL);
    killed.end();
    assert!(state_dir.join("admin.sock").exists());
    for signal in [Signal::INT, Signal::TERM] {
        let mut standby = Running::start("standby", &config, state_dir.clone(), "waiting");
        standby.signal(Signal::HUP);
        assert_eq!(standby.status().unwrap()["state"], "waiting", "a lost terminal changes nothing");
        standby.signal(signal);
        let (code, _, err) = standby.end();
        assert_eq!(code, 0, "{signal:?}: {err}");
    }
}

#[test]
fn what_a_killed_program_left_is_reclaimed() {
    let dir = tempfile::tempdir().unwrap();
    let (config, state_dir) = (config(&dir), path(&dir, "state"));
    let reclaim = |more: &[&str]| {
        let args = ["reclaim".as_ref(), config.as_os_str(), "--state-dir".as_ref(), state_dir.as_os_str()];
        run(&args.into_iter().chain(more.iter().map(OsStr::new)).collect::<Vec<_>>())
    };
    let mut running = Running::start("standby", &config, state_dir.clone(), "waiting");
    let (code, _, err) = reclaim(&[]);
    assert_eq!(code, 1, "what runs is left alone");
    assert!(err.contains(&format!("process {}", running.pid())), "{err}");
    running.signal(Signal::KILL);
    running.end();

    // As if it had been a primary: the arbiter, a directory, has not been asked about the session yet.
    fs::write(state_dir.join("session"), "00112233445566778899aabbccddeeff\n").unwrap();
    let (code, out, err) = reclaim(&["--json"]);
    assert_eq!(code, 0, "{err}");
    let found: Value = serde_json::from_str(&out).unwrap();
    assert_eq!(found["sockets"], serde_json::json!([state_dir.join("admin.sock")]));
    assert_eq!(found["session"], serde_json::json!({ "ours": "00112233445566778899aabbccddeeff" }));
    assert!(!state_dir.join("session").exists() && !state_dir.join("admin.sock").exists());
    let (code, out, _) = reclaim(&[]);
    assert_eq!(code, 0);
    assert!(out.starts_with("web, ") && out.ends_with("  nothing was left behind\n"), "{out}");

    fs::write(state_dir.join("session"), "nonsense").unwrap();
    let (code, out, _) = reclaim(&[]);
    assert_eq!(code, 1);
    assert!(out.contains("is not settled") && out.contains("does not hold a session id"), "{out}");
}

#[test]
fn a_primary_without_a_standby_ends_on_the_first_interrupt() {
    let dir = tempfile::tempdir().unwrap();
    let config = config(&dir);
    let mut primary = Running::start("protect", &config, path(&dir, "primary"), "connecting");
    primary.signal(Signal::INT);
    let (code, _, err) = primary.end();
    assert_eq!(code, 0, "{err}");
    assert!(err.contains("connecting: waiting for the standby\n"), "{err}");
    assert!(err.ends_with("Ended; no guest runs here.\n"), "{err}");
}

#[test]
fn the_default_state_directory_is_found_by_name() {
    let dir = tempfile::tempdir().unwrap();
    let config = config(&dir);
    let name = format!("test-{}", std::process::id());
    fs::write(&config, fs::read_to_string(&config).unwrap().replace("'web'", &format!("'{name}'"))).unwrap();
    let root = rustix::process::geteuid().is_root();
    let base = if root { PathBuf::from("/var/lib/aventine") } else { path(&dir, "aventine") };
    let with_env = |args: &[&OsStr]| {
        let mut command = command(args);
        command.env("XDG_STATE_HOME", dir.path());
        command
    };
    let child = with_env(&["standby".as_ref(), config.as_os_str()])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let standby = Running { child: Some(child), state_dir: base.join(&name) };
    let deadline = Instant::now() + LIMIT;
    let status = || outcome(with_env(&["status".as_ref(), config.as_os_str()]).output().unwrap());
    while status().0 != 0 {
        assert!(Instant::now() < deadline, "status does not find the standby: {:?}", status());
        thread::sleep(Duration::from_millis(20));
    }
    let (code, all, err) = outcome(with_env(&["status".as_ref()]).output().unwrap());
    assert_eq!(code, 0, "{err}");
    assert!(all.contains(&format!("{name}, standby: ")), "{all}");
    let (code, _, err) = outcome(with_env(&["handover".as_ref(), config.as_os_str()]).output().unwrap());
    assert_eq!(code, 1);
    assert!(err.contains("no guest runs here: hand it over on the host that runs it"), "{err}");
    let (code, _, err) = outcome(with_env(&["stop".as_ref(), config.as_os_str()]).output().unwrap());
    assert_eq!(code, 0, "{err}");
    drop(standby);
    fs::remove_dir_all(base.join(&name)).unwrap();
}

#[test]
fn disks_are_measured_where_the_user_says_and_overwritten_only_then() {
    let dir = tempfile::tempdir().unwrap();
    let [here, there, export] = ["here.img", "there.img", "export.img"].map(|name| path(&dir, name));
    for image in [&here, &there, &export] {
        fs::File::create(image).unwrap().set_len(16 << 20).unwrap();
    }
    let table = |image: &Path| format!("image = '{}'", image.display());
    let (here, there, export) = (table(&here), table(&there), export.display().to_string());
    let bench = ["bench", "disk", "--frontend", "nbd", "--json"];
    let disks = ["--primary-disk", &here, "--standby-disk", &there, "--export-disk", &export];
    let refused = |more: &[&str], code, says: &str| {
        let (exit, _, said) = run(&[&bench[..], more].concat());
        assert!(exit == code && said.contains(says), "{more:?}: {exit}, {said}");
    };
    let block = ["--plugin", "block-remus"];
    refused(&["--plugin", "drbd"], 1, "--primary-disk");
    refused(&[&block[..], &disks[..2]].concat(), 64, "--standby-disk");
    refused(&disks, 64, "--plugin");
    refused(&[&block[..], &disks].concat(), 64, "add --overwrite");
    refused(&[&block[..], &["--plugin", "drbd", "--overwrite"], &disks].concat(), 64, "one --plugin");
    refused(&["--load", "/nowhere/at/all.so"], 1, "/nowhere/at/all.so");
    refused(&["--seconds", "0"], 64, "from 0.01 to 3600");
    assert!(fs::read(&export).unwrap().iter().all(|byte| *byte == 0), "it was overwritten");

    let (exit, figures, said) =
        run(&[&bench[..], &block, &disks, &["--overwrite", "--seconds", "0.01"]].concat());
    assert_eq!(exit, 0, "{said}");
    let figures: Value = serde_json::from_str(&figures).unwrap();
    let loads = figures["loads"].as_array().unwrap();
    assert_eq!(loads.len(), 8);
    for load in loads {
        assert!(load["ratio"].as_f64().unwrap() > 0.0 && load["copy"].is_null(), "{load}");
    }
}
