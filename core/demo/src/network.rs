//! The network of two hosts and a client on one machine.
//!
//! ```text
//!            client 10.77.0.1/24
//!               br0
//!            ┌───┴────┐
//!          side-a   side-b
//!  ╔ host a ═╪══╗ ╔═══╪ host b ═╗
//!  ║      uplink║ ║uplink       ║
//!  ║  br-guest  ║ ║  br-guest   ║
//!  ║ tap-demo-N ║ ║ tap-demo-N  ║   the guests: 10.77.0.10, 10.77.0.20
//!  ║      wire ─╫─╫─ wire       ║   replication: 10.78.0.1, 10.78.0.2
//!  ╚════════════╝ ╚═════════════╝
//! ```
//!
//! The namespaces have no names: they vanish with the last process that uses them, however it ends.

use rustix::thread::{LinkNameSpaceType, UnshareFlags, move_into_link_name_space, unshare_unsafe};
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsFd, AsRawFd};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::{fmt, fs, panic, thread};

/// The guests' addresses, in the order of [`TAPS`].
pub const GUESTS: [&str; 2] = ["10.77.0.10", "10.77.0.20"];
/// The taps on each host that the guests' frames leave by.
pub const TAPS: [&str; 2] = ["tap-demo-1", "tap-demo-2"];

/// Why the network could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum NetworkError {
    /// No namespace.
    #[error("Cannot make a network namespace: it takes root, or a kernel that lets users make namespaces")]
    Namespace(#[source] io::Error),
    /// No taps.
    #[error(
        "Cannot open /dev/net/tun: run this as root, or let this user open it (Debian's udev makes it mode 666)"
    )]
    Tap(#[source] io::Error),
    /// `ip` or `tc` could not be run.
    #[error("Cannot run `{program}`: install iproute2")]
    Program {
        /// Which one.
        program: &'static str,
        /// Why not.
        source: io::Error,
    },
    /// It refused.
    #[error("`{program}` failed: {said}")]
    Refused {
        /// Which one.
        program: &'static str,
        /// Its words.
        said: String,
    },
}

/// A network namespace without a name.
pub struct Namespace(File);

impl Namespace {
    fn new() -> Result<Namespace, NetworkError> {
        let file = on_own_thread(|| {
            // SAFETY: leaves the network namespace alone, on a thread that ends here; file descriptors stay shared.
            unsafe { unshare_unsafe(UnshareFlags::NEWNET) }?;
            File::open("/proc/thread-self/ns/net")
        });
        file.map(Namespace).map_err(NetworkError::Namespace)
    }

    /// Runs `inside` on a thread of its own within the namespace. Sockets made there stay there.
    pub fn enter<T: Send>(&self, inside: impl FnOnce() -> T + Send) -> io::Result<T> {
        on_own_thread(|| {
            move_into_link_name_space(self.0.as_fd(), Some(LinkNameSpaceType::Network))?;
            Ok(inside())
        })
    }

    /// That of this process.
    pub fn here() -> io::Result<Namespace> {
        File::open("/proc/self/ns/net").map(Namespace)
    }

    /// Another handle to the same namespace.
    pub fn try_clone(&self) -> io::Result<Namespace> {
        self.0.try_clone().map(Namespace)
    }

    /// Where other processes of this machine find the namespace, while this process lives.
    pub fn path(&self) -> PathBuf {
        format!("/proc/{}/fd/{}", std::process::id(), self.0.as_raw_fd()).into()
    }

    /// Runs the lines as `ip` commands inside.
    fn ip(&self, lines: &str) -> Result<(), NetworkError> {
        self.enter(|| run_batch("ip", lines)).map_err(NetworkError::Namespace)?
    }
}

impl fmt::Debug for Namespace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Namespace({})", self.path().display())
    }
}

/// One of the two hosts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Host {
    /// The one that starts as the primary, where nothing else is asked for.
    A,
    /// The other.
    B,
}

impl Host {
    /// The other one.
    pub fn other(self) -> Host {
        match self {
            Host::A => Host::B,
            Host::B => Host::A,
        }
    }

    /// `host-a` or `host-b`.
    pub fn name(self) -> &'static str {
        match self {
            Host::A => "host-a",
            Host::B => "host-b",
        }
    }

    /// Its address for replication.
    pub fn address(self) -> &'static str {
        match self {
            Host::A => "10.78.0.1",
            Host::B => "10.78.0.2",
        }
    }
}

/// The whole network.
#[derive(Debug)]
pub struct Network {
    /// Where the client is: 10.77.0.1.
    pub client: Namespace,
    /// [`Host::A`].
    pub a: Namespace,
    /// [`Host::B`].
    pub b: Namespace,
}

impl Network {
    /// Makes it.
    pub fn new() -> Result<Network, NetworkError> {
        File::options().read(true).write(true).open("/dev/net/tun").map_err(NetworkError::Tap)?;
        let network = Network { client: Namespace::new()?, a: Namespace::new()?, b: Namespace::new()? };
        for namespace in [&network.client, &network.a, &network.b] {
            namespace.enter(silence_ipv6).map_err(NetworkError::Namespace)?;
        }
        let (a, b) = (network.a.path(), network.b.path());
        network.client.ip(&format!(
            "link set lo up
             link add br0 type bridge stp_state 0 forward_delay 0
             addr add 10.77.0.1/24 dev br0
             link add side-a type veth peer name uplink netns {}
             link add side-b type veth peer name uplink netns {}
             link set side-a master br0 up
             link set side-b master br0 up
             link set br0 up",
            a.display(),
            b.display()
        ))?;
        network.a.ip(&format!("link add wire type veth peer name wire netns {}", b.display()))?;
        for (host, number) in [(Host::A, 1), (Host::B, 2)] {
            let taps = TAPS.map(|tap| {
                format!(
                    "tuntap add {tap} mode tap
                     link set {tap} master br-guest up"
                )
            });
            network.host(host).ip(&format!(
                "link set lo up
                 link add br-guest type bridge stp_state 0 forward_delay 0
                 addr add 10.77.0.1{number}/24 dev br-guest
                 {}
                 link set uplink master br-guest up
                 link set br-guest up
                 addr add {}/24 dev wire
                 link set wire up",
                taps.join("\n"),
                host.address()
            ))?;
        }
        Ok(network)
    }

    /// The namespace of a host.
    pub fn host(&self, host: Host) -> &Namespace {
        match host {
            Host::A => &self.a,
            Host::B => &self.b,
        }
    }
}

/// Which frames between the two hosts are lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cut {
    /// All.
    Both,
    /// Those from host a to host b.
    FromA,
    /// Those from host b to host a.
    FromB,
}

impl Network {
    /// Loses frames between the hosts, without a sign of it at either end: they go to an address that nobody has.
    pub fn cut(&self, cut: Cut) -> Result<(), NetworkError> {
        for &host in cut.senders() {
            let to = host.other().address();
            self.host(host)
                .ip(&format!("neigh replace {to} lladdr 02:00:00:00:00:ff dev wire nud permanent"))?;
        }
        Ok(())
    }

    /// Undoes [`Network::cut`].
    pub fn heal(&self, cut: Cut) -> Result<(), NetworkError> {
        for &host in cut.senders() {
            let to = host.other().address();
            self.host(host).ip(&format!("neigh del {to} dev wire"))?;
        }
        Ok(())
    }

    /// Loses what the client sends to the guest at `address`, without a sign of it; what the guest sends still arrives.
    pub fn mute_client(&self, address: &str) -> Result<(), NetworkError> {
        self.client.ip(&format!("neigh replace {address} lladdr 02:00:00:00:00:ff dev br0 nud permanent"))
    }

    /// Undoes [`Network::mute_client`].
    pub fn unmute_client(&self, address: &str) -> Result<(), NetworkError> {
        self.client.ip(&format!("neigh del {address} dev br0"))
    }

    /// Lets as many bytes a second through between the hosts, in each direction.
    pub fn limit(&self, bytes_a_second: u64) -> Result<(), NetworkError> {
        for host in [Host::A, Host::B] {
            let line =
                format!("qdisc replace dev wire root tbf rate {bytes_a_second}bps burst 256kb latency 50ms");
            self.host(host).enter(|| run_batch("tc", &line)).map_err(NetworkError::Namespace)??;
        }
        Ok(())
    }
}

impl Cut {
    /// Whose frames are lost.
    fn senders(self) -> &'static [Host] {
        match self {
            Cut::Both => &[Host::A, Host::B],
            Cut::FromA => &[Host::A],
            Cut::FromB => &[Host::B],
        }
    }
}

/// Runs the lines as commands of `ip` or `tc`.
fn run_batch(program: &'static str, lines: &str) -> Result<(), NetworkError> {
    let failed = |source| NetworkError::Program { program, source };
    let mut child = Command::new(program)
        .args(["-batch", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(failed)?;
    if let Some(mut input) = child.stdin.take() {
        input.write_all(lines.as_bytes()).map_err(failed)?;
    }
    let output = child.wait_with_output().map_err(failed)?;
    match output.status.success() {
        true => Ok(()),
        false => {
            let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
            Err(NetworkError::Refused { program, said })
        }
    }
}

/// Keeps the kernel's own IPv6 chatter off the links. Where the sysctl cannot be written it only stays noisy.
fn silence_ipv6() {
    for scope in ["all", "default"] {
        let _ = fs::write(format!("/proc/sys/net/ipv6/conf/{scope}/disable_ipv6"), "1");
    }
}

fn on_own_thread<T: Send>(inside: impl FnOnce() -> io::Result<T> + Send) -> io::Result<T> {
    thread::scope(|scope| scope.spawn(inside).join().unwrap_or_else(|panic| panic::resume_unwind(panic)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;
    use std::net::{TcpListener, TcpStream};

    fn network() -> Option<Network> {
        match Network::new() {
            Err(NetworkError::Namespace(e)) if e.kind() == io::ErrorKind::PermissionDenied => {
                assert!(std::env::var_os("CI").is_none(), "this needs root");
                eprintln!("not run: this needs root (`cargo xtask test` sees to that)");
                None
            }
            other => Some(other.unwrap()),
        }
    }

    fn talk(from: &Namespace, to: &Namespace, address: &str) -> io::Result<Vec<u8>> {
        let listener = to.enter(|| TcpListener::bind((address, 7000)))??;
        let mut sender = from.enter(|| TcpStream::connect((address, 7000)))??;
        sender.write_all(b"hello")?;
        drop(sender);
        let mut received = Vec::new();
        listener.accept()?.0.read_to_end(&mut received)?;
        Ok(received)
    }

    #[test]
    fn hosts_and_client_reach_each_other_and_nobody_else_does() {
        let Some(network) = network() else { return };
        assert_eq!(talk(&network.client, &network.a, "10.77.0.11").unwrap(), b"hello");
        assert_eq!(talk(&network.client, &network.b, "10.77.0.12").unwrap(), b"hello");
        assert_eq!(talk(&network.a, &network.b, Host::B.address()).unwrap(), b"hello");
        assert!(network.client.enter(|| TcpListener::bind((Host::B.address(), 7000))).unwrap().is_err());
        assert!(TcpListener::bind((Host::B.address(), 7000)).is_err());
    }

    #[test]
    fn a_refusal_of_ip_says_why() {
        let Some(network) = network() else { return };
        let error = network.client.ip("link set nothing up").unwrap_err();
        assert!(error.to_string().contains("nothing"), "{error}");
    }
}
