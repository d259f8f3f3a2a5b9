//! What a machine may hold: asked of QEMU once it is made, before the guest runs. Whatever the guest could change or
//! say without its being replicated is refused by name.

use crate::qmp::{Command, Qmp, QmpError};
use aventine_api::{Attachments, DiskAttachment};
use serde::Deserialize;
use serde_json::{Value, json};
use std::time::Instant;

/// Why a machine cannot be protected.
#[derive(Debug, thiserror::Error)]
pub(crate) enum InspectError {
    #[error("Could not ask QEMU what the machine holds")]
    Qmp(#[from] QmpError),
    #[error("QEMU's answer to {what} has another form than expected")]
    Form { what: &'static str },
    #[error("QEMU cannot save the state of this machine: {reasons}")]
    Blocked { reasons: String },
    #[error("The memory {name} is not replicated: {hint}")]
    Memory { name: String, hint: &'static str },
    #[error("The device {name} cannot be protected: {why}")]
    Device { name: String, why: &'static str },
    #[error("The disk {name} is not replicated: move it to a [[disk]] table, or attach it with readonly=on")]
    Disk { name: String },
    #[error(
        "The disk {name} bypasses the page cache, which writes guest memory unseen: attach it with cache.direct=off"
    )]
    Direct { name: String },
    #[error(
        "What the guest sends through the network {name} is not held: move it to a [[network]] table. A network that \
         QEMU adds by itself goes away with -nic none or -nodefaults"
    )]
    Network { name: String },
}

/// Types of device that must not be there: how the name begins, and why.
const DEVICES: [(&str, &str); 8] = [
    ("virtio-balloon", "memory that it gives back shows in no dirty bit"),
    ("virtio-mem", "memory that it gives back shows in no dirty bit"),
    ("virtio-pmem", "its memory is outside guest RAM"),
    ("nvdimm", "its memory is outside guest RAM"),
    ("vfio-", "the hardware writes guest memory, which shows in no dirty bit"),
    ("pvrdma", "the hardware writes guest memory, which shows in no dirty bit"),
    (
        "vhost-",
        "another process or the kernel serves it: its writes to guest memory or its traffic go unseen",
    ),
    ("virtio-9p", "what the guest writes through it is not replicated"),
];

/// RAM blocks that QEMU itself fills, equally on both sides, and that the guest cannot change.
const ROMS: [&str; 2] = ["pc.bios", "pc.rom"];

/// Refuses what cannot be protected.
pub(crate) fn inspect(
    qmp: &mut Qmp,
    ram: &str,
    attached: &Attachments,
    deadline: Instant,
) -> Result<(), InspectError> {
    check_memory(&qmp.human("info ramblock", deadline)?, ram)?;
    check_blockers(qmp.execute(&Command::new("query-migrate"), Some(deadline))?)?;
    for path in ["/machine/peripheral", "/machine/peripheral-anon"] {
        let children = qmp.execute(&Command::with("qom-list", &json!({ "path": path })), Some(deadline))?;
        for (name, path) in check_devices(children, path)? {
            let get = json!({ "path": path, "property": "chardev" });
            let chardev = qmp.execute(&Command::with("qom-get", &get), Some(deadline))?;
            check_vhost_disk(&name, &chardev, attached)?;
        }
    }
    let disks = attached.disks.iter().map(|(id, _)| id.as_str()).collect::<Vec<_>>();
    check_disks(qmp.execute(&Command::new("query-block"), Some(deadline))?, &disks)?;
    let networks = attached.networks.iter().map(|(id, _)| id.as_str()).collect::<Vec<_>>();
    check_networks(&qmp.human("info network", deadline)?, &networks)
}

/// A table whose first column is the name; a page size follows it in every row but the title.
fn check_memory(table: &str, ram: &str) -> Result<(), InspectError> {
    let rows = table.lines().filter(|line| !line.trim().is_empty()).collect::<Vec<_>>();
    let names = rows.iter().skip(1).filter_map(|row| row.split_ascii_whitespace().next()).collect::<Vec<_>>();
    if !names.contains(&ram) {
        return Err(InspectError::Form { what: "info ramblock" });
    }
    match names.into_iter().find(|name| !(*name == ram || is_rom(name))) {
        None => Ok(()),
        Some(name) => Err(InspectError::Memory { name: name.to_owned(), hint: memory_hint(name) }),
    }
}

/// What QEMU itself says about devices whose state cannot be saved.
fn check_blockers(answer: Value) -> Result<(), InspectError> {
    #[derive(Deserialize)]
    #[serde(rename_all = "kebab-case")]
    struct Migration {
        #[serde(default)]
        blocked_reasons: Vec<String>,
    }
    let Migration { blocked_reasons } =
        serde_json::from_value(answer).map_err(|_| InspectError::Form { what: "query-migrate" })?;
    match blocked_reasons.is_empty() {
        true => Ok(()),
        false => Err(InspectError::Blocked { reasons: blocked_reasons.join("; ") }),
    }
}

fn is_rom(name: &str) -> bool {
    ROMS.contains(&name) || name.ends_with(".rom") || name.starts_with("/rom@")
}

fn memory_hint(name: &str) -> &'static str {
    if name.ends_with(".vram") || name.contains("vga") || name.contains("ram_header") {
        "take the graphics card away with -vga none, and use a serial console"
    } else if name.contains("flash") {
        "use SeaBIOS, or firmware without writable flash"
    } else {
        "take the device that has it away"
    }
}

/// Answers name and path of the disks that a vhost-user device serves.
fn check_devices(children: Value, parent: &str) -> Result<Vec<(String, String)>, InspectError> {
    #[derive(Deserialize)]
    struct Child {
        name: String,
        #[serde(rename = "type")]
        kind: String,
    }
    let children: Vec<Child> =
        serde_json::from_value(children).map_err(|_| InspectError::Form { what: "qom-list" })?;
    let mut disks = Vec::new();
    for child in &children {
        let name = child.kind.trim_start_matches("child<").trim_end_matches('>');
        if name.starts_with("vhost-user-blk") {
            disks.push((name.to_owned(), format!("{parent}/{}", child.name)));
        } else if let Some((_, why)) = DEVICES.iter().find(|(prefix, _)| name.starts_with(prefix)) {
            return Err(InspectError::Device { name: name.to_owned(), why });
        }
    }
    Ok(disks)
}

/// The pages that it writes are known only if we serve it.
fn check_vhost_disk(name: &str, chardev: &Value, attached: &Attachments) -> Result<(), InspectError> {
    let ours = |(id, at): &(String, DiskAttachment)| {
        chardev.as_str() == Some(id) && matches!(at, DiskAttachment::VhostUser(_))
    };
    match attached.disks.iter().any(ours) {
        true => Ok(()),
        false => Err(InspectError::Device {
            name: name.to_owned(),
            why: "its chardev is not the id of a [[disk]] with frontend = \"vhost-user\", so what it writes to guest memory goes \
                  unseen",
        }),
    }
}

fn check_disks(answer: Value, attached: &[&str]) -> Result<(), InspectError> {
    #[derive(Deserialize)]
    struct Device {
        device: String,
        qdev: Option<String>,
        inserted: Option<Medium>,
    }
    #[derive(Deserialize)]
    #[serde(rename_all = "kebab-case")]
    struct Medium {
        ro: bool,
        node_name: Option<String>,
        cache: Cache,
    }
    #[derive(Deserialize)]
    struct Cache {
        direct: bool,
    }
    let devices: Vec<Device> =
        serde_json::from_value(answer).map_err(|_| InspectError::Form { what: "query-block" })?;
    for Device { device, qdev, inserted } in devices {
        let Some(medium) = inserted else { continue };
        if medium.node_name.as_deref().is_some_and(|node| attached.contains(&node)) {
            continue;
        }
        let name = if device.is_empty() { qdev.or(medium.node_name).unwrap_or_default() } else { device };
        if !medium.ro {
            return Err(InspectError::Disk { name });
        }
        if medium.cache.direct {
            return Err(InspectError::Direct { name });
        }
    }
    Ok(())
}

/// Lines such as ` \ net0: index=0,type=stream,…`; the other ends of a connection are of type `nic`.
fn check_networks(list: &str, attached: &[&str]) -> Result<(), InspectError> {
    for line in list.lines() {
        let Some((left, right)) = line.split_once(": index=") else { continue };
        let name = left.rsplit([' ', ':']).next().unwrap_or_default();
        let kind = right.split(',').find_map(|part| part.strip_prefix("type=")).unwrap_or_default();
        if kind != "nic" && !attached.contains(&name) {
            return Err(InspectError::Network { name: name.to_owned() });
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::launch::RAM;

    const TITLE: &str =
        "\n   Block Name    PSize   Offset   Used   Total\n aventine-ram    4 KiB  0x0 0x1 0x1\n";

    #[test]
    fn only_the_backend_and_roms_may_be_memory() {
        let roms =
            " pc.bios 4 KiB 0x0\n pc.rom 4 KiB\n/rom@etc/acpi/tables 4 KiB\n0000:00:02.0/e1000e.rom 4 KiB\n";
        check_memory(&format!("{TITLE}{roms}"), RAM).unwrap();
        for (name, hint) in
            [("0000:00:01.0/vga.vram", "-vga none"), ("system.flash0", "SeaBIOS"), ("x.ram", "device")]
        {
            let error = check_memory(&format!("{TITLE}{roms} {name} 4 KiB\n"), RAM).unwrap_err().to_string();
            assert!(error.contains(name) && error.contains(hint), "{error}");
        }
        assert!(matches!(check_memory("nonsense", RAM), Err(InspectError::Form { .. })));
    }

    #[test]
    fn networks_are_told_apart_from_their_devices() {
        let list = "hub 0\n \\ hub0port1: #net156: index=0,type=user,net=10.0.2.0\n \\ hub0port0: e1000e.0: index=0,type=nic\n";
        assert!(check_networks(list, &[]).unwrap_err().to_string().contains("#net156"));
        let list =
            "virtio-net-pci.0: index=0,type=nic,model=virtio-net-pci\n \\ net0: index=0,type=stream,\n";
        check_networks(list, &["net0"]).unwrap();
        assert!(
            matches!(check_networks(list, &["net1"]), Err(InspectError::Network { name }) if name == "net0")
        );
    }

    #[test]
    fn disks_are_attached_or_read_only_and_cached() {
        let disk = |node: &str, ro: bool, direct: bool| json!([{ "device": "", "qdev": "/machine/x", "inserted": { "ro": ro, "node-name": node, "cache": { "direct": direct } } }, { "device": "cd0" }]);
        check_disks(disk("disk0", false, false), &["disk0"]).unwrap();
        check_disks(disk("other", true, false), &["disk0"]).unwrap();
        let error = check_disks(disk("other", false, false), &["disk0"]).unwrap_err().to_string();
        assert!(error.contains("/machine/x"), "{error}");
        assert!(matches!(check_disks(disk("other", true, true), &[]), Err(InspectError::Direct { .. })));
        assert!(matches!(check_disks(json!({}), &[]), Err(InspectError::Form { .. })));
    }

    #[test]
    fn what_blocks_a_migration_blocks_protection() {
        check_blockers(json!({})).unwrap();
        let error = check_blockers(json!({ "blocked-reasons": ["no such luck"] })).unwrap_err();
        assert!(error.to_string().ends_with(": no such luck"), "{error}");
    }

    #[test]
    fn devices_are_refused_by_type() {
        let children = json!([
            { "name": "type", "type": "string" },
            { "name": "a", "type": "child<virtio-blk-pci>" },
            { "name": "b[0]", "type": "child<vhost-user-blk-pci>" },
        ]);
        let disks = check_devices(children, "/machine").unwrap();
        assert_eq!(disks, [("vhost-user-blk-pci".to_owned(), "/machine/b[0]".to_owned())]);
        let refused = json!([{ "name": "a", "type": "child<virtio-balloon-pci>" }]);
        let error = check_devices(refused, "/machine").unwrap_err();
        assert!(error.to_string().contains("virtio-balloon-pci"), "{error}");
    }

    #[test]
    fn only_our_own_vhost_user_disks_are_known_to_tell_what_they_write() {
        let attached = Attachments {
            networks: Vec::new(),
            disks: vec![
                ("disk0".into(), DiskAttachment::VhostUser("/a".into())),
                ("disk1".into(), DiskAttachment::Nbd("/b".into())),
            ],
        };
        check_vhost_disk("vhost-user-blk-pci", &json!("disk0"), &attached).unwrap();
        for other in [json!("disk1"), json!("mine"), json!(null)] {
            let error = check_vhost_disk("vhost-user-blk-pci", &other, &attached).unwrap_err();
            assert!(error.to_string().contains("frontend = \"vhost-user\""), "{error}");
        }
    }
}
