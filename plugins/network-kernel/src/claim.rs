//! One process for each device, and nothing left to clean up when it dies.

use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener};

/// Why a device cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum ClaimError {
    /// It is another guest's.
    #[error("Another Aventine process holds the frames of {device}; give each guest a device of its own")]
    Taken {
        /// The device.
        device: String,
    },
    /// No claim could be made.
    #[error("Could not claim {device}")]
    Failed {
        /// The device.
        device: String,
        /// Why not.
        source: io::Error,
    },
}

/// While it lives no other process of this network namespace can claim the device. The kernel ends it with the process:
/// it is a name among the abstract sockets, which belong to a network namespace as devices do.
#[derive(Debug)]
pub struct Claim {
    _name: UnixListener,
}

impl Claim {
    /// Claims a device by name.
    pub fn take(device: &str) -> Result<Claim, ClaimError> {
        let address = SocketAddr::from_abstract_name(format!("aventine/network/{device}"));
        match address.and_then(|a| UnixListener::bind_addr(&a)) {
            Ok(name) => Ok(Claim { _name: name }),
            Err(e) if e.kind() == io::ErrorKind::AddrInUse => {
                Err(ClaimError::Taken { device: device.to_owned() })
            }
            Err(source) => Err(ClaimError::Failed { device: device.to_owned(), source }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_is_claimed_once_at_a_time() {
        let device = format!("t{}", std::process::id());
        let first = Claim::take(&device).unwrap();
        let error = Claim::take(&device).unwrap_err();
        assert!(matches!(error, ClaimError::Taken { .. }), "{error}");
        drop(first);
        Claim::take(&device).unwrap();
    }
}
