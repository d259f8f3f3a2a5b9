//! The rules of network buffers, with a real tap. Run as root, or with `unshare --user --map-root-user cargo test`; needs
//! iproute2.
//!
//! ```text
//!  guest ══ unix socket ══ buffer ══ tap `ring0` ── bridge `br0` ── tap `world0` ══ world
//! ```

use aventine_api::{Context, Factory, Host, NetworkBuffer, PluginEntry, Side, inventory};
use aventine_conformance::network::NetworkBench;
use aventine_network_ring as _;
use std::fs::{File, OpenOptions};
use std::io::{ErrorKind, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use tempfile::TempDir;

/// The guest's end of its socket, non-blocking.
struct Guest {
    socket: UnixStream,
    input: Vec<u8>,
    /// What is left to write of a frame that was begun.
    output: Vec<u8>,
}

impl Guest {
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

    /// Bytes that the buffer has not read yet.
    fn unread(&self) -> i32 {
        let mut bytes = 0;
        // SAFETY: TIOCOUTQ writes an int, which `bytes` is.
        let asked = unsafe { libc::ioctl(self.socket.as_raw_fd(), libc::TIOCOUTQ, &raw mut bytes) };
        assert_eq!(asked, 0, "{}", std::io::Error::last_os_error());
        bytes
    }
}

struct Bench {
    buffer: Option<Box<dyn NetworkBuffer>>,
    host: Arc<dyn Host>,
    guest: Option<Guest>,
    world: File,
    side: Side,
    dir: TempDir,
}

/// From here on this thread, and what it starts, is in a network namespace with a tap on a bridge; answers the world's end.
fn surroundings() -> File {
    // SAFETY: only this thread's network namespace changes.
    let entered = unsafe { libc::unshare(libc::CLONE_NEWNET) };
    assert_eq!(entered, 0, "{}: run this as root", std::io::Error::last_os_error());
    // Frames that are no real ones of their protocol must pass the bridge, too.
    for tables in ["iptables", "ip6tables"] {
        // Not there without the module br_netfilter, which would be the one to drop them.
        let _ = std::fs::write(format!("/proc/sys/net/bridge/bridge-nf-call-{tables}"), "0");
    }
    ip("link add br0 type bridge mcast_snooping 0");
    ip("link set br0 addrgenmode none up");
    for tap in ["ring0", "world0"] {
        ip(&format!("tuntap add dev {tap} mode tap"));
        ip(&format!("link set {tap} txqueuelen 8192 addrgenmode none master br0 up"));
    }
    let tun = OpenOptions::new().read(true).write(true).custom_flags(libc::O_NONBLOCK).open("/dev/net/tun");
    let tun = tun.expect("the tun module");
    // SAFETY: all-zero bytes are a valid ifreq.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    request.ifr_name.iter_mut().zip(b"world0").for_each(|(to, from)| *to = *from as libc::c_char);
    request.ifr_ifru.ifru_flags = (libc::IFF_TAP | libc::IFF_NO_PI) as libc::c_short;
    // SAFETY: TUNSETIFF reads an ifreq, which `request` is.
    assert_eq!(unsafe { libc::ioctl(tun.as_raw_fd(), libc::TUNSETIFF as _, &raw mut request) }, 0);
    tun
}

fn ip(arguments: &str) -> String {
    let done = Command::new("ip").args(arguments.split(' ')).output().expect("iproute2 is installed");
    assert!(done.status.success(), "ip {arguments}: {}", String::from_utf8_lossy(&done.stderr));
    String::from_utf8_lossy(&done.stdout).into_owned()
}

fn entry() -> &'static PluginEntry {
    inventory::iter::<PluginEntry>.into_iter().find(|e| e.name == "ring").expect("the plugin is linked in")
}

fn make(dir: &Path, side: Side, host: Arc<dyn Host>) -> Box<dyn NetworkBuffer> {
    let Factory::Network(make) = entry().factory else { panic!("a network plugin") };
    let context = Context {
        guest: "conformance".into(),
        id: "net0".into(),
        side,
        state_dir: dir.into(),
        config_dir: dir.into(),
        host,
    };
    loop {
        match make("device = 'ring0'\nlimit = '1MiB'", context.clone()) {
            Ok(buffer) => return buffer,
            // A process that another test starts holds a copy of the last user's descriptor until it has begun.
            Err(e) if e.chain().contains("busy") => std::thread::yield_now(),
            Err(e) => panic!("{}", e.chain()),
        }
    }
}

impl NetworkBench for Bench {
    const LIMIT: u64 = 1 << 20;

    fn start(side: Side, host: Arc<dyn Host>) -> Self {
        let (world, dir) = (surroundings(), tempfile::tempdir().unwrap());
        let buffer = Some(make(dir.path(), side, Arc::clone(&host)));
        let mut bench = Bench { buffer, host, guest: None, world, side, dir };
        bench.connect();
        bench
    }

    fn place(&self) -> String {
        self.dir.path().to_str().unwrap().to_owned()
    }

    fn make(place: &str, side: Side, host: Arc<dyn Host>) -> Box<dyn NetworkBuffer> {
        make(Path::new(place), side, host)
    }

    fn stop(&mut self) {
        (self.buffer, self.guest) = (None, None);
    }

    fn connect(&mut self) {
        let socket = UnixStream::connect(self.dir.path().join("net0.sock")).unwrap();
        socket.set_nonblocking(true).unwrap();
        self.guest = Some(Guest { socket, input: Vec::new(), output: Vec::new() });
        // A tap is a port that forwards once the bridge has noticed its user.
        while ip("-details link show master br0").matches("state forwarding").count() < 2 {
            std::thread::yield_now();
        }
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
        self.guest = None;
        self.buffer = Some(make(self.dir.path(), Side::Primary, Arc::clone(&self.host)));
        self.connect();
    }

    fn buffer(&mut self) -> &mut dyn NetworkBuffer {
        self.buffer.as_mut().expect("there is a buffer").as_mut()
    }

    fn guest_sends(&mut self, frame: &[u8]) -> bool {
        let guest = self.guest.as_mut().expect("a guest");
        if !guest.flush() {
            return false;
        }
        guest.output.extend((frame.len() as u32).to_be_bytes());
        guest.output.extend(frame);
        let all = guest.output.len();
        guest.flush();
        // A frame that was begun will be finished; one that was not is taken back.
        if guest.output.len() == all {
            guest.output.clear();
            return false;
        }
        // A silent buffer takes everything, and counts nothing: it has dealt with a frame once it has read it.
        while self.side == Side::Standby && guest.unread() > 0 {
            std::thread::yield_now();
        }
        true
    }

    fn world_receives(&mut self) -> Option<Vec<u8>> {
        self.guest.as_mut()?.flush();
        let mut frame = vec![0; 2048];
        let length = self.world.read(&mut frame).ok()?;
        frame.truncate(length);
        Some(frame)
    }

    fn world_sends(&mut self, frame: &[u8]) {
        self.world.write_all(frame).expect("the tap takes frames");
    }

    fn guest_receives(&mut self) -> Option<Vec<u8>> {
        let guest = self.guest.as_mut()?;
        let mut piece = [0; 4096];
        loop {
            if let Some((length, rest)) = guest.input.split_first_chunk::<4>() {
                let length = u32::from_be_bytes(*length) as usize;
                if let Some(frame) = rest.get(..length) {
                    let frame = frame.to_vec();
                    guest.input.drain(..4 + length);
                    return Some(frame);
                }
            }
            match guest.socket.read(&mut piece) {
                Ok(n) if n > 0 => guest.input.extend(&piece[..n]),
                _ => return None,
            }
        }
    }

    fn vanish(&mut self) {
        ip("link delete ring0");
    }
}

aventine_conformance::network!(Bench);

#[test]
fn keys_are_checked_at_their_place() {
    for (text, path) in [
        ("device = 'a-name-that-is-too-long'", vec!["device"]),
        ("device = 'tap0'\nlimit = '1KiB'", vec!["limit"]),
    ] {
        assert_eq!((entry().validate)(text).unwrap_err().path, path);
    }
    assert!((entry().validate)("").unwrap_err().to_string().contains("missing key `device`"));
}
