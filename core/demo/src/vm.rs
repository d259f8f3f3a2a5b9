//! A virtual machine that its owner started by hand, to be attached to while it runs.

use std::fs::File;
use std::io;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use std::{fs, thread};

/// Its monitor, in its directory.
pub(crate) const MONITOR: &str = "vm.qmp";
/// Where its network listens, in its directory.
pub(crate) const NETWORK: &str = "vm.net";
/// Longest that it may take to have a monitor, on a slow and busy machine.
const LIMIT: Duration = Duration::from_secs(60);

/// A running QEMU. Dropping it ends it.
#[derive(Debug)]
pub struct Vm {
    child: Child,
}

impl Vm {
    /// Starts `command` in `dir`, with `ram` of shared memory and everything else that attaching takes.
    pub(crate) fn start(command: &[String], ram: &str, dir: &Path) -> io::Result<Vm> {
        let sockets = [MONITOR, NETWORK].map(|name| dir.join(name));
        for socket in &sockets {
            match fs::remove_file(socket) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
        let log = File::create(dir.join("vm.log"))?;
        let child = Command::new("setpriv")
            .args(["--pdeathsig", "KILL", "--"])
            .args(command)
            .args(["-object", &format!("memory-backend-memfd,id=ram,size={ram},share=on")])
            .args(["-machine", "memory-backend=ram"])
            .args(["-qmp", &format!("unix:{MONITOR},server=on,wait=off")])
            .args([
                "-netdev",
                &format!("stream,id=net0,server=on,addr.type=unix,addr.path={}", sockets[1].display()),
            ])
            .current_dir(dir)
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()?;
        let mut vm = Vm { child };
        let end = Instant::now() + LIMIT;
        while !sockets.iter().all(|socket| socket.exists()) {
            if vm.child.try_wait()?.is_some() || Instant::now() >= end {
                return Err(io::Error::other(fs::read_to_string(dir.join("vm.log")).unwrap_or_default()));
            }
            thread::sleep(Duration::from_millis(5));
        }
        Ok(vm)
    }

    /// Whether its process is still there.
    pub fn is_there(&mut self) -> io::Result<bool> {
        Ok(self.child.try_wait()?.is_none())
    }
}

impl Drop for Vm {
    fn drop(&mut self) {
        // It may be gone already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
