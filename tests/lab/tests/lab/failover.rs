//! A guest under KVM fails over from one lab host to another, with Debian's kernel below and a client on a third.
//!
//! ```text
//!  lab0: guest ─ tap ─ inner ─ port ~ br0 ─ eth0 ══╦══ eth0: lab1, the same        port: where `plug` holds frames
//!                                                  ╚══ eth0: lab2, client and etcd
//! ```

use crate::lab;
use crate::nested::{given, ok};
use aventine_demo::checker::{self, Load, Outcome};
use aventine_demo::network::Namespace;
use aventine_lab::{Host, Lab, Process, run};
use rustix::net::{AddressFamily, Protocol, SocketType};
use std::fs::File;
use std::io::{Read, stdin};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

/// On the hosts' network.
pub(crate) const GUEST: &str = "10.9.0.50";
const MAC: &str = "52:54:00:a7:e0:01";
/// What the network is in tests of something else.
pub(crate) const USERSPACE: &str = "plugin = \"userspace\"\nuplink = { tap = \"guest\" }";
/// Longest that anything may take: these machines are slow.
const LIMIT: Duration = Duration::from_secs(240);
/// One TCP connection for each channel.
pub(crate) const TCP: &str = "
[transport]
plugin = \"tcp\"
listen = \"0.0.0.0:7400\"
peer = [\"10.9.0.10:7400\", \"10.9.0.11:7400\"]
unsafe_plaintext = true
";
/// Time between epochs. Debian's kernel tells dirty pages by soft-dirty bits, and to clear them takes every page out of KVM's tables:
/// below an emulated processor the guest would spend a short epoch getting its pages back, and not boot.
const INTERVAL: &str = "3s";
/// Answers that show that the client is served.
const SERVED: u64 = 100;

/// Runs another test of this binary on a host, to its end.
fn helper<'h>(host: &'h Host, name: &str) -> Process<'h> {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", name, "--ignored", "--nocapture", "--test-threads=1"]);
    host.spawn(&command).unwrap()
}

/// Writes to the guest's Redis; says `served` for each line that it reads and has been answered since, and at the end of its
/// input what became of it all.
#[test]
#[ignore = "the client of the other tests, on a lab host"]
fn client() {
    let here = Namespace::here().unwrap();
    let load = Load::start(checker::connect(&here, GUEST, LIMIT).unwrap(), 1);
    for _ in stdin().lines() {
        load.wait_answers(SERVED, LIMIT).unwrap();
        println!("served {}", load.answers());
    }
    let Outcome { acknowledged, lost, broken, problems, .. } = load.finish(&here, GUEST).unwrap();
    assert!(lost == 0 && !broken, "{lost} lost, broken: {broken}, {problems:?}");
    println!("all of {acknowledged} writes are there");
}

/// Sees what the guest says of itself after its takeover; says so and ends.
#[test]
#[ignore = "an observer of the other tests, on a lab host"]
fn observer() {
    const ALL: u32 = 3; // ETH_P_ALL
    let all = Protocol::from_raw(u32::from((ALL as u16).to_be()).try_into().unwrap());
    let socket = rustix::net::socket(AddressFamily::PACKET, SocketType::RAW, Some(all)).unwrap();
    println!("observing");
    let (mut wire, mut frame) = (File::from(socket), [0; 2048]);
    let (mut arp, mut neighbour) = (false, false);
    while !(arp && neighbour) {
        let length = wire.read(&mut frame).unwrap();
        let frame = &frame[..length];
        if frame.len() < 42 || frame[6..12] != [0x52, 0x54, 0, 0xa7, 0xe0, 1] {
            continue;
        }
        // Sender's and target's address are the same.
        arp |= frame[12..14] == [0x08, 0x06] && frame[28..32] == frame[38..42];
        // ICMPv6 135: a solicitation; 136: an advertisement, to all nodes.
        neighbour |=
            frame[12..14] == [0x86, 0xdd] && frame[..2] == [0x33, 0x33] && frame.get(54) == Some(&136);
    }
    println!("a gratuitous ARP and an unsolicited neighbour advertisement");
}

/// A host with a bridge for the guest's tap, and a configuration: the keys of a network and of disks, and the transport's tables.
pub(crate) fn prepare(host: &Host, network: &str, disks: &[&str], transport: &str) {
    let address = host.address();
    ok(host, "modprobe -a kvm_amd tun bridge");
    let lines = format!(
        "ip link add br0 type bridge; ip link add inner type bridge; ip link add port type veth peer name outer
         ip tuntap add guest mode tap; ip link set guest master inner; ip link set port master inner
         ip link set outer master br0; ip link set eth0 master br0
         for device in br0 inner port outer guest; do ip link set $device up; done
         ip address flush dev eth0; ip address add {address}/24 dev br0"
    );
    ok(host, &lines);
    let [kernel, initrd] = ["AVENTINE_KERNEL", "AVENTINE_INITRD"].map(|v| given(v).display().to_string());
    let devices =
        disks.iter().enumerate().map(|(n, _)| format!("\"-device\", \"virtio-blk-pci,drive=disk{n}\","));
    let devices = devices.collect::<String>();
    let tables = disks.iter().enumerate().map(|(n, keys)| format!("[[disk]]\nid = \"disk{n}\"\n{keys}\n"));
    let tables = tables.collect::<String>();
    let configuration = format!(
        r#"name = "web"
heartbeat = "200ms"
detection = "5s"

[guest]
plugin = "qemu"
command = [
    "qemu-system-x86_64", "-accel", "kvm", "-cpu", "max", "-machine", "pc,usb=off,vmport=off", "-m", "128M", "-nodefaults",
    "-display", "none", "-kernel", "{kernel}", "-initrd", "{initrd}",
    "-append", "quiet mitigations=off no_timer_check cryptomgr.notests panic=-1 address={GUEST}/24", "-no-reboot",
    "-device", "virtio-net-pci,netdev=net0,romfile=,mac={MAC}",
    {devices}
]

[[network]]
id = "net0"
{network}

{tables}
{transport}

[policy]
plugin = "fixed"
interval = "{INTERVAL}"

[arbiter]
plugin = "etcd"
endpoints = ["http://10.9.0.12:2379"]
unsafe_plaintext = true
"#
    );
    host.put(Path::new("/etc/aventine/web.toml"), configuration.as_bytes(), 0o600).unwrap();
}

pub(crate) fn aventine<'h>(host: &'h Host, role: &str) -> Process<'h> {
    host.spawn(Command::new(given("AVENTINE_PROGRAM")).args([role, "/etc/aventine/web.toml"])).unwrap()
}

pub(crate) fn arbiter(host: &Host) -> Process<'_> {
    let mut etcd = Command::new("etcd");
    etcd.args(["--data-dir", "/run/etcd", "--listen-client-urls", "http://10.9.0.12:2379"]);
    etcd.args([
        "--advertise-client-urls",
        "http://10.9.0.12:2379",
        "--heartbeat-interval",
        "500",
        "--election-timeout",
        "5000",
    ]);
    host.spawn(&etcd).unwrap()
}

/// Protects a guest, loses its host, and lets the client say what it has lost.
fn fail_over(network: &str, transport: &str, device: impl Fn(&Host)) {
    let Lab { hosts } = lab(3);
    let [a, b, c] = hosts.as_slice() else { unreachable!() };
    let mut etcd = arbiter(c);
    for host in [a, b] {
        prepare(host, network, &[], transport);
        device(host);
    }
    etcd.wait_for("ready to serve client requests").unwrap();
    let mut standby = aventine(b, "standby");
    standby.wait_for("waiting").unwrap();
    let mut primary = aventine(a, "protect");
    primary.wait_for("protected: ").unwrap();

    let mut client = helper(c, "failover::client");
    client.input().write(b"before\n").unwrap();
    client.wait_for("served ").unwrap();
    let mut observer = helper(c, "failover::observer");
    observer.wait_for("observing").unwrap();
    a.kill();
    standby.wait_for("unprotected: the guest runs on").unwrap();
    client.input().write(b"after\n").unwrap();
    client.input().write(b"").unwrap();
    client.wait_for("writes are there").unwrap();
    observer.wait_for("unsolicited neighbour advertisement").unwrap();
}

#[test]
fn a_guest_held_in_this_process_survives_its_host() {
    fail_over(USERSPACE, TCP, |_| ());
}

#[test]
fn a_guest_held_at_its_ingress_survives_its_host() {
    fail_over("plugin = \"ifb\"\ndevice = \"guest\"", TCP, |_| ());
}

#[test]
fn a_guest_held_at_the_bridges_port_survives_its_host() {
    fail_over("plugin = \"plug\"\ndevice = \"guest\"", TCP, |_| ());
}

#[test]
fn a_guest_whose_pages_go_by_rdma_survives_its_host() {
    let fabric = crate::fabric::lines("br0");
    let dir = tempfile::tempdir().unwrap();
    let keys = dir.path().join("keys");
    let mut make = Command::new(given("AVENTINE_PROGRAM"));
    run::output(make.arg("keys").arg(&keys).args(["--node", "lab0", "--node", "lab1"])).unwrap();
    let file = |name: &str| keys.join(name).display().to_string();
    let tls = format!(
        "{{ ca = {:?}, cert = {:?}, key = {:?} }}",
        file("ca.pem"),
        file("lab0.pem"),
        file("lab0.key")
    );
    let plugin = given("AVENTINE_SHARED_OBJECTS").join("libaventine_transport_rdma.so");
    let transport = format!(
        r#"
[plugins]
load = [{plugin:?}]

[transport]
plugin = "rdma"
listen = "0.0.0.0:7400"
peer = ["10.9.0.10:7400", "10.9.0.11:7400"]
tls = {tls}
unsafe_unencrypted_payload = true
"#
    );
    fail_over(USERSPACE, &transport, |host| ok(host, &fabric));
}
