//! An NBD client with simple replies.

use crate::{Client, Durable, Refused, Verb};
use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

const FUA: u16 = 1;
const NO_HOLE: u16 = 2;

pub(crate) struct Nbd {
    socket: PathBuf,
    stream: UnixStream,
    durable: Durable,
}

fn open(socket: &Path) -> UnixStream {
    let mut stream = UnixStream::connect(socket).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    let mut greeting = [0; 18];
    stream.read_exact(&mut greeting).unwrap();
    // Both know the newer style and leave out its zeroes; the export is named by EXPORT_NAME.
    stream.write_all(b"\0\0\0\x03IHAVEOPT\0\0\0\x01\0\0\0\x04disk").unwrap();
    let mut size_and_flags = [0; 10];
    stream.read_exact(&mut size_and_flags).unwrap();
    stream
}

impl Nbd {
    pub(crate) fn connect(socket: &Path, durable: Durable) -> Nbd {
        Nbd { socket: socket.to_owned(), stream: open(socket), durable }
    }

    fn request(&mut self, flags: u16, command: u16, at: u64, len: u64, data: &[u8]) -> io::Result<u32> {
        let mut bytes = 0x25609513_u32.to_be_bytes().to_vec();
        bytes.extend(flags.to_be_bytes());
        bytes.extend(command.to_be_bytes());
        bytes.extend(b"a cookie");
        bytes.extend(at.to_be_bytes());
        bytes.extend(u32::try_from(len).unwrap().to_be_bytes());
        bytes.extend(data);
        self.stream.write_all(&bytes)?;
        let mut reply = [0; 16];
        self.stream.read_exact(&mut reply)?;
        assert_eq!(reply[..4], 0x67446698_u32.to_be_bytes());
        Ok(u32::from_be_bytes(reply[4..8].try_into().unwrap()))
    }
}

impl Client for Nbd {
    fn ask(&mut self, verb: Verb<'_>) -> Result<Vec<u8>, Refused> {
        let fua = if self.durable == Durable::Yes { FUA } else { 0 };
        let (answer, room) = match verb {
            Verb::Read { at, len } => (self.request(0, 0, at, len as u64, b""), len),
            Verb::Write { at, data } => (self.request(fua, 1, at, data.len() as u64, data), 0),
            Verb::Flush => (self.request(0, 3, 0, 0, b""), 0),
            Verb::Discard { at, len } => (self.request(fua, 4, at, len, b""), 0),
            Verb::Zeroes { at, len, may_unmap } => {
                let hole = if may_unmap { 0 } else { NO_HOLE };
                (self.request(fua | hole, 6, at, len, b""), 0)
            }
        };
        match answer {
            Ok(0) => {
                let mut data = vec![0; room];
                self.stream.read_exact(&mut data).unwrap();
                Ok(data)
            }
            Ok(_) => Err(Refused),
            // A write whose data it does not even read: the export ends the connection.
            Err(error) => {
                assert!(matches!(verb, Verb::Write { .. }), "{error}");
                self.stream = open(&self.socket);
                Err(Refused)
            }
        }
    }
}
