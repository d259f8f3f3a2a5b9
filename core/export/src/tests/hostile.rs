//! Bytes of any kind end in an error or a reply: no panic, no hang, no memory without bound.

use super::Memory;
use crate::handshake::{Agreed, Offer, negotiate};
use crate::protocol::{InfoRequest, Request};
use crate::transmission::serve;
use proptest::collection::vec;
use proptest::prelude::*;

const SIZE: u64 = 4096;

/// An option with a right magic and mostly a right length.
fn option() -> impl Strategy<Value = Vec<u8>> {
    let length = prop_oneof![8 => Just(None), 1 => any::<u32>().prop_map(Some)];
    (prop_oneof![0..12_u32, any::<u32>()], vec(any::<u8>(), 0..40), length).prop_map(
        |(option, data, length)| {
            let mut bytes = b"IHAVEOPT".to_vec();
            bytes.extend(option.to_be_bytes());
            bytes.extend(length.unwrap_or(data.len() as u32).to_be_bytes());
            bytes.extend(data);
            bytes
        },
    )
}

/// A request with a right magic, mostly near the device's range.
fn request() -> impl Strategy<Value = Vec<u8>> {
    let offset = prop_oneof![0..SIZE + 10, any::<u64>()];
    let length = prop_oneof![4 => 0..200_u32, 1 => any::<u32>()];
    (any::<u16>(), 0..9_u16, offset, length, vec(any::<u8>(), 0..200)).prop_map(
        |(flags, command, offset, length, data)| {
            let mut bytes = 0x25609513_u32.to_be_bytes().to_vec();
            bytes.extend((flags & 7).to_be_bytes());
            bytes.extend(command.to_be_bytes());
            bytes.extend([7; 8]);
            bytes.extend(offset.to_be_bytes());
            bytes.extend(length.to_be_bytes());
            if command == 1 {
                bytes.extend(data.iter().cycle().take(length.min(4096) as usize));
            }
            bytes
        },
    )
}

proptest! {
    #[test]
    fn any_handshake_ends(
        flags in prop_oneof![Just(3_u32), 0..4_u32, any::<u32>()],
        options in vec(option(), 0..8),
        tail in vec(any::<u8>(), 0..64),
    ) {
        let input = [&flags.to_be_bytes()[..], &options.concat(), &tail].concat();
        let mut output = Vec::new();
        let _ = negotiate(&mut &input[..], &mut output, Offer { name: "disk", size: SIZE });
        prop_assert!(output.starts_with(b"NBDMAGICIHAVEOPT"));
        prop_assert!(output.len() < 4096);
    }

    #[test]
    fn any_transmission_ends(
        requests in vec(request(), 0..20),
        tail in vec(any::<u8>(), 0..64),
        structured in any::<bool>(),
    ) {
        let device = Memory::new(SIZE as usize);
        let input = [&requests.concat()[..], &tail].concat();
        let mut output = Vec::new();
        let _ = serve(&mut &input[..], &mut output, &*device, Agreed { structured });
        prop_assert!(output.len() as u64 <= requests.len() as u64 * (SIZE + 64));
    }

    #[test]
    fn parsers_take_any_bytes(bytes in vec(any::<u8>(), 0..200), head in any::<[u8; 28]>()) {
        let _ = Request::parse(&head);
        if let Some(request) = InfoRequest::parse(&bytes) {
            prop_assert!(request.name.len() + 6 <= bytes.len());
        }
    }
}
