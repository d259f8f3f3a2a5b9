//! What the two hosts tell each other on a channel's TLS connection before its queue pairs carry anything.
//!
//! ```text
//!  primary                                           standby
//!  hello ────────────────────────── TLS ───────────►           8 "avenrdma", 2 version
//!        ◄───────────────────────── TLS ─────────── offer      8 "AVENRDMA", 2 version, 16 address, 2 port, 32 token
//!  connect, token · 0 ──────── RDMA ───────────────► accept    the primary's sending pair
//!  connect, token · 1 ──────── RDMA ───────────────► accept    the standby's sending pair
//!  room  ◄───────────────────────── TLS ───────────► room      ring: 8 address, 4 key, 4 length
//!                                                              buffers: 8 address, 4 key, 4 length of each, 4 count
//! ```
//! Numbers are big-endian. The first ten bytes of hello and offer are the same in every version. A token is random and good for
//! one channel: a queue pair without it is refused, and the keys of memory are told to nobody else. An IPv4 address is written as
//! an IPv6 one that stands for it.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};

/// The version spoken here.
pub(crate) const VERSION: u16 = 2;
/// Bytes of each.
pub(crate) const HELLO: usize = 10;
pub(crate) const OFFER: usize = 60;
pub(crate) const ROOM: usize = 36;
pub(crate) const TICKET: usize = 33;

const HELLO_MAGIC: [u8; 8] = *b"avenrdma";
const OFFER_MAGIC: [u8; 8] = *b"AVENRDMA";

/// Why the other side's beginning is none.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum WireError {
    #[error("it does not use transport `rdma`; give both hosts the same `plugin` in [transport]")]
    NotRdma,
    #[error(
        "it speaks version {theirs} of transport `rdma`, this host version {VERSION}; install the same on both"
    )]
    OtherVersion { theirs: u16 },
    #[error("its rings are of {theirs} bytes, this host's of {ours}; install the same version on both")]
    OtherLength { ours: usize, theirs: u32 },
    #[error("its buffers, {count} of {length} bytes, are beyond any memory")]
    NoMemory { count: u32, length: u32 },
}

fn check(bytes: &[u8], magic: [u8; 8]) -> Result<(), WireError> {
    if bytes[..8] != magic {
        return Err(WireError::NotRdma);
    }
    match u16::from_be_bytes([bytes[8], bytes[9]]) {
        VERSION => Ok(()),
        theirs => Err(WireError::OtherVersion { theirs }),
    }
}

/// The primary's first bytes.
pub(crate) fn hello() -> [u8; HELLO] {
    let mut bytes = [0; HELLO];
    bytes[..8].copy_from_slice(&HELLO_MAGIC);
    bytes[8..].copy_from_slice(&VERSION.to_be_bytes());
    bytes
}

/// Whether these are a primary's first bytes.
pub(crate) fn check_hello(bytes: &[u8; HELLO]) -> Result<(), WireError> {
    check(bytes, HELLO_MAGIC)
}

/// Proves that a queue pair belongs to a channel.
pub(crate) type Token = [u8; 32];

/// Where the standby awaits a channel's queue pairs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Offer {
    pub(crate) address: SocketAddr,
    pub(crate) token: Token,
}

impl Offer {
    pub(crate) fn encode(&self) -> [u8; OFFER] {
        let ip = match self.address.ip() {
            IpAddr::V4(ip) => ip.to_ipv6_mapped(),
            IpAddr::V6(ip) => ip,
        };
        let mut bytes = [0; OFFER];
        bytes[..8].copy_from_slice(&OFFER_MAGIC);
        bytes[8..10].copy_from_slice(&VERSION.to_be_bytes());
        bytes[10..26].copy_from_slice(&ip.octets());
        bytes[26..28].copy_from_slice(&self.address.port().to_be_bytes());
        bytes[28..].copy_from_slice(&self.token);
        bytes
    }

    pub(crate) fn decode(bytes: &[u8; OFFER]) -> Result<Offer, WireError> {
        check(bytes, OFFER_MAGIC)?;
        let (mut ip, mut token) = ([0; 16], Token::default());
        ip.copy_from_slice(&bytes[10..26]);
        token.copy_from_slice(&bytes[28..]);
        let ip = Ipv6Addr::from(ip).to_canonical();
        Ok(Offer { address: (ip, u16::from_be_bytes([bytes[26], bytes[27]])).into(), token })
    }
}

/// Which of a channel's two queue pairs one is: named by the side that sends on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Direction {
    FromPrimary = 0,
    FromStandby = 1,
}

/// What a connecting queue pair shows.
pub(crate) fn ticket(token: &Token, direction: Direction) -> [u8; TICKET] {
    let mut bytes = [0; TICKET];
    bytes[..32].copy_from_slice(token);
    bytes[32] = direction as u8;
    bytes
}

/// Whether what was shown is the ticket. Takes the same time wherever they differ. A fabric may add zeroes.
pub(crate) fn is_ticket(shown: &[u8], ticket: &[u8; TICKET]) -> bool {
    shown.len() >= TICKET && shown.iter().zip(ticket).fold(0, |differ, (a, b)| differ | (a ^ b)) == 0
}

/// A ring, as the other side writes to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Ring {
    pub(crate) address: u64,
    pub(crate) key: u32,
    pub(crate) length: u32,
}

/// Buffers, one behind the other, as the other side writes to them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Buffers {
    pub(crate) address: u64,
    pub(crate) key: u32,
    /// Of each, less than 2^31.
    pub(crate) length: u32,
    pub(crate) count: u32,
}

impl Buffers {
    /// Where one of them is.
    pub(crate) fn at(&self, buffer: u32) -> u64 {
        self.address + u64::from(buffer) * u64::from(self.length)
    }

    fn are_possible(&self) -> bool {
        let len = u64::from(self.length) * u64::from(self.count);
        self.length < 1 << 31 && self.count < 1 << 31 && self.address.checked_add(len).is_some()
    }
}

/// All that one side may write to on the other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Room {
    pub(crate) ring: Ring,
    pub(crate) buffers: Buffers,
}

impl Room {
    pub(crate) fn encode(&self) -> [u8; ROOM] {
        let Room { ring, buffers } = self;
        let mut bytes = [0; ROOM];
        bytes[..8].copy_from_slice(&ring.address.to_be_bytes());
        bytes[8..12].copy_from_slice(&ring.key.to_be_bytes());
        bytes[12..16].copy_from_slice(&ring.length.to_be_bytes());
        bytes[16..24].copy_from_slice(&buffers.address.to_be_bytes());
        bytes[24..28].copy_from_slice(&buffers.key.to_be_bytes());
        bytes[28..32].copy_from_slice(&buffers.length.to_be_bytes());
        bytes[32..].copy_from_slice(&buffers.count.to_be_bytes());
        bytes
    }

    /// Reads one whose ring must be of `length` bytes.
    pub(crate) fn decode(bytes: &[u8; ROOM], length: usize) -> Result<Room, WireError> {
        let word = |at: usize| u32::from_be_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
        let address = |at| u64::from(word(at)) << 32 | u64::from(word(at + 4));
        let ring = Ring { address: address(0), key: word(8), length: word(12) };
        let buffers = Buffers { address: address(16), key: word(24), length: word(28), count: word(32) };
        if !buffers.are_possible() {
            return Err(WireError::NoMemory { count: buffers.count, length: buffers.length });
        }
        match usize::try_from(ring.length) {
            Ok(theirs) if theirs == length && ring.address.checked_add(length as u64).is_some() => {
                Ok(Room { ring, buffers })
            }
            _ => Err(WireError::OtherLength { ours: length, theirs: ring.length }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn all_survives_the_wire() {
        for address in ["10.9.0.10:4711", "[2001:db8::7]:1"] {
            let offer = Offer { address: address.parse().unwrap(), token: [7; 32] };
            assert_eq!(Offer::decode(&offer.encode()), Ok(offer));
        }
        let ring = Ring { address: 0x7fff_0123_4567_89ab, key: 0xdead_beef, length: 1 << 20 };
        let buffers = Buffers { address: 0x7ffe_0123_4567_89ab, key: 7, length: 1 << 20, count: 3 };
        let room = Room { ring, buffers };
        assert_eq!(Room::decode(&room.encode(), 1 << 20), Ok(room));
        assert_eq!(buffers.at(2), 0x7ffe_0123_4567_89ab + (2 << 20));
        let error = Room::decode(&room.encode(), 1 << 21).unwrap_err();
        assert_eq!(error, WireError::OtherLength { ours: 1 << 21, theirs: 1 << 20 });
        assert_eq!(check_hello(&hello()), Ok(()));
    }

    proptest! {
        /// Whatever comes, it is refused or its addresses can be reckoned with.
        #[test]
        fn no_room_leads_beyond_the_end_of_memory(bytes in any::<[u8; ROOM]>(), fits in any::<bool>()) {
            let mut bytes = bytes;
            if fits {
                bytes[8..16].copy_from_slice(&[0, 0, 0, 7, 0, 0, 16, 0]);
                bytes[28..32].copy_from_slice(&[0, 16, 64, 0]);
            }
            if let Ok(room) = Room::decode(&bytes, 4096) {
                prop_assert_eq!(room.encode(), bytes);
                let last = room.buffers.at(room.buffers.count);
                prop_assert!(last >= room.buffers.address);
            }
        }
    }

    /// Other versions read these bytes: they must never change.
    #[test]
    fn the_fixed_bytes_stay() {
        assert_eq!(&hello(), b"avenrdma\0\x02");
        assert_eq!(check_hello(b"avenrdma\x02\x01"), Err(WireError::OtherVersion { theirs: 0x201 }));
        assert_eq!(check_hello(b"AVENTINE\0\x01"), Err(WireError::NotRdma));
        let mut offer = Offer { address: ([0, 0, 0, 0], 1).into(), token: [0; 32] }.encode();
        assert_eq!(&offer[..10], b"AVENRDMA\0\x02");
        offer[9] = 3;
        assert_eq!(Offer::decode(&offer), Err(WireError::OtherVersion { theirs: 3 }));
    }

    #[test]
    fn a_ticket_is_known_whole() {
        let ours = ticket(&[7; 32], Direction::FromStandby);
        let mut shown = [0; 56];
        shown[..TICKET].copy_from_slice(&ours);
        assert!(is_ticket(&shown, &ours));
        assert!(!is_ticket(&shown[..TICKET - 1], &ours), "cut");
        assert!(!is_ticket(&[], &ours));
        for at in 0..TICKET {
            shown[at] ^= 0x10;
            assert!(!is_ticket(&shown, &ours), "byte {at}");
            shown[at] ^= 0x10;
        }
    }
}
