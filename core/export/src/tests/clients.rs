//! The clients that people use: QEMU's and libnbd's tools.

use super::{exported, pattern};
use crate::Export;
use std::fs;
use std::io::Write;
use std::process::{Command, Output, Stdio};
use std::sync::atomic::Ordering;

fn uri(export: &Export) -> String {
    format!("nbd+unix:///disk?socket={}", export.socket().display())
}

fn run(command: &mut Command) -> Output {
    let name = command.get_program().to_owned();
    command.output().unwrap_or_else(|e| {
        panic!("{} is needed (Debian: qemu-utils, libnbd-bin, qemu-system-x86): {e}", name.display())
    })
}

/// Runs a command that must succeed; answers what it printed.
fn ok(command: &mut Command) -> String {
    let output = run(command);
    let text = [&output.stdout[..], &output.stderr].concat();
    let text = String::from_utf8_lossy(&text).into_owned();
    assert!(output.status.success(), "{command:?}: {text}");
    text
}

fn qemu_io(export: &Export, commands: &[&str]) -> String {
    let mut qemu_io = Command::new("qemu-io");
    qemu_io.args(["-f", "raw", "--discard=unmap"]);
    for command in commands {
        qemu_io.args(["-c", command]);
    }
    ok(qemu_io.arg(uri(export)))
}

#[test]
fn qemu_io_reads_what_it_wrote() {
    let (_dir, device, export) = exported(8 << 20);
    let said = qemu_io(
        &export,
        &[
            "write -P 0xa5 0 1M",
            "write -P 0x5a 4k 512",
            "write -f -P 0x11 2M 3M",
            "aio_write -P 0x77 6M 64k",
            "aio_flush",
            "write -z 64k 64k",
            "write -z -u 128k 64k",
            "discard 192k 64k",
            "flush",
            "read -P 0xa5 0 4k",
            "read -P 0x5a 4k 512",
            "read -P 0 64k 192k",
            "read -P 0x11 2M 3M",
            "read -P 0x77 6M 64k",
        ],
    );
    assert!(!said.contains("failed"), "{said}");
    let contents = device.contents();
    assert!(contents[4096..4608].iter().all(|&b| b == 0x5a));
    assert!(contents[64 << 10..256 << 10].iter().all(|&b| b == 0));
    assert!(contents[2 << 20..5 << 20].iter().all(|&b| b == 0x11));
    assert_eq!(device.unsynced.load(Ordering::SeqCst), 0);
    assert!(device.flushes.load(Ordering::SeqCst) > 0);
    let said = run(Command::new("qemu-io").args(["-f", "raw", "-c", "read 7M 2M"]).arg(uri(&export)));
    assert!(!said.status.success(), "past the end");
}

#[test]
fn qemu_io_opens_it_by_options() {
    let (_dir, _device, export) = exported(1 << 20);
    let options =
        format!("driver=nbd,export=disk,server.type=unix,server.path={}", export.socket().display());
    let said = ok(Command::new("qemu-io").args([
        "-c",
        "write -P 3 0 64k",
        "-c",
        "read -P 3 0 64k",
        "--image-opts",
        &options,
    ]));
    assert!(said.contains("read 65536/65536"), "{said}");
}

#[test]
fn nbdinfo_sees_what_is_offered() {
    let (_dir, _device, export) = exported(8 << 20);
    let said = ok(Command::new("nbdinfo").args(["--json", &uri(&export)]));
    let squeezed: String = said.chars().filter(|c| !c.is_whitespace()).collect();
    for fact in [
        r#""protocol":"newstyle-fixed""#,
        r#""structured":true"#,
        r#""export-name":"disk""#,
        r#""export-size":8388608"#,
        r#""is_read_only":false"#,
        r#""can_df":true"#,
        r#""can_flush":true"#,
        r#""can_fua":true"#,
        r#""can_multi_conn":true"#,
        r#""can_trim":true"#,
        r#""can_zero":true"#,
        r#""block_size_minimum":1"#,
        r#""block_size_preferred":4096"#,
        r#""block_size_maximum":33554432"#,
    ] {
        assert!(squeezed.contains(fact), "{fact} is missing in {said}");
    }
    let list = ok(Command::new("nbdinfo").args(["--list", &uri(&export)]));
    assert!(list.contains("export=\"disk\""), "{list}");
}

#[test]
fn nbdcopy_copies_both_ways_and_qemu_img_agrees() {
    let (dir, device, export) = exported(24 << 20);
    let image = dir.path().join("image");
    let data = pattern(24 << 20, 9);
    fs::write(&image, &data).unwrap();
    ok(Command::new("nbdcopy").arg("--connections=4").arg(&image).arg(uri(&export)));
    assert!(device.contents() == data);
    let copy = dir.path().join("copy");
    ok(Command::new("nbdcopy").arg(uri(&export)).arg(&copy));
    assert!(fs::read(&copy).unwrap() == data);
    let said = ok(Command::new("qemu-img")
        .args(["compare", "-f", "raw", "-F", "raw"])
        .arg(&image)
        .arg(uri(&export)));
    assert!(said.contains("identical"), "{said}");
}

#[test]
fn a_qemu_machine_opens_it() {
    let (_dir, device, export) = exported(1 << 20);
    let blockdev = format!(
        "driver=nbd,node-name=disk0,export=disk,server.type=unix,server.path={}",
        export.socket().display()
    );
    let mut qemu = Command::new("qemu-system-x86_64")
        .args(["-M", "none", "-nodefaults", "-nographic", "-qmp", "stdio", "-blockdev", &blockdev])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("qemu-system-x86_64 is needed (Debian: qemu-system-x86)");
    let commands = [
        r#"{"execute":"qmp_capabilities"}"#,
        r#"{"execute":"human-monitor-command","arguments":{"command-line":"qemu-io disk0 \"write -P 9 0 64k\""}}"#,
        r#"{"execute":"query-named-block-nodes"}"#,
        r#"{"execute":"quit"}"#,
    ];
    qemu.stdin.take().unwrap().write_all(commands.join("\n").as_bytes()).unwrap();
    let output = qemu.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{said} {}", String::from_utf8_lossy(&output.stderr));
    assert!(said.contains(r#""virtual-size": 1048576"#), "{said}");
    assert!(!said.contains(r#""error""#), "{said}");
    assert!(device.contents()[..64 << 10].iter().all(|&b| b == 9), "{said}");
}
