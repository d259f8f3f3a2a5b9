//! Hosts as a test sees them from outside.

use crate::lab;
use aventine_lab::{Host, HostError};
use std::net::Ipv4Addr;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Command, Output};

fn shell(host: &Host, line: &str) -> Output {
    host.run(Command::new("sh").args(["-c", line])).unwrap()
}

/// Whether an echo comes back.
fn reaches(host: &Host, address: Ipv4Addr) -> bool {
    shell(host, &format!("ping -c 1 -w 60 {address}")).status.success()
}

/// Whether no echo comes back for a while.
fn misses(host: &Host, address: Ipv4Addr) -> bool {
    !shell(host, &format!("ping -c 1 -w 2 {address}")).status.success()
}

#[test]
fn output_exit_code_and_console_come_back() {
    let lab = lab(1);
    let [host] = lab.hosts.as_slice() else { unreachable!() };
    let said =
        shell(host, "uname -r; pwd; id -u; cat /etc/hostname >&2; echo to the console >/dev/console; exit 7");
    let output = String::from_utf8_lossy(&said.stdout).into_owned();
    let lines = output.lines().collect::<Vec<_>>();
    assert!(lines[0].ends_with("-amd64"), "{output}");
    assert_eq!(lines[1..], ["/", "0"]);
    assert_eq!(said.status.code(), Some(7));
    assert_eq!(said.stderr, std::fs::read("/etc/hostname").unwrap());
    assert!(host.console().contains("to the console"), "{}", host.console());

    let killed = shell(host, "kill -TERM $$");
    assert_eq!(killed.status.signal(), Some(15));
    let absent = host.run(&Command::new("/no/such/program"));
    assert!(matches!(&absent, Err(HostError::Refused { host: 0, .. })), "{absent:?}");
}

#[test]
fn hosts_reach_each_other_until_a_cable_is_pulled_or_one_dies() {
    let lab = lab(3);
    let [a, b, c] = lab.hosts.as_slice() else { unreachable!() };
    assert!(reaches(a, b.address()) && reaches(b, c.address()) && reaches(c, a.address()));

    b.link(false).unwrap();
    assert!(misses(a, b.address()) && reaches(a, c.address()));
    b.link(true).unwrap();
    assert!(reaches(a, b.address()));

    b.kill();
    assert!(misses(a, b.address()) && reaches(c, a.address()));
    let dead = b.run(&Command::new("true"));
    assert!(matches!(dead, Err(HostError::Lost { host: 1, .. })), "{dead:?}");
}

#[test]
fn a_host_has_its_own_name_time_randomness_disk_and_files() {
    let lab = lab(2);
    let [a, b] = lab.hosts.as_slice() else { unreachable!() };
    for host in [a, b] {
        let said = shell(host, "hostname; date +%s; cat /proc/sys/kernel/random/uuid");
        let output = String::from_utf8(said.stdout).unwrap();
        let lines = output.lines().collect::<Vec<_>>();
        assert_eq!(lines[0], format!("lab{}", host.number()));
        let now = std::time::SystemTime::UNIX_EPOCH.elapsed().unwrap().as_secs();
        assert!(now.abs_diff(lines[1].parse().unwrap()) < 60, "{output} is not now");
    }
    let random = |host| shell(host, "head -c 16 /dev/urandom").stdout;
    assert_ne!(random(a), random(b));

    let path = Path::new("/var/lib/aventine-lab/file");
    a.put(path, b"#!/bin/sh\necho mine\n", 0o755).unwrap();
    assert_eq!(a.run(&Command::new(path)).unwrap().stdout, b"mine\n");
    assert!(!path.exists() && !shell(b, &format!("test -e {}", path.display())).status.success());

    let disk = "blockdev --getsize64 /dev/vda && dd if=/dev/zero of=/dev/vda bs=1M count=8 oflag=direct";
    let said = shell(a, disk);
    assert!(said.status.success(), "{said:?}");
    assert_eq!(said.stdout, b"1073741824\n");
}

#[test]
fn a_host_that_lost_its_power_comes_back_with_its_disk_and_nothing_else() {
    let lab = lab(2);
    let [a, b] = lab.hosts.as_slice() else { unreachable!() };
    a.put(Path::new("/file"), b"gone", 0o600).unwrap();
    let written = "echo kept | dd of=/dev/vda bs=512 conv=sync oflag=direct; echo written; cat";
    let mut process = a.spawn(Command::new("sh").args(["-c", written])).unwrap();
    process.wait_for("written").unwrap();
    a.kill();
    a.start_again().unwrap();
    assert!(matches!(process.wait_for("more"), Err(HostError::Lost { host: 0, .. })));
    assert_eq!(shell(a, "hostname; head -n 1 /dev/vda; ls /file").stdout, b"lab0\nkept\n");
    assert!(reaches(a, b.address()) && reaches(b, a.address()));
}

#[test]
fn a_process_takes_input_and_can_be_killed() {
    let lab = lab(1);
    let host = &lab.hosts[0];
    let mut cat = host.spawn(Command::new("cat").arg("-u")).unwrap();
    cat.input().write(b"hello\n").unwrap();
    cat.wait_for("hello").unwrap();
    cat.input().write(b"").unwrap();
    assert!(cat.output().unwrap().status.success());

    let mut shell = host.spawn(Command::new("sh").args(["-c", "sleep 1000 & echo started; wait"])).unwrap();
    shell.wait_for("started").unwrap();
    shell.kill().unwrap();
    assert_eq!(shell.output().unwrap().status.signal(), Some(9));
}
