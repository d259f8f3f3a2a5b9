//! An NBD client with several requests under way, as QEMU sends them: one system call for each.

use super::client::{ClientError, Load, PATIENCE, Places};
use std::io::{self, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

const OPTION_MAGIC: u64 = 0x4948_4156_454f_5054;
const REQUEST_MAGIC: u32 = 0x2560_9513;
const REPLY_MAGIC: u32 = 0x6744_6698;
const FIXED_NEWSTYLE_NO_ZEROES: u32 = 3;
const EXPORT_NAME: u32 = 1;
const DISCONNECT: u16 = 2;
/// Bytes of a request without data, and of a reply without it.
const REQUEST: usize = 28;
const REPLY: usize = 16;

/// A connection.
pub(super) struct Client {
    input: BufReader<UnixStream>,
    output: UnixStream,
    places: Places,
    block: Vec<u8>,
}

impl Client {
    /// Connects to the export without a name, or the only one.
    pub(super) fn connect(socket: &Path, size: u64) -> Result<Client, ClientError> {
        let output = UnixStream::connect(socket)?;
        output.set_read_timeout(Some(PATIENCE))?;
        let input = BufReader::with_capacity(64 << 10, output.try_clone()?);
        let mut client = Client { input, output, places: Places::of(size), block: Vec::new() };
        client.greet(size)?;
        Ok(client)
    }

    fn greet(&mut self, needed: u64) -> Result<(), ClientError> {
        let [_, magic] = [u64::from_be_bytes(self.take()?), u64::from_be_bytes(self.take()?)];
        if magic != OPTION_MAGIC {
            return Err(ClientError::Magic(magic));
        }
        self.take::<2>()?;
        self.output.write_all(&FIXED_NEWSTYLE_NO_ZEROES.to_be_bytes())?;
        let option = [&OPTION_MAGIC.to_be_bytes()[..], &EXPORT_NAME.to_be_bytes(), &[0; 4]].concat();
        self.output.write_all(&option)?;
        let size = u64::from_be_bytes(self.take()?);
        self.take::<2>()?;
        if size < needed { Err(ClientError::Size(size, needed)) } else { Ok(()) }
    }

    fn take<const N: usize>(&mut self) -> io::Result<[u8; N]> {
        let mut bytes = [0; N];
        self.input.read_exact(&mut bytes)?;
        Ok(bytes)
    }

    /// Sends requests for `time`, or at least `least` of them; answers how many, all of them answered.
    pub(super) fn run(&mut self, load: Load, time: Duration, least: u64) -> Result<u64, ClientError> {
        let mut request = vec![0; REQUEST + if load.write { load.block } else { 0 }];
        request[REQUEST..].iter_mut().zip(0_u32..).for_each(|(byte, i)| *byte = (i % 251) as u8);
        request[..4].copy_from_slice(&REQUEST_MAGIC.to_be_bytes());
        request[6..8].copy_from_slice(&u16::from(load.write).to_be_bytes());
        request[24..28].copy_from_slice(&(load.block as u32).to_be_bytes());
        self.block.resize(load.block, 0);
        let (began, mut sent, mut answered) = (Instant::now(), 0, 0);
        loop {
            // Asked once: time may run out between two looks at it.
            let more = sent < least || began.elapsed() < time;
            if more && sent - answered < load.depth {
                let (place, other) = self.places.next(load);
                request[16..24].copy_from_slice(&place.to_be_bytes());
                if let Some(first) = request.get_mut(REQUEST..REQUEST + 8) {
                    // Every write is another one.
                    first.copy_from_slice(&other.to_be_bytes());
                }
                self.output.write_all(&request)?;
                sent += 1;
            } else if sent > answered {
                self.reply(load)?;
                answered += 1;
            } else {
                return Ok(answered);
            }
        }
    }

    fn reply(&mut self, load: Load) -> Result<(), ClientError> {
        let reply: [u8; REPLY] = self.take()?;
        let [magic, error] = [0, 4].map(|at| u32::from_be_bytes([0, 1, 2, 3].map(|i| reply[at + i])));
        if magic != REPLY_MAGIC {
            return Err(ClientError::Magic(u64::from(magic)));
        }
        if error != 0 {
            return Err(ClientError::Failed(error));
        }
        if !load.write {
            self.input.read_exact(&mut self.block)?;
        }
        Ok(())
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        let mut request = [0; REQUEST];
        request[..4].copy_from_slice(&REQUEST_MAGIC.to_be_bytes());
        request[6..8].copy_from_slice(&DISCONNECT.to_be_bytes());
        // The server sees the end of the connection otherwise.
        let _ = self.output.write_all(&request);
    }
}
