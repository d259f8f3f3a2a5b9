use super::{Memory, exported};
use crate::{Export, ExportError, MAX_CONNECTIONS};
use std::fs;
use std::io::Read;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::time::Duration;

#[test]
fn the_socket_is_private_and_goes_with_the_export() {
    let (_dir, _device, export) = exported(4096);
    let path = export.socket().to_owned();
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    let mut client = UnixStream::connect(&path).unwrap();
    client.read_exact(&mut [0; 18]).unwrap();
    drop(export);
    assert_eq!(client.read(&mut [0; 1]).unwrap(), 0, "the connection is closed");
    assert!(!path.exists());
}

#[test]
fn a_dead_socket_is_replaced_and_a_live_one_is_not() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("s");
    drop(UnixListener::bind(&path).unwrap());
    assert!(path.exists(), "the file outlives the listener");
    let export = Export::start(&path, "a", Memory::new(4096)).unwrap();
    let error = Export::start(&path, "b", Memory::new(4096)).err().unwrap();
    assert!(matches!(error, ExportError::InUse { .. }), "{error}");
    let mut client = UnixStream::connect(&path).unwrap();
    client.read_exact(&mut [0; 18]).unwrap();

    fs::remove_file(&path).unwrap();
    fs::write(&path, "precious").unwrap();
    let error = Export::start(&path, "c", Memory::new(4096)).err().unwrap();
    assert!(matches!(error, ExportError::NotASocket { .. }), "{error}");
    drop(export);
    assert_eq!(fs::read(&path).unwrap(), b"precious", "what is not ours stays");
}

#[test]
fn paths_that_no_socket_can_have_are_errors() {
    let dir = tempfile::tempdir().unwrap();
    for path in [dir.path().join("x".repeat(120)), dir.path().join("missing/s")] {
        let error = Export::start(&path, "a", Memory::new(4096)).err().unwrap();
        assert!(matches!(error, ExportError::Socket { .. }), "{error}");
    }
}

#[test]
fn connections_are_limited_and_their_places_come_back() {
    let (_dir, _device, export) = exported(4096);
    let connect = || {
        let client = UnixStream::connect(export.socket()).unwrap();
        client.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
        client
    };
    let mut clients: Vec<_> = (0..MAX_CONNECTIONS).map(|_| connect()).collect();
    for client in &mut clients {
        client.read_exact(&mut [0; 18]).unwrap();
    }
    assert_eq!(connect().read(&mut [0; 1]).unwrap(), 0, "one too many is closed");
    drop(clients.pop());
    // The place is free once the server has seen the end of the connection.
    while connect().read_exact(&mut [0; 18]).is_err() {}
}
