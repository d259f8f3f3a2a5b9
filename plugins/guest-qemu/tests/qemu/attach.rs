//! A VM that somebody else started, and that outlives whoever protects it.

use crate::lab::{
    Lab, Program, Replica, boot, boot_disk, command, counter, difference, make_guest, memory, next_event, ok,
    until, until_counting,
};
use aventine_api::{Attachments, DiskAttachment, ErrorCode, GuestEvent, NetAttachment, Side};
use rustix::process::{Pid, Signal};
use serde_json::{Value, json};
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

const RAM: [&str; 4] =
    ["-object", "memory-backend-memfd,id=ram,size=16M,share=on", "-machine", "pc,memory-backend=ram"];
const DISK: [&str; 2] = ["-drive", "file=boot.img,format=raw,if=virtio,readonly=on"];
/// Where the test that is its own controller finds the VM.
const VM: &str = "AVENTINE_TEST_VM";

/// A QEMU as a user would start it, with a monitor for Aventine (`vm.qmp`) and one for the test.
struct Vm {
    child: Child,
    dir: tempfile::TempDir,
    monitor: BufReader<UnixStream>,
}

impl Vm {
    fn start(program: Program, arguments: &[&str]) -> Vm {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("boot.img"), boot_disk(program)).unwrap();
        let line = command(&[&DISK, arguments].concat());
        let monitors = ["-qmp", "unix:test.qmp,server=on,wait=off", "-qmp", "unix:vm.qmp,server=on,wait=off"];
        let child = Command::new(&line[0])
            .args(&line[1..])
            .args(monitors)
            .current_dir(&dir)
            .stdin(Stdio::null())
            .spawn()
            .unwrap();
        let mut connected = None;
        until("a monitor", || {
            connected = UnixStream::connect(dir.path().join("test.qmp")).ok();
            connected.is_some() && dir.path().join("vm.qmp").exists()
        });
        let mut monitor = BufReader::new(connected.unwrap());
        monitor.read_line(&mut String::new()).unwrap();
        let mut vm = Vm { child, dir, monitor };
        vm.ask("qmp_capabilities", &json!({}));
        vm
    }

    fn ask(&mut self, command: &str, arguments: &Value) -> Value {
        let line = json!({ "execute": command, "arguments": arguments, "id": 1 });
        writeln!(self.monitor.get_mut(), "{line}").unwrap();
        loop {
            let mut line = String::new();
            assert_ne!(self.monitor.read_line(&mut line).unwrap(), 0, "the VM is gone");
            let mut answer: Value = serde_json::from_str(&line).unwrap();
            if answer["id"] == 1 {
                return answer["return"].take();
            }
        }
    }

    fn is_running(&mut self) -> bool {
        self.ask("query-status", &json!({}))["status"] == "running"
    }

    /// The first counter of the counting guest.
    fn counter(&mut self) -> String {
        let text = self.ask("human-monitor-command", &json!({ "command-line": "xp /1wx 0x10000" }));
        text.as_str().unwrap().to_owned()
    }

    #[track_caller]
    fn assert_runs_on(&mut self) {
        until("the VM runs", || self.is_running());
        let before = self.counter();
        until("the guest counts", || self.counter() != before);
        assert!(self.child.try_wait().unwrap().is_none());
    }

    fn protector(&self) -> Lab {
        let dir = tempfile::tempdir().unwrap();
        Lab { guest: make_guest(Side::Primary, &config(self.dir.path(), ""), dir.path()), dir }
    }
}

impl Drop for Vm {
    fn drop(&mut self) {
        let _gone = self.child.kill();
        let _gone = self.child.wait();
    }
}

fn config(vm: &Path, more: &str) -> String {
    let disk = format!("file={}/boot.img,format=raw,if=virtio,readonly=on", vm.display());
    let line = command(&["-drive", &disk]);
    format!("command = {line:?}\nattach = {{ qmp = {:?}{more} }}", vm.join("vm.qmp"))
}

/// Every byte that the running VM changes shows in its dirty pages, and a standby comes to life from them.
#[test]
fn a_running_vm_is_protected_where_it_runs() {
    let mut vm = Vm::start(Program::Count, &RAM);
    let mut lab = vm.protector();
    ok(lab.start(&Attachments::default()));
    assert_eq!(lab.process(), Some(vm.child.id()));
    assert!(lab.outlives() && vm.is_running(), "attaching leaves it running");
    until_counting(&*lab);
    let mut replica = Replica::new(&*lab);
    replica.copy_all(&mut *lab);
    for round in 0..100 {
        ok(lab.resume());
        let before = counter(&*lab, 0);
        until("another round", || counter(&*lab, 0) != before);
        if round % 3 == 0 {
            replica.copy(&mut *lab);
        }
        replica.checkpoint(&mut *lab);
        assert_eq!(difference(&replica.image, memory(&*lab)), None, "round {round}");
    }
    assert_eq!(replica.checkpoint(&mut *lab), 0);
    assert!(!vm.is_running(), "paused by the last checkpoint");

    let mut standby = boot(Side::Standby, Program::Count);
    crate::standby::fill(&standby, &replica.image);
    ok(standby.activate(&replica.state));
    let at_checkpoint = u32::from_le_bytes(replica.image[0x10000..0x10004].try_into().unwrap());
    until("the standby counts", || counter(&*standby, 0) > at_checkpoint + 20);
    ok(standby.kill());

    drop(lab);
    vm.assert_runs_on();
    // And again, by another one; this one ends it.
    let mut lab = vm.protector();
    ok(lab.start(&Attachments::default()));
    ok(lab.pause());
    ok(lab.kill());
    assert!(vm.child.try_wait().unwrap().is_some(), "on return nothing of it runs");
    assert_eq!(ok(lab.poll()), None);
}

#[test]
fn a_vm_that_ends_is_told_apart_from_one_that_is_lost() {
    for more in ["-no-shutdown", "-no-reboot"] {
        let vm = Vm::start(Program::ShutDown, &[&RAM[..], &["-S", more]].concat());
        let mut lab = vm.protector();
        ok(lab.start(&Attachments::default()));
        ok(lab.resume());
        assert_eq!(next_event(&mut *lab), GuestEvent::ShutDown, "{more}");
        assert_eq!(ok(lab.poll()), None);
    }
    let mut vm = Vm::start(Program::Count, &RAM);
    let mut lab = vm.protector();
    ok(lab.start(&Attachments::default()));
    vm.child.kill().unwrap();
    assert!(matches!(next_event(&mut *lab), GuestEvent::Lost { .. }));
    assert_eq!(lab.pause().unwrap_err().code(), ErrorCode::PeerLost);
}

/// `kill -9` of whoever protects the VM, at any moment: the VM runs on.
#[test]
fn a_vm_outlives_its_protector_killed_at_any_moment() {
    let mut vm = Vm::start(Program::Count, &RAM);
    let mut seed = 0x2545_f491_4f6c_dd1d_u64;
    // From the protector's start to its hundredth epoch.
    let mut longest = Duration::ZERO;
    for round in 0..40 {
        let start = Instant::now();
        let mut controller = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "attach::protects_until_it_is_killed", "--ignored", "--nocapture"])
            .env(VM, vm.dir.path())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        if round == 0 {
            let mut lines = BufReader::new(controller.stdout.take().unwrap()).lines();
            assert!(lines.any(|line| line.unwrap().contains("hundred epochs")));
            longest = start.elapsed();
        } else {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            std::thread::sleep(longest * (seed >> 40) as u32 / (1 << 24));
        }
        let pid = Pid::from_child(&controller);
        rustix::process::kill_process(pid, Signal::KILL).unwrap();
        controller.wait().unwrap();
        vm.assert_runs_on();
    }
    let mut lab = vm.protector();
    ok(lab.start(&Attachments::default()));
    until_counting(&*lab);
}

#[test]
#[ignore = "the protector of another test, which kills it"]
fn protects_until_it_is_killed() {
    let vm = PathBuf::from(std::env::var_os(VM).expect("this is started by another test"));
    let dir = tempfile::tempdir().unwrap();
    let mut lab = Lab { guest: make_guest(Side::Primary, &config(&vm, ""), dir.path()), dir };
    ok(lab.start(&Attachments::default()));
    let mut replica = Replica::new(&*lab);
    for epoch in 1.. {
        replica.checkpoint(&mut *lab);
        ok(lab.resume());
        if epoch == 100 {
            println!("hundred epochs");
        }
    }
}

#[test]
fn a_vm_that_cannot_be_protected_is_told_all_that_it_lacks() {
    let missing = tempfile::tempdir().unwrap();
    let mut guest = make_guest(Side::Primary, &config(missing.path(), ""), missing.path());
    assert_eq!(guest.start(&Attachments::default()).unwrap_err().code(), ErrorCode::Unavailable);

    let attachments = Attachments {
        networks: vec![("net0".into(), NetAttachment::Stream("/run/net0".into()))],
        disks: vec![("disk0".into(), DiskAttachment::Nbd("/run/disk0".into()))],
    };
    let private =
        ["-object", "memory-backend-ram,id=ram,size=32M", "-machine", "pc,memory-backend=ram", "-m", "32M"];
    let cases: [(&[&str], &[&str]); 3] = [
        (&[], &["memory-backend-memfd,id=ram,size=16777216,share=on", "net0", "disk0"]),
        (&private, &["share=on", "33554432", "net0", "disk0"]),
        (&RAM, &["net0", "disk0"]),
    ];
    for (arguments, words) in cases {
        let mut vm = Vm::start(Program::Count, arguments);
        let mut lab = vm.protector();
        let error = lab.start(&attachments).unwrap_err();
        assert_eq!(error.code(), ErrorCode::Refused, "{}", error.chain());
        for word in words {
            assert!(error.chain().contains(word), "{word}: {}", error.chain());
        }
        drop(lab);
        vm.assert_runs_on();
    }

    let mut vm = Vm::start(Program::Count, &[&RAM[..], &["-device", "virtio-balloon-pci"]].concat());
    let error = vm.protector().start(&Attachments::default()).unwrap_err();
    assert!(error.chain().contains("virtio-balloon-pci"), "{}", error.chain());
    let dir = tempfile::tempdir().unwrap();
    let config = config(vm.dir.path(), &format!(", pid = {}", std::process::id()));
    let error = make_guest(Side::Primary, &config, dir.path()).start(&Attachments::default()).unwrap_err();
    assert!(error.chain().contains("set `pid`"), "{}", error.chain());
    vm.assert_runs_on();
}
