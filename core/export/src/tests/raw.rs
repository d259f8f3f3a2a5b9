//! A client that speaks the protocol byte by byte, for what real clients never send.

use super::{exported, pattern};
use crate::Export;
use aventine_api::ErrorCode;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::atomic::Ordering;
use std::time::Duration;

struct Client(UnixStream);

/// Type and data of an option's answer.
type Answer = (u32, Vec<u8>);

impl Client {
    fn connect(export: &Export, flags: u32) -> Client {
        let stream = UnixStream::connect(export.socket()).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
        let mut client = Client(stream);
        assert_eq!(client.take(18), b"NBDMAGICIHAVEOPT\0\x03");
        client.put(&flags.to_be_bytes());
        client
    }

    fn put(&mut self, bytes: &[u8]) {
        self.0.write_all(bytes).unwrap();
    }

    fn take(&mut self, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.0.read_exact(&mut bytes).unwrap();
        bytes
    }

    fn u32(&mut self) -> u32 {
        u32::from_be_bytes(self.take(4).try_into().unwrap())
    }

    fn assert_closed(&mut self) {
        let mut rest = Vec::new();
        // A reset counts as closed as well.
        let _ = self.0.read_to_end(&mut rest);
        assert_eq!(rest, b"", "the server says nothing more");
    }

    fn send_option(&mut self, option: u32, data: &[u8]) {
        let mut bytes = b"IHAVEOPT".to_vec();
        bytes.extend(option.to_be_bytes());
        bytes.extend((data.len() as u32).to_be_bytes());
        bytes.extend(data);
        self.put(&bytes);
    }

    /// Sends an option and collects its answers up to the acknowledgement or error.
    fn option(&mut self, option: u32, data: &[u8]) -> Vec<Answer> {
        self.send_option(option, data);
        let mut answers = Vec::new();
        loop {
            assert_eq!(self.take(8), 0x3e889045565a9_u64.to_be_bytes());
            assert_eq!(self.u32(), option);
            let kind = self.u32();
            let len = self.u32() as usize;
            answers.push((kind, self.take(len)));
            if kind == 1 || kind >> 31 == 1 {
                return answers;
            }
        }
    }

    fn go(export: &Export, structured: bool) -> Client {
        let mut client = Client::connect(export, 3);
        if structured {
            assert_eq!(client.option(8, b""), [(1, vec![])]);
        }
        let answers = client.option(7, &go(b"disk", &[]));
        assert_eq!(answers.last().unwrap().0, 1);
        client
    }

    fn request(&mut self, flags: u16, command: u16, offset: u64, length: u32, data: &[u8]) {
        let mut bytes = 0x25609513_u32.to_be_bytes().to_vec();
        bytes.extend(flags.to_be_bytes());
        bytes.extend(command.to_be_bytes());
        bytes.extend(b"a cookie");
        bytes.extend(offset.to_be_bytes());
        bytes.extend(length.to_be_bytes());
        bytes.extend(data);
        self.put(&bytes);
    }

    /// The error of a simple reply.
    fn simple(&mut self) -> u32 {
        assert_eq!(self.u32(), 0x67446698);
        let error = self.u32();
        assert_eq!(self.take(8), b"a cookie");
        error
    }

    /// Type and payload of a structured reply's only chunk.
    fn chunk(&mut self) -> (u16, Vec<u8>) {
        assert_eq!(self.u32(), 0x668e33ef);
        assert_eq!(self.take(2), [0, 1], "the only chunk is the last");
        let kind = u16::from_be_bytes(self.take(2).try_into().unwrap());
        assert_eq!(self.take(8), b"a cookie");
        let len = self.u32() as usize;
        (kind, self.take(len))
    }

    fn error_chunk(&mut self) -> u32 {
        let (kind, payload) = self.chunk();
        assert_eq!(kind, 0x8001);
        let text = u16::from_be_bytes([payload[4], payload[5]]);
        assert_eq!(payload.len(), 6 + usize::from(text));
        u32::from_be_bytes(payload[..4].try_into().unwrap())
    }
}

fn go(name: &[u8], infos: &[u16]) -> Vec<u8> {
    let mut data = (name.len() as u32).to_be_bytes().to_vec();
    data.extend(name);
    data.extend((infos.len() as u16).to_be_bytes());
    data.extend(infos.iter().flat_map(|i| i.to_be_bytes()));
    data
}

const FLAGS: u16 = 1 | 1 << 2 | 1 << 3 | 1 << 5 | 1 << 6 | 1 << 8;

fn export_info(size: u64, flags: u16) -> Answer {
    (3, [&[0, 0][..], &size.to_be_bytes(), &flags.to_be_bytes()].concat())
}

#[test]
fn options_are_answered_and_unknown_ones_refused() {
    let (_dir, _device, export) = exported(1 << 20);
    let mut client = Client::connect(&export, 3);
    assert_eq!(client.option(3, b""), [(2, b"\0\0\0\x04disk".to_vec()), (1, vec![])]);
    assert_eq!(client.option(3, b"x"), [(0x8000_0003, vec![])]);
    for unknown in [4, 5, 9, 10, 11, 77] {
        assert_eq!(client.option(unknown, b"data"), [(0x8000_0001, vec![])]);
    }
    assert_eq!(client.option(6, &go(b"disk", &[])), [export_info(1 << 20, FLAGS), (1, vec![])]);
    assert_eq!(client.option(6, &go(b"other", &[])), [(0x8000_0006, vec![])]);
    assert_eq!(client.option(7, b"\0\0\0\xff"), [(0x8000_0003, vec![])]);
    assert_eq!(client.option(8, b"x"), [(0x8000_0003, vec![])]);
    assert_eq!(client.option(8, b""), [(1, vec![])]);
    let sizes = [&[0, 3][..], &1_u32.to_be_bytes(), &4096_u32.to_be_bytes(), &(32_u32 << 20).to_be_bytes()];
    assert_eq!(
        client.option(7, &go(b"", &[1, 3])),
        [export_info(1 << 20, FLAGS | 1 << 7), (3, sizes.concat()), (1, vec![])],
        "the empty name stands for the only export, and DF goes with structured replies"
    );
    client.request(0, 3, 0, 0, b"");
    assert_eq!(client.simple(), 0);
}

#[test]
fn abort_is_acknowledged_and_ends_the_connection() {
    let (_dir, _device, export) = exported(4096);
    let mut client = Client::connect(&export, 3);
    assert_eq!(client.option(2, b""), [(1, vec![])]);
    client.assert_closed();
}

#[test]
fn export_name_serves_clients_with_and_without_zeroes() {
    let (_dir, _device, export) = exported(4096);
    for (flags, zeroes) in [(0, 124), (1, 124), (3, 0)] {
        let mut client = Client::connect(&export, flags);
        client.send_option(1, b"disk");
        assert_eq!(client.take(8), 4096_u64.to_be_bytes());
        assert_eq!(client.take(2), FLAGS.to_be_bytes());
        assert_eq!(client.take(zeroes), vec![0; zeroes]);
        client.request(0, 0, 0, 10, b"");
        assert_eq!(client.simple(), 0);
        assert_eq!(client.take(10), [0; 10]);
        client.request(0, 2, 0, 0, b"");
        client.assert_closed();
    }
    let mut client = Client::connect(&export, 3);
    client.send_option(1, b"unknown");
    client.assert_closed();
}

#[test]
fn nonsense_in_the_handshake_closes_the_connection() {
    let (_dir, _device, export) = exported(4096);
    Client::connect(&export, 0x100).assert_closed();

    let mut client = Client::connect(&export, 3);
    client.put(b"NOTANOPT\0\0\0\x03\0\0\0\0");
    client.assert_closed();

    let mut client = Client::connect(&export, 3);
    client.put(b"IHAVEOPT\0\0\0\x07\xff\xff\xff\xff");
    client.assert_closed();

    let mut client = Client::connect(&export, 0);
    client.send_option(3, b"");
    client.assert_closed();
    assert_eq!(Client::connect(&export, 3).option(3, b"").len(), 2, "others are still served");
}

#[test]
fn reads_and_writes_reach_the_device_with_their_flags() {
    let (_dir, device, export) = exported(1 << 20);
    for structured in [false, true] {
        let mut client = Client::go(&export, structured);
        let data = pattern(70_001, structured.into());
        client.request(1, 1, 33, data.len() as u32, &data);
        assert_eq!(client.simple(), 0);
        assert_eq!(device.unsynced.load(Ordering::SeqCst), 0, "FUA reaches the device");
        client.request(0, 1, 5, 3, b"abc");
        assert_eq!(client.simple(), 0);
        assert_eq!(device.unsynced.load(Ordering::SeqCst), 1);
        client.request(0, 0, 33, data.len() as u32, b"");
        if structured {
            let (kind, payload) = client.chunk();
            assert_eq!((kind, &payload[..8], &payload[8..]), (1, &33_u64.to_be_bytes()[..], &data[..]));
        } else {
            assert_eq!(client.simple(), 0);
            assert_eq!(client.take(data.len()), data);
        }
        client.request(1, 4, 33, 100, b"");
        assert_eq!(client.simple(), 0);
        assert_eq!(device.unsynced.load(Ordering::SeqCst), 0, "a trim with FUA is followed by a flush");
        for (flags, unmap) in [(2, false), (0, true)] {
            client.request(flags, 6, 100, 200, b"");
            assert_eq!(client.simple(), 0);
            assert_eq!(*device.unmapped.lock().unwrap(), Some(unmap));
        }
        let mut expected = data;
        expected[..267].fill(0);
        assert_eq!(device.contents()[33..33 + expected.len()], expected);
        client.request(0, 3, 0, 0, b"");
        assert_eq!(client.simple(), 0);
        assert_eq!(device.unsynced.load(Ordering::SeqCst), 0);
    }
}

#[test]
fn a_structured_read_of_nothing_has_no_data_chunk() {
    let (_dir, _device, export) = exported(4096);
    let mut client = Client::go(&export, true);
    client.request(4, 0, 0, 0, b"");
    assert_eq!(client.chunk(), (0, vec![]));
    let mut client = Client::go(&export, false);
    client.request(0, 0, 4096, 0, b"");
    assert_eq!(client.simple(), 0);
}

#[test]
fn requests_out_of_range_or_malformed_get_an_error_and_the_connection_goes_on() {
    let (_dir, device, export) = exported(4096);
    let mut client = Client::go(&export, false);
    let before = device.contents();
    for (flags, command, offset, length, data, errno) in [
        (0, 0, 4000, 97, &b""[..], 22),
        (0, 0, u64::MAX, 2, b"", 22),
        (0, 1, 4095, 2, b"ab", 28),
        (0, 1, u64::MAX, 2, b"ab", 28),
        (0, 4, 4096, 1, b"", 22),
        (0, 6, 0, u32::MAX, b"", 28),
        (0, 0, 0, (32 << 20) + 1, b"", 75),
        (0x80, 0, 0, 1, b"", 22),
        (2, 1, 0, 1, b"a", 22),
        (4, 3, 0, 0, b"", 22),
        (0, 5, 0, 1, b"", 22),
        (0, 7, 0, 1, b"", 22),
        (0, 999, 0, 0, b"", 22),
    ] {
        client.request(flags, command, offset, length, data);
        assert_eq!(client.simple(), errno, "command {command} with flags {flags} at {offset}+{length}");
    }
    assert_eq!(device.contents(), before);
    let mut client = Client::go(&export, true);
    client.request(0, 0, 4096, 1, b"");
    assert_eq!(client.error_chunk(), 22);
    client.request(0, 0, 0, u32::MAX, b"");
    assert_eq!(client.error_chunk(), 75);
    client.request(0, 0, 0, 1, b"");
    assert_eq!(client.chunk().0, 1);
}

#[test]
fn what_cannot_be_skipped_closes_the_connection() {
    let (_dir, _device, export) = exported(4096);
    let mut client = Client::go(&export, false);
    client.request(0, 1, 0, u32::MAX, b"");
    client.assert_closed();
    let mut client = Client::go(&export, false);
    client.put(&[0x55; 28]);
    client.assert_closed();
}

#[test]
fn errors_of_the_device_become_the_protocols() {
    let (_dir, device, export) = exported(4096);
    let mut simple = Client::go(&export, false);
    let mut structured = Client::go(&export, true);
    for (code, errno) in
        [(ErrorCode::Io, 5), (ErrorCode::Refused, 1), (ErrorCode::Limit, 5), (ErrorCode::Internal, 5)]
    {
        device.fail(Some(code));
        for (command, length, data) in [(0, 1, &b""[..]), (1, 1, b"a"), (3, 0, b""), (4, 1, b""), (6, 1, b"")]
        {
            simple.request(0, command, 0, length, data);
            assert_eq!(simple.simple(), errno);
        }
        structured.request(0, 0, 0, 1, b"");
        assert_eq!(structured.error_chunk(), errno);
    }
    device.fail(None);
    structured.request(0, 0, 0, 1, b"");
    assert_eq!(structured.chunk().0, 1);
}

#[test]
fn a_flush_on_one_connection_covers_the_writes_of_another() {
    let (_dir, device, export) = exported(4096);
    let (mut a, mut b) = (Client::go(&export, true), Client::go(&export, true));
    a.request(0, 1, 0, 1, b"a");
    assert_eq!(a.simple(), 0);
    b.request(0, 3, 0, 0, b"");
    assert_eq!(b.simple(), 0);
    assert_eq!(device.unsynced.load(Ordering::SeqCst), 0);
}
