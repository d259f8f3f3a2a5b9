//! Fuzz targets; see `tests/fuzz`.

use crate::{CheckpointEnd, FrameHeader, HEADER_LEN, Message, differences};
use twox_hash::XxHash3_64;

/// A header and its payload, as they are and with the header's checksum made right.
pub fn frame(data: &[u8]) {
    let Some((head, payload)) = data.split_first_chunk::<HEADER_LEN>() else { return };
    check_frame(head, payload);
    let mut mended = *head;
    let checksum = XxHash3_64::oneshot(&mended[..HEADER_LEN - 8]);
    mended[HEADER_LEN - 8..].copy_from_slice(&checksum.to_le_bytes());
    check_frame(&mended, payload);
}

/// What is accepted says the same when encoded again, and is within its limits.
fn check_frame(head: &[u8; HEADER_LEN], payload: &[u8]) {
    let due = u32::from_le_bytes([head[20], head[21], head[22], head[23]]);
    assert!(FrameHeader::decode(head, due.wrapping_add(1)).is_err(), "another frame is due");
    let Ok(header) = FrameHeader::decode(head, due) else { return };
    assert_eq!(header.encode(), *head);
    assert!(header.length as usize <= header.kind.limit());
    let FrameHeader { kind, sub, epoch, sequence, .. } = header;
    if payload.len() <= kind.limit() {
        let right = FrameHeader::of(kind, sub, epoch, sequence, &[payload]);
        right.verify(payload).expect("its own payload");
        assert_eq!(header.verify(payload).is_ok(), header == right);
    }
}

/// A payload as a message and as the end of a checkpoint: what is accepted is exactly what would have been sent.
pub fn message(data: &[u8]) {
    if let Ok(message) = Message::decode(data) {
        assert_eq!(message.encode(), data);
        if let Message::Hello(hello) = &message {
            assert!(differences(&hello.signature, &hello.signature).is_empty());
            let lines = differences(&hello.signature, &[]).len();
            assert_eq!(lines, hello.signature.len());
        }
    }
    if let Ok(end) = CheckpointEnd::decode(data) {
        assert_eq!(end.encode(), data);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{EndReason, FrameKind, Hello};
    use aventine_api::{Epoch, SessionId};
    use aventine_fuzz::replay;

    #[test]
    fn frames_are_what_they_say() {
        let framed = |kind, payload: &[u8]| {
            let header = FrameHeader::of(kind, 2, Epoch(7), 3, &[payload]);
            [&header.encode()[..], payload].concat()
        };
        let seeds = [
            ("message", framed(FrameKind::Message, &Message::Heartbeat.encode())),
            ("pages", framed(FrameKind::Pages, &[5; 100])),
            ("record", framed(FrameKind::Record, b"")),
        ];
        replay("frame", &seeds, frame);
    }

    #[test]
    fn messages_are_what_was_sent() {
        let signature = vec![("name".into(), "web".into()), ("codec".into(), "raw 0.1.0".into())];
        let end =
            CheckpointEnd { armed: true, frames: 2, pages: 300, state_len: 79_000, digest: 0x0123_4567 };
        let seeds = [
            ("hello", Message::Hello(Hello { session: SessionId([7; 16]), signature, base: None }).encode()),
            ("refuse", Message::Refuse("the codecs differ".into()).encode()),
            ("end", Message::End(EndReason::LocalError("disk full".into())).encode()),
            ("acknowledge", Message::Acknowledge.encode()),
            ("checkpoint-end", end.encode()),
        ];
        replay("message", &seeds, message);
    }
}
