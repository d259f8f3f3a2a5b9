//! A guest under KVM with its disk on DRBD: its host loses its power, and comes back.
//!
//! ```text
//!  lab0: guest ─ /dev/drbd0 ─ /dev/vda ═══ lab1: the same        lab2: client and etcd
//! ```

use super::{assert_no_split_brain, await_proc, configure, create};
use crate::failover::{self, GUEST, USERSPACE};
use crate::lab;
use crate::nested::given;
use aventine_lab::{Host, Lab, Process};
use std::process::Command;

/// As much as the guest's workload uses, and a little more.
const MEGABYTES: usize = 20;

fn prepare(host: &Host) {
    configure(host, 'C', "/dev/vda", MEGABYTES);
    failover::prepare(host, USERSPACE, &["plugin = \"drbd\"\nresource = \"r0\""], failover::TCP);
}

/// Holds one connection to the workload in the guest, and sends it what it reads.
fn workload(host: &Host) -> Process<'_> {
    let client = format!(
        "until exec 3<>/dev/tcp/{GUEST}/7777; do sleep 0.2; done 2>/dev/null
         echo connected; cat <&3 & exec cat >&3"
    );
    let mut process = host.spawn(Command::new("bash").args(["-c", &client])).unwrap();
    process.wait_for("connected").unwrap();
    process
}

fn ask(workload: &Process<'_>, what: &str) {
    workload.input().write(format!("{what}\n").as_bytes()).unwrap();
}

/// Each burst is 40 writes, on stable storage when it is answered. What the client was told of must be there, and no block
/// may be older or newer than the guest's memory says.
#[test]
fn a_guest_survives_its_host_which_then_comes_back_and_follows() {
    let Lab { hosts } = lab(3);
    let [a, b, c] = hosts.as_slice() else { unreachable!() };
    let mut etcd = failover::arbiter(c);
    [a, b].into_iter().for_each(prepare);
    create(&hosts);
    etcd.wait_for("ready to serve client requests").unwrap();
    let mut standby = failover::aventine(b, "standby");
    standby.wait_for("waiting").unwrap();
    let mut primary = failover::aventine(a, "protect");
    primary.wait_for("protected: ").unwrap();

    let mut workload = workload(c);
    // A DRBD that stands still holds the guest's output, and nothing else.
    super::ok(a, "drbdadm suspend-io r0");
    ask(&workload, "put");
    let status = a.run(Command::new(given("AVENTINE_PROGRAM")).arg("status")).unwrap();
    let status = String::from_utf8(status.stdout).unwrap();
    assert!(status.contains("web, primary: protected"), "{status}");
    super::ok(a, "drbdadm resume-io r0");
    workload.wait_for("done 40\n").unwrap();

    (0..4).for_each(|_| ask(&workload, "put"));
    workload.wait_for("done 120\n").unwrap();
    a.kill();
    standby.wait_for("unprotected: the guest runs on").unwrap();
    workload.wait_for("done 200\n").unwrap();
    ask(&workload, "verify");
    workload.wait_for("same 200\n").unwrap();

    drop(primary);
    a.start_again().unwrap();
    prepare(a);
    super::ok(a, "drbdadm up r0");
    let second = failover::aventine(a, "standby");
    standby.wait_for("\nprotected: ").unwrap();
    await_proc(b, "cs:Connected ro:Primary/Secondary ds:UpToDate/UpToDate");
    [a, b].into_iter().for_each(assert_no_split_brain);

    ask(&workload, "put");
    workload.wait_for("done 240\n").unwrap();
    drop(second);
}
