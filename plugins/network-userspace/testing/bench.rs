//! A bench for the buffer, in any form: real sockets at both ends.

use aventine_api::{Context, Factory, Host, Kind, NetworkBuffer, Side};
use aventine_conformance::form::Form;
use aventine_conformance::network::NetworkBench;
use std::io::{ErrorKind, Read, Write};
use std::marker::PhantomData;
use std::os::fd::AsRawFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::Arc;

/// One end of a connection that carries frames, non-blocking.
struct End {
    socket: UnixStream,
    input: Vec<u8>,
    /// What is left to write of a frame that was begun.
    output: Vec<u8>,
}

impl End {
    fn new(socket: UnixStream) -> End {
        socket.set_nonblocking(true).unwrap();
        End { socket, input: Vec::new(), output: Vec::new() }
    }

    /// `false`: the other side takes nothing just now.
    fn send(&mut self, frame: &[u8]) -> bool {
        if !self.flush() {
            return false;
        }
        self.output.extend((frame.len() as u32).to_be_bytes());
        self.output.extend(frame);
        let all = self.output.len();
        self.flush();
        // A frame that was begun will be finished; one that was not is taken back.
        if self.output.len() == all {
            self.output.clear();
            return false;
        }
        true
    }

    /// Bytes that the other side has not read yet.
    fn unread(&self) -> i32 {
        let mut bytes = 0;
        // SAFETY: TIOCOUTQ (SIOCOUTQ) writes an int, which `bytes` is.
        let asked = unsafe { libc::ioctl(self.socket.as_raw_fd(), libc::TIOCOUTQ, &raw mut bytes) };
        assert_eq!(asked, 0, "{}", std::io::Error::last_os_error());
        bytes
    }

    /// Whether nothing is left.
    fn flush(&mut self) -> bool {
        while !self.output.is_empty() {
            match self.socket.write(&self.output) {
                Ok(n) => drop(self.output.drain(..n)),
                Err(e) if e.kind() == ErrorKind::WouldBlock => return false,
                // Nobody is there to read it.
                Err(_) => self.output.clear(),
            }
        }
        true
    }

    fn receive(&mut self) -> Option<Vec<u8>> {
        let mut piece = [0; 4096];
        loop {
            if let Some((length, rest)) = self.input.split_first_chunk::<4>() {
                let length = u32::from_be_bytes(*length) as usize;
                if let Some(frame) = rest.get(..length) {
                    let frame = frame.to_vec();
                    self.input.drain(..4 + length);
                    return Some(frame);
                }
            }
            match self.socket.read(&mut piece) {
                Ok(n) if n > 0 => self.input.extend(&piece[..n]),
                _ => return None,
            }
        }
    }
}

pub(crate) struct Sockets<F> {
    buffer: Option<Box<dyn NetworkBuffer>>,
    host: Arc<dyn Host>,
    uplink: UnixListener,
    ends: Option<(End, End)>,
    side: Side,
    dir: tempfile::TempDir,
    form: PhantomData<F>,
}

fn make<F: Form>(dir: &Path, side: Side, host: Arc<dyn Host>) -> Box<dyn NetworkBuffer> {
    let Factory::Network(make) = F::entry(Kind::Network, "userspace").factory else {
        panic!("a network plugin")
    };
    let context = Context {
        guest: "conformance".into(),
        id: "net0".into(),
        side,
        state_dir: dir.to_owned(),
        config_dir: dir.to_owned(),
        host,
    };
    let uplink = dir.join("uplink");
    make(&format!("uplink = {{ stream = {uplink:?} }}\nlimit = '1MiB'"), context).unwrap()
}

impl<F: Form> NetworkBench for Sockets<F> {
    const LIMIT: u64 = 1 << 20;

    fn start(side: Side, host: Arc<dyn Host>) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let uplink = UnixListener::bind(dir.path().join("uplink")).unwrap();
        let buffer = Some(make::<F>(dir.path(), side, Arc::clone(&host)));
        let mut sockets = Sockets { buffer, host, uplink, ends: None, side, dir, form: PhantomData };
        sockets.connect();
        sockets
    }

    fn place(&self) -> String {
        self.dir.path().to_str().unwrap().to_owned()
    }

    fn make(place: &str, side: Side, host: Arc<dyn Host>) -> Box<dyn NetworkBuffer> {
        make::<F>(Path::new(place), side, host)
    }

    fn stop(&mut self) {
        (self.buffer, self.ends) = (None, None);
    }

    fn connect(&mut self) {
        let world = self.uplink.accept().unwrap().0;
        let guest = UnixStream::connect(self.dir.path().join("net0.sock")).unwrap();
        self.ends = Some((End::new(guest), End::new(world)));
        if self.side == Side::Standby {
            return;
        }
        // Until the buffer has taken up the guest's connection it drops what is for the guest.
        let mut probe = vec![0x52, 0x54, 0, 0xa7, 0xe0, 0x0f, 0x52, 0x54, 0, 0xa7, 0xe0, 0x0e, 0x88, 0xb6];
        probe.resize(60, 0);
        loop {
            self.world_sends(&probe);
            if std::iter::from_fn(|| self.guest_receives()).any(|f| f == probe) {
                return;
            }
            std::thread::yield_now();
        }
    }

    fn restart(&mut self) {
        self.ends = None;
        self.buffer = Some(make::<F>(self.dir.path(), Side::Primary, Arc::clone(&self.host)));
        self.connect();
    }

    fn buffer(&mut self) -> &mut dyn NetworkBuffer {
        self.buffer.as_mut().expect("there is a buffer").as_mut()
    }

    fn guest_sends(&mut self, frame: &[u8]) -> bool {
        let (guest, _) = self.ends.as_mut().expect("a guest");
        if !guest.send(frame) {
            return false;
        }
        // A silent buffer takes everything, and counts nothing: it has dealt with a frame once it has read it.
        while self.side == Side::Standby && guest.unread() > 0 {
            std::thread::yield_now();
        }
        true
    }

    fn world_receives(&mut self) -> Option<Vec<u8>> {
        let (guest, world) = self.ends.as_mut()?;
        guest.flush();
        world.receive()
    }

    fn world_sends(&mut self, frame: &[u8]) {
        let (_, world) = self.ends.as_mut().expect("a world");
        while !world.send(frame) {
            std::thread::yield_now();
        }
    }

    fn guest_receives(&mut self) -> Option<Vec<u8>> {
        self.ends.as_mut()?.0.receive()
    }

    fn vanish(&mut self) {
        let (_, world) = self.ends.as_ref().expect("a world");
        world.socket.shutdown(std::net::Shutdown::Both).unwrap();
    }
}
