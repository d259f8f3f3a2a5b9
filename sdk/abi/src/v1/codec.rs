//! The codec's facade.

use super::answer::{Answer, ErrorV1, native};
use super::edge::Exported;
use abi_stable::sabi_types::RMut;
use abi_stable::std_types::{RBox, RResult, RSlice, RSliceMut, RVec};
use abi_stable::{StableAbi, sabi_trait};
use aventine_api::{Codec, Epoch, PageRun, PageSink, PluginError};

/// [`PageRun`]
#[derive(Clone, Copy, StableAbi)]
#[repr(C)]
pub struct PageRunV1<'a> {
    pub first_page: u64,
    pub data: RSlice<'a, u8>,
}

/// [`PageSink`]
#[sabi_trait]
pub trait PageSinkV1 {
    fn pages(&mut self, first_page: u64, pages: u64) -> RResult<RSliceMut<'_, u8>, ErrorV1>;
}

/// [`Codec`]
#[sabi_trait]
pub trait CodecV1: Send {
    /// `runs` holds for the call, what it points to and the answer for as long as the codec is borrowed.
    fn encode<'a>(
        &'a mut self,
        epoch: u64,
        runs: RSlice<'_, PageRunV1<'a>>,
    ) -> RResult<RVec<RSlice<'a, u8>>, ErrorV1>;
    fn check(&mut self, payload: RSlice<'_, u8>, guest_pages: u64) -> Answer<u64>;
    fn decode(&mut self, payload: RSlice<'_, u8>, sink: PageSinkV1_TO<'_, RMut<'_, ()>>) -> Answer<()>;
}

pub(super) type CodecBox = CodecV1_TO<'static, RBox<()>>;

impl PageSinkV1 for Exported<&mut dyn PageSink> {
    fn pages(&mut self, first_page: u64, pages: u64) -> RResult<RSliceMut<'_, u8>, ErrorV1> {
        self.call(|s| Ok(RSliceMut::from_mut_slice(s.pages(first_page, pages)?)))
    }
}

struct ImportedSink<'a, 'b>(PageSinkV1_TO<'a, RMut<'b, ()>>);

impl PageSink for ImportedSink<'_, '_> {
    fn pages(&mut self, first_page: u64, pages: u64) -> Result<&mut [u8], PluginError> {
        native(self.0.pages(first_page, pages)).map(RSliceMut::into_mut_slice)
    }
}

/// A codec, and what its last answer may point to.
pub(super) struct Encoding {
    codec: Box<dyn Codec>,
    runs: Vec<PageRun<'static>>,
}

impl Encoding {
    pub(super) fn export(codec: Box<dyn Codec>) -> CodecBox {
        let encoding = Box::new(Encoding { codec, runs: Vec::new() });
        CodecV1_TO::from_value(Exported::new(encoding), sabi_trait::TD_Opaque)
    }
}

impl CodecV1 for Exported<Box<Encoding>> {
    fn encode<'a>(
        &'a mut self,
        epoch: u64,
        runs: RSlice<'_, PageRunV1<'a>>,
    ) -> RResult<RVec<RSlice<'a, u8>>, ErrorV1> {
        self.call(|Encoding { codec, runs: own }| {
            own.clear();
            own.extend(runs.iter().map(|run| {
                // SAFETY: the caller lends the pages for as long as it borrows this codec ('a), and `own` is read
                // only in a call, which begins by replacing its contents.
                let data = unsafe { std::slice::from_raw_parts(run.data.as_ptr(), run.data.len()) };
                PageRun { first_page: run.first_page, data }
            }));
            let mut out = Vec::new();
            codec.encode(Epoch(epoch), own, &mut out)?;
            Ok(out.into_iter().map(RSlice::from_slice).collect())
        })
    }

    fn check(&mut self, payload: RSlice<'_, u8>, guest_pages: u64) -> Answer<u64> {
        self.call(|c| c.codec.check(payload.as_slice(), guest_pages))
    }

    fn decode(&mut self, payload: RSlice<'_, u8>, sink: PageSinkV1_TO<'_, RMut<'_, ()>>) -> Answer<()> {
        self.call(|c| c.codec.decode(payload.as_slice(), &mut ImportedSink(sink)))
    }
}

pub(super) struct ImportedCodec(pub(super) CodecBox);

impl Codec for ImportedCodec {
    fn encode<'a>(
        &'a mut self,
        epoch: Epoch,
        runs: &'a [PageRun<'a>],
        out: &mut Vec<&'a [u8]>,
    ) -> Result<(), PluginError> {
        let run = |r: &PageRun<'a>| PageRunV1 { first_page: r.first_page, data: RSlice::from_slice(r.data) };
        let runs: Vec<_> = runs.iter().map(run).collect();
        let encoded = native(self.0.encode(epoch.0, RSlice::from_slice(&runs)))?;
        out.extend(encoded.iter().map(|slice| slice.as_slice()));
        Ok(())
    }

    fn check(&mut self, payload: &[u8], guest_pages: u64) -> Result<u64, PluginError> {
        native(self.0.check(RSlice::from_slice(payload), guest_pages))
    }

    fn decode(&mut self, payload: &[u8], sink: &mut dyn PageSink) -> Result<(), PluginError> {
        let mut sink = Exported::new(sink);
        let sink = PageSinkV1_TO::from_ptr(RMut::new(&mut sink), sabi_trait::TD_Opaque);
        native(self.0.decode(RSlice::from_slice(payload), sink))
    }
}
