//! The guest's part: an NBD client with several requests under way, as QEMU sends them: one system call for each.

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
/// How long a server may take for one reply.
const PATIENCE: Duration = Duration::from_secs(60);

/// Why requests were not answered.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// The connection.
    #[error("The connection to the disk's server failed")]
    Io(#[from] io::Error),
    /// Not NBD.
    #[error("The server does not speak NBD: it sent {0:#x}")]
    Magic(u64),
    /// A smaller disk.
    #[error("The server's disk has {0} bytes; {1} are needed")]
    Size(u64, u64),
    /// A failed request.
    #[error("The server failed a request with error {0}")]
    Failed(u32),
}

/// Which requests.
#[derive(Clone, Copy, Debug)]
pub(super) struct Load {
    pub(super) name: &'static str,
    pub(super) write: bool,
    /// At random places, otherwise one after the other.
    pub(super) random: bool,
    /// Bytes of a request.
    pub(super) block: usize,
    /// Requests under way.
    pub(super) depth: u64,
}

/// A connection.
pub(super) struct Client {
    input: BufReader<UnixStream>,
    output: UnixStream,
    size: u64,
    block: Vec<u8>,
    /// State of the places' generator, and the next place in turn.
    random: u64,
    next: u64,
}

impl Client {
    /// Connects to the export without a name, or the only one.
    pub(super) fn connect(socket: &Path, size: u64) -> Result<Client, ClientError> {
        let output = UnixStream::connect(socket)?;
        output.set_read_timeout(Some(PATIENCE))?;
        let input = BufReader::with_capacity(64 << 10, output.try_clone()?);
        let mut client = Client { input, output, size, block: Vec::new(), random: 1, next: 0 };
        client.greet()?;
        Ok(client)
    }

    fn greet(&mut self) -> Result<(), ClientError> {
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
        if size < self.size { Err(ClientError::Size(size, self.size)) } else { Ok(()) }
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
        while sent > answered || sent < least || began.elapsed() < time {
            let more = sent < least || began.elapsed() < time;
            if more && sent - answered < load.depth {
                request[16..24].copy_from_slice(&self.place(load).to_be_bytes());
                if let Some(first) = request.get_mut(REQUEST..REQUEST + 8) {
                    // Every write is another one.
                    first.copy_from_slice(&self.random.to_be_bytes());
                }
                self.output.write_all(&request)?;
                sent += 1;
            } else {
                self.reply(load)?;
                answered += 1;
            }
        }
        Ok(answered)
    }

    fn place(&mut self, load: Load) -> u64 {
        let (block, blocks) = (load.block as u64, self.size / load.block as u64);
        // Xorshift: the same places in each run.
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        self.next += 1;
        if load.random { self.random % blocks * block } else { self.next % blocks * block }
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
