//! The disk `drbd` on Debian's kernel: two hosts with a resource on a loop device each, and the plugin's two ends.
//!
//! ```text
//!  lab0: end ─ /dev/drbd0 ─ /dev/loop0 ══╦══ DRBD, port 7788 ══╦══ lab1: the same
//!                                        ╚══ channel, port 9000 ╝
//! ```
//! Each case compares the disk with a model of exactly the committed epochs.

mod bench;
mod ends;
mod guest;
mod rules;

use crate::lab;
use crate::nested::ok;
use aventine_lab::{Host, Lab, Process, packages};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};

/// DRBD's tools, unpacked.
fn tools() -> PathBuf {
    let cache = packages::cache().unwrap();
    let mut debs = packages::resolve(&cache, "linux-image-amd64", &[], &["drbd-utils"]).unwrap();
    debs.retain(|deb| deb.package == "drbd-utils");
    let home = cache.join(format!("drbd-{}", packages::hash(&debs)));
    let _lock = packages::lock(&cache, "drbd").unwrap();
    if !home.exists() {
        let new = cache.join("drbd-new");
        let _ = fs::remove_dir_all(&new);
        packages::unpack(&cache, &debs, &new).unwrap();
        fs::rename(&new, &home).unwrap();
    }
    home.join("root")
}

/// Gives a host DRBD, and a resource on the block device `disk`, of which it uses `megabytes`.
fn configure(host: &Host, protocol: char, disk: &str, megabytes: usize) {
    let configuration = format!(
        "global {{ usage-count no; }}
resource r0 {{
  net {{ protocol {protocol}; connect-int 1; ping-int 1; timeout 9; after-sb-1pri discard-secondary; }}
  disk {{ size {megabytes}M; }}
  device /dev/drbd0; disk {disk}; meta-disk internal;
  on lab0 {{ address 10.9.0.10:7788; }}
  on lab1 {{ address 10.9.0.11:7788; }}
}}
"
    );
    install(host, &configuration);
}

/// Gives a host DRBD with a configuration.
fn install(host: &Host, configuration: &str) {
    let root = tools();
    let root = root.display();
    host.put(Path::new("/etc/drbd.conf"), configuration.as_bytes(), 0o600).unwrap();
    ok(
        host,
        &format!(
            "cp -r {root}/sbin/. /sbin/; cp -r {root}/lib/. /lib/; mkdir -p /run/drbd /run/lock /var/lib/drbd
             modprobe -a loop drbd"
        ),
    );
}

/// Brings the resource up for the first time on both hosts, both sides up to date with zeroes.
fn create(hosts: &[Host]) {
    hosts[..2].iter().for_each(|host| ok(host, "drbdadm create-md --force r0; drbdadm up r0"));
    await_proc(&hosts[0], "cs:Connected");
    ok(&hosts[0], "drbdadm new-current-uuid --clear-bitmap r0/0");
    hosts[..2].iter().for_each(|host| await_proc(host, "ds:UpToDate/UpToDate"));
}

/// A resource that is gone with the host.
fn prepare(hosts: &[Host], protocol: char) {
    for host in hosts {
        configure(host, protocol, "/dev/loop0", 7);
        ok(host, "truncate -s 8M /run/disk; losetup /dev/loop0 /run/disk");
    }
    create(hosts);
}

fn await_proc(host: &Host, text: &str) {
    ok(
        host,
        &format!(
            "n=0; until grep -q '{text}' /proc/drbd; do n=$((n+1)); [ $n -lt 1200 ] || {{ cat /proc/drbd >&2; exit 1; }}; sleep 0.1; done"
        ),
    );
}

/// Starts an end of the disk.
fn end<'h>(host: &'h Host, name: &str) -> Process<'h> {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", &format!("drbd::ends::{name}"), "--ignored", "--nocapture", "--test-threads=1"]);
    let mut process = host.spawn(&command).unwrap();
    process.wait_for("here\n").unwrap();
    process
}

/// Has an end do something, and waits for that.
fn tell(end: &mut Process<'_>, line: &str) {
    static TOLD: AtomicUsize = AtomicUsize::new(0);
    // Its output is kept: an answer must not be taken for that of the same line before.
    let line = format!("{line} #{}", TOLD.fetch_add(1, Ordering::Relaxed));
    end.input().write(format!("{line}\n").as_bytes()).unwrap();
    end.wait_for(&format!("did {line}: ")).unwrap();
}

/// Two ends that replicate.
struct Ends<'h> {
    primary: Process<'h>,
    standby: Process<'h>,
}

impl<'h> Ends<'h> {
    fn start(primary: &'h Host, standby: &'h Host) -> Ends<'h> {
        let ends = Ends { standby: end(standby, "standby"), primary: end(primary, "primary") };
        ends.join(standby)
    }

    fn join(mut self, standby: &Host) -> Ends<'h> {
        self.standby.input().write(b"receive\n").unwrap();
        self.standby.wait_for("listening").unwrap();
        tell(&mut self.primary, &format!("replicate {}", standby.address()));
        self.standby.wait_for("did receive").unwrap();
        self
    }

    /// Writes those of `content`, and commits them as `epoch`.
    fn epoch(&mut self, epoch: u64, content: u64) {
        tell(&mut self.primary, &format!("write {content}"));
        tell(&mut self.primary, &format!("seal {epoch}"));
        tell(&mut self.standby, &format!("commit {epoch}"));
        tell(&mut self.primary, &format!("release {epoch}"));
    }
}

/// That an end's disk is that of these contents.
#[track_caller]
fn assert_end(end: &mut Process<'_>, size: u64, contents: &[u64]) {
    end.input().write(b"sum\n").unwrap();
    end.wait_for(&format!("did sum: {size} {}.", ends::sum(&ends::model(size, contents)))).unwrap();
}

fn size(host: &Host) -> u64 {
    let output = host.run(Command::new("cat").arg("/sys/class/block/drbd0/size")).unwrap();
    String::from_utf8(output.stdout).unwrap().trim().parse::<u64>().unwrap() * 512
}

/// What DRBD has on its disk.
fn below(host: &Host, size: u64) -> Vec<u8> {
    let line = format!("head -c {size} /run/disk");
    host.run(Command::new("sh").args(["-c", &line])).unwrap().stdout
}

/// The same where that is a disk of the machine's.
fn vda(host: &Host, size: u64) -> Vec<u8> {
    let line = format!("dd if=/dev/vda bs=4096 count={} iflag=direct", size / 4096);
    host.run(Command::new("sh").args(["-c", &line])).unwrap().stdout
}

fn assert_no_split_brain(host: &Host) {
    ok(host, "! dmesg | grep -i split-brain");
}

/// The primary's host loses its power in the middle of an epoch; then in the middle of what DRBD is given.
fn lose_the_primary(protocol: char, applying: bool) {
    let Lab { hosts } = lab(2);
    let [a, b] = hosts.as_slice() else { unreachable!() };
    prepare(&hosts, protocol);
    let size = size(a);
    let mut ends = Ends::start(a, b);
    ends.epoch(1, 1);
    ends.epoch(2, 2);
    let contents: &[u64] = if applying {
        tell(&mut ends.primary, "write 100");
        tell(&mut ends.primary, "seal 3");
        tell(&mut ends.standby, "commit 3");
        // Not waited for.
        ends.primary.input().write(b"release 3\n").unwrap();
        &[1, 2, 100]
    } else {
        tell(&mut ends.primary, "write 3");
        tell(&mut ends.primary, "seal 3");
        tell(&mut ends.primary, "write 4");
        &[1, 2]
    };
    a.kill();
    let last = contents.len();
    tell(&mut ends.standby, &format!("activate {last}"));
    assert_end(&mut ends.standby, size, contents);
    tell(&mut ends.standby, "write 7");
    assert_end(&mut ends.standby, size, &[contents, &[7]].concat());
}

#[test]
fn a_primary_lost_in_an_epoch_leaves_what_is_committed_with_protocol_c() {
    lose_the_primary('C', false);
}

#[test]
fn a_primary_lost_in_an_epoch_leaves_what_is_committed_with_protocol_a() {
    lose_the_primary('A', false);
}

#[test]
fn a_primary_lost_while_it_gives_drbd_an_epoch_leaves_all_of_it_with_protocol_c() {
    lose_the_primary('C', true);
}

#[test]
fn a_primary_lost_while_it_gives_drbd_an_epoch_leaves_all_of_it_with_protocol_a() {
    lose_the_primary('A', true);
}

#[test]
fn a_link_of_drbds_that_is_cut_and_comes_back_costs_no_epoch() {
    let Lab { hosts } = lab(2);
    let [a, b] = hosts.as_slice() else { unreachable!() };
    prepare(&hosts, 'C');
    let size = size(a);
    let mut ends = Ends::start(a, b);
    ends.epoch(1, 1);
    tell(&mut ends.standby, "holds-nothing");
    // A device that stands still is not waited for, and what was flushed is owed.
    ok(a, "drbdadm suspend-io r0");
    tell(&mut ends.primary, "write 2");
    tell(&mut ends.primary, "seal 2");
    tell(&mut ends.standby, "commit 2");
    tell(&mut ends.primary, "owes 2");
    tell(&mut ends.primary, "owes 2");
    ok(a, "drbdadm resume-io r0");
    tell(&mut ends.primary, "release 2");
    tell(&mut ends.standby, "holds-nothing");
    ok(a, "drbdadm disconnect r0");
    ends.epoch(3, 100);
    tell(&mut ends.standby, "holds-something");
    ok(a, "drbdadm connect r0");
    await_proc(a, "cs:Connected ro:Primary/Secondary ds:UpToDate/UpToDate");
    tell(&mut ends.standby, "holds-nothing");
    assert!(below(b, size) == ends::model(size, &[1, 2, 100]), "DRBD has not brought it across");
    ok(a, "drbdadm disconnect r0");
    ends.epoch(4, 4);
    tell(&mut ends.primary, "write 5");
    a.kill();
    tell(&mut ends.standby, "activate 4");
    assert_end(&mut ends.standby, size, &[1, 2, 100, 4]);
}

#[test]
fn controllers_that_are_killed_leave_two_equal_disks_of_committed_epochs() {
    let Lab { hosts } = lab(2);
    let [a, b] = hosts.as_slice() else { unreachable!() };
    prepare(&hosts, 'C');
    let size = size(a);
    let mut ends = Ends::start(a, b);
    ends.epoch(1, 1);
    ends.epoch(2, 2);
    tell(&mut ends.standby, "holds-nothing");
    tell(&mut ends.primary, "write 3");
    tell(&mut ends.primary, "seal 3");
    tell(&mut ends.primary, "write 4");
    ends.primary.kill().unwrap();
    ends.standby.kill().unwrap();
    drop((ends.primary.output(), ends.standby.output()));
    let due = ends::model(size, &[1, 2]);
    assert!(below(a, size) == due && below(b, size) == due);

    // The role that was left is taken back, and the disk protected anew.
    let left = helper(a, "reclaim");
    assert!(left.contains("problems: []") && left.contains("the role Primary of resource r0"), "{left}");
    let mut ends = Ends::start(a, b);
    assert_end(&mut ends.primary, size, &[1, 2]);
    ends.epoch(1, 5);
    tell(&mut ends.standby, "holds-nothing");
    let due = ends::model(size, &[1, 2, 5]);
    assert!(below(a, size) == due && below(b, size) == due);
}

fn helper(host: &Host, name: &str) -> String {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", &format!("drbd::ends::{name}"), "--ignored", "--nocapture", "--test-threads=1"]);
    let output = host.run(&command).unwrap();
    String::from_utf8([output.stdout, output.stderr].concat()).unwrap()
}

#[test]
fn a_primary_that_has_lost_the_guest_comes_back_and_is_resynced() {
    let Lab { hosts } = lab(2);
    let [a, b] = hosts.as_slice() else { unreachable!() };
    prepare(&hosts, 'C');
    let size = size(a);
    let Ends { mut primary, mut standby } = Ends::start(a, b);
    let mut ends = Ends { primary, standby };
    ends.epoch(1, 1);
    ends.epoch(2, 2);
    tell(&mut ends.primary, "write 3");
    Ends { primary, standby } = ends;
    // It does not know yet that it has lost.
    tell(&mut standby, "activate 2");
    tell(&mut standby, "write 7");
    tell(&mut primary, "disengage loser");
    assert!(below(a, size) == ends::model(size, &[1, 2]), "a write that is in no epoch");
    primary.input().write(b"").unwrap();
    primary.wait_for("gone").unwrap();
    await_proc(a, "ro:Secondary/");

    // As the standby of the one that took over.
    let ends = Ends { primary: standby, standby: end(a, "standby") };
    let mut ends = ends.join(a);
    ends.epoch(1, 8);
    tell(&mut ends.standby, "holds-nothing");
    let due = ends::model(size, &[1, 2, 7, 8]);
    assert!(below(a, size) == due && below(b, size) == due, "the disks differ");
    await_proc(a, "cs:Connected ro:Secondary/Primary ds:UpToDate/UpToDate");
    a.kill();
}

#[test]
fn a_primary_that_lost_its_power_comes_back_by_an_ordinary_resync() {
    let Lab { hosts } = lab(2);
    let [a, b] = hosts.as_slice() else { unreachable!() };
    hosts.iter().for_each(|host| configure(host, 'C', "/dev/vda", 7));
    create(&hosts);
    let size = size(a);
    let mut ends = Ends::start(a, b);
    ends.epoch(1, 1);
    ends.epoch(2, 100);
    tell(&mut ends.standby, "holds-nothing");
    tell(&mut ends.primary, "write 101");
    tell(&mut ends.primary, "seal 3");
    tell(&mut ends.standby, "commit 3");
    // Not waited for.
    ends.primary.input().write(b"release 3\n").unwrap();
    a.kill();
    let Ends { primary, mut standby } = ends;
    drop(primary);
    tell(&mut standby, "activate 3");
    tell(&mut standby, "write 7");
    a.start_again().unwrap();
    configure(a, 'C', "/dev/vda", 7);
    ok(a, "drbdadm up r0");
    let mut ends = Ends { primary: standby, standby: end(a, "standby") }.join(a);
    ends.epoch(1, 8);
    tell(&mut ends.standby, "holds-nothing");
    let due = ends::model(size, &[1, 100, 101, 7, 8]);
    assert!(vda(a, size) == due && vda(b, size) == due, "the disks differ");
    await_proc(a, "cs:Connected ro:Secondary/Primary ds:UpToDate/UpToDate");
    hosts.iter().for_each(assert_no_split_brain);
}

#[test]
fn a_primary_whose_controller_died_comes_back_by_an_ordinary_resync() {
    let Lab { hosts } = lab(2);
    let [a, b] = hosts.as_slice() else { unreachable!() };
    prepare(&hosts, 'C');
    let size = size(a);
    let mut ends = Ends::start(a, b);
    ends.epoch(1, 1);
    tell(&mut ends.primary, "write 3");
    let Ends { primary, mut standby } = ends;
    primary.kill().unwrap();
    drop(primary.output());
    // What the next start does first.
    let left = helper(a, "reclaim");
    assert!(left.contains("the role Primary of resource r0"), "{left}");
    tell(&mut standby, "activate 1");
    tell(&mut standby, "write 7");
    let mut ends = Ends { primary: standby, standby: end(a, "standby") }.join(a);
    ends.epoch(1, 8);
    tell(&mut ends.standby, "holds-nothing");
    let due = ends::model(size, &[1, 7, 8]);
    assert!(below(a, size) == due && below(b, size) == due, "the disks differ");
    hosts.iter().for_each(assert_no_split_brain);
}

/// A number of the host's.
fn number(host: &Host, line: &str) -> u64 {
    let output = host.run(Command::new("sh").args(["-c", line])).unwrap().stdout;
    String::from_utf8(output).unwrap().trim().parse().unwrap()
}

/// The cost of writing twice. Times are those of an emulated processor.
#[test]
#[ignore = "prints figures for a person"]
fn what_writing_twice_costs() {
    const EPOCHS: u64 = 20;
    let Lab { hosts } = lab(2);
    let [a, b] = hosts.as_slice() else { unreachable!() };
    prepare(&hosts, 'C');
    // What DRBD has sent, in KiB, and what went out at all.
    let counters = || {
        let drbd = number(a, "sed -n 's/.* *ns:\\([0-9]*\\) .*/\\1/p' /proc/drbd") << 10;
        (drbd, number(a, "cat /sys/class/net/eth0/statistics/tx_bytes"))
    };
    println!(
        "{:<44} {:>9} {:>8} {:>7} {:>7} {:>15}",
        "an epoch's writes", "written", "channel", "DRBD", "wire", "seal µs"
    );
    for (what, contents) in
        [("200 of up to 40 kB, any alignment", 100), ("40 of up to 9 kB, any alignment", 1)]
    {
        let mut ends = Ends::start(a, b);
        ends.epoch(1, contents);
        tell(&mut ends.standby, "holds-nothing");
        tell(&mut ends.primary, "figures");
        let before = counters();
        for epoch in 2..EPOCHS + 2 {
            ends.epoch(epoch, contents + epoch);
        }
        tell(&mut ends.standby, "holds-nothing");
        let after = counters();
        ends.primary.input().write(b"figures\n").unwrap();
        ends.primary.input().write(b"").unwrap();
        let said = String::from_utf8(ends.primary.output().unwrap().stdout).unwrap();
        let figures = said.lines().filter_map(|l| l.strip_prefix("did figures")?.split_once(": "));
        let figures = figures.map(|(_, row)| row.trim_end_matches('.'));
        let rows: Vec<Vec<u64>> =
            figures.map(|l| l.split(' ').map(|n| n.parse().unwrap()).collect()).collect();
        let (written, sent) = (rows[1][0] - rows[0][0], rows[1][1] - rows[0][1]);
        let per = |bytes: u64| format!("{:.2}", bytes as f64 / written as f64);
        println!(
            "{what:<44} {written:>9} {:>8} {:>7} {:>7} {:>7}..{:<6}",
            per(sent),
            per(after.0 - before.0),
            per(after.1 - before.1),
            rows[1][2],
            rows[1][3]
        );
        ends.standby.input().write(b"").unwrap();
        ends.standby.wait_for("gone").unwrap();
    }
}
