//! Fuzz targets; see `tests/fuzz`.

use crate::port::{FRAME_LIMIT, Outcome, Port};
use crate::recent::Recent;
use crate::wire::FRAME_LEAST;
use aventine_api::{Epoch, RecordHead};
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

/// What comes from the primary's plugin: records of copies, each as its kind, epoch and length, a byte, a byte and two,
/// and its payload; before them the epoch of the takeover. What is repeated is frames, and bounded.
pub fn copies(data: &[u8]) {
    let Some((&epoch, mut records)) = data.split_first() else { return };
    let (mut recent, mut came) = (Recent::default(), 0);
    while let Some((&[kind, epoch, low, high], rest)) = records.split_first_chunk::<4>() {
        let (payload, rest) = rest.split_at(rest.len().min(u16::from_le_bytes([low, high]).into()));
        came += payload.len();
        if recent.take(RecordHead { epoch: Epoch(epoch.into()), kind }, payload).is_err() {
            return;
        }
        records = rest;
    }
    let repeat = recent.repeat(Epoch(epoch.into()));
    let frames = || repeat.to_guest.iter().chain(&repeat.from_guest);
    assert!(frames().all(|f| (FRAME_LEAST..=FRAME_LIMIT).contains(&f.len())));
    assert!(frames().map(Vec::len).sum::<usize>() <= came, "more than came");
    assert_eq!(recent.repeat(Epoch(epoch.into())), Default::default(), "repeated twice");
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
    use crate::wire::{Frames, Seal, Way};
    use aventine_fuzz::replay;

    fn framed(frames: &[&[u8]]) -> Vec<u8> {
        frames.iter().flat_map(|f| [&(f.len() as u32).to_be_bytes()[..], f].concat()).collect()
    }

    fn record(head: RecordHead, payload: &[u8]) -> Vec<u8> {
        [&[head.kind, head.epoch.0 as u8][..], &(payload.len() as u16).to_le_bytes(), payload].concat()
    }

    fn seal(epoch: u64, to_guest: u64, from_guest: u64) -> Vec<u8> {
        let seal = Seal { epoch: Epoch(epoch), to_guest, from_guest, released: Epoch(epoch - 1) };
        record(seal.head(), &seal.payload())
    }

    #[test]
    fn a_primary_can_only_have_frames_repeated_once() {
        let run = |way, first| {
            let mut frames = Frames::new(way, first);
            [60, 14, 300].iter().for_each(|length| frames.add(&vec![*length as u8; *length]));
            record(frames.head(), &frames.payload)
        };
        let session = [run(Way::ToGuest, 0), run(Way::FromGuest, 0), seal(1, 1, 0), seal(2, 2, 3)].concat();
        let gap = [run(Way::ToGuest, 0), seal(1, 0, 0), run(Way::ToGuest, 9), seal(4, 3, 0)].concat();
        let seeds = [
            ("takeover", [&[2][..], &session].concat()),
            ("earlier", [&[1][..], &session].concat()),
            ("gap", [&[4][..], &gap].concat()),
            ("backwards", [&[1][..], &session, &run(Way::ToGuest, 0)].concat()),
            ("cut-short", [&[1][..], &session[..session.len() - 5]].concat()),
        ];
        replay("copies", &seeds, copies);
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
