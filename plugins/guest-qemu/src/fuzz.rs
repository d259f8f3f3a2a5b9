//! Fuzz targets; see `tests/fuzz`.

use crate::inspect::inspect;
use crate::qmp::{Command, Qmp, QmpError};
use aventine_api::{Attachments, DiskAttachment, NetAttachment};
use rustix::net::{AddressFamily, Shutdown, SocketFlags, SocketType, shutdown, socketpair};
use std::time::{Duration, Instant};

const GREETING: &[u8] = b"{\"QMP\":{}}\n{\"return\":{},\"id\":\"qmp_capabilities\"}\n";

/// All that QEMU sends: whether it greets properly first, then the bytes. The inspection of a machine, events and a
/// command's answer are read from them. After an error the connection stays closed.
pub fn qmp(data: &[u8]) {
    let Some((&greets, bytes)) = data.split_first() else { return };
    let (ours, theirs) = socketpair(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)
        .expect("a pair of sockets");
    let greeting = if greets & 1 == 0 { GREETING } else { b"" };
    let said = [greeting, &bytes[..bytes.len().min(64 << 10)]].concat();
    assert_eq!(rustix::io::write(&theirs, &said), Ok(said.len()));
    shutdown(&theirs, Shutdown::Write).expect("an open socket");

    let deadline = Instant::now() + Duration::from_secs(60);
    let Ok(mut qmp) = Qmp::connect(ours, deadline) else { return };
    let attached = Attachments {
        networks: vec![("net0".into(), NetAttachment::Stream("/net0".into()))],
        disks: vec![("disk0".into(), DiskAttachment::Nbd("/disk0".into()))],
    };
    if greets & 2 == 0 {
        // Whether the machine can be protected is for others to say.
        let _ = inspect(&mut qmp, crate::launch::RAM, &attached, deadline);
    }
    let drained = qmp.drain();
    let stop = Command::new("stop");
    let answer = qmp.execute(&stop, Some(deadline));
    if is_nonsense(&drained) {
        assert!(matches!(answer, Err(QmpError::Closed)), "it goes on after {drained:?}");
    }
    let again = qmp.execute(&stop, Some(deadline));
    if is_nonsense(&answer) {
        assert!(matches!(again, Err(QmpError::Closed)), "it goes on after {answer:?}");
    }
}

fn is_nonsense<T>(result: &Result<T, QmpError>) -> bool {
    matches!(result, Err(QmpError::Malformed(_) | QmpError::TooLong))
}

#[cfg(test)]
mod tests {
    use super::*;
    use aventine_fuzz::replay;
    use serde_json::{Value, json};

    fn machine(network: &str, disk: Value) -> Vec<u8> {
        let lines = [
            json!({ "return": "Block Name PSize\n aventine-ram 4 KiB 0x0\npc.bios 4 KiB\n", "id": "human-monitor-command" }),
            json!({ "return": [{ "name": "x", "type": "child<virtio-blk-pci>" }], "id": "qom-list" }),
            json!({ "return": [], "id": "qom-list" }),
            json!({ "event": "RESUME" }),
            json!({ "return": [disk], "id": "query-block" }),
            json!({ "return": network, "id": "human-monitor-command" }),
            json!({ "event": "SHUTDOWN", "data": { "guest": true, "reason": "guest-shutdown" } }),
            json!({ "return": {}, "id": "stop" }),
        ];
        [vec![0], lines.map(|line| format!("{line}\r\n")).concat().into_bytes()].concat()
    }

    #[test]
    fn whatever_qemu_says_is_an_answer_or_an_error() {
        let disk = json!({ "device": "", "inserted": { "ro": false, "node-name": "disk0", "cache": { "direct": true } } });
        let other = json!({ "device": "cd0", "qdev": "/machine/x" });
        let seeds = [
            ("machine", machine("nic: index=0,type=nic\n \\ net0: index=0,type=stream,\n", disk)),
            ("unheld", machine("hub 0\n \\ hub0port1: #net1: index=0,type=user,", other)),
            (
                "events",
                b"\x02{\"event\":\"STOP\"}\n{\"event\":\"RESET\",\"data\":{\"guest\":true}}\n".to_vec(),
            ),
            (
                "refusal",
                b"\x02{\"error\":{\"class\":\"GenericError\",\"desc\":\"no\"},\"id\":\"stop\"}\n".to_vec(),
            ),
            ("greeting", [&[1][..], GREETING, b"{\"return\":1,\"id\":\"stop\"}\n"].concat()),
        ];
        replay("qmp", &seeds, qmp);
    }
}
