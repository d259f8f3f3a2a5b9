//! The rules of codecs, and what this one is for.

use aventine_api::{Codec, Epoch, Factory, Kind, PAGE_SIZE, PageRun, PluginEntry, Side};
use aventine_codec_xor as _;
use aventine_conformance::codec::CodecBench;
use aventine_conformance::form::{Ears, Form, Native, context};
use std::path::Path;
use std::sync::Arc;

fn entry() -> &'static PluginEntry {
    Native::entry(Kind::Codec, "xor")
}

fn codec(text: &str) -> Box<dyn Codec> {
    let Factory::Codec(make) = entry().factory else { panic!("a codec") };
    make(text, context(Kind::Codec, Path::new("/nonexistent"), Side::Primary, Arc::new(Ears::default())))
        .unwrap()
}

struct Bench;

impl CodecBench for Bench {
    fn make() -> Box<dyn Codec> {
        codec("reference = '4MiB'")
    }
}

aventine_conformance::codec!(Bench);

/// How long the payload of these pages is.
fn encoded(codec: &mut dyn Codec, first_page: u64, data: &[u8]) -> usize {
    let (mut out, runs) = (Vec::new(), [PageRun { first_page, data }]);
    codec.encode(Epoch(1), &runs, &mut out).unwrap();
    out.iter().map(|part| part.len()).sum()
}

#[test]
fn a_page_that_changed_little_is_little_until_another_takes_its_place() {
    const SLOTS: u64 = (4 << 20) / PAGE_SIZE as u64;
    let mut codec = codec("reference = '4MiB'");
    let noise = (0..100 * PAGE_SIZE as u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8);
    let mut pages: Vec<u8> = noise.collect();
    assert!(encoded(codec.as_mut(), 0, &pages) > pages.len(), "nothing is known yet");
    pages.chunks_mut(PAGE_SIZE).for_each(|page| page[77] ^= 1);
    let changed = encoded(codec.as_mut(), 0, &pages);
    assert!(changed < 100 * 32, "{changed}");
    assert!(encoded(codec.as_mut(), SLOTS, &pages) > pages.len(), "other pages");
    assert!(encoded(codec.as_mut(), 0, &pages) > pages.len(), "they were driven out");
}

#[test]
fn a_key_that_makes_no_sense_is_refused_at_its_place() {
    for text in ["reference = '64'", "reference = '1MiB'"] {
        assert_eq!((entry().validate)(text).unwrap_err().path, ["reference"]);
    }
    assert!((entry().validate)("refrence = '64MiB'").unwrap_err().to_string().contains("unknown key"));
}
