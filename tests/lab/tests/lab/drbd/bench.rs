//! What the disk costs, on one host that has both sides: two resources that are each other's peer. The figures are those of an
//! emulated processor (TCG): ratios tell something, rates do not.
//!
//! ```text
//!  bench ─┬─ primary ─ /dev/drbd0 ─ /dev/loop0 ══╗ ports 7788
//!         ├─ standby ─ /dev/drbd1 ─ /dev/loop1 ══╝ and 7789 of the loopback interface
//!         └─ export ─ /dev/loop2     copy ─ /dev/loop3, /dev/loop4
//! ```

use super::{await_proc, install};
use crate::lab;
use crate::nested::{given, ok};
use aventine_lab::Host;
use serde_json::Value;
use std::process::{Command, Output};

/// Both sides, in sync and with nobody using them; and disks to compare with.
fn prepare(host: &Host) {
    let resource = |name, number, ours, theirs| {
        format!(
            "resource {name} {{
  net {{ protocol C; connect-int 1; ping-int 1; timeout 9; }}
  device /dev/drbd{number}; disk /dev/loop{number}; meta-disk internal;
  on lab0 {{ address 127.0.0.1:{ours}; }}
  on other {{ address 127.0.0.1:{theirs}; }}
}}
"
        )
    };
    let pair = [resource("bench-a", 0, 7788, 7789), resource("bench-b", 1, 7789, 7788)].concat();
    install(host, &format!("global {{ usage-count no; }}\n{pair}"));
    ok(
        host,
        "for n in 0 1 2 3 4; do truncate -s 24M /run/disk$n; losetup /dev/loop$n /run/disk$n; done
         drbdadm create-md --force bench-a bench-b; drbdadm up bench-a bench-b",
    );
    await_proc(host, "0: cs:Connected");
    await_proc(host, "1: cs:Connected");
    ok(host, "drbdadm new-current-uuid --clear-bitmap bench-a/0");
    await_proc(host, "1: cs:Connected ro:Secondary/Secondary ds:UpToDate/UpToDate");
}

fn bench(more: &[&str]) -> Command {
    let mut bench = Command::new(given("AVENTINE_PROGRAM"));
    bench.args(["bench", "disk", "--plugin", "drbd", "--cached", "--seconds", "0.1"]);
    // As little as there may be: the figures are to be those of DRBD, and not of memory.
    for (side, names) in [
        ("--primary-disk", &["resource = 'bench-a'"][..]),
        ("--standby-disk", &["resource = 'bench-b'", "peer_resource = 'bench-a'"]),
    ] {
        for key in names.iter().chain(&["buffer = '16MiB'"]) {
            bench.args([side, *key]);
        }
    }
    bench.args(["--export-disk", "/dev/loop2", "--copy-disks", "/dev/loop3", "/dev/loop4"]).args(more);
    bench
}

fn run(host: &Host, more: &[&str]) -> (bool, String, String) {
    let Output { status, stdout, stderr } = host.run(&bench(more)).unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (status.success(), text(stdout), text(stderr))
}

#[test]
fn both_sides_of_drbd_are_measured_on_one_host() {
    let lab = lab(1);
    let host = &lab.hosts[0];
    prepare(host);
    let (done, _, said) = run(host, &[]);
    assert!(!done && said.contains("--overwrite"), "{said}");
    ok(host, "mkfs.ext2 -q /dev/loop2; mount /dev/loop2 /mnt");
    let (done, _, said) = run(host, &["--overwrite"]);
    assert!(!done && said.contains("/dev/loop2 is in use"), "{said}");
    ok(host, "umount /mnt");

    let (done, line, said) = run(host, &["--overwrite", "--json"]);
    assert!(done, "{said}\n{}", host.console());
    let figures: Value = serde_json::from_str(&line).unwrap();
    println!("under TCG: seals {}, sent for each byte {}", figures["seal_us"], figures["sent_per_written"]);
    let loads = figures["loads"].as_array().unwrap();
    let keys = ["depth", "replicated", "export", "ratio", "copy", "ratio_to_copy"];
    println!("{:<35}{}", "requests/s", keys.map(|key| format!("{key:>14}")).concat());
    for load in loads {
        let number = |key| load[key].as_f64().map_or("-".to_owned(), |n| format!("{n:.2}"));
        let [frontend, name] = ["frontend", "load"].map(|key| load[key].as_str().unwrap());
        println!("{frontend:<11} {name:<23}{}", keys.map(|key| format!("{:>14}", number(key))).concat());
    }
    let sent = figures["sent_per_written"].as_f64().unwrap();
    assert!((1.0..1.1).contains(&sent), "{sent}");
    let of = |frontend| loads.iter().filter(|load| load["frontend"] == frontend).count();
    assert_eq!((of("nbd"), of("vhost-user")), (8, 8));
    for load in loads {
        let above_zero = |key: &str| load[key].as_f64().is_some_and(|n| n > 0.0);
        let write = load["load"].as_str().unwrap().contains("write");
        assert!(above_zero("replicated") && above_zero("export") && above_zero("ratio"), "{load}");
        assert_eq!((above_zero("copy"), load["qemu_nbd"].is_null()), (write, true), "{load}");
    }
    // Nothing is left of it, and DRBD has done its part.
    await_proc(host, "0: cs:Connected ro:Secondary/Secondary ds:UpToDate/UpToDate");
    ok(host, "cmp -n 23M /run/disk0 /run/disk1; ! cmp -s -n 1M /run/disk0 /dev/zero");
}
