//! Codec plugin `raw`: pages as they are.
//!
//! ```text
//!  0       8      number of runs, n; at least 1
//!  8      16·n    run table: first page (8 bytes), pages (8 bytes, at least 1)
//!  8+16·n  …      the pages of the first run, of the second, and so on to the end
//! ```
//! Numbers are little-endian. A batch without pages is an empty payload. The pages are sent from where they lie; only
//! the table is memory of the codec.
//!
//! Invariant: [`Codec::check`] and [`Codec::decode`] read the layout through one function (`runs`), so what passes
//! the one cannot fail in the other.
#![forbid(unsafe_code)]

#[cfg(any(test, fuzzing))]
#[doc(hidden)]
pub mod fuzz;
use aventine_api::schemars::JsonSchema;
use aventine_api::{
    Codec, ConfigError, Epoch, ErrorCode, Factory, PAGE_SIZE, PageRun, PageSink, PluginEntry, PluginError,
    parse_config, schema,
};
use serde::Deserialize;

aventine_api::inventory::submit! {
    PluginEntry {
        name: "raw",
        version: env!("CARGO_PKG_VERSION"),
        summary: "Pages as they are",
        validate: &validate,
        schema: &schema::<Keys>,
        factory: Factory::Codec(&|_text, _context| Ok(Box::new(Raw::default()))),
        upkeep: None,
    }
}

/// There is nothing to configure.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(crate = "aventine_api::schemars")]
struct Keys {}

fn validate(text: &str) -> Result<(), ConfigError> {
    let Keys {} = parse_config(text)?;
    Ok(())
}

const COUNT_LEN: usize = 8;
const ENTRY_LEN: usize = 16;

/// Why pages could not be encoded.
#[derive(Debug, thiserror::Error)]
enum EncodeError {
    #[error("The run at page {first_page} has {len} bytes, not a whole number of pages")]
    Ragged { first_page: u64, len: usize },
}

impl From<EncodeError> for PluginError {
    fn from(error: EncodeError) -> PluginError {
        PluginError::new(ErrorCode::Internal, error)
    }
}

/// Why a payload makes no sense.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
enum PayloadError {
    #[error("The payload of {len} bytes ends inside its run table")]
    ShortTable { len: usize },
    #[error("The payload has a table without runs")]
    NoRuns,
    #[error("Run {run} of the payload has no pages")]
    EmptyRun { run: u64 },
    #[error("Run {run} of the payload ends behind the guest's {guest_pages} pages")]
    OutOfRange { run: u64, guest_pages: u64 },
    #[error("The payload ends inside the pages of run {run}")]
    ShortPages { run: u64 },
    #[error("{len} bytes follow the last page of the payload")]
    Trailing { len: usize },
}

impl From<PayloadError> for PluginError {
    fn from(error: PayloadError) -> PluginError {
        PluginError::new(ErrorCode::Corrupt, error)
    }
}

/// Why the sink could not take pages.
#[derive(Debug, thiserror::Error)]
#[error("The sink gave {got} bytes for a page")]
struct SinkError {
    got: usize,
}

#[derive(Default)]
struct Raw {
    table: Vec<u8>,
}

impl Codec for Raw {
    fn encode<'a>(
        &'a mut self,
        _epoch: Epoch,
        runs: &'a [PageRun<'a>],
        out: &mut Vec<&'a [u8]>,
    ) -> Result<(), PluginError> {
        self.table.clear();
        self.table.extend_from_slice(&[0; COUNT_LEN]);
        let mut count = 0u64;
        for run in runs.iter().filter(|r| !r.data.is_empty()) {
            if !run.data.len().is_multiple_of(PAGE_SIZE) {
                return Err(EncodeError::Ragged { first_page: run.first_page, len: run.data.len() }.into());
            }
            self.table.extend_from_slice(&run.first_page.to_le_bytes());
            self.table.extend_from_slice(&((run.data.len() / PAGE_SIZE) as u64).to_le_bytes());
            count += 1;
        }
        if count > 0 {
            self.table[..COUNT_LEN].copy_from_slice(&count.to_le_bytes());
            out.push(&self.table);
            out.extend(runs.iter().map(|r| r.data).filter(|d| !d.is_empty()));
        }
        Ok(())
    }

    fn check(&mut self, payload: &[u8], guest_pages: u64) -> Result<u64, PluginError> {
        let mut pages = 0;
        for (number, run) in (0..).zip(runs(payload)?) {
            let run = run?;
            let count = (run.data.len() / PAGE_SIZE) as u64;
            if run.first_page.checked_add(count).is_none_or(|end| end > guest_pages) {
                return Err(PayloadError::OutOfRange { run: number, guest_pages }.into());
            }
            pages += count;
        }
        Ok(pages)
    }

    fn decode(&mut self, payload: &[u8], sink: &mut dyn PageSink) -> Result<(), PluginError> {
        for run in runs(payload)? {
            let PageRun { first_page, data } = run?;
            // Page by page: a run may go on in another region of memory.
            for (page, data) in (first_page..).zip(data.chunks_exact(PAGE_SIZE)) {
                let target = sink.pages(page, 1)?;
                if target.len() != data.len() {
                    return Err(PluginError::new(ErrorCode::Internal, SinkError { got: target.len() }));
                }
                target.copy_from_slice(data);
            }
        }
        Ok(())
    }
}

/// The runs of a payload, each with at least one page and all of its bytes; after the last one nothing is left.
fn runs(payload: &[u8]) -> Result<impl Iterator<Item = Result<PageRun<'_>, PayloadError>>, PayloadError> {
    let short = PayloadError::ShortTable { len: payload.len() };
    let (mut table, mut pages) = match payload.split_first_chunk::<COUNT_LEN>() {
        None if payload.is_empty() => (payload, payload),
        None => return Err(short),
        Some((count, rest)) => {
            let count = u64::from_le_bytes(*count);
            if count == 0 {
                return Err(PayloadError::NoRuns);
            }
            let len = usize::try_from(count).ok().and_then(|n| n.checked_mul(ENTRY_LEN));
            len.and_then(|len| rest.split_at_checked(len)).ok_or(short)?
        }
    };
    let mut number = 0;
    let next = move || {
        let Some((entry, later)) = table.split_first_chunk::<ENTRY_LEN>() else {
            let len = std::mem::take(&mut pages).len();
            return (len > 0).then_some(Err(PayloadError::Trailing { len }));
        };
        let run = split_run(entry, &mut pages, number);
        number += 1;
        // Nothing can be told after an error.
        table = if run.is_ok() { later } else { &[] };
        if run.is_err() {
            pages = &[];
        }
        Some(run)
    };
    Ok(std::iter::from_fn(next))
}

/// Takes the pages of one table entry off the front of `pages`.
fn split_run<'a>(
    entry: &[u8; ENTRY_LEN],
    pages: &mut &'a [u8],
    run: u64,
) -> Result<PageRun<'a>, PayloadError> {
    let word = |at: usize| u64::from_le_bytes(std::array::from_fn(|i| entry[at + i]));
    let (first_page, count) = (word(0), word(8));
    if count == 0 {
        return Err(PayloadError::EmptyRun { run });
    }
    let len = usize::try_from(count).ok().and_then(|n| n.checked_mul(PAGE_SIZE));
    let (data, rest) =
        len.and_then(|len| pages.split_at_checked(len)).ok_or(PayloadError::ShortPages { run })?;
    *pages = rest;
    Ok(PageRun { first_page, data })
}

#[cfg(test)]
mod tests;
