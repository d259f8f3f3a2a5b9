//! Fuzz targets; see `tests/fuzz`.

use crate::port::{FRAME_LIMIT, Outcome, Port};
use std::io::Write;
use std::os::unix::net::UnixStream;

/// What comes from a guest's port: how much of it comes at once, then the bytes. The frames are those that the bytes
/// say, up to the first length that no frame has.
pub fn frames(data: &[u8]) {
    let Some((&piece, wire)) = data.split_first() else { return };
    let (mut far, near) = UnixStream::pair().expect("a pair of sockets");
    let mut port = Port::new(near).expect("a port");
    let mut seen = Vec::new();
    let mut whole = true;
    for piece in wire.chunks(usize::from(piece) * 64 + 1) {
        far.write_all(piece).expect("a piece fits the socket");
        while whole {
            match port.read(|frame| seen.push(frame.to_vec())) {
                Ok(Outcome::More) => {}
                Ok(Outcome::Empty) => break,
                Ok(Outcome::Closed) => unreachable!("the other end is open"),
                Err(_) => whole = false,
            }
        }
        if !whole {
            break;
        }
    }
    let (expected, sound) = expected(wire);
    assert!(seen == expected, "{} frames instead of {}", seen.len(), expected.len());
    assert_eq!(whole, sound);
}

fn expected(mut wire: &[u8]) -> (Vec<Vec<u8>>, bool) {
    let mut frames = Vec::new();
    while let Some((length, rest)) = wire.split_first_chunk::<4>() {
        let length = u32::from_be_bytes(*length) as usize;
        if length == 0 || length > FRAME_LIMIT {
            return (frames, false);
        }
        let Some((frame, rest)) = rest.split_at_checked(length) else { break };
        frames.push(frame.to_vec());
        wire = rest;
    }
    (frames, true)
}

#[cfg(test)]
mod tests {
    use super::*;
    use aventine_fuzz::replay;

    fn framed(frames: &[&[u8]]) -> Vec<u8> {
        frames.iter().flat_map(|f| [&(f.len() as u32).to_be_bytes()[..], f].concat()).collect()
    }

    #[test]
    fn a_guest_can_only_send_frames() {
        let seeds = [
            ("two-frames", [&[3][..], &framed(&[&[1; 60], &[2; 300]])].concat()),
            ("byte-by-byte", [&[0][..], &framed(&[&[1; 14], &[2; 20], &[3; 1]])].concat()),
            ("too-long", [&[255][..], &framed(&[&[1; 60]]), &[0, 1, 0x10, 1, 9]].concat()),
            ("no-length", [&[9][..], &framed(&[&[1; 60]]), &[0; 8]].concat()),
        ];
        replay("frames", &seeds, frames);
    }
}
