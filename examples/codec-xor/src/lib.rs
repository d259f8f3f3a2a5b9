//! Codec plugin `xor`: of each page, the words that changed since it was last sent.
//!
//! Build with `cargo build --release`; then in the guest's file:
//!
//! ```toml
//! [plugins]
//! load = ["target/release/libaventine_codec_xor.so"]
//! [codec]
//! plugin = "xor"
//! reference = "64MiB"    # memory of the primary for pages as they were last sent; 4MiB to 64GiB
//! ```
//! It shows state that both ends must agree on (the standby's copy of it is the guest's image itself), a payload that is
//! checked before it is believed, and a bound on its size that holds whatever the guest writes.
//!
//! ```text
//! run      first page (8 bytes), pages (4), how (1), then
//!   0        the pages as they are
//!   1        for each page: base (1 byte; 0: zeros, 1: the page as it was), then steps up to its end
//!     step     words to leave alone (2 bytes), words that follow (2), the words: each is XORed into the base
//! ```
//! Numbers are little-endian, words have 8 bytes. A run that would not get shorter is sent as it is, so a payload is never
//! longer than its pages and 13 bytes for each run.
#![forbid(unsafe_code)]

use aventine_api::schemars::JsonSchema;
use aventine_api::units::Quantity;
use aventine_api::{
    Codec, ConfigError, Epoch, ErrorCode, Factory, PAGE_SIZE, PageRun, PageSink, PluginEntry, PluginError,
    parse_config, schema,
};
use serde::Deserialize;

aventine_abi::export_plugin!();

aventine_api::inventory::submit! {
    PluginEntry {
        name: "xor",
        version: env!("CARGO_PKG_VERSION"),
        summary: "The words of a page that changed since it was last sent",
        validate: &|text| slots(text).map(drop),
        schema: &schema::<Keys>,
        factory: Factory::Codec(&|text, _| {
            let slots = slots(text).map_err(|e| PluginError::new(ErrorCode::Config, e))?;
            Ok(Box::new(Xor { tags: vec![0; slots], pages: vec![0; slots * PAGE_SIZE], packed: Vec::new() }))
        }),
        upkeep: None,
    }
}

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(crate = "aventine_api::schemars")]
struct Keys {
    /// Memory of the primary for pages as they were last sent, 4MiB to 64GiB; 64MiB if not set.
    #[schemars(with = "Option<aventine_api::SizeText>")]
    reference: Option<String>,
}

/// How many pages the reference has room for.
fn slots(text: &str) -> Result<usize, ConfigError> {
    let keys: Keys = parse_config(text)?;
    let key = keys.reference.as_deref().unwrap_or("64MiB");
    Ok(u64::parse_key(&["reference"], key, &(4 << 20..=64 << 30))? as usize / PAGE_SIZE)
}

const HEAD: usize = 13;
const WORD: usize = 8;

#[derive(Debug, thiserror::Error)]
#[error("{0} bytes before its end the payload ends too soon, or names words or pages that are not there")]
struct Corrupt(usize);

impl From<Corrupt> for PluginError {
    fn from(error: Corrupt) -> PluginError {
        PluginError::new(ErrorCode::Corrupt, error)
    }
}

/// The primary's end remembers pages in slots by their number, as a cache does; the standby's end needs no memory.
struct Xor {
    /// For each slot, the number of the page in it plus one.
    tags: Vec<u64>,
    pages: Vec<u8>,
    /// For each run of a batch, its head and what follows.
    packed: Vec<Vec<u8>>,
}

impl Codec for Xor {
    fn encode<'a>(
        &'a mut self,
        _: Epoch,
        runs: &'a [PageRun<'a>],
        out: &mut Vec<&'a [u8]>,
    ) -> Result<(), PluginError> {
        self.packed.resize_with(runs.len().max(self.packed.len()), Vec::new);
        for (run, packed) in runs.iter().zip(&mut self.packed) {
            packed.clear();
            packed.extend(run.first_page.to_le_bytes());
            packed.extend(((run.data.len() / PAGE_SIZE) as u32).to_le_bytes());
            packed.push(1);
            for (number, page) in (run.first_page..).zip(run.data.chunks_exact(PAGE_SIZE)) {
                let slot = (number % self.tags.len() as u64) as usize;
                let base = &mut self.pages[slot * PAGE_SIZE..][..PAGE_SIZE];
                let known = std::mem::replace(&mut self.tags[slot], number + 1) == number + 1;
                if !known {
                    base.fill(0);
                }
                packed.push(known.into());
                pack(page, base, packed);
                base.copy_from_slice(page);
            }
            if packed.len() >= HEAD + run.data.len() {
                packed.truncate(HEAD);
                packed[HEAD - 1] = 0;
            }
        }
        for (run, packed) in runs.iter().zip(&self.packed).filter(|(run, _)| !run.data.is_empty()) {
            out.push(packed);
            out.extend((packed[HEAD - 1] == 0).then_some(run.data));
        }
        Ok(())
    }

    fn check(&mut self, mut payload: &[u8], guest_pages: u64) -> Result<u64, PluginError> {
        let mut pages = 0;
        while !payload.is_empty() {
            let (first, count, plain) = head(&mut payload)?;
            if count == 0 || first.checked_add(count).is_none_or(|end| end > guest_pages) {
                return Err(Corrupt(payload.len()).into());
            }
            (0..count).try_for_each(|_| page(&mut payload, plain, &mut [0; PAGE_SIZE]))?;
            pages += count;
        }
        Ok(pages)
    }

    fn decode(&mut self, mut payload: &[u8], sink: &mut dyn PageSink) -> Result<(), PluginError> {
        while !payload.is_empty() {
            let (first, count, plain) = head(&mut payload)?;
            for number in first..first + count {
                page(&mut payload, plain, sink.pages(number, 1)?)?;
            }
        }
        Ok(())
    }
}

/// Appends the steps from `base` to `page`.
fn pack(page: &[u8], base: &[u8], packed: &mut Vec<u8>) {
    let words = || page.chunks_exact(WORD).zip(base.chunks_exact(WORD));
    let mut at = 0;
    while at < PAGE_SIZE / WORD {
        let same = words().skip(at).take_while(|(new, old)| new == old).count();
        let differ = words().skip(at + same).take_while(|(new, old)| new != old).count();
        packed.extend((same as u16).to_le_bytes());
        packed.extend((differ as u16).to_le_bytes());
        let differing = words().skip(at + same).take(differ);
        packed.extend(differing.flat_map(|(new, old)| new.iter().zip(old).map(|(n, o)| n ^ o)));
        at += same + differ;
    }
}

/// Takes the first `len` bytes off `payload`.
fn take<'a>(payload: &mut &'a [u8], len: usize) -> Result<&'a [u8], Corrupt> {
    let (taken, rest) = payload.split_at_checked(len).ok_or(Corrupt(payload.len()))?;
    *payload = rest;
    Ok(taken)
}

/// Takes a number of `len` bytes off `payload`.
fn number(payload: &mut &[u8], len: usize) -> Result<u64, Corrupt> {
    Ok(take(payload, len)?.iter().rev().fold(0, |number, byte| number << 8 | u64::from(*byte)))
}

/// Takes a run's head off `payload`: first page, pages, whether they follow as they are.
fn head(payload: &mut &[u8]) -> Result<(u64, u64, bool), Corrupt> {
    Ok((number(payload, 8)?, number(payload, 4)?, number(payload, 1)? == 0))
}

/// Takes one page off `payload` and brings `page` up to it.
fn page(payload: &mut &[u8], plain: bool, page: &mut [u8]) -> Result<(), Corrupt> {
    if plain {
        page.copy_from_slice(take(payload, PAGE_SIZE)?);
        return Ok(());
    }
    if number(payload, 1)? == 0 {
        page.fill(0);
    }
    let mut at = 0;
    while at < PAGE_SIZE {
        let (same, differ) = (number(payload, 2)? as usize * WORD, number(payload, 2)? as usize * WORD);
        let words = take(payload, differ)?;
        let changed = page.get_mut(at + same..at + same + differ).ok_or(Corrupt(payload.len()))?;
        changed.iter_mut().zip(words).for_each(|(byte, change)| *byte ^= change);
        at += same + differ;
    }
    Ok(())
}
