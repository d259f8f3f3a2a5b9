//! The plugin on a kernel that has `sch_plug`, as root: in a lab host.

#[path = "../../network-kernel/testing/bench.rs"]
mod bench;
#[path = "../../network-kernel/testing/kills.rs"]
mod kills;

use aventine_api::{Disengage, Epoch, NetworkBuffer, Side};
use aventine_conformance::form::Native;
use aventine_lab::inside;
use aventine_network_ifb as _;
use aventine_network_kernel::{Device, Netlink, QdiscInfo, redirects};
use bench::{Kind, Nobody, Taps, enter_namespace, plugin, receive, tap, until};
use std::io::Write;
use std::sync::Arc;

struct Ifb;

impl Kind for Ifb {
    type Form = Native;
    const PLUGIN: &'static str = "ifb";
    const PLUGGED: &'static str = "ifb-confor-";
}

aventine_conformance::network!(Taps<Ifb>, in inside);

#[test]
fn random_kills_let_nothing_out() {
    inside(|| {
        kills::random_kills_let_nothing_out::<Ifb>();
    });
}

#[test]
#[ignore = "started by random_kills_let_nothing_out"]
fn controller_on_command() {
    kills::controller::<Ifb>();
}

fn ifb(tap: &str, id: &str, side: Side) -> Result<Box<dyn NetworkBuffer>, String> {
    plugin::<Native>("ifb", &format!("device = '{tap}'"), id, side, Arc::new(Nobody))
}

fn ifbs(netlink: &mut Netlink) -> Vec<String> {
    let all = Device::all(netlink).unwrap();
    all.into_iter().filter(|d| d.kind == "ifb").map(|d| d.name).collect()
}

#[test]
fn several_nics_have_an_ifb_each_and_seal_apart() {
    inside(|| {
        enter_namespace();
        let (mut nics, mut worlds) = (Vec::new(), Vec::new());
        for n in 0..3 {
            let (guest, world) = (format!("guest{n}"), format!("world{n}"));
            let (mut a, mut b) = (tap(&guest), tap(&world));
            bench::bridge(&format!("br{n}"), &mut [(&guest, &mut a), (&world, &mut b)]);
            let mut buffer = ifb(&guest, &format!("net{n}"), Side::Primary).unwrap();
            buffer.engage().unwrap();
            nics.push((a, buffer));
            worlds.push(b);
        }
        assert_eq!(ifbs(&mut Netlink::open().unwrap()).len(), 3);
        for (number, (guest, buffer)) in nics.iter_mut().enumerate() {
            guest.write_all(&bench::frame(number as u8)).unwrap();
            until("it is held", || buffer.stats().held_frames == 1);
            buffer.seal(Epoch(1)).unwrap();
        }
        for (number, (_, buffer)) in nics.iter_mut().enumerate() {
            assert!(worlds[number..].iter_mut().all(|w| receive(w).is_none()));
            buffer.release(Epoch(1)).unwrap();
            let mut came = None;
            until("it leaves", || {
                came = receive(&mut worlds[number]);
                came.is_some()
            });
            assert_eq!(came, Some(bench::frame(number as u8)));
        }
    });
}

#[test]
fn what_is_set_up_goes_again_and_what_was_there_stays() {
    inside(|| {
        enter_namespace();
        let _guest = tap("guest0");
        let netlink = &mut Netlink::open().unwrap();
        Device::make(netlink, "ifb0", "ifb").unwrap();
        let mut buffer = ifb("guest0", "net0", Side::Primary).unwrap();
        buffer.engage().unwrap();
        let guest = Device::find(netlink, "guest0").unwrap().unwrap();
        assert_eq!(redirects(netlink, guest.index).unwrap().ours, Some(true));
        buffer.disengage(Disengage::Owner).unwrap();
        assert_eq!(ifbs(netlink), ["ifb0"], "after disengage");
        assert_eq!(redirects(netlink, guest.index).unwrap(), Default::default());
        assert!(!has_ingress(netlink, guest.index));
        buffer.engage().unwrap();
        drop(buffer);
        assert_eq!(ifbs(netlink), ["ifb0"], "after the end");
        assert!(!has_ingress(netlink, guest.index));
    });
}

fn has_ingress(netlink: &mut Netlink, device: u32) -> bool {
    QdiscInfo::all(netlink, device).unwrap().iter().any(|(_, q)| q.kind == "ingress")
}

#[test]
fn a_tap_has_one_buffer() {
    inside(|| {
        enter_namespace();
        let _guest = tap("guest0");
        let first = ifb("guest0", "net0", Side::Primary).unwrap();
        let error = ifb("guest0", "net1", Side::Primary).err().unwrap();
        assert!(error.contains("Another Aventine process holds the frames of guest0"), "{error}");
        drop(first);
        ifb("guest0", "net1", Side::Primary).unwrap();
    });
}

#[test]
fn what_a_crash_left_is_reclaimed_and_told() {
    inside(|| {
        enter_namespace();
        let _guest = tap("guest0");
        let netlink = &mut Netlink::open().unwrap();
        Device::make(netlink, "ifb0", "ifb").unwrap();
        let guest = Device::find(netlink, "guest0").unwrap().unwrap().index;
        let (upkeep, premises) = bench::upkeep("ifb");
        let config = "device = 'guest0'";
        assert_eq!((upkeep.probe)(config, &premises), Vec::<String>::new());
        bench::crash();
        assert_eq!(ifbs(netlink).len(), 2);
        assert_eq!(redirects(netlink, guest).unwrap().ours, Some(true));
        let told = (upkeep.reclaim)(config, &premises).unwrap();
        assert!(told.len() == 1 && told[0].contains("and the redirection to it from guest0"), "{told:?}");
        assert_eq!(ifbs(netlink), ["ifb0"]);
        assert!(!has_ingress(netlink, guest));
        assert_eq!((upkeep.reclaim)(config, &premises).unwrap(), Vec::<String>::new());
        assert!(
            (upkeep.probe)("device = 'nowhere'", &premises)[0].contains("There is no network device nowhere")
        );
    });
}

#[test]
fn an_ifb_that_is_taken_away_does_not_mute_its_guest() {
    inside(|| {
        enter_namespace();
        let (mut guest, mut world) = (tap("guest0"), tap("world0"));
        bench::bridge("br0", &mut [("guest0", &mut guest), ("world0", &mut world)]);
        let mut buffer = ifb("guest0", "net0", Side::Primary).unwrap();
        buffer.engage().unwrap();
        let netlink = &mut Netlink::open().unwrap();
        let name = ifbs(netlink).pop().unwrap();
        let index = Device::find(netlink, &name).unwrap().unwrap().index;
        Device::remove(netlink, index).unwrap();
        guest.write_all(&bench::frame(1)).unwrap();
        buffer.seal(Epoch(1)).unwrap_err();
        buffer.disengage(Disengage::Owner).unwrap_err();
        guest.write_all(&bench::frame(2)).unwrap();
        let mut came = None;
        until("the guest is heard", || {
            came = receive(&mut world);
            came.is_some()
        });
        assert_eq!(came, Some(bench::frame(2)));
        buffer.engage().unwrap();
        guest.write_all(&bench::frame(3)).unwrap();
        until("it is held", || buffer.stats().held_frames == 1);
    });
}

#[test]
fn u32_serves_where_matchall_is_absent() {
    inside(|| {
        std::fs::write("/etc/modprobe.d/absent.conf", "install cls_matchall /bin/false\n").unwrap();
        aventine_conformance::network::check::<Taps<Ifb>>("every_protocol_is_held", module_path!());
        let loaded = |module| std::path::Path::new("/sys/module").join(module).exists();
        assert!(loaded("cls_u32") && !loaded("cls_matchall"));
    });
}

#[test]
fn what_others_have_set_up_is_in_the_way_and_stays() {
    inside(|| {
        enter_namespace();
        let _guest = tap("guest0");
        let shell = |line: &str| {
            let output = std::process::Command::new("sh").args(["-e", "-c", line]).output().unwrap();
            assert!(output.status.success(), "{line}: {}", String::from_utf8_lossy(&output.stderr));
            String::from_utf8(output.stdout).unwrap()
        };
        shell(
            "tc qdisc add dev guest0 ingress; tc filter add dev guest0 ingress protocol ip u32 match u32 0 0 action pass",
        );
        let error = ifb("guest0", "net0", Side::Primary).err().unwrap();
        assert!(error.contains("guest0") && error.contains("filter"), "{error}");
        assert!(shell("tc filter show dev guest0 ingress").contains("u32"));
    });
}
