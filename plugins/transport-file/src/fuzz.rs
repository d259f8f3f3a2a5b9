//! Fuzz targets; see `tests/fuzz`.

use crate::trace::{Entry, Reader, Writer};

/// A trace. What is read from it and written again is read from that as well.
pub fn trace(data: &[u8]) {
    let Ok(mut reader) = Reader::new(data) else { return };
    let mut again = Writer::new(Vec::new()).expect("memory takes everything");
    let mut entries = Vec::new();
    while let Ok(Some(entry)) = reader.next_entry() {
        match &entry {
            Entry::Channel { number, name } => again.channel(*number, name),
            Entry::Bytes { channel, at, bytes } => again.bytes(*channel, *at, &[bytes]),
        }
        .expect("memory takes everything");
        entries.push(entry);
    }
    let copy = again.into_inner();
    let mut reader = Reader::new(&copy[..]).expect("a trace");
    for entry in entries {
        let read = reader.next_entry().expect("it is sound").expect("it is there");
        assert_eq!(read, entry);
    }
    assert!(matches!(reader.next_entry(), Ok(None)));
}

#[cfg(test)]
mod tests {
    use super::*;
    use aventine_fuzz::replay;

    #[test]
    fn a_trace_that_is_read_can_be_written() {
        let sound = [
            &b"AVTRACE1\x01\0\0\x07control\x01\x01\0\x05pages"[..],
            b"\x02\x01\0\x10\0\0\0\0\0\0\0\x03\0\0\0abc",
            b"\x02\0\0\x20\0\0\0\0\0\0\0\0\0\0\0",
        ]
        .concat();
        let seeds = [
            ("two-channels", sound.clone()),
            ("cut-short", sound[..sound.len() - 20].to_vec()),
            ("kind", [&sound[..], &[9, 0, 0]].concat()),
            ("length", [&sound[..], b"\x02\0\0\0\0\0\0\0\0\0\0\xff\xff\xff\xff"].concat()),
        ];
        replay("trace", &seeds, trace);
    }
}
