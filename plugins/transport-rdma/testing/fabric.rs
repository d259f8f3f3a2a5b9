//! Soft-RoCE: an RDMA device over a lab host's Ethernet, and the packages that it takes.
#![allow(dead_code, reason = "each test program uses a part of it")]

use aventine_lab::{chain, packages};
use std::path::PathBuf;
use std::process::Command;

/// What Debian has of RDMA in user space, with the libraries that it needs.
const PACKAGES: [&str; 5] =
    ["libibverbs1", "librdmacm1", "ibverbs-providers", "libnl-3-200", "libnl-route-3-200"];

/// Where the packages are unpacked. Fetches them where they are not: to be called outside of the lab.
pub(crate) fn unpacked() -> PathBuf {
    packages::unpacked("rdma", &PACKAGES).unwrap_or_else(|error| panic!("{}", chain(&error)))
}

/// The shell's lines that make a lab host's network `device` an RDMA device.
pub(crate) fn lines(device: &str) -> String {
    let root = unpacked();
    let root = root.display();
    format!(
        "for part in lib usr etc; do [ ! -d {root}/$part ] || cp -r {root}/$part/. /$part/; done
         modprobe -a crc32_generic rdma_rxe ib_uverbs rdma_ucm
         rdma link add rxe0 type rxe netdev {device}"
    )
}

/// Makes this lab host's eth0 an RDMA device.
pub(crate) fn start() {
    let output = Command::new("sh").args(["-e", "-c", &lines("eth0")]).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}
