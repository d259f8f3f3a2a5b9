//! Tests that run in a lab host themselves.

use aventine_lab::inside;
use std::process::Command;

#[track_caller]
fn ok(line: &str) {
    let output = Command::new("sh").args(["-c", line]).output().unwrap();
    assert!(output.status.success(), "{line}: {}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn packets_can_be_held_by_plug_and_ifb() {
    inside(|| {
        ok("modprobe -a sch_plug ifb act_mirred cls_matchall sch_ingress veth");
        ok("ip link add ifb9 type ifb");
        ok("tc qdisc add dev ifb9 root plug limit 1000000");
    });
}
