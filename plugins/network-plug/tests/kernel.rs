//! The plugin on a kernel that has `sch_plug`, as root: in a lab host.

#[path = "../../network-kernel/testing/bench.rs"]
mod bench;
#[path = "../../network-kernel/testing/kills.rs"]
mod kills;

use aventine_api::{Epoch, ErrorCode, NetworkBuffer, Side};
use aventine_conformance::form::Native;
use aventine_lab::inside;
use aventine_network_kernel::{Device, Netlink, Plug, QdiscInfo, probe};
use aventine_network_plug as _;
use bench::{Kind, Nobody, Taps, bridged, plugin, receive, tap, until};
use std::io::Write;
use std::sync::Arc;

struct AtEgress;

impl Kind for AtEgress {
    type Form = Native;
    const PLUGIN: &'static str = "plug";
    const PLUGGED: &'static str = "world0";
}

aventine_conformance::network!(Taps<AtEgress>, in inside);

#[test]
fn random_kills_let_nothing_out() {
    inside(|| {
        kills::random_kills_let_nothing_out::<AtEgress>();
    });
}

#[test]
#[ignore = "started by random_kills_let_nothing_out"]
fn controller_on_command() {
    kills::controller::<AtEgress>();
}

fn make(config: &str, side: Side) -> Result<Box<dyn NetworkBuffer>, String> {
    plugin::<Native>("plug", config, "net0", side, Arc::new(Nobody))
}

/// The reason for a depth of one. If this fails the kernel has been repaired: see `depth` in network-kernel's `buffer.rs`.
#[test]
fn the_kernel_confuses_two_sealed_epochs() {
    inside(|| {
        let (mut guest, mut world) = bridged();
        let netlink = &mut Netlink::open().unwrap();
        let device = Device::find(netlink, "world0").unwrap().unwrap().index;
        let plug = Plug::make(netlink, device, 1 << 20).unwrap();
        let mut send =
            |numbers: &[u8]| numbers.iter().for_each(|n| guest.write_all(&bench::frame(*n)).unwrap());
        send(&[1, 2]);
        plug.buffer(netlink).unwrap();
        send(&[11, 12, 13]);
        plug.buffer(netlink).unwrap();
        send(&[21]);
        assert_eq!(plug.stats(netlink).unwrap().packets, 6);
        plug.release_one(netlink).unwrap();
        let mut left = Vec::new();
        until("three of six are left", || {
            left.extend(std::iter::from_fn(|| receive(&mut world)));
            plug.stats(netlink).unwrap().packets == 3
        });
        until("three have come", || {
            left.extend(std::iter::from_fn(|| receive(&mut world)));
            left.len() >= 3
        });
        // As many as the *last* epoch has: all of the first one, and one frame that nobody has acknowledged.
        assert_eq!(
            left,
            [1, 2, 11].map(bench::frame),
            "the kernel tells sealed epochs apart now: the depth can be raised"
        );
    });
}

#[test]
fn a_second_sealed_epoch_is_refused() {
    inside(|| {
        let (_guest, _world) = bridged();
        let mut buffer = make("device = 'guest0'", Side::Primary).unwrap();
        assert_eq!(buffer.depth(), 1);
        buffer.engage().unwrap();
        buffer.seal(Epoch(1)).unwrap();
        let error = buffer.seal(Epoch(2)).unwrap_err();
        assert_eq!(error.code(), ErrorCode::Limit);
        assert!(error.chain().contains("Epoch 1 is sealed and not released"), "{}", error.chain());
        buffer.release(Epoch(1)).unwrap();
        buffer.seal(Epoch(2)).unwrap();
    });
}

#[test]
fn the_way_out_is_the_bridges_other_port_or_is_named() {
    inside(|| {
        let (_guest, _world) = bridged();
        let netlink = &mut Netlink::open().unwrap();
        let root = |netlink: &mut Netlink, name| {
            let device = Device::find(netlink, name).unwrap().unwrap().index;
            QdiscInfo::root(netlink, device).unwrap()
        };
        let buffer = make("device = 'guest0'", Side::Primary).unwrap();
        assert!(root(netlink, "world0").unwrap().is_ours());
        drop(buffer);
        assert!(!root(netlink, "world0").is_some_and(|q| q.is_ours()));
        let _third = tap("third0");
        let bridge = Device::find(netlink, "br0").unwrap().unwrap().index;
        Device::find(netlink, "third0").unwrap().unwrap().enslave(netlink, bridge).unwrap();
        let error = make("device = 'guest0'", Side::Primary).err().unwrap();
        assert!(error.contains("name that device: egress"), "{error}");
        let buffer = make("device = 'guest0'\negress = 'third0'", Side::Standby).unwrap();
        assert!(root(netlink, "third0").unwrap().is_ours());
        let error = make("device = 'guest0'\negress = 'third0'", Side::Primary).err().unwrap();
        assert!(error.contains("Another Aventine process holds the frames of third0"), "{error}");
        drop(buffer);
    });
}

#[test]
fn this_kernel_has_all_that_is_needed() {
    inside(|| {
        assert_eq!(probe(true), []);
    });
}

#[test]
fn what_a_crash_left_is_reclaimed_and_told() {
    inside(|| {
        let (_guest, _world) = bridged();
        let netlink = &mut Netlink::open().unwrap();
        let world = Device::find(netlink, "world0").unwrap().unwrap().index;
        let (upkeep, premises) = bench::upkeep("plug");
        let config = "device = 'guest0'";
        assert_eq!((upkeep.probe)(config, &premises), Vec::<String>::new());
        bench::crash();
        assert!(QdiscInfo::root(netlink, world).unwrap().unwrap().is_ours());
        assert_eq!((upkeep.reclaim)(config, &premises).unwrap(), ["a plug from world0"]);
        assert!(!QdiscInfo::root(netlink, world).unwrap().is_some_and(|q| q.is_ours()));
        assert_eq!((upkeep.reclaim)(config, &premises).unwrap(), Vec::<String>::new());
    });
}

#[test]
fn what_others_have_set_up_is_in_the_way_and_stays() {
    inside(|| {
        let (_guest, _world) = bridged();
        let shell = |line: &str| {
            let output = std::process::Command::new("sh").args(["-e", "-c", line]).output().unwrap();
            assert!(output.status.success(), "{line}: {}", String::from_utf8_lossy(&output.stderr));
            String::from_utf8(output.stdout).unwrap()
        };
        shell("tc qdisc add dev world0 root handle 5: pfifo limit 77");
        let error = make("device = 'guest0'", Side::Primary).err().unwrap();
        assert!(error.contains("world0") && error.contains("pfifo"), "{error}");
        assert!(shell("tc qdisc show dev world0").contains("pfifo 5: root refcnt 2 limit 77p"));
    });
}
