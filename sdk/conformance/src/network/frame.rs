//! The frames that the cases send: of any protocol, numbered, and known again.

/// What is sent by the guest, and what to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Way {
    FromGuest,
    ToGuest,
}

/// Locally administered, and nobody's.
const GUEST: [u8; 6] = [0x52, 0x54, 0, 0xa7, 0xe0, 0x01];
const WORLD: [u8; 6] = [0x52, 0x54, 0, 0xa7, 0xe0, 0x02];
/// Shortest frame on a wire, without its checksum.
const SHORTEST: usize = 60;

/// The protocols: what stands before the payload.
pub(super) const PROTOCOLS: [(&str, &[u8]); 7] = [
    ("IPv4", &[0x08, 0x00]),
    ("IPv6", &[0x86, 0xdd]),
    ("ARP", &[0x08, 0x06]),
    ("VLAN-tagged IPv4", &[0x81, 0x00, 0x00, 0x05, 0x08, 0x00]),
    ("VLAN-tagged IPv6", &[0x81, 0x00, 0x00, 0x06, 0x86, 0xdd]),
    ("doubly tagged", &[0x88, 0xa8, 0x00, 0x07, 0x81, 0x00, 0x00, 0x05, 0x08, 0x00]),
    ("an experimental protocol", &[0x88, 0xb5]),
];

/// Frame `number` of the experimental protocol.
pub(super) fn frame(way: Way, number: u32) -> Vec<u8> {
    build(way, &[0x88, 0xb5], number, SHORTEST)
}

/// A frame of this protocol and at least this length.
pub(super) fn build(way: Way, protocol: &[u8], number: u32, length: usize) -> Vec<u8> {
    let (to, from) = match way {
        Way::FromGuest => (WORLD, GUEST),
        Way::ToGuest => (GUEST, WORLD),
    };
    let mut frame = [&to[..], &from[..], protocol, b"aventine", &number.to_be_bytes()].concat();
    frame.resize(length.max(SHORTEST), 0);
    frame
}

/// Whether it is one of ours.
pub(super) fn is_ours(way: Way, frame: &[u8]) -> bool {
    let (to, from) = match way {
        Way::FromGuest => (WORLD, GUEST),
        Way::ToGuest => (GUEST, WORLD),
    };
    frame.starts_with(&[to, from].concat())
}

/// What a message calls a frame.
pub(super) fn name(frame: &[u8]) -> String {
    let at = frame.windows(8).position(|w| w == b"aventine");
    let number = at.and_then(|at| frame.get(at + 8..at + 12)).and_then(|n| n.try_into().ok());
    number.map_or_else(|| "a damaged frame".to_owned(), |n| format!("frame {}", u32::from_be_bytes(n)))
}
