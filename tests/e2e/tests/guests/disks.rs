//! A host's disk fails while a guest is protected.
//!
//! The host's image is on a file system or a device of its own, in a mount namespace that goes with the test.

use crate::common::*;
use aventine_demo::lab::{Lab, Pair, Site};
use aventine_demo::network::Host;
use aventine_engine::Status;
use rustix::io::Errno;
use rustix::mount::{MountFlags, MountPropagationFlags, mount, mount_change, mount_remount};
use rustix::thread::{UnshareFlags, unshare_unsafe};
use std::ffi::CString;
use std::fs::{self, File};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

/// Bytes that the standby's file system has at first: fewer than the guest's workload writes.
const SMALL: u64 = 3 << 20;
/// As many as it needs.
const LARGE: u64 = 80 << 20;

/// What this thread and the processes that it starts mount from here on is theirs alone, and goes with them. `None`:
/// this user may not.
fn own_mounts() -> Option<()> {
    // SAFETY: only where this thread finds files changes, and it finds them where they were; descriptors stay shared.
    match unsafe { unshare_unsafe(UnshareFlags::NEWNS) } {
        Ok(()) => {}
        Err(Errno::PERM) => {
            assert!(std::env::var_os("CI").is_none(), "this needs root");
            eprintln!("not run: this needs root (`cargo xtask test` sees to that)");
            return None;
        }
        Err(error) => panic!("{error}"),
    }
    mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC).unwrap();
    Some(())
}

/// An empty directory for a host's file system.
fn mount_point(lab: &Lab) -> PathBuf {
    let point = lab.dir(Host::B, Site::FIRST).with_file_name("volume");
    fs::create_dir_all(&point).unwrap();
    point
}

/// A file as large as the guest's disk that takes no space yet.
fn make_image(lab: &Lab, path: &Path) {
    let disk = fs::metadata(lab.dir(Host::A, Site::FIRST).join("disk.img")).unwrap();
    File::create(path).unwrap().set_len(disk.len()).unwrap();
}

/// Makes something else a host's image.
fn use_image(lab: &Lab, host: Host, image: &Path) {
    let path = lab.dir(host, Site::FIRST).join("disk.img");
    fs::remove_file(&path).unwrap();
    symlink(image, path).unwrap();
}

fn memory_of(bytes: u64) -> CString {
    CString::new(format!("size={bytes}")).unwrap()
}

/// The guest writes until the standby cannot; answers what the primary says about it.
fn write_until_alone(pair: &Pair, inside: &mut Workload) -> Status {
    let end = Instant::now() + LIMIT;
    while Instant::now() < end {
        inside.ask("put", "done");
        let status = pair.primary.status().unwrap();
        if status.state == "unprotected" {
            return status;
        }
    }
    panic!("the standby took everything: {}", pair.standby.log())
}

/// How many verdicts the arbiter has given.
fn verdicts(lab: &Lab) -> usize {
    fs::read_dir(lab.dir(Host::B, Site::FIRST).join("arbiter")).unwrap().count()
}

/// What was never taken over is not taken for a guest's disk either.
fn assert_never_promoted(lab: &Lab, pair: &mut Pair, verdicts_before: usize) {
    assert_eq!(verdicts(lab), verdicts_before, "a side that has disarmed itself asks for nothing");
    assert!(!pair.standby.printed().contains("the guest runs here now"), "{}", pair.standby.log());
    pair.standby.kill_controller().unwrap();
    let started = lab.run(Host::B, Site::FIRST, &["protect", "demo.toml", "--state-dir", "other"]).unwrap();
    let said = String::from_utf8_lossy(&started.stderr);
    assert!(!started.status.success() && said.contains("between two epochs"), "{said}");
}

#[test]
fn a_full_disk_of_the_standby_costs_protection_and_nothing_else() {
    if own_mounts().is_none() {
        return;
    }
    let lab = lab("full");
    let point = mount_point(&lab);
    for and_then_the_primary in [false, true] {
        mount("volume", &point, "tmpfs", MountFlags::empty(), memory_of(SMALL).as_c_str()).unwrap();
        lab.prepare(Site::FIRST).unwrap();
        make_image(&lab, &point.join("disk.img"));
        use_image(&lab, Host::B, &point.join("disk.img"));
        let verdicts_before = verdicts(&lab);
        let mut pair = lab.launch(Site::FIRST).unwrap();
        let mut inside = Workload::connect(&lab);
        let load = load(&lab, Site::FIRST);
        let status = write_until_alone(&pair, &mut inside);
        if and_then_the_primary {
            pair.primary.kill(false).unwrap();
            let status = pair.standby.wait_for("giving up", LIMIT, |s| s.state == "waiting").unwrap();
            assert!(
                status.detail.contains("applying an epoch") && status.detail.contains("No space left"),
                "{status:?}"
            );
            assert_never_promoted(&lab, &mut pair, verdicts_before);
            break;
        }
        assert!(
            status.detail.contains("the standby failed") && status.detail.contains("No space left"),
            "{status:?}"
        );
        inside.ask("put", "done");
        load.wait_answers(SOME, LIMIT).unwrap();
        // The copy to the disk that is still full is tried again, and again does no harm. Which side is first to say
        // so depends on how far the copy comes.
        let failures = |pair: &Pair| {
            pair.primary.printed().matches("cannot protect the guest again yet").count()
                + pair.standby.printed().matches("the standby cannot go on").count()
        };
        let before = failures(&pair);
        wait_until("another try", || failures(&pair) > before);
        inside.ask("verify", "same");
        mount_remount(&point, MountFlags::empty(), memory_of(LARGE).as_c_str()).unwrap();
        pair.primary.wait_for("protection anew", LIMIT, |status| status.state == "protected").unwrap();
        inside.ask("put", "done");
        pair.fail_over(false).unwrap();
        inside.ask("verify", "same");
        assert_undisturbed(&finish(&lab, load));
    }
}

/// Whether there are loop devices for this user; then mounts are the test's own, too.
fn has_loop_devices() -> bool {
    // In a user namespace root is nobody special to them.
    let root =
        fs::read_to_string("/proc/self/uid_map").unwrap().split_whitespace().nth(2) == Some("4294967295");
    let there = root && rustix::process::geteuid().is_root() && fs::metadata("/dev/loop-control").is_ok();
    if !there {
        assert!(std::env::var_os("CI").is_none(), "this needs root and loop devices");
        eprintln!("not run: this needs root and loop devices");
    }
    there && own_mounts().is_some()
}

/// Runs a program to its end; answers what it printed.
fn run(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).output().unwrap();
    assert!(output.status.success(), "{program}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).trim().to_owned()
}

#[test]
fn a_failed_file_system_of_the_standby_costs_protection_and_nothing_else() {
    if !has_loop_devices() {
        return;
    }
    let lab = lab("readonly");
    let point = mount_point(&lab);
    let volume = point.with_extension("ext4");
    File::create(&volume).unwrap().set_len(LARGE).unwrap();
    let (device, on) = (volume.to_str().unwrap(), point.to_str().unwrap());
    run("mkfs.ext4", &["-q", "-F", "-O", "^has_journal", device]);
    run("mount", &["-o", "loop,errors=remount-ro", device, on]);
    lab.prepare(Site::FIRST).unwrap();
    make_image(&lab, &point.join("disk.img"));
    use_image(&lab, Host::B, &point.join("disk.img"));
    let mut pair = lab.launch(Site::FIRST).unwrap();
    let mut inside = Workload::connect(&lab);
    let load = load(&lab, Site::FIRST);
    inside.ask("put", "done");
    // As if the file system had found itself damaged: from here on it takes no write.
    fs::write(trigger_of(&point), "1").unwrap();
    let status = write_until_alone(&pair, &mut inside);
    assert!(
        status.detail.contains("the standby failed") && status.detail.contains("applying an epoch"),
        "{status:?}"
    );
    inside.ask("verify", "same");
    // Its image cannot even be opened now: the standby says so and ends.
    let ended = pair.standby.wait_end(LIMIT).unwrap();
    assert_eq!(ended.code(), Some(1), "{}", pair.standby.log());
    assert!(pair.standby.printed().contains("could not be opened"), "{}", pair.standby.log());
    run("umount", &[on]);
    run("mount", &["-o", "loop", device, on]);
    lab.restart_standby(&mut pair).unwrap();
    inside.ask("put", "done");
    pair.fail_over(false).unwrap();
    inside.ask("verify", "same");
    assert_undisturbed(&finish(&lab, load));
}

/// What makes the ext4 file system at `point` believe that it is damaged.
fn trigger_of(point: &Path) -> PathBuf {
    let mounts = fs::read_to_string("/proc/thread-self/mounts").unwrap();
    let line = mounts.lines().find(|line| line.split(' ').nth(1) == point.to_str()).unwrap();
    let device = line.split(' ').next().unwrap().trim_start_matches("/dev/");
    Path::new("/sys/fs/ext4").join(device).join("trigger_fs_error")
}

/// A loop device, given back at the end.
struct Loop(String);

impl Drop for Loop {
    fn drop(&mut self) {
        // With whoever still has it open it goes later.
        let _ = Command::new("losetup").args(["--detach", &self.0]).status();
    }
}

#[test]
fn a_device_of_the_standby_that_loses_writes_costs_protection_and_nothing_else() {
    if !has_loop_devices() {
        return;
    }
    let lab = lab("device");
    let point = mount_point(&lab);
    mount("volume", &point, "tmpfs", MountFlags::empty(), memory_of(SMALL).as_c_str()).unwrap();
    lab.prepare(Site::FIRST).unwrap();
    let volume = point.join("volume");
    make_image(&lab, &volume);
    let device = Loop(run("losetup", &["--find", "--show", volume.to_str().unwrap()]));
    use_image(&lab, Host::B, Path::new(&device.0));
    let mut pair = lab.launch(Site::FIRST).unwrap();
    let mut inside = Workload::connect(&lab);
    let load = load(&lab, Site::FIRST);
    // The kernel takes every write, and finds out later that the device does not.
    let status = write_until_alone(&pair, &mut inside);
    assert!(status.detail.contains("What was applied is lost"), "{status:?}");
    inside.ask("verify", "same");
    mount_remount(&point, MountFlags::empty(), memory_of(LARGE).as_c_str()).unwrap();
    // Protected with an image that is on stable storage: byte 10 of the metadata is its role. What the kernel took before
    // there was room may have cost another session.
    let metadata = pair.standby.dir().join("disk.img.aventine");
    let follows = || fs::read(&metadata).is_ok_and(|m| m[10] == 2);
    let anew = |status: &Status| status.state == "protected" && follows();
    pair.primary.wait_for("protection anew", LIMIT, anew).unwrap();
    inside.ask("put", "done");
    pair.fail_over(false).unwrap();
    inside.ask("verify", "same");
    assert_undisturbed(&finish(&lab, load));
    drop(pair);
}

#[test]
fn a_full_disk_of_the_primary_is_an_error_of_the_guests_disk_and_freezes_nobody() {
    if own_mounts().is_none() {
        return;
    }
    let lab = lab("full-primary");
    let point = mount_point(&lab);
    mount("volume", &point, "tmpfs", MountFlags::empty(), memory_of(SMALL).as_c_str()).unwrap();
    lab.prepare(Site::FIRST).unwrap();
    make_image(&lab, &point.join("disk.img"));
    use_image(&lab, Host::A, &point.join("disk.img"));
    let mut pair = lab.launch(Site::FIRST).unwrap();
    let mut inside = Workload::connect(&lab);
    let load = load(&lab, Site::FIRST);
    let end = Instant::now() + LIMIT;
    let refusal = loop {
        match inside.line("put") {
            line if line.starts_with("done") => assert!(Instant::now() < end, "the disk is never full"),
            line => break line,
        }
    };
    assert!(refusal.starts_with("failed"), "{refusal}");
    let alone = |status: &Status| status.state == "unprotected";
    let status = pair.primary.wait_for("going on alone", LIMIT, alone).unwrap();
    assert!(status.detail.contains("No space left"), "{status:?}");
    let status = pair.standby.wait_for("standing down", LIMIT, |status| status.state == "waiting").unwrap();
    assert!(status.detail.contains("the primary could not go on replicating"), "{status:?}");
    assert_undisturbed(&finish(&lab, load));
}
