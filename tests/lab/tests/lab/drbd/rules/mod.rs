//! The SDK's rules of a disk, on DRBD itself: the suite is here, each side is a process on a lab host of its own.
//!
//! ```text
//!  suite ─ here::Far ══ calls, by the agent's port ══ there ─ the plugin's disk ─ /dev/drbd0     one for each side
//!    └ its channel: the disks' records come here and go from here
//! ```

mod call;
mod here;
mod there;
mod verbs;

use super::configure;
use crate::lab;
use crate::nested::{given, ok};
use aventine_api::{Disk, Host, Kind, PluginEntry, PluginError, Side};
use aventine_conformance::disk::{Difference, DiskBench, rules};
use aventine_conformance::form::{Form, Native};
use aventine_disk_drbd as _;
use aventine_lab::Stream;
use aventine_registry::Trust;
use call::Peer;
use here::{Far, Reached};
use std::cell::Cell;
use std::io::{self, BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::Command;
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

/// Bytes of the file below a resource; a resource has less.
const BELOW: &str = "32M";
const FILE: &str = "/run/disk";

fn entry(form: &str) -> &'static PluginEntry {
    let native = Native::entry(Kind::Disk, "drbd");
    match form {
        "adapted" => Box::leak(Box::new(aventine_abi::adapted(native).unwrap())),
        "loaded" => {
            // Where cargo puts examples: beside the directory of this test.
            let own = std::env::current_exe().unwrap();
            let file = own.ancestors().nth(2).unwrap().join("examples/libaventine_disk_drbd.so");
            aventine_registry::inspect(&file, Trust::OwnersOnly).unwrap().1[0]
        }
        _ => native,
    }
}

#[test]
#[ignore = "a side of the other tests, on a lab host"]
fn native_side() {
    there::serve(entry("native"));
}

#[test]
#[ignore = "a side of the other tests, on a lab host"]
fn adapted_side() {
    there::serve(entry("adapted"));
}

#[test]
#[ignore = "a side of the other tests, on a lab host"]
fn loaded_side() {
    there::serve(entry("loaded"));
}

/// A process's standard input.
struct Input(aventine_lab::Input<'static>);

impl Write for Input {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.write(bytes).map_err(io::Error::other)?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A process on a lab host that has a side's disk.
struct There {
    pid: u32,
    peer: Arc<Peer>,
    reached: Arc<Reached>,
}

impl There {
    fn start(host: &'static aventine_lab::Host, form: &str) -> There {
        let name = format!("drbd::rules::{form}_side");
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["--exact", &name, "--ignored", "--nocapture", "--test-threads=1"]);
        let process = host.spawn(&command).unwrap();
        let peer = Peer::new(Input(process.input()));
        let (mut to, from) = UnixStream::pair().unwrap();
        thread::spawn(move || {
            // It ends with its host, or when nobody reads any more.
            let _ = process.follow(|stream, bytes| match stream {
                Stream::Output => drop(to.write_all(bytes)),
                Stream::Errors => eprint!("{}", String::from_utf8_lossy(bytes)),
            });
        });
        let mut from = BufReader::new(from);
        let pid = loop {
            let mut line = String::new();
            assert_ne!(from.read_line(&mut line).unwrap(), 0, "the process that has a side's disk ended");
            if let Some(pid) = line.trim().strip_prefix("pid ").and_then(|l| l.strip_suffix(" here")) {
                break pid.parse().unwrap();
            }
        };
        let reached = Arc::new(Reached::default());
        let (served, reaches) = (Arc::clone(&peer), Arc::clone(&reached));
        thread::spawn(move || served.serve(from, move |call| reaches.act(&call)));
        There { pid, peer, reached }
    }
}

/// The two lab hosts.
struct Hosts {
    hosts: &'static [aventine_lab::Host],
    form: &'static str,
    there: Mutex<Vec<There>>,
}

thread_local! {
    /// Of the test that runs on this thread: they die with it.
    static HOSTS: Cell<Option<&'static Hosts>> = const { Cell::new(None) };
}

impl Hosts {
    fn start(form: &'static str) -> &'static Hosts {
        let hosts = Vec::leak(lab(2).hosts);
        for host in &*hosts {
            configure(host, 'C', "/dev/loop0", 1);
            // All of the copy at once.
            ok(host, "sed -i 's/^  disk {/& resync-rate 100M; c-plan-ahead 0;/' /etc/drbd.conf");
            ok(host, &format!("truncate -s {BELOW} {FILE}; losetup /dev/loop0 {FILE}"));
        }
        let started = Hosts { hosts, form, there: Mutex::default() };
        Box::leak(Box::new(started))
    }

    fn start_sides(&self) {
        *self.there.lock().unwrap() = self.hosts.iter().map(|host| There::start(host, self.form)).collect();
    }

    /// The primary's contents on both sides of a resource that is in order and has this size. Many times faster than a new one.
    fn refill(&self, contents: &[u8]) -> bool {
        let [first, _] = self.hosts else { unreachable!() };
        let (sectors, file) = (contents.len() / 512, "/run/contents");
        first.put(Path::new(file), contents, 0o600).unwrap();
        let script = format!(
            "[ $(cat /sys/class/block/drbd0/size) = {sectors} ]
             grep -q 'cs:Connected ro:Secondary/Secondary ds:UpToDate/UpToDate C' /proc/drbd
             drbdsetup primary 0; dd if={file} of=/dev/drbd0 bs=1M oflag=direct 2>/dev/null; drbdsetup secondary 0"
        );
        first.run(Command::new("sh").args(["-e", "-c", &script])).unwrap().status.success()
    }

    /// A new resource with these contents on both sides; the primary's are being copied.
    fn reset(&self, contents: [&[u8]; 2]) {
        let sectors = contents[0].len() / 512;
        thread::scope(|scope| {
            for (host, contents) in self.hosts.iter().zip(contents) {
                scope.spawn(move || {
                    host.put(Path::new("/run/contents"), contents, 0o600).unwrap();
                    ok(
                        host,
                        &format!(
                            "drbdadm down r0 2>/dev/null || true
                             sed -i 's/ size [^;]*;/ size {sectors}s;/' /etc/drbd.conf
                             cat /run/contents 1<>{FILE}
                             drbdadm create-md --force r0 >/dev/null 2>&1; drbdadm up r0"
                        ),
                    );
                });
            }
        });
        super::await_proc(&self.hosts[0], "cs:Connected");
        ok(&self.hosts[0], "drbdadm primary --force r0; drbdadm secondary r0");
    }
}

/// Both sides of a resource.
struct Sides(&'static Hosts);

impl DiskBench for Sides {
    const PATIENCE: Duration = Duration::from_secs(60);
    const DIFFERENCES: &'static [Difference] = &[
        Difference::ClosedStandby,
        Difference::AppliedBelow,
        Difference::CommittedOnly,
        Difference::OneSize,
    ];
    const GRAIN: usize = 4096;
    const RUNS: u64 = 2;
    const FAR: bool = true;

    fn new(primary: &[u8], standby: Option<&[u8]>) -> Self {
        let sides = Sides::at("");
        let zeroes = vec![0; primary.len()];
        match standby {
            None if sides.0.refill(primary) => {}
            other => sides.0.reset([primary, other.unwrap_or(&zeroes)]),
        }
        sides
    }

    fn place(&self) -> String {
        String::new()
    }

    fn at(_: &str) -> Self {
        Sides(HOSTS.get().expect("this thread has hosts"))
    }

    fn make(&self, side: Side, host: Arc<dyn Host>) -> Result<Box<dyn Disk>, PluginError> {
        let there = self.0.there.lock().unwrap();
        let There { peer, reached, .. } = &there[usize::from(side == Side::Standby)];
        Ok(Box::new(Far::make(Arc::clone(peer), Arc::clone(reached), side, host)?))
    }

    /// A Primary's writes may be on their way to what is below its device.
    fn image(&self, side: Side) -> Vec<u8> {
        let host = &self.0.hosts[usize::from(side == Side::Standby)];
        let line = format!(
            "size=$(($(cat /sys/class/block/drbd0/size) * 512)); file={FILE}
             if grep -q ro:Primary /proc/drbd; then file=/dev/drbd0; fi; head -c $size $file"
        );
        let output = host.run(Command::new("sh").args(["-c", &line])).unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        output.stdout
    }

    fn crash(&self) {
        for (host, there) in self.0.hosts.iter().zip(self.0.there.lock().unwrap().drain(..)) {
            ok(
                host,
                &format!(
                    "kill -9 {}; while kill -0 {} 2>/dev/null; do sleep 0.05; done",
                    there.pid, there.pid
                ),
            );
        }
        self.0.start_sides();
    }
}

fn every_rule_holds(form: &'static str) {
    let hosts = Hosts::start(form);
    hosts.reset([&[0; 4096 * 256], &[0; 4096 * 256]]);
    hosts.start_sides();
    HOSTS.set(Some(hosts));
    for rule in rules::<Sides>() {
        println!("{}", rule.name);
        rule.check(module_path!()).unwrap_or_else(|violation| panic!("{violation}"));
    }
}

#[test]
#[ignore = "minutes long, and the shared object's has the same rules: for changes of the plugin or of a rule"]
fn every_rule_holds_natively() {
    every_rule_holds("native");
}

#[test]
#[ignore = "minutes long, and the shared object's has the same rules: for changes of the plugin or of a rule"]
fn every_rule_holds_through_the_adapters() {
    every_rule_holds("adapted");
}

#[test]
fn every_rule_holds_of_the_shared_object() {
    given("AVENTINE_SHARED_OBJECTS");
    every_rule_holds("loaded");
}
