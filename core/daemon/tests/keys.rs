//! `aventine keys` from outside: what it makes, what it refuses, and that two hosts know each other by it.

use serde_json::Value;
use std::ffi::OsStr;
use std::fs::{self, Permissions};
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

/// Far longer than anything here takes.
const LIMIT: Duration = Duration::from_secs(60);

fn command<S: AsRef<OsStr>>(args: &[S]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_aventine"));
    command.args(args).env_remove("AVENTINE_LOG").env_remove("RUST_LOG");
    command
}

/// Exit code, stdout, stderr.
fn run<S: AsRef<OsStr>>(args: &[S]) -> (i32, String, String) {
    let output = command(args).output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (output.status.code().unwrap_or(-1), text(output.stdout), text(output.stderr))
}

fn keys(dir: &Path, more: &[&str]) -> (i32, String, String) {
    let mut args = vec![OsStr::new("keys"), dir.as_os_str()];
    args.extend(more.iter().map(OsStr::new));
    run(&args)
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o777
}

#[test]
fn keys_are_private_and_explained() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path().join("new/keys");
    let (code, out, err) = keys(&dir, &["--node", "alpha", "--node", "beta"]);
    assert_eq!((code, err.as_str()), (0, ""));
    assert_eq!(mode(&dir), 0o700);
    for secret in ["ca.key", "alpha.key", "beta.key"] {
        assert_eq!(mode(&dir.join(secret)), 0o600, "{secret}");
    }
    for line in [
        "tls = { ca = \"ca.pem\", cert = \"node.pem\", key = \"node.key\" }",
        "nodes = [\"alpha\", \"beta\"]",
        &format!("{} as node.key (mode 600)", dir.join("beta.key").display()),
        "valid for 3650 days",
    ] {
        assert!(out.contains(line), "{line}: {out}");
    }
}

#[test]
fn nothing_is_overwritten_and_a_ca_is_used_again() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path().join("keys");
    let (code, out, _) = keys(&dir, &["--node", "alpha", "--json", "--days", "30"]);
    assert_eq!(code, 0);
    let made: Value = serde_json::from_str(&out).unwrap();
    assert_eq!((&made["ca_made"], &made["days"]), (&Value::from(true), &Value::from(30)));
    assert_eq!(made["nodes"][0]["key"], dir.join("alpha.key").to_str().unwrap());
    let before = ["ca.pem", "ca.key", "alpha.pem", "alpha.key"].map(|f| fs::read(dir.join(f)).unwrap());

    let (code, out, err) = keys(&dir, &["--node", "beta", "--node", "alpha"]);
    assert_eq!((code, out.as_str()), (1, ""));
    assert!(err.contains("alpha.pem exists already and nothing is overwritten"), "{err}");
    assert!(!dir.join("beta.pem").exists(), "all or nothing");
    let (code, out, _) = keys(&dir, &["--node", "beta", "--json"]);
    assert_eq!(code, 0);
    assert_eq!(serde_json::from_str::<Value>(&out).unwrap()["ca_made"], false);
    let after = ["ca.pem", "ca.key", "alpha.pem", "alpha.key"].map(|f| fs::read(dir.join(f)).unwrap());
    assert!(before == after);
}

#[test]
fn what_is_wrong_is_said() {
    let dir = tempfile::tempdir().unwrap();
    let fresh = dir.path().join("keys");
    for names in [&["--node", "../x"][..], &["--node", "ca"], &["--node", "a", "--node", "A"], &[]] {
        let (code, _, err) = keys(&fresh, names);
        assert_eq!(code, 64, "{names:?}: {err}");
    }
    assert!(!fresh.exists(), "a wrong command line leaves nothing");
    let open = dir.path().join("open");
    fs::create_dir(&open).unwrap();
    fs::set_permissions(&open, Permissions::from_mode(0o755)).unwrap();
    let (code, _, err) = keys(&open, &["--node", "a"]);
    assert!(code == 1 && err.contains("mode 755") && err.contains("chmod 700"), "{err}");

    assert_eq!(keys(&fresh, &["--node", "a"]).0, 0);
    let others = dir.path().join("others");
    assert_eq!(keys(&others, &["--node", "a"]).0, 0);
    fs::copy(others.join("ca.pem"), fresh.join("ca.pem")).unwrap();
    let (code, _, err) = keys(&fresh, &["--node", "b"]);
    assert!(code == 1 && err.contains("was not made by `aventine keys` from"), "{err}");
    fs::remove_file(fresh.join("ca.pem")).unwrap();
    let (code, _, err) = keys(&fresh, &["--node", "b"]);
    assert!(code == 1 && err.contains("a CA needs both"), "{err}");
    assert!(!fresh.join("b.key").exists());
}

/// A host: its configuration, and its keys beside it as the advice says.
fn host(dir: &Path, name: &str, keys: &Path, memory: &str, port: u16) -> PathBuf {
    let host = dir.join(name);
    fs::create_dir(&host).unwrap();
    fs::copy(keys.join("ca.pem"), host.join("ca.pem")).unwrap();
    fs::copy(keys.join(format!("{name}.pem")), host.join("node.pem")).unwrap();
    fs::copy(keys.join(format!("{name}.key")), host.join("node.key")).unwrap();
    let text = format!(
        "name = 'web'
[guest]
plugin = 'qemu'
command = ['qemu-system-x86_64', '-accel', 'tcg', '-m', '{memory}', '-nodefaults', '-display', 'none']
[transport]
plugin = 'tcp'
listen = '127.0.0.1:{port}'
peer = '127.0.0.1:{port}'
tls = {{ ca = 'ca.pem', cert = 'node.pem', key = 'node.key', nodes = ['alpha', 'beta'] }}
[arbiter]
plugin = 'shared-file'
path = '{}'
",
        dir.display()
    );
    let file = host.join("web.toml");
    fs::write(&file, text).unwrap();
    file
}

struct Standby(Child);

impl Drop for Standby {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Hosts whose keys fit speak with each other: far enough to find that their guests differ. Others do not.
#[test]
fn hosts_know_each_other_by_their_keys() {
    let dir = tempfile::tempdir().unwrap();
    let (ours, others) = (dir.path().join("ours"), dir.path().join("others"));
    assert_eq!(keys(&ours, &["--node", "alpha"]).0, 0);
    // The second node comes later, from the CA as it is on disk.
    assert_eq!(keys(&ours, &["--node", "beta", "--node", "gamma"]).0, 0);
    assert_eq!(keys(&others, &["--node", "stranger"]).0, 0);
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let standby = host(dir.path(), "beta", &ours, "64M", port);
    let state = |name: &str| dir.path().join(format!("state-{name}"));
    let start = |side: &str, config: &Path, name: &str| {
        let state = state(name);
        command(&[side.as_ref(), config.as_os_str(), "--state-dir".as_ref(), state.as_os_str()])
    };
    let child = start("standby", &standby, "beta").stdout(Stdio::null()).stderr(Stdio::null()).spawn();
    let mut child = Standby(child.unwrap());
    let deadline = Instant::now() + LIMIT;
    let waits = || run(&["status".as_ref(), "--state-dir".as_ref(), state("beta").as_os_str()]).1;
    while !waits().contains("waiting") {
        assert!(Instant::now() < deadline && child.0.try_wait().unwrap().is_none(), "no standby");
        thread::yield_now();
    }
    for (name, keys, code, what) in [
        ("stranger", &others, 1, "was not issued by the `ca` of this host's `tls`"),
        ("gamma", &ours, 1, "none of the names in `nodes`"),
        ("alpha", &ours, 5, "the two hosts are set up differently"),
    ] {
        let config = host(dir.path(), name, keys, "65M", port);
        let output = start("protect", &config, name).output().unwrap();
        let err = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(code), "{name}: {err}");
        assert!(err.contains(what), "{name}: {err}");
    }
}
