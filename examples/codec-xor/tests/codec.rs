//! Both ends of the codec, with a guest that changes as guests do.

use aventine_api::{
    Codec, Context, Epoch, ErrorCode, Factory, Host, PAGE_SIZE, PageRun, PageSink, PluginEntry, PluginError,
    Side, inventory,
};
use aventine_codec_xor as _;
use std::sync::Arc;

const PAGES: u64 = 2048;

struct NoEngine;

impl Host for NoEngine {
    fn request_epoch(&self) {}
    fn staged(&self, _: Epoch) {}
    fn failed(&self, error: PluginError) {
        panic!("{}", error.chain());
    }
}

fn entry() -> &'static PluginEntry {
    inventory::iter::<PluginEntry>.into_iter().find(|e| e.name == "xor").expect("the plugin is linked in")
}

fn codec(text: &str) -> Box<dyn Codec> {
    let Factory::Codec(make) = entry().factory else { panic!("a codec") };
    let context = Context {
        guest: "web".into(),
        id: "codec".into(),
        side: Side::Primary,
        state_dir: std::env::temp_dir(),
        config_dir: std::env::temp_dir(),
        host: Arc::new(NoEngine),
    };
    make(text, context).unwrap()
}

#[derive(Clone, PartialEq)]
struct Memory(Vec<u8>);

impl Memory {
    fn new() -> Memory {
        Memory(vec![0; PAGES as usize * PAGE_SIZE])
    }

    fn run(&self, first_page: u64, pages: u64) -> PageRun<'_> {
        PageRun { first_page, data: &self.0[first_page as usize * PAGE_SIZE..][..pages as usize * PAGE_SIZE] }
    }
}

impl PageSink for Memory {
    fn pages(&mut self, first: u64, pages: u64) -> Result<&mut [u8], PluginError> {
        Ok(&mut self.0[first as usize * PAGE_SIZE..][..pages as usize * PAGE_SIZE])
    }
}

struct Random(u64);

impl Random {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % limit
    }
}

fn encode(codec: &mut dyn Codec, runs: &[PageRun<'_>]) -> Vec<u8> {
    let mut out = Vec::new();
    codec.encode(Epoch(1), runs, &mut out).unwrap();
    let payload = out.concat();
    let most: usize = runs.iter().map(|run| run.data.len() + 64).sum();
    assert!(payload.len() <= most, "{} bytes of at most {most}", payload.len());
    payload
}

/// A page on which some bytes change, one that becomes zeros, and one of which everything changes.
fn change(page: &mut [u8], random: &mut Random) {
    match random.below(4) {
        0 => page.fill(0),
        1 => page.fill_with(|| random.below(256) as u8),
        _ => {
            for _ in 0..random.below(40) {
                page[random.below(PAGE_SIZE as u64) as usize] = random.below(256) as u8;
            }
        }
    }
}

#[test]
fn the_standby_gets_every_page_epoch_after_epoch() {
    let mut random = Random(1);
    // With a reference that is smaller than the guest pages drive each other out of it.
    let (mut ours, mut theirs) = (codec("reference = '4MiB'"), codec("reference = '4MiB'"));
    let (mut guest, mut image) = (Memory::new(), Memory::new());
    // What the standby has there before does not matter.
    image.0.fill(0xee);
    let payload = encode(ours.as_mut(), &[guest.run(0, PAGES)]);
    assert_eq!(theirs.check(&payload, PAGES).unwrap(), PAGES);
    theirs.decode(&payload, &mut image).unwrap();
    for epoch in 0..100 {
        let mut runs = Vec::new();
        let mut first = random.below(50);
        while first + 20 < PAGES {
            let pages = 1 + random.below(19);
            for page in first..first + pages {
                change(guest.pages(page, 1).unwrap(), &mut random);
            }
            runs.push((first, pages));
            first += pages + random.below(200);
        }
        let runs: Vec<_> = runs.into_iter().map(|(first, pages)| guest.run(first, pages)).collect();
        let payload = encode(ours.as_mut(), &runs);
        let pages = runs.iter().map(|run| (run.data.len() / PAGE_SIZE) as u64).sum::<u64>();
        assert_eq!(theirs.check(&payload, PAGES).unwrap(), pages);
        theirs.decode(&payload, &mut image).unwrap();
        assert!(image == guest, "epoch {epoch}");
    }
}

#[test]
fn a_page_that_changed_little_is_little() {
    let (mut ours, mut guest) = (codec(""), Memory::new());
    guest.0.iter_mut().zip(0u32..).for_each(|(byte, n)| *byte = (n.wrapping_mul(2_654_435_761) >> 24) as u8);
    assert!(encode(ours.as_mut(), &[guest.run(0, 100)]).len() > 100 * PAGE_SIZE, "nothing is known yet");
    (0..100).for_each(|page| guest.0[page * PAGE_SIZE + 77] ^= 1);
    let payload = encode(ours.as_mut(), &[guest.run(0, 100)]);
    assert!(payload.len() < 100 * 32, "{}", payload.len());
    assert!(encode(ours.as_mut(), &[]).is_empty());
}

#[test]
fn a_payload_that_was_damaged_is_refused_or_can_be_decoded() {
    let (mut random, mut ours, mut guest) = (Random(7), codec(""), Memory::new());
    guest.0[..64 * PAGE_SIZE].fill_with(|| random.below(3) as u8);
    let whole = encode(ours.as_mut(), &[guest.run(0, 5), guest.run(60, 8), guest.run(100, 3)]);
    let (mut refused, mut theirs, mut image) = (0, codec(""), Memory::new());
    for _ in 0..5000 {
        let mut payload = whole.clone();
        match random.below(3) {
            0 => payload.truncate(random.below(whole.len() as u64) as usize),
            1 => payload.extend([0; 13]),
            _ => {
                // The heads and steps of the first bytes more often than the words.
                let most = if random.below(2) == 0 { 64 } else { whole.len() as u64 };
                payload[random.below(most) as usize] = random.below(256) as u8;
            }
        }
        match theirs.check(&payload, PAGES) {
            Ok(_) => theirs.decode(&payload, &mut image).unwrap(),
            Err(error) => {
                assert_eq!(error.code(), ErrorCode::Corrupt);
                refused += 1;
            }
        }
    }
    assert!(refused > 1000, "{refused}");
    assert!(theirs.check(&whole, 102).is_err(), "the guest has no page 102");
}

#[test]
fn a_key_that_makes_no_sense_is_refused_at_its_place() {
    for (text, path) in [("reference = '64'", vec!["reference"]), ("reference = '1MiB'", vec!["reference"])] {
        assert_eq!((entry().validate)(text).unwrap_err().path, path);
    }
    assert!((entry().validate)("refrence = '64MiB'").unwrap_err().to_string().contains("unknown key"));
}
