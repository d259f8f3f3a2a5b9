use super::*;
use proptest::prelude::*;

const GUEST_PAGES: u64 = 24;

/// The memory of a small guest.
struct Image(Vec<u8>);

impl Image {
    fn new() -> Image {
        Image(vec![0; GUEST_PAGES as usize * PAGE_SIZE])
    }
}

impl PageSink for Image {
    fn pages(&mut self, first_page: u64, pages: u64) -> Result<&mut [u8], PluginError> {
        Ok(&mut self.0[first_page as usize * PAGE_SIZE..][..pages as usize * PAGE_SIZE])
    }
}

/// The same memory in two regions: what lies in both is not in one piece.
struct Split(Image);

impl PageSink for Split {
    fn pages(&mut self, first_page: u64, pages: u64) -> Result<&mut [u8], PluginError> {
        let last = first_page + pages - 1;
        if (first_page < GUEST_PAGES / 2) == (last < GUEST_PAGES / 2) {
            self.0.pages(first_page, pages)
        } else {
            Err(PluginError::new(ErrorCode::Corrupt, PayloadError::NoRuns))
        }
    }
}

fn encode(runs: &[PageRun<'_>]) -> Vec<u8> {
    let mut codec = Raw::default();
    let mut out = Vec::new();
    codec.encode(Epoch(1), runs, &mut out).unwrap();
    out.concat()
}

fn payload(entries: &[(u64, u64)], page_bytes: usize) -> Vec<u8> {
    let mut bytes = (entries.len() as u64).to_le_bytes().to_vec();
    for (first, count) in entries {
        bytes.extend_from_slice(&first.to_le_bytes());
        bytes.extend_from_slice(&count.to_le_bytes());
    }
    bytes.resize(bytes.len() + page_bytes, 0xa5);
    bytes
}

fn refusal(payload: &[u8]) -> String {
    let error = Raw::default().check(payload, GUEST_PAGES).expect_err("it must not pass");
    assert_eq!(error.code(), ErrorCode::Corrupt);
    error.to_string()
}

#[test]
fn pages_are_sent_from_where_they_lie() {
    let data = vec![7; 2 * PAGE_SIZE];
    let runs = [PageRun { first_page: 3, data: &data }];
    let mut codec = Raw::default();
    let mut out = Vec::new();
    codec.encode(Epoch(1), &runs, &mut out).unwrap();
    assert_eq!(out.len(), 2);
    assert!(std::ptr::eq(out[1], data.as_slice()));
    assert_eq!(out[0], &payload(&[(3, 2)], 0)[..]);
}

#[test]
fn a_run_may_go_on_in_another_region() {
    let data: Vec<u8> = (0..4 * PAGE_SIZE).map(|i| (i / 7) as u8).collect();
    let first_page = GUEST_PAGES / 2 - 2;
    let bytes = encode(&[PageRun { first_page, data: &data }]);
    assert_eq!(Raw::default().check(&bytes, GUEST_PAGES).unwrap(), 4);
    let mut sink = Split(Image::new());
    Raw::default().decode(&bytes, &mut sink).unwrap();
    assert!(sink.0.0[first_page as usize * PAGE_SIZE..][..data.len()] == data);
}

#[test]
fn a_batch_without_pages_is_an_empty_payload() {
    assert_eq!(encode(&[]), b"");
    assert_eq!(encode(&[PageRun { first_page: 9, data: &[] }]), b"");
    assert_eq!(Raw::default().check(&[], GUEST_PAGES).unwrap(), 0);
    Raw::default().decode(&[], &mut Image::new()).unwrap();
}

#[test]
fn a_run_that_is_no_whole_number_of_pages_is_refused() {
    let data = vec![0; PAGE_SIZE + 1];
    let runs = [PageRun { first_page: 0, data: &data }];
    let error = Raw::default().encode(Epoch(1), &runs, &mut Vec::new()).unwrap_err();
    assert_eq!(error.code(), ErrorCode::Internal);
}

#[test]
fn each_kind_of_nonsense_is_refused_by_name() {
    for (bytes, word) in [
        (vec![1; 7], "inside its run table"),
        (payload(&[], 0), "without runs"),
        (payload(&[(0, 1)], PAGE_SIZE)[..20].to_vec(), "inside its run table"),
        ([&u64::MAX.to_le_bytes()[..], &[0; 64]].concat(), "inside its run table"),
        (payload(&[(0, 0)], 0), "Run 0 of the payload has no pages"),
        (payload(&[(0, 1), (1, 1)], PAGE_SIZE), "inside the pages of run 1"),
        (payload(&[(0, u64::MAX)], PAGE_SIZE), "inside the pages of run 0"),
        (payload(&[(GUEST_PAGES, 1)], PAGE_SIZE), "behind the guest's 24 pages"),
        (payload(&[(GUEST_PAGES - 1, 2)], 2 * PAGE_SIZE), "behind the guest's 24 pages"),
        (payload(&[(u64::MAX, 1)], PAGE_SIZE), "behind the guest's 24 pages"),
        (payload(&[(0, 1)], PAGE_SIZE + 1), "1 bytes follow"),
    ] {
        let text = refusal(&bytes);
        assert!(text.contains(word), "{text:?} does not say {word:?}");
    }
    assert_eq!(Raw::default().check(&payload(&[(GUEST_PAGES - 1, 1)], PAGE_SIZE), GUEST_PAGES).unwrap(), 1);
}

#[test]
fn no_keys_are_known() {
    assert!(validate("").is_ok());
    assert!(validate("level = 3").is_err());
}

/// Tables near the border between right and wrong, with any amount of page bytes behind.
fn near_payloads() -> impl Strategy<Value = Vec<u8>> {
    let entry = (0..GUEST_PAGES + 2, 0..4u64);
    (proptest::collection::vec(entry, 0..5), -2i64..3, 0..6u64).prop_map(|(entries, off, count)| {
        let right = entries.iter().map(|e| e.1 as i64).sum::<i64>() * PAGE_SIZE as i64;
        let mut bytes = payload(&entries, (right + off.signum() * off * off).max(0) as usize);
        if count == 5 {
            bytes[0] = bytes[0].wrapping_add(1);
        }
        bytes
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn what_is_encoded_is_decoded(runs in proptest::collection::vec((0..GUEST_PAGES, 0..4u64, any::<u8>()), 0..6)) {
        let mut expected = Image::new();
        let mut contents = Vec::new();
        for (i, &(first, count, seed)) in runs.iter().enumerate() {
            let count = count.min(GUEST_PAGES - first);
            let data: Vec<u8> =
                (0..count as usize * PAGE_SIZE).map(|at| seed ^ (at / PAGE_SIZE + at + i) as u8).collect();
            expected.pages(first, count).unwrap().copy_from_slice(&data);
            contents.push((first, data));
        }
        let pages = contents.iter().map(|(_, d)| d.len() / PAGE_SIZE).sum::<usize>();
        let runs: Vec<_> = contents.iter().map(|(first_page, data)| PageRun { first_page: *first_page, data }).collect();
        let bytes = encode(&runs);
        prop_assert!(bytes.len() <= pages * PAGE_SIZE + 64 * runs.len());
        let mut codec = Raw::default();
        prop_assert_eq!(codec.check(&bytes, GUEST_PAGES).unwrap(), pages as u64);
        let mut image = Image::new();
        codec.decode(&bytes, &mut image).unwrap();
        prop_assert!(image.0 == expected.0);
    }

    #[test]
    fn whatever_passes_the_check_can_be_decoded(
        bytes in prop_oneof![proptest::collection::vec(any::<u8>(), 0..100), near_payloads()]
    ) {
        let mut codec = Raw::default();
        if let Ok(pages) = codec.check(&bytes, GUEST_PAGES) {
            let runs = bytes.first_chunk().map_or(0, |n| u64::from_le_bytes(*n)) as usize;
            let table = if runs == 0 { 0 } else { COUNT_LEN + runs * ENTRY_LEN };
            prop_assert_eq!(bytes.len(), table + pages as usize * PAGE_SIZE);
            codec.decode(&bytes, &mut Image::new()).unwrap();
        } else {
            // A payload that did not pass is not decoded; if it is, that is no panic in the codec.
            let _ = codec.decode(&bytes, &mut Discard(Vec::new()));
        }
    }
}

/// Takes any pages.
struct Discard(Vec<u8>);

impl PageSink for Discard {
    fn pages(&mut self, _: u64, pages: u64) -> Result<&mut [u8], PluginError> {
        self.0.resize(pages as usize * PAGE_SIZE, 0);
        Ok(&mut self.0)
    }
}

#[path = "../testing/bench.rs"]
mod bench;

mod conformance {
    aventine_conformance::codec!(super::bench::Raw<aventine_conformance::form::Native>);
}
