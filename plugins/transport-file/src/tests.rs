use super::*;
use std::fs;
use std::os::unix::fs::PermissionsExt;

fn recorder(dir: &std::path::Path) -> Recorder {
    Recorder { path: dir.join("a.trace") }
}

#[test]
fn what_is_sent_can_be_read_back_in_order() {
    let dir = tempfile::tempdir().unwrap();
    let mut link = recorder(dir.path()).connect(Duration::ZERO).unwrap();
    let (mut control, _) = link.open("control", None, Duration::ZERO).unwrap();
    let (mut pages, _) = link.open("pages", None, Duration::ZERO).unwrap();
    let many = vec![&[7u8; 3][..]; 3000];
    control.send(&[b"he", b"", b"llo"]).unwrap();
    pages.send(&many).unwrap();
    control.send(&[]).unwrap();
    let path = dir.path().join("a.trace");
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    let mut reader = Reader::new(File::open(&path).unwrap()).unwrap();
    let mut read = Vec::new();
    while let Some(entry) = reader.next_entry().unwrap() {
        read.push(match entry {
            Entry::Channel { number, name } => (number, name.into_bytes()),
            Entry::Bytes { channel, bytes, .. } => (channel, bytes),
        });
    }
    let expected = [
        (0, b"control".to_vec()),
        (1, b"pages".to_vec()),
        (0, b"hello".to_vec()),
        (1, many.concat()),
        (0, vec![]),
    ];
    assert_eq!(read, expected);
    assert_eq!((link.answers(), link.peer()), (false, path.display().to_string()));
}

#[test]
fn a_recording_replaces_none() {
    let dir = tempfile::tempdir().unwrap();
    let mut recorder = recorder(dir.path());
    drop(recorder.connect(Duration::ZERO).unwrap());
    let error = recorder.connect(Duration::ZERO).err().unwrap();
    assert_eq!(error.code(), ErrorCode::Config);
    assert!(error.chain().contains("exists already; remove it, or set another `path`"), "{}", error.chain());
    assert_eq!(recorder.listen(&[]).err().unwrap().code(), ErrorCode::Config);
}

#[test]
fn a_full_disk_is_named() {
    let mut full = Writer::new(OpenOptions::new().write(true).open("/dev/null").unwrap()).unwrap();
    full.channel(0, &"x".repeat(256)).unwrap_err();
    let error = Writer::new(OpenOptions::new().write(true).open("/dev/full").unwrap()).err().unwrap();
    assert_eq!(error.kind(), io::ErrorKind::StorageFull);
}

#[test]
fn an_end_wakes_who_waits_and_stops_who_writes() {
    let dir = tempfile::tempdir().unwrap();
    let mut link = recorder(dir.path()).connect(Duration::ZERO).unwrap();
    let (mut tx, mut rx) = link.open("control", None, Duration::ZERO).unwrap();
    let waiting = std::thread::spawn(move || rx.recv(&mut [0]).unwrap_err().code());
    link.aborter().abort();
    assert_eq!(waiting.join().unwrap(), ErrorCode::PeerLost);
    assert_eq!(tx.send(&[b"late"]).unwrap_err().code(), ErrorCode::PeerLost);
}

#[path = "../testing/bench.rs"]
mod bench;

mod conformance {
    aventine_conformance::recorder!(super::bench::Trace<aventine_conformance::form::Native>);
}
