//! A sound codec that depends on what it has sent: what is known on the other side goes as what has changed. It shows that the
//! rules leave a codec such memory.
//!
//! ```text
//!  page (8)  pages (4)  0  pages                                  a run as it is
//!  page (8)  pages (4)  1  at (2)  length (2)  bytes  …           a run of known pages: what changed in each, where shorter
//! ```

use super::corrupt;
use aventine_api::{Codec, Epoch, PAGE_SIZE, PageRun, PageSink, PluginError};
use aventine_conformance::codec::CodecBench;
use std::collections::{HashMap, HashSet};

#[derive(Default)]
struct Delta {
    sent: HashMap<u64, Vec<u8>>,
    /// Pages that are known once all that was checked is decoded.
    known: HashSet<u64>,
    buffer: Vec<u8>,
}

/// From the first changed byte to the last.
fn changed(before: &[u8], now: &[u8]) -> (usize, usize) {
    let mut all = (0..PAGE_SIZE).filter(|at| before[*at] != now[*at]);
    let first = all.next().unwrap_or(0);
    (first, all.next_back().map_or(first + 1, |last| last + 1))
}

impl Delta {
    /// What has changed in the pages of a run; `None` where one is not known.
    fn changes(&self, run: &PageRun<'_>) -> Option<Vec<u8>> {
        let mut changes = Vec::new();
        for (page, now) in (run.first_page..).zip(run.data.chunks_exact(PAGE_SIZE)) {
            let (first, end) = changed(self.sent.get(&page)?, now);
            changes.extend((first as u16).to_le_bytes());
            changes.extend(((end - first) as u16).to_le_bytes());
            changes.extend(&now[first..end]);
        }
        Some(changes)
    }
}

impl Codec for Delta {
    fn encode<'a>(
        &'a mut self,
        _: Epoch,
        runs: &'a [PageRun<'a>],
        out: &mut Vec<&'a [u8]>,
    ) -> Result<(), PluginError> {
        self.buffer.clear();
        for run in runs {
            let changes = self.changes(run).filter(|c| c.len() < run.data.len());
            self.buffer.extend(run.first_page.to_le_bytes());
            self.buffer.extend(((run.data.len() / PAGE_SIZE) as u32).to_le_bytes());
            self.buffer.push(u8::from(changes.is_some()));
            self.buffer.extend(changes.as_deref().unwrap_or(run.data));
            let pages = (run.first_page..).zip(run.data.chunks_exact(PAGE_SIZE));
            self.sent.extend(pages.map(|(page, now)| (page, now.to_vec())));
        }
        out.push(&self.buffer);
        Ok(())
    }

    fn check(&mut self, payload: &[u8], guest_pages: u64) -> Result<u64, PluginError> {
        let mut known = HashSet::new();
        for Change { page, is_whole, .. } in changes(payload)? {
            if page >= guest_pages || !known.insert(page) || (!is_whole && !self.known.contains(&page)) {
                return Err(corrupt(
                    "a page that the guest has not, that is there twice, or that is not known",
                ));
            }
        }
        let pages = known.len() as u64;
        self.known.extend(known);
        Ok(pages)
    }

    fn decode(&mut self, payload: &[u8], sink: &mut dyn PageSink) -> Result<(), PluginError> {
        for Change { page, at, data, .. } in changes(payload)? {
            sink.pages(page, 1)?[at..][..data.len()].copy_from_slice(data);
        }
        Ok(())
    }
}

struct Change<'a> {
    page: u64,
    is_whole: bool,
    at: usize,
    data: &'a [u8],
}

fn changes(mut payload: &[u8]) -> Result<Vec<Change<'_>>, PluginError> {
    let mut changes = Vec::new();
    while !payload.is_empty() {
        run(&mut payload, &mut changes).ok_or_else(|| corrupt("it makes no sense"))?;
    }
    Ok(changes)
}

fn run<'a>(payload: &mut &'a [u8], changes: &mut Vec<Change<'a>>) -> Option<()> {
    let first = u64::from_le_bytes(take(payload, 8)?.try_into().ok()?);
    let pages = u32::from_le_bytes(take(payload, 4)?.try_into().ok()?);
    let is_whole = match take(payload, 1)? {
        [0] => true,
        [1] => false,
        _ => return None,
    };
    for page in first..first.checked_add(pages.into())? {
        let mut number = || Some(usize::from(u16::from_le_bytes(take(payload, 2)?.try_into().ok()?)));
        let (at, length) = if is_whole { (0, PAGE_SIZE) } else { (number()?, number()?) };
        let data = take(payload, length)?;
        changes.push((at + length <= PAGE_SIZE).then_some(Change { page, is_whole, at, data })?);
    }
    Some(())
}

fn take<'a>(payload: &mut &'a [u8], length: usize) -> Option<&'a [u8]> {
    let (front, rest) = payload.split_at_checked(length)?;
    *payload = rest;
    Some(front)
}

struct Desk;

impl CodecBench for Desk {
    fn make() -> Box<dyn Codec> {
        Box::new(Delta::default())
    }
}

aventine_conformance::codec!(Desk);
