//! Real etcd members on loopback addresses of their own.

use std::fs::File;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::sync::atomic::{AtomicU8, Ordering};
use tempfile::TempDir;

/// A loopback address that no other test and no other process of these tests uses: ports need no luck.
pub(crate) fn own_ip() -> Ipv4Addr {
    static NEXT: AtomicU8 = AtomicU8::new(1);
    let [.., high, low] = std::process::id().to_be_bytes();
    Ipv4Addr::new(127, 64 + NEXT.fetch_add(1, Ordering::SeqCst), high, low)
}

/// One member. Killed on drop.
pub(crate) struct Member {
    name: String,
    dir: PathBuf,
    pub(crate) ip: Ipv4Addr,
    arguments: Vec<String>,
    running: Option<Child>,
}

impl Member {
    /// For plaintext clients where there are no `tls` arguments.
    fn new(dir: &Path, number: usize, ip: Ipv4Addr, tls: &[String]) -> Member {
        let name = format!("m{number}");
        let client = format!("{}://{ip}:2379", if tls.is_empty() { "http" } else { "https" });
        let peer = format!("http://{ip}:2380");
        let words = [
            ["--name", &name],
            ["--data-dir", &dir.join(&name).display().to_string()],
            ["--listen-client-urls", &client],
            ["--advertise-client-urls", &client],
            ["--listen-peer-urls", &peer],
            ["--initial-advertise-peer-urls", &peer],
        ];
        let arguments = words.as_flattened().iter().map(|w| (*w).to_owned()).chain(tls.iter().cloned());
        Member { ip, dir: dir.to_owned(), arguments: arguments.collect(), running: None, name }
    }

    pub(crate) fn start(&mut self) {
        let log = File::options().create(true).append(true).open(self.dir.join(format!("{}.log", self.name)));
        let log = log.unwrap();
        // The kernel kills etcd when the thread of this test ends, however that comes about.
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL", "etcd"]).args(&self.arguments);
        let started = command.stdout(log.try_clone().unwrap()).stderr(log).spawn();
        self.running = Some(started.expect("etcd is installed (Debian: apt install etcd-server)"));
    }

    /// SIGKILL.
    pub(crate) fn kill(&mut self) {
        if let Some(mut child) = self.running.take() {
            child.kill().unwrap();
            child.wait().unwrap();
        }
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Members that know each other.
pub(crate) struct Cluster {
    pub(crate) members: Vec<Member>,
    scheme: &'static str,
    _dir: TempDir,
}

impl Cluster {
    /// A member at each address, started, and perhaps not ready yet. `tls` are more arguments of each, for https.
    pub(crate) fn launch(addresses: &[Ipv4Addr], tls: &[String]) -> Cluster {
        let dir = tempfile::tempdir().unwrap();
        let member = |(number, ip): (usize, &Ipv4Addr)| Member::new(dir.path(), number, *ip, tls);
        let mut members: Vec<_> = addresses.iter().enumerate().map(member).collect();
        let all: Vec<_> = members.iter().map(|m| format!("{}=http://{}:2380", m.name, m.ip)).collect();
        for member in &mut members {
            member.arguments.extend(["--initial-cluster".to_owned(), all.join(",")]);
            member.start();
        }
        Cluster { members, scheme: if tls.is_empty() { "http" } else { "https" }, _dir: dir }
    }

    pub(crate) fn endpoint(&self, member: usize) -> String {
        format!("{}://{}:2379", self.scheme, self.members[member].ip)
    }

    /// The configuration with all members.
    pub(crate) fn config(&self) -> String {
        let endpoints: Vec<_> = (0..self.members.len()).map(|m| self.endpoint(m)).collect();
        format!("endpoints = {endpoints:?}")
    }
}
