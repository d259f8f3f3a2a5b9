//! The arguments added to the user's command. The same on both sides but for `-S` or `-incoming`, so that both make the
//! same machine.

use crate::options::Options;
use aventine_api::{Attachments, DiskAttachment, NetAttachment, Side};
use serde_json::{Value, json};
use std::os::fd::{AsRawFd, BorrowedFd};
use std::path::{Path, PathBuf};

/// The id of the memory backend, and the name of its RAM block.
pub(crate) const RAM: &str = "aventine-ram";

/// A path that cannot be given to QEMU.
#[derive(Debug, thiserror::Error)]
#[error("QEMU cannot be given the path {}, which is not UTF-8; choose another state directory", path.display())]
pub(crate) struct PathError {
    path: PathBuf,
}

/// The whole command. The descriptors must be inherited under their numbers.
pub(crate) fn command(
    options: &Options,
    side: Side,
    ram: BorrowedFd<'_>,
    qmp: BorrowedFd<'_>,
    attachments: &Attachments,
) -> Result<Vec<String>, PathError> {
    let backend = json!({
        "qom-type": "memory-backend-file",
        "id": RAM,
        "size": options.ram,
        "mem-path": format!("/proc/self/fd/{}", ram.as_raw_fd()),
        "share": true,
    });
    let mut command = options.command.clone();
    let mut add = |option: &str, value: String| command.extend([option.to_owned(), value]);
    add("-object", backend.to_string());
    // QEMU merges this with the user's own -machine. Without the description the state ends where QEMU expects it to.
    add("-machine", format!("memory-backend={RAM},suppress-vmdesc=on"));
    add("-global", "migration.send-configuration=off".into());
    add("-chardev", format!("socket,id=aventine-qmp,fd={}", qmp.as_raw_fd()));
    add("-mon", "chardev=aventine-qmp,mode=control".into());
    for (id, attachment) in &attachments.networks {
        add("-netdev", netdev(id, attachment)?.to_string());
    }
    for (id, attachment) in &attachments.disks {
        match attachment {
            DiskAttachment::Nbd(socket) => add("-blockdev", blockdev(id, socket)?.to_string()),
            DiskAttachment::VhostUser(socket) => add("-chardev", chardev(id, socket)?),
        }
    }
    // A device whose state cannot be saved ends QEMU here, by name, instead of being lost at failover.
    command.push("-only-migratable".into());
    match side {
        Side::Primary => command.push("-S".into()),
        Side::Standby => command.extend(["-incoming".into(), "defer".into()]),
    }
    Ok(command)
}

fn netdev(id: &str, attachment: &NetAttachment) -> Result<Value, PathError> {
    Ok(match attachment {
        NetAttachment::Stream(path) => {
            json!({ "type": "stream", "id": id, "server": false, "addr": { "type": "unix", "path": text(path)? } })
        }
        NetAttachment::Served(path) => {
            json!({ "type": "stream", "id": id, "server": true, "addr": { "type": "unix", "path": text(path)? } })
        }
        NetAttachment::Tap(name) => {
            json!({ "type": "tap", "id": id, "ifname": name, "script": "no", "downscript": "no" })
        }
    })
}

fn blockdev(id: &str, socket: &Path) -> Result<Value, PathError> {
    let server = json!({ "type": "unix", "path": text(socket)? });
    Ok(json!({ "driver": "nbd", "node-name": id, "server": server, "export": id, "discard": "unmap" }))
}

/// QEMU takes no JSON here: a comma in a value is doubled.
fn chardev(id: &str, socket: &Path) -> Result<String, PathError> {
    Ok(format!("socket,id={id},path={}", text(socket)?.replace(',', ",,")))
}

/// QEMU's working directory is not ours, so paths are made absolute.
fn text(path: &Path) -> Result<String, PathError> {
    let error = || PathError { path: path.to_owned() };
    let absolute = std::path::absolute(path).map_err(|_| error())?;
    absolute.into_os_string().into_string().map_err(|_| error())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsFd;

    fn made(side: Side) -> Vec<String> {
        let options = Options { command: vec!["qemu".into(), "-nodefaults".into()], attach: None, ram: 8192 };
        let attachments = Attachments {
            networks: vec![
                ("net0".into(), NetAttachment::Stream("/run/a,b".into())),
                ("net1".into(), NetAttachment::Tap("tap-web".into())),
            ],
            disks: vec![
                ("disk0".into(), DiskAttachment::Nbd("/run/c,d".into())),
                ("disk1".into(), DiskAttachment::VhostUser("/run/e,f".into())),
            ],
        };
        command(&options, side, std::io::stdin().as_fd(), std::io::stdout().as_fd(), &attachments).unwrap()
    }

    #[test]
    fn both_sides_make_the_same_machine() {
        let (primary, standby) = (made(Side::Primary), made(Side::Standby));
        let common = primary.len() - 1;
        assert_eq!(primary[..common], standby[..common]);
        assert_eq!(primary[common..], ["-S"]);
        assert_eq!(standby[common..], ["-incoming", "defer"]);
    }

    #[test]
    fn attachments_become_backends_whatever_their_paths_hold() {
        let line = made(Side::Primary).join(" ");
        for part in [
            r#""addr":{"path":"/run/a,b","type":"unix"}"#,
            r#""downscript":"no","id":"net1","ifname":"tap-web","script":"no","type":"tap""#,
            r#""export":"disk0","node-name":"disk0","server":{"path":"/run/c,d","type":"unix"}"#,
            r#""mem-path":"/proc/self/fd/0""#,
            "-chardev socket,id=disk1,path=/run/e,,f",
        ] {
            assert!(line.contains(part), "{part} in {line}");
        }
    }
}
