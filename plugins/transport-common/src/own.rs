//! Which addresses are this host's own: one configuration names both hosts, and each dials the other.

use std::net::{SocketAddr, UdpSocket};

/// Whether somebody who dials `address` reaches this host's own listener at `listen`. Asks the kernel: an address is of
/// this host when a socket can be bound to it.
pub(crate) fn is_own(address: SocketAddr, listen: Option<SocketAddr>) -> bool {
    let Some(listen) = listen.filter(|l| l.port() == address.port()) else { return false };
    let reached = listen.ip().is_unspecified() || listen.ip() == address.ip();
    reached && UdpSocket::bind((address.ip(), 0)).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_own_when_this_host_listens_there() {
        let at = |text: &str| text.parse::<SocketAddr>().unwrap();
        assert!(is_own(at("127.0.0.1:7400"), Some(at("0.0.0.0:7400"))));
        assert!(is_own(at("127.0.0.1:7400"), Some(at("127.0.0.1:7400"))));
        assert!(!is_own(at("127.0.0.1:7400"), Some(at("127.0.0.2:7400"))));
        assert!(!is_own(at("127.0.0.1:7401"), Some(at("0.0.0.0:7400"))), "another port is another listener");
        assert!(
            !is_own(at("192.0.2.1:7400"), Some(at("0.0.0.0:7400"))),
            "no host has a documentation address"
        );
        assert!(!is_own(at("127.0.0.1:7400"), None));
    }
}
