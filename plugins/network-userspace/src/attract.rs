//! Frames for the guest that the world sends between the loss of the primary and the takeover.
//!
//! ```text
//!  standby: primary suspected ─► announce the guest's addresses ─► keep what the world sends ─► takeover: give it to the guest
//!  primary: sees that announcement, so it lives ─► announces them itself ─► the world's frames come here again
//! ```
//! A client repeats what is not acknowledged ever less often: without this, one whose frames went to the dead host would
//! wait for its next repetition, up to twice the detection time. Suspected early enough, one repetition comes while the
//! frames are kept here.
//!
//! An announcement is a broadcast RARP frame, as QEMU's own: switches learn from its source where the address is, and
//! nobody answers it. That of a standby which suspects is a request, that of the side which runs the guest a reply: only the
//! first is answered, and not by a side that has lost the guest without knowing it yet, once the other has taken it over.
//! Addresses are learned from the frames that the guest sends.

use std::collections::VecDeque;

/// Most addresses of one guest.
const ADDRESSES: usize = 8;
/// Most bytes kept.
const LIMIT: usize = 4 << 20;
/// What a frame takes beside its bytes.
const FRAME: usize = 64;
const ADDRESS: usize = 6;
/// Destination, source and type.
const HEADER: usize = 14;
const RARP: [u8; 2] = [0x80, 0x35];
/// Ethernet and IPv4, with the lengths of their addresses.
const KINDS: [u8; 6] = [0, 1, 8, 0, ADDRESS as u8, 4];
/// Shortest frame without its checksum.
const LEAST: usize = 60;

type Address = [u8; ADDRESS];

/// Whose an announcement is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum By {
    Standby = 3,
    Primary = 4,
}

/// The addresses that a guest sends from, newest last.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Addresses(Vec<Address>);

impl Addresses {
    /// Notes the source of a frame that the guest sent.
    pub(crate) fn learn(&mut self, frame: &[u8]) {
        let Some(source) = source(frame) else { return };
        // A group's address, or none at all.
        if source[0] & 1 != 0 || source == [0; ADDRESS] || self.0.last() == Some(&source) {
            return;
        }
        self.0.retain(|known| *known != source);
        self.0.push(source);
        if self.0.len() > ADDRESSES {
            self.0.remove(0);
        }
    }

    pub(crate) fn announcements(&self, by: By) -> impl Iterator<Item = Vec<u8>> {
        self.0.iter().map(move |address| announcement(*address, by))
    }

    /// Whether the world's frame is an announcement of one of these addresses, and whose.
    pub(crate) fn announced(&self, frame: &[u8]) -> Option<By> {
        let source = source(frame).filter(|source| self.0.contains(source))?;
        [By::Standby, By::Primary].into_iter().find(|by| frame == announcement(source, *by))
    }
}

fn source(frame: &[u8]) -> Option<Address> {
    frame.get(ADDRESS..2 * ADDRESS)?.try_into().ok()
}

fn announcement(address: Address, by: By) -> Vec<u8> {
    let mut frame = Vec::with_capacity(LEAST);
    frame.extend([0xff; ADDRESS]);
    frame.extend(address);
    frame.extend(RARP);
    debug_assert_eq!(frame.len(), HEADER);
    frame.extend(KINDS);
    frame.extend([0, by as u8]);
    for _ in ["sender", "target"] {
        frame.extend(address);
        frame.extend([0; 4]);
    }
    frame.resize(LEAST, 0);
    frame
}

/// What the world sent while the primary is suspected; at the limit the oldest goes.
#[derive(Default)]
pub(crate) struct Kept {
    frames: VecDeque<Vec<u8>>,
    bytes: usize,
}

impl Kept {
    pub(crate) fn keep(&mut self, frame: &[u8]) {
        self.bytes += FRAME + frame.len();
        self.frames.push_back(frame.to_vec());
        while self.bytes > LIMIT {
            let Some(oldest) = self.frames.pop_front() else { return };
            self.bytes -= FRAME + oldest.len();
        }
    }

    #[cfg(test)]
    pub(crate) fn len(&self) -> usize {
        self.frames.len()
    }

    pub(crate) fn into_frames(self) -> VecDeque<Vec<u8>> {
        self.frames
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn from(address: Address) -> Vec<u8> {
        [&[2; ADDRESS][..], &address, &[8, 0, 1, 2, 3]].concat()
    }

    fn address(last: u8) -> Address {
        [0x52, 0x54, 0, 0, 0, last]
    }

    #[test]
    fn the_newest_addresses_are_known_once_each() {
        let mut addresses = Addresses::default();
        [1, 1, 2, 1, 3].iter().for_each(|n| addresses.learn(&from(address(*n))));
        assert_eq!(addresses.0, [2, 1, 3].map(address));
        for wrong in [[0; ADDRESS], [1, 0, 0, 0, 0, 9], [0xff; ADDRESS]] {
            addresses.learn(&from(wrong));
        }
        addresses.learn(&[1; 11]);
        assert_eq!(addresses.0.len(), 3);
        (10..20).for_each(|n| addresses.learn(&from(address(n))));
        assert_eq!(addresses.0, [12, 13, 14, 15, 16, 17, 18, 19].map(address));
    }

    #[test]
    fn an_announcement_is_known_by_its_address_and_kind() {
        let mut addresses = Addresses::default();
        addresses.learn(&from(address(7)));
        for by in [By::Standby, By::Primary] {
            let frames = addresses.announcements(by).collect::<Vec<_>>();
            assert_eq!(frames.len(), 1);
            assert_eq!(
                (frames[0].len(), &frames[0][..6], &frames[0][6..12]),
                (60, &[0xff; 6][..], &address(7)[..])
            );
            assert_eq!(addresses.announced(&frames[0]), Some(by));
        }
        assert_eq!(addresses.announced(&announcement(address(8), By::Standby)), None);
        assert_eq!(addresses.announced(&from(address(7))), None);
    }

    #[test]
    fn what_is_kept_is_bounded_and_the_newest() {
        let mut kept = Kept::default();
        (0..200_000u32).for_each(|n| kept.keep(&[&n.to_be_bytes()[..], &[0; 96]].concat()));
        let frames = kept.into_frames();
        assert!(frames.len() < LIMIT / 100, "{}", frames.len());
        assert_eq!(frames.back().unwrap()[..4], 199_999u32.to_be_bytes());
    }

    proptest! {
        #[test]
        fn any_frame_is_taken(frame in proptest::collection::vec(any::<u8>(), 0..100)) {
            let mut addresses = Addresses::default();
            addresses.learn(&frame);
            addresses.announced(&frame);
        }
    }
}
