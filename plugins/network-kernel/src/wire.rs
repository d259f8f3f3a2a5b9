//! Bytes of netlink messages. Pure: builds requests, takes answers apart.
//!
//! ```text
//!  message    u32 length │ u16 kind │ u16 flags │ u32 sequence │ u32 port │ body …      each padded to 4 bytes
//!  body       fixed part of the kind (20 bytes tcmsg, 16 bytes ifinfomsg) │ attributes …
//!  attribute  u16 length │ u16 type │ value …                                           each padded to 4 bytes
//! ```
//! Numbers are in the machine's byte order. Lengths from outside are checked before they are used.

/// Bytes of a message's header.
const HEADER: usize = 16;
/// Bytes of an attribute's header.
const ATTRIBUTE: usize = 4;
/// `NLA_TYPE_MASK`: the two highest bits of a type are flags.
const TYPE_MASK: u16 = 0x3fff;

/// Bytes from the kernel that are not what they should be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("A netlink message says that it has {said} bytes where {there} are")]
pub struct WireError {
    pub(crate) said: usize,
    pub(crate) there: usize,
}

/// A request being built.
pub(crate) struct Request {
    bytes: Vec<u8>,
}

impl Request {
    pub(crate) fn new(kind: u16, flags: u16, fixed: &[u8]) -> Request {
        let mut bytes = vec![0; HEADER];
        bytes[4..6].copy_from_slice(&kind.to_ne_bytes());
        bytes[6..8].copy_from_slice(&flags.to_ne_bytes());
        bytes.extend_from_slice(fixed);
        Request { bytes }
    }

    /// Adds an attribute.
    #[must_use]
    pub(crate) fn with(mut self, kind: u16, value: &[u8]) -> Request {
        self.attribute(kind, |r| r.bytes.extend_from_slice(value));
        self
    }

    /// Adds a text attribute, which ends in a zero byte.
    #[must_use]
    pub(crate) fn with_text(self, kind: u16, text: &str) -> Request {
        let mut value = text.as_bytes().to_vec();
        value.push(0);
        self.with(kind, &value)
    }

    /// Adds an attribute that holds those that `fill` adds.
    #[must_use]
    pub(crate) fn nested(mut self, kind: u16, fill: impl FnOnce(Request) -> Request) -> Request {
        let start = self.bytes.len();
        self.bytes.extend_from_slice(&[0; ATTRIBUTE]);
        let mut filled = fill(self);
        filled.close(start, kind);
        filled
    }

    fn attribute(&mut self, kind: u16, fill: impl FnOnce(&mut Request)) {
        let start = self.bytes.len();
        self.bytes.extend_from_slice(&[0; ATTRIBUTE]);
        fill(self);
        self.close(start, kind);
    }

    fn close(&mut self, start: usize, kind: u16) {
        // Every request is a few hundred bytes of this crate's making.
        let length = u16::try_from(self.bytes.len() - start).unwrap_or(u16::MAX);
        self.bytes[start..start + 2].copy_from_slice(&length.to_ne_bytes());
        self.bytes[start + 2..start + 4].copy_from_slice(&kind.to_ne_bytes());
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }

    /// The whole message, with more flags.
    pub(crate) fn finish(mut self, sequence: u32, flags: u16) -> Vec<u8> {
        let flags = flags | u16_at(&self.bytes, 6).unwrap_or_default();
        self.bytes[6..8].copy_from_slice(&flags.to_ne_bytes());
        let length = u32::try_from(self.bytes.len()).unwrap_or(u32::MAX);
        self.bytes[0..4].copy_from_slice(&length.to_ne_bytes());
        self.bytes[8..12].copy_from_slice(&sequence.to_ne_bytes());
        self.bytes
    }
}

/// A message from the kernel.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Message<'a> {
    pub(crate) kind: u16,
    pub(crate) flags: u16,
    pub(crate) sequence: u32,
    pub(crate) body: &'a [u8],
}

impl<'a> Message<'a> {
    /// The attributes behind a fixed part of `fixed` bytes.
    pub(crate) fn attributes(&self, fixed: usize) -> Attributes<'a> {
        Attributes { rest: self.body.get(fixed..).unwrap_or_default() }
    }
}

/// The messages of one datagram. Ends at the first one that does not fit, with an error.
pub(crate) struct Messages<'a> {
    rest: &'a [u8],
}

impl<'a> Messages<'a> {
    pub(crate) fn of(datagram: &'a [u8]) -> Messages<'a> {
        Messages { rest: datagram }
    }
}

impl<'a> Iterator for Messages<'a> {
    type Item = Result<Message<'a>, WireError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.rest.is_empty() {
            return None;
        }
        let said = u32_at(self.rest, 0).map_or(HEADER, |n| n as usize);
        let Some(message) = cut(&mut self.rest, said, HEADER) else {
            let there = std::mem::take(&mut self.rest).len();
            return Some(Err(WireError { said, there }));
        };
        Some(Ok(Message {
            kind: u16_at(message, 4).unwrap_or_default(),
            flags: u16_at(message, 6).unwrap_or_default(),
            sequence: u32_at(message, 8).unwrap_or_default(),
            body: &message[HEADER..],
        }))
    }
}

/// The attributes in a piece of a message: `(type, value)`. Ends at the first one that does not fit.
#[derive(Clone, Copy)]
pub(crate) struct Attributes<'a> {
    rest: &'a [u8],
}

impl<'a> Attributes<'a> {
    pub(crate) fn of(bytes: &'a [u8]) -> Attributes<'a> {
        Attributes { rest: bytes }
    }

    /// The value of the first attribute of this type.
    pub(crate) fn find(mut self, kind: u16) -> Option<&'a [u8]> {
        self.find_map(|(k, value)| (k == kind).then_some(value))
    }

    /// The attributes inside the first attribute of this type; none if it is not there.
    pub(crate) fn inside(self, kind: u16) -> Attributes<'a> {
        Attributes { rest: self.find(kind).unwrap_or_default() }
    }

    /// A text attribute, without its zero byte.
    pub(crate) fn text(self, kind: u16) -> Option<String> {
        let value = self.find(kind)?;
        let end = value.iter().position(|b| *b == 0).unwrap_or(value.len());
        Some(String::from_utf8_lossy(&value[..end]).into_owned())
    }

    /// A number of 32 bits.
    pub(crate) fn number(self, kind: u16) -> Option<u32> {
        u32_at(self.find(kind)?, 0)
    }
}

impl<'a> Iterator for Attributes<'a> {
    type Item = (u16, &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        let said = usize::from(u16_at(self.rest, 0)?);
        let attribute = cut(&mut self.rest, said, ATTRIBUTE)?;
        Some((u16_at(attribute, 2)? & TYPE_MASK, &attribute[ATTRIBUTE..]))
    }
}

/// Takes `length` bytes and their padding off the front; `None` when they are fewer than `least` or more than there are.
fn cut<'a>(rest: &mut &'a [u8], length: usize, least: usize) -> Option<&'a [u8]> {
    if length < least {
        return None;
    }
    let taken = rest.get(..length)?;
    *rest = rest.get(length.checked_next_multiple_of(4)?..).unwrap_or_default();
    Some(taken)
}

pub(crate) fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_ne_bytes(*bytes.get(at..)?.first_chunk()?))
}

pub(crate) fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(*bytes.get(at..)?.first_chunk()?))
}

pub(crate) fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_ne_bytes(*bytes.get(at..)?.first_chunk()?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_request_is_laid_out_as_the_kernel_reads_it() {
        let request = Request::new(36, 1, &[9; 20])
            .with_text(1, "plug")
            .nested(2, |r| r.with(7, &[1, 2, 3]).with(8, &7u32.to_ne_bytes()))
            .finish(42, 4);
        assert_eq!(request.len() % 4, 0);
        let messages = Messages::of(&request).collect::<Result<Vec<_>, _>>().unwrap();
        let [message] = messages[..] else { panic!("one message") };
        assert_eq!((message.kind, message.flags, message.sequence), (36, 5, 42));
        assert_eq!(message.body[..20], [9; 20]);
        let attributes = message.attributes(20);
        assert_eq!(attributes.text(1).as_deref(), Some("plug"));
        assert_eq!(attributes.inside(2).find(7), Some(&[1, 2, 3][..]));
        assert_eq!(attributes.inside(2).number(8), Some(7));
        assert_eq!(attributes.find(3), None);
    }

    #[test]
    fn lengths_that_lie_are_an_error_or_an_end() {
        let sound = Request::new(1, 0, &[]).with(1, &[1; 4]).finish(1, 0);
        for said in [0u32, 15, 25, 1000, u32::MAX] {
            let mut bytes = sound.clone();
            bytes[..4].copy_from_slice(&said.to_ne_bytes());
            let error = Messages::of(&bytes).next().unwrap().unwrap_err();
            assert_eq!(error, WireError { said: said as usize, there: 24 });
        }
        for said in [0u16, 3, 9, u16::MAX] {
            let mut bytes = sound[16..].to_vec();
            bytes[..2].copy_from_slice(&said.to_ne_bytes());
            assert_eq!(Attributes::of(&bytes).count(), 0, "{said}");
        }
    }

    proptest! {
        /// Any bytes: no panic, an end, and nothing that was not there.
        #[test]
        fn any_bytes_are_read_to_an_end(bytes in prop::collection::vec(any::<u8>(), 0..600)) {
            let mut total = 0;
            for message in Messages::of(&bytes) {
                let Ok(message) = message else { break };
                total += HEADER + message.body.len();
                for (kind, value) in message.attributes(20) {
                    prop_assert!(kind <= TYPE_MASK && value.len() <= message.body.len());
                    prop_assert!(Attributes::of(value).count() * ATTRIBUTE <= value.len());
                }
                let _ = (message.attributes(0).text(3), message.attributes(16).inside(2).number(1));
            }
            prop_assert!(total <= bytes.len());
        }

        /// What was built is what is read, message after message.
        #[test]
        fn what_is_built_is_read_back(
            built in prop::collection::vec((any::<u16>(), prop::collection::vec(
                (0..=TYPE_MASK, prop::collection::vec(any::<u8>(), 0..40)), 0..6)), 0..5)
        ) {
            let mut datagram = Vec::new();
            for (number, (kind, attributes)) in built.iter().enumerate() {
                let request = attributes.iter().fold(Request::new(*kind, 0, &[0; 16]), |r, (k, v)| r.with(*k, v));
                datagram.extend(request.finish(number as u32, 0));
            }
            let read = Messages::of(&datagram).collect::<Result<Vec<_>, _>>().unwrap();
            prop_assert_eq!(read.len(), built.len());
            for (message, (kind, attributes)) in read.iter().zip(&built) {
                prop_assert_eq!(message.kind, *kind);
                let found = message.attributes(16).map(|(k, v)| (k, v.to_vec())).collect::<Vec<_>>();
                prop_assert_eq!(&found, attributes);
            }
        }
    }
}
