//! Tests that run in a lab host themselves.

use crate::lab;
use aventine_lab::{assert_test, inside};
use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::Command;

#[track_caller]
fn ok(line: &str) -> String {
    let output = Command::new("sh").args(["-c", line]).output().unwrap();
    assert!(output.status.success(), "{line}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn plug_and_ifb_are_there() {
    inside(|| {
        ok("modprobe -a sch_plug ifb act_mirred cls_matchall sch_ingress veth tun bridge");
        ok("ip link add ifb9 type ifb; ip link add left type veth peer name right");
        ok("tc qdisc add dev left root plug limit 1000000; tc qdisc add dev right ingress");
        ok("tc filter add dev right ingress matchall action mirred egress redirect dev ifb9");
        assert!(ok("tc qdisc show dev left").contains("qdisc plug"));
    });
}

#[test]
fn modules_for_storage_and_rdma_load() {
    inside(|| {
        let modules = ["drbd", "nbd", "rdma_rxe", "rdma_ucm"];
        ok(&format!("modprobe -a {}", modules.join(" ")));
        let loaded = fs::read_to_string("/proc/modules").unwrap();
        for module in modules {
            assert!(loaded.lines().any(|line| line.starts_with(&format!("{module} "))), "{loaded}");
        }
    });
}

#[test]
fn a_failure_inside_is_a_failure_here_with_the_console() {
    let lab = lab(1);
    for name in ["inside::fails", "inside::no_such_test"] {
        let failure = catch_unwind(AssertUnwindSafe(|| assert_test(&lab.hosts[0], name))).unwrap_err();
        let text = failure.downcast_ref::<String>().unwrap();
        assert!(text.starts_with(name) && text.contains("the console says:"), "{text}");
        assert!(text.contains("this is on the console"), "{text}");
    }
}

#[test]
#[ignore = "another test runs it in the lab, and expects it to fail"]
fn fails() {
    assert!(aventine_lab::is_inside());
    fs::write("/dev/console", "this is on the console\n").unwrap();
    panic!("on purpose");
}
