//! What cannot be protected, or cannot even start, is said by name.

use crate::lab::{boot_disk, command, entry, new_guest};
use aventine_api::{Attachments, ErrorCode, PluginError, Side};

fn refusal(side: Side, command: &[String]) -> PluginError {
    let mut lab = new_guest(side, command);
    std::fs::write(lab.dir.path().join("disk.img"), boot_disk(crate::lab::Program::Count)).unwrap();
    let Err(error) = lab.start(&Attachments::default()) else { panic!("not refused: {command:?}") };
    assert_eq!(lab.process(), None);
    error
}

#[test]
fn machines_with_unreplicated_parts_are_refused() {
    let cases: [(&[&str], &str, &str); 6] = [
        (&["-vga", "std"], "vga.vram", "-vga none"),
        (&["-device", "virtio-balloon-pci"], "virtio-balloon-pci", "dirty bit"),
        (&["-device", "e1000,netdev=mine", "-netdev", "user,id=mine"], "mine", "[[network]]"),
        (&["-drive", "file=disk.img,format=raw,if=virtio"], "virtio0", "[[disk]]"),
        (&["-drive", "file=disk.img,format=raw,if=virtio,readonly=on,cache=none"], "virtio0", "cache.direct"),
        (
            &["-device", "ivshmem-plain,memdev=mine", "-object", "memory-backend-ram,id=mine,size=1M"],
            "mine",
            "",
        ),
    ];
    for (extra, name, hint) in &cases[..5] {
        for side in [Side::Primary, Side::Standby] {
            let error = refusal(side, &command(extra));
            assert_eq!(error.code(), ErrorCode::Refused, "{}", error.chain());
            assert!(error.chain().contains(name) && error.chain().contains(hint), "{}", error.chain());
        }
    }
    let (extra, ..) = cases[5];
    let config = format!("command = {:?}", command(extra));
    assert!((entry().validate)(&config).unwrap_err().to_string().contains("memory-backend-"));
}

/// QEMU adds a network card with a way out when nothing is said about networks.
#[test]
fn a_default_network_is_refused() {
    let line = ["qemu-system-x86_64", "-accel", "tcg", "-m", "16M", "-display", "none", "-vga", "none"];
    let error = refusal(Side::Primary, &line.map(str::to_owned));
    assert_eq!(error.code(), ErrorCode::Refused, "{}", error.chain());
    assert!(error.chain().contains("-nic none"), "{}", error.chain());
}

#[test]
fn a_qemu_that_cannot_start_says_why() {
    let error = refusal(Side::Primary, &command(&["-device", "no-such-device"]));
    assert_eq!(error.code(), ErrorCode::Config, "{}", error.chain());
    assert!(error.chain().contains("exited with status 1"), "{}", error.chain());
    assert!(error.chain().contains("'no-such-device' is not a valid device model name"), "{}", error.chain());

    let error = refusal(Side::Standby, &["/no/such/program".into()]);
    assert_eq!(error.code(), ErrorCode::Unavailable);
    assert!(
        error.chain().contains("/no/such/program") && error.chain().contains("apt install"),
        "{}",
        error.chain()
    );

    let error = refusal(Side::Primary, &["true".into()]);
    assert!(error.chain().contains("exited with status 0"), "{}", error.chain());
}

/// The wrapper stays QEMU's parent: its own address space holds no guest.
#[test]
fn a_command_that_is_not_qemu_itself_is_refused() {
    let shell = format!("{} & wait", "exec \"$0\" \"$@\"");
    let mut line = vec!["sh".to_owned(), "-c".into(), shell];
    line.extend(command(&[]));
    let error = refusal(Side::Primary, &line);
    assert_eq!(error.code(), ErrorCode::Config, "{}", error.chain());
    assert!(error.chain().contains("must run QEMU itself"), "{}", error.chain());
}

#[test]
fn the_signature_names_what_must_agree() {
    let mut lab = new_guest(Side::Primary, &command(&["-smp", "2"]));
    let facts = lab.signature().map_err(|e| e.chain()).unwrap();
    let fact = |name: &str| &facts.iter().find(|(n, _)| n == name).expect(name).1;
    assert_eq!(fact("guest memory in bytes"), "16777216");
    assert!(fact("QEMU command").contains("\"-smp\", \"2\""));
    assert!(fact("QEMU version").starts_with("QEMU emulator version "));
    let error = new_guest(Side::Primary, &["/no/such/program".into()]).signature().unwrap_err();
    assert!(error.chain().contains("/no/such/program"), "{}", error.chain());
}
