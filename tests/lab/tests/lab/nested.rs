//! A guest under KVM inside a lab host: the demo's, with Redis in it.

use crate::lab;
use aventine_lab::{Host, Process};
use std::path::PathBuf;
use std::process::Command;

/// On the hosts' network.
const GUEST: &str = "10.9.0.50";

pub(crate) fn given(variable: &str) -> PathBuf {
    match std::env::var_os(variable) {
        Some(path) => path.into(),
        None => panic!("{variable} is not set: run this test with `cargo xtask test`"),
    }
}

#[track_caller]
pub(crate) fn ok(host: &Host, line: &str) {
    let output = host.run(Command::new("sh").args(["-e", "-c", line])).unwrap();
    assert!(output.status.success(), "{line}: {}", String::from_utf8_lossy(&output.stderr));
}

/// Starts a guest whose network device is a tap on a bridge with eth0.
fn start_guest(host: &Host) -> Process<'_> {
    let address = host.address();
    ok(host, "modprobe -a kvm_amd tun bridge");
    ok(host, "ip link add br0 type bridge; ip tuntap add guest mode tap; ip link set guest up master br0");
    ok(
        host,
        &format!(
            "ip address flush dev eth0; ip link set eth0 master br0; ip link set br0 up; ip address add {address}/24 dev br0"
        ),
    );
    let mut qemu = Command::new("qemu-system-x86_64");
    qemu.args(["-accel", "kvm", "-cpu", "max", "-machine", "pc,usb=off,vmport=off", "-m", "128M"]);
    qemu.args(["-nodefaults", "-display", "none", "-serial", "stdio"]);
    qemu.args(["-netdev", "tap,id=net,ifname=guest,script=no,downscript=no"]);
    qemu.args(["-device", "virtio-net-pci,netdev=net,romfile="]);
    qemu.arg("-kernel").arg(given("AVENTINE_KERNEL")).arg("-initrd").arg(given("AVENTINE_INITRD"));
    let arguments = "console=ttyS0 quiet mitigations=off no_timer_check cryptomgr.notests";
    qemu.args(["-append", &format!("{arguments} address={GUEST}/24")]);
    host.spawn(&qemu).unwrap()
}

/// Holds one connection to the guest's Redis, and sends it what it reads.
fn connect(host: &Host) -> Process<'_> {
    let client = format!("exec 3<>/dev/tcp/{GUEST}/6379; echo connected; cat <&3 & exec cat >&3");
    host.spawn(Command::new("bash").args(["-c", &client])).unwrap()
}

#[test]
fn a_guest_under_kvm_serves_another_host_until_its_own_dies() {
    let lab = lab(2);
    let [a, b] = lab.hosts.as_slice() else { unreachable!() };
    let mut guest = start_guest(a);
    guest.wait_for("Server initialized").unwrap();

    let mut client = connect(b);
    client.wait_for("connected").unwrap();
    client.input().write(b"SET key value\r\nGET key\r\n").unwrap();
    client.wait_for("+OK\r\n$5\r\nvalue\r\n").unwrap();

    a.kill();
    let silent = format!("ping -c 1 -w 2 {GUEST}");
    assert!(!b.run(Command::new("sh").args(["-c", &silent])).unwrap().status.success());
}
