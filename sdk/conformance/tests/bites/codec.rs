//! Codecs.

mod delta;

use crate::{Broken, Why, expect_bites};
use aventine_api::{Codec, Epoch, ErrorCode, PAGE_SIZE, PageRun, PageSink, PluginError};
use aventine_conformance::codec::{CodecBench, rules};
use std::cell::Cell;

/// What is wrong with a codec.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Fault {
    None,
    MissesEverySixtiethBatch,
    LosesTheLastPageOfLongRuns,
    LeavesZerosOut,
    ClearsThePageBehind,
    AsksForWholeRuns,
    AddsAMargin,
    TakesOutForItself,
    WantsARun,
    CountsRuns,
    ChecksOneAtATime,
    AllowsOnePageMore,
    TrustsLengths,
    PassesShortPages,
    CountsTheFirstRun,
    GoesOnWithoutASink,
}

/// The rule that each fault breaks.
const BROKEN: Broken<Fault, 15> = [
    (Fault::MissesEverySixtiethBatch, "what_is_encoded_is_decoded"),
    (Fault::LosesTheLastPageOfLongRuns, "every_shape_of_batch_arrives"),
    (Fault::LeavesZerosOut, "nothing_is_assumed_of_memory"),
    (Fault::ClearsThePageBehind, "other_pages_stay"),
    (Fault::AsksForWholeRuns, "runs_cross_regions"),
    (Fault::AddsAMargin, "payloads_are_bounded"),
    (Fault::TakesOutForItself, "encode_appends"),
    (Fault::WantsARun, "a_batch_without_pages_changes_nothing"),
    (Fault::CountsRuns, "pages_are_counted"),
    (Fault::ChecksOneAtATime, "checks_run_ahead"),
    (Fault::AllowsOnePageMore, "pages_out_of_range_are_refused"),
    (Fault::TrustsLengths, "damage_never_panics"),
    (Fault::PassesShortPages, "what_passes_can_be_decoded"),
    (Fault::CountsTheFirstRun, "what_passes_keeps_to_its_count"),
    (Fault::GoesOnWithoutASink, "a_sinks_error_is_told"),
];

/// Each run is its first page and number of pages (4 bytes each), and the pages, but for those that the codec knows to be the
/// same on the other side.
struct Runs {
    fault: Fault,
    buffer: Vec<u8>,
    batches: u32,
    unchecked: bool,
}

fn corrupt(why: &'static str) -> PluginError {
    PluginError::new(ErrorCode::Corrupt, Why(why))
}

impl Runs {
    /// First page and pages of each run.
    fn parse<'a>(&self, mut payload: &'a [u8]) -> Result<Vec<(u64, &'a [u8])>, PluginError> {
        let mut runs = Vec::new();
        if payload.is_empty() && self.fault == Fault::WantsARun {
            return Err(corrupt("no run"));
        }
        while !payload.is_empty() {
            let (head, rest) = payload.split_first_chunk::<8>().ok_or_else(|| corrupt("a short head"))?;
            let number = |at: usize| u32::from_le_bytes(std::array::from_fn(|i| head[at + i]));
            let (first, bytes) = (number(0).into(), number(4) as usize * PAGE_SIZE);
            let (pages, rest) = match rest.split_at_checked(bytes) {
                Some(split) => split,
                None if self.fault == Fault::TrustsLengths => rest.split_at(bytes),
                None if self.fault == Fault::PassesShortPages => (rest, &rest[..0]),
                None => return Err(corrupt("short pages")),
            };
            runs.push((first, pages));
            payload = if self.fault == Fault::AddsAMargin { rest.get(100..).unwrap_or(rest) } else { rest };
        }
        Ok(runs)
    }
}

impl Codec for Runs {
    fn encode<'a>(
        &'a mut self,
        _: Epoch,
        runs: &'a [PageRun<'a>],
        out: &mut Vec<&'a [u8]>,
    ) -> Result<(), PluginError> {
        self.batches += 1;
        self.buffer.clear();
        for run in runs {
            let mut data = run.data;
            let pages = data.len() / PAGE_SIZE;
            match self.fault {
                Fault::LosesTheLastPageOfLongRuns if pages > 50 => data = &data[..data.len() - PAGE_SIZE],
                Fault::LeavesZerosOut if data.iter().all(|b| *b == 0) => continue,
                _ => {}
            }
            self.buffer.extend((run.first_page as u32).to_le_bytes());
            self.buffer.extend(((data.len() / PAGE_SIZE) as u32).to_le_bytes());
            self.buffer.extend(data);
            if self.fault == Fault::MissesEverySixtiethBatch && self.batches % 60 == 0 {
                *self.buffer.last_mut().unwrap() ^= 1;
            }
            if self.fault == Fault::AddsAMargin {
                self.buffer.extend([0; 100]);
            }
        }
        if self.fault == Fault::TakesOutForItself {
            out.clear();
        }
        out.push(&self.buffer);
        Ok(())
    }

    fn check(&mut self, payload: &[u8], guest_pages: u64) -> Result<u64, PluginError> {
        if self.fault == Fault::ChecksOneAtATime && std::mem::replace(&mut self.unchecked, true) {
            return Err(corrupt("not decoded yet"));
        }
        let runs = self.parse(payload)?;
        let most = guest_pages + u64::from(self.fault == Fault::AllowsOnePageMore);
        let count = |run: &(u64, &[u8])| (run.1.len() / PAGE_SIZE) as u64;
        if runs.iter().any(|run| run.0 + count(run) > most) {
            return Err(corrupt("behind the guest's end"));
        }
        Ok(match self.fault {
            Fault::CountsRuns => runs.len() as u64,
            Fault::CountsTheFirstRun => runs.first().map_or(0, count),
            _ => runs.iter().map(count).sum(),
        })
    }

    fn decode(&mut self, payload: &[u8], sink: &mut dyn PageSink) -> Result<(), PluginError> {
        self.unchecked = false;
        for (first, data) in self.parse(payload)? {
            if data.len() % PAGE_SIZE != 0 {
                return Err(corrupt("short pages"));
            }
            if self.fault == Fault::AsksForWholeRuns && !data.is_empty() {
                sink.pages(first, (data.len() / PAGE_SIZE) as u64)?.copy_from_slice(data);
                continue;
            }
            for (page, data) in (first..).zip(data.chunks_exact(PAGE_SIZE)) {
                match sink.pages(page, 1) {
                    Ok(target) => target.copy_from_slice(data),
                    Err(_) if self.fault == Fault::GoesOnWithoutASink => {}
                    Err(e) => return Err(e),
                }
                if self.fault == Fault::ClearsThePageBehind {
                    let _ = sink.pages(page + 1, 1).map(|page| page.fill(0));
                }
            }
        }
        Ok(())
    }
}

thread_local! {
    /// What is wrong with the codecs that this thread makes.
    static FAULT: Cell<Fault> = const { Cell::new(Fault::None) };
}

struct Desk;

impl CodecBench for Desk {
    fn make() -> Box<dyn Codec> {
        Box::new(Runs { fault: FAULT.get(), buffer: Vec::new(), batches: 0, unchecked: false })
    }
}

#[test]
fn each_rule_catches_its_fault_by_name() {
    expect_bites([rules::<Desk>(), rules::<Desk>()], module_path!(), &BROKEN, Fault::None, &FAULT);
}
