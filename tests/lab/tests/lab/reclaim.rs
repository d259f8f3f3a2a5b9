//! What the program says about a host, and what it finds of a killed controller's.

use crate::lab;
use crate::nested::{given, ok};
use aventine_lab::Host;
use std::path::Path;
use std::process::Command;

const CONFIGURATION: &str = r#"name = "web"

[guest]
plugin = "qemu"
command = ["qemu-system-x86_64", "-m", "64M", "-nodefaults", "-display", "none", "-device", "virtio-net-pci,netdev=net0,romfile="]

[[network]]
plugin = "PLUGIN"
device = "guest"

[transport]
plugin = "tcp"
listen = "0.0.0.0:7400"
unsafe_plaintext = true

[arbiter]
plugin = "manual"
"#;

/// Runs `aventine` with these words; answers its exit code and what it printed.
fn aventine(host: &Host, words: &[&str]) -> (Option<i32>, String) {
    let output = host.run(Command::new(given("AVENTINE_PROGRAM")).args(words)).unwrap();
    (output.status.code(), [output.stdout, output.stderr].map(|b| String::from_utf8(b).unwrap()).concat())
}

#[test]
fn what_a_killed_controller_left_is_found_and_removed() {
    const FILE: &str = "/etc/aventine/web.toml";
    let lab = lab(1);
    let host = &lab.hosts[0];
    ok(host, "modprobe -a tun bridge");
    for (plugin, left) in [("plug", "a plug from port"), ("ifb", "and the redirection to it from guest")] {
        let configuration = CONFIGURATION.replace("PLUGIN", plugin);
        host.put(Path::new(FILE), configuration.as_bytes(), 0o600).unwrap();
        let (code, said) = aventine(host, &["check", "--environment", FILE]);
        assert!(code == Some(1) && said.contains("no network device guest"), "{plugin}: {said}");
        ok(
            host,
            "ip link add inner type bridge; ip tuntap add guest mode tap; ip link add port type veth peer name outer
             for device in guest port; do ip link set $device master inner; done
             for device in inner guest port outer; do ip link set $device up; done",
        );
        let (code, said) = aventine(host, &["check", "--environment", FILE]);
        assert_eq!(code, Some(0), "{plugin}: {said}");

        let mut standby =
            host.spawn(Command::new(given("AVENTINE_PROGRAM")).args(["standby", FILE])).unwrap();
        standby.wait_for("waiting: for a primary").unwrap();
        standby.kill().unwrap();
        drop(standby.output());
        let (code, said) = aventine(host, &["reclaim", FILE]);
        assert!(code == Some(0) && said.contains(left), "{plugin}: {said}");
        let (_, again) = aventine(host, &["reclaim", FILE]);
        assert!(!again.contains(left), "{plugin}: {again}");
        ok(host, "for device in inner guest outer; do ip link del $device; done");
    }
}
