//! Fuzz targets; see `tests/fuzz`.

use crate::Raw;
use aventine_api::{Codec, Epoch, ErrorCode, PAGE_SIZE, PageRun, PageSink, PluginError};
use std::ops::Range;

/// Guest memory in two regions.
const REGIONS: [Range<u64>; 2] = [0..5, 5..16];

#[derive(Debug, thiserror::Error)]
#[error("Outside of the guest's memory")]
struct Outside;

/// Notes the runs that were asked for, each within one region.
struct Image {
    bytes: Vec<u8>,
    asked: Vec<(u64, u64)>,
}

impl PageSink for Image {
    fn pages(&mut self, first: u64, pages: u64) -> Result<&mut [u8], PluginError> {
        let end = first.checked_add(pages).filter(|_| pages > 0);
        let inside = |r: &Range<u64>| r.contains(&first) && end.is_some_and(|e| e <= r.end);
        if !REGIONS.iter().any(inside) {
            return Err(PluginError::new(ErrorCode::Corrupt, Outside));
        }
        self.asked.push((first, pages));
        Ok(&mut self.bytes[first as usize * PAGE_SIZE..][..pages as usize * PAGE_SIZE])
    }
}

/// The codec itself, for targets that need one.
pub fn codec() -> Box<dyn Codec> {
    Box::new(Raw::default())
}

/// A payload: how many pages stand at its end, then what stands before them. What is accepted can be decoded, into
/// the memory of a guest and as many pages as was said, and is what the encoder would have sent.
pub fn raw(data: &[u8]) {
    let Some((&pages, table)) = data.split_first() else { return };
    let mut payload = table.to_vec();
    payload.extend((0..usize::from(pages % 16) * PAGE_SIZE).map(|i| (i / PAGE_SIZE + i) as u8));
    let guest_pages = REGIONS[1].end;
    let Ok(count) = Raw::default().check(&payload, guest_pages) else { return };
    let mut image = Image { bytes: vec![0; guest_pages as usize * PAGE_SIZE], asked: Vec::new() };
    Raw::default().decode(&payload, &mut image).expect("what passes the check can be decoded");
    assert_eq!(image.asked.iter().map(|(_, pages)| pages).sum::<u64>(), count);

    let table_len = payload.len() - count as usize * PAGE_SIZE;
    let mut rest = &payload[table_len..];
    let word = |at: usize| u64::from_le_bytes(payload[at..at + 8].try_into().expect("eight bytes"));
    let mut runs = Vec::new();
    for entry in (8..table_len).step_by(16) {
        let (now, later) = rest.split_at(word(entry + 8) as usize * PAGE_SIZE);
        runs.push(PageRun { first_page: word(entry), data: now });
        rest = later;
    }
    let (mut codec, mut again) = (Raw::default(), Vec::new());
    codec.encode(Epoch::FIRST, &runs, &mut again).expect("whole pages");
    assert!(again.concat() == payload, "it is encoded differently");
}

#[cfg(test)]
mod tests {
    use super::*;
    use aventine_fuzz::replay;

    fn table(entries: &[(u64, u64)]) -> Vec<u8> {
        let pages: u64 = entries.iter().map(|(_, pages)| pages).sum();
        let mut bytes = vec![pages as u8];
        bytes.extend((entries.len() as u64).to_le_bytes());
        for (first, pages) in entries {
            bytes.extend([first.to_le_bytes(), pages.to_le_bytes()].concat());
        }
        bytes
    }

    #[test]
    fn what_passes_the_check_can_be_decoded() {
        let seeds = [
            ("empty", vec![0]),
            ("one-run", table(&[(2, 3)])),
            ("three-runs", table(&[(0, 1), (9, 4), (15, 1)])),
            ("across-regions", table(&[(3, 6)])),
            ("overlapping", table(&[(7, 2), (7, 2)])),
        ];
        replay("raw", &seeds, raw);
    }
}
