//! A link with a codec at each end, and both memories.

use super::CodecBench;
use super::pages::{Content, Dice, Shape, count, runs};
use crate::suite::{Seen, calmly};
use aventine_api::{Codec, Epoch, ErrorCode, PAGE_SIZE, PageBitmap, PageSink, PluginError};
use std::marker::PhantomData;
use std::ops::Range;

/// Pages of the guest.
pub(super) const GUEST: u64 = 96;
/// Its regions.
pub(super) const REGIONS: [Range<u64>; 3] = [0..40, 40..41, 41..GUEST];

#[derive(Debug, thiserror::Error)]
enum SinkError {
    #[error("{count} pages from {first} on are not all in one region")]
    Border { first: u64, count: u64 },
    #[error("The sink was told to fail")]
    Told,
}

/// The standby's memory.
pub(super) struct Image {
    pub(super) bytes: Vec<u8>,
    /// What was asked for since the last batch began.
    asked: PageBitmap,
    /// How many more times it answers.
    answers: Option<u32>,
}

impl Image {
    fn noise(seed: u64) -> Image {
        let bytes = Dice::new(seed).noise(GUEST as usize * PAGE_SIZE);
        Image { bytes, asked: PageBitmap::new(GUEST), answers: None }
    }
}

impl PageSink for Image {
    fn pages(&mut self, first: u64, count: u64) -> Result<&mut [u8], PluginError> {
        let end = first.checked_add(count).filter(|_| count > 0);
        let is_inside = |r: &Range<u64>| r.contains(&first) && end.is_some_and(|end| end <= r.end);
        if !REGIONS.iter().any(is_inside) {
            return Err(PluginError::new(ErrorCode::Corrupt, SinkError::Border { first, count }));
        }
        if let Some(answers) = &mut self.answers {
            let left = answers.checked_sub(1);
            *answers = left.ok_or_else(|| PluginError::new(ErrorCode::Io, SinkError::Told))?;
        }
        self.asked.set_range(first, count);
        Ok(&mut self.bytes[first as usize * PAGE_SIZE..][..count as usize * PAGE_SIZE])
    }
}

pub(super) struct Desk<B> {
    primary: Box<dyn Codec>,
    pub(super) standby: Box<dyn Codec>,
    /// The primary's memory.
    memory: Vec<u8>,
    pub(super) image: Image,
    /// What the standby's memory must be.
    expected: Vec<u8>,
    pub(super) dice: Dice,
    epoch: Epoch,
    bench: PhantomData<B>,
}

impl<B: CodecBench> Desk<B> {
    pub(super) fn start(_module: &'static str) -> Desk<B> {
        let image = Image::noise(1);
        Desk {
            primary: B::make(),
            standby: B::make(),
            memory: vec![0; image.bytes.len()],
            expected: image.bytes.clone(),
            image,
            dice: Dice::new(2),
            epoch: Epoch::COPY,
            bench: PhantomData,
        }
    }

    /// The link is lost, and a new one begins with another standby.
    pub(super) fn new_link(&mut self, seed: u64) {
        (self.primary, self.standby) = (B::make(), B::make());
        self.image = Image::noise(seed);
        self.expected = self.image.bytes.clone();
    }

    /// The guest writes.
    pub(super) fn write(&mut self, shape: &Shape, content: Content) {
        for &(first, pages) in shape {
            let memory = &mut self.memory[first as usize * PAGE_SIZE..][..pages as usize * PAGE_SIZE];
            content.fill(memory, &mut self.dice);
        }
    }

    /// The payload of a batch; `before` stands in `out` already.
    pub(super) fn encode_after(&mut self, before: &[&[u8]], shape: &Shape) -> Result<Vec<Vec<u8>>, String> {
        let runs = runs(&self.memory, shape);
        let mut out = before.to_vec();
        let done = calmly("`encode`", || self.primary.encode(self.epoch, &runs, &mut out))?;
        done.map_err(|e| format!("`encode` of {shape:?} failed: {}", e.chain()))?;
        for run in &runs {
            self.expected[run.first_page as usize * PAGE_SIZE..][..run.data.len()].copy_from_slice(run.data);
        }
        self.epoch = self.epoch.next();
        Ok(out.into_iter().map(<[u8]>::to_vec).collect())
    }

    pub(super) fn encode(&mut self, shape: &Shape) -> Result<Vec<u8>, String> {
        Ok(self.encode_after(&[], shape)?.concat())
    }

    /// The standby's check passes, and counts right.
    pub(super) fn check(&mut self, payload: &[u8], shape: &Shape) -> Seen {
        let counted = calmly("`check`", || self.standby.check(payload, GUEST))?;
        let counted =
            counted.map_err(|e| format!("`check` refused what `encode` made of {shape:?}: {}", e.chain()))?;
        if counted != count(shape) {
            return Err(format!("`check` counted {counted} pages in {shape:?}; there are {}", count(shape)));
        }
        Ok(())
    }

    pub(super) fn decode(&mut self, payload: &[u8]) -> Seen {
        let done = calmly("`decode`", || self.standby.decode(payload, &mut self.image))?;
        done.map_err(|e| format!("`decode` failed on what `check` had passed: {}", e.chain()))
    }

    /// The standby's memory is what it must be.
    pub(super) fn compare(&self, when: &str) -> Seen {
        let pages = self.image.bytes.chunks_exact(PAGE_SIZE).zip(self.expected.chunks_exact(PAGE_SIZE));
        for (page, (is, due)) in pages.enumerate() {
            if let Some(at) = is.iter().zip(due).position(|(a, b)| a != b) {
                let (is, due) = (is[at], due[at]);
                return Err(format!(
                    "{when}, byte {at} of page {page} is {is:#04x} on the standby, not {due:#04x}"
                ));
            }
        }
        Ok(())
    }

    /// A batch of pages as they are now goes all the way.
    pub(super) fn transfer(&mut self, shape: &Shape, when: &str) -> Seen {
        let payload = self.encode(shape)?;
        self.check(&payload, shape)?;
        self.decode(&payload)?;
        self.compare(when)
    }

    /// A standby that has decoded `history`, all of its batches.
    pub(super) fn standby_after(&mut self, history: &[Vec<u8>]) -> Seen {
        self.standby = B::make();
        for payload in history {
            let counted = calmly("`check`", || self.standby.check(payload, GUEST))?;
            counted.map_err(|e| format!("`check` refused what `encode` had made: {}", e.chain()))?;
            self.decode(payload)?;
        }
        Ok(())
    }

    /// The pages that were asked for since the last call.
    pub(super) fn asked(&mut self) -> PageBitmap {
        std::mem::replace(&mut self.image.asked, PageBitmap::new(GUEST))
    }

    /// The sink fails from its `answers`th answer on; `None`: not.
    pub(super) fn fail_after(&mut self, answers: Option<u32>) {
        self.image.answers = answers;
    }
}
