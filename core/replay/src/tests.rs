use super::*;
use aventine_api::{
    ChannelTx, Context, Factory, Host, Kind, Link, PageRun, PageSink, PluginEntry, SessionId, Side, inventory,
};
use aventine_codec_raw as _;
use aventine_protocol::{CheckpointEnd, FrameHeader, FrameKind, Hello, Message};
use std::fs;
use std::path::PathBuf;
use std::sync::Arc;

struct Nobody;

impl Host for Nobody {
    fn request_epoch(&self) {}
    fn staged(&self, _: Epoch) {}
    fn failed(&self, _: PluginError) {}
}

fn factory(kind: Kind, name: &str) -> (Factory, Context) {
    let entry =
        inventory::iter::<PluginEntry>().find(|e| e.factory.kind() == kind && e.name == name).unwrap();
    let context = Context {
        guest: "g".into(),
        id: name.into(),
        side: Side::Primary,
        state_dir: PathBuf::new(),
        config_dir: PathBuf::new(),
        host: Arc::new(Nobody),
    };
    (entry.factory, context)
}

fn raw() -> Box<dyn Codec> {
    let (Factory::Codec(make), context) = factory(Kind::Codec, "raw") else { panic!("a codec") };
    make("", context).unwrap()
}

fn recorder(path: &Path) -> Box<dyn Link> {
    let (Factory::Transport(make), context) = factory(Kind::Transport, "file") else { panic!("a transport") };
    make(&format!("path = {:?}", path.display().to_string()), context)
        .unwrap()
        .connect(Duration::ZERO)
        .unwrap()
}

fn frame(tx: &mut dyn ChannelTx, kind: FrameKind, epoch: u64, parts: &[&[u8]]) {
    let header = FrameHeader::of(kind, 0, Epoch(epoch), 7, parts);
    tx.send(&[&[&header.encode()[..]], parts].concat()).unwrap();
}

/// A guest of which each epoch wrote these pages, filled with its number; epoch 0 is the initial copy.
fn trace(dir: &Path, epochs: &[&[u64]]) -> PathBuf {
    let path = dir.join("a.trace");
    let mut link = recorder(&path);
    let (mut control, _) = link.open("control", None, Duration::ZERO).unwrap();
    let signature = vec![("name".into(), "g".into()), ("codec".into(), "raw 0.1.0".into())];
    let hello = Message::Hello(Hello { session: SessionId([1; 16]), signature, base: None }).encode();
    frame(control.as_mut(), FrameKind::Message, 0, &[&hello]);
    let (mut pages, _) = link.open("pages", None, Duration::ZERO).unwrap();
    for (epoch, written) in epochs.iter().enumerate() {
        let page = vec![epoch as u8 + 1; PAGE_SIZE];
        let runs = written.iter().map(|n| PageRun { first_page: *n, data: &page }).collect::<Vec<_>>();
        let (mut codec, mut payload) = (raw(), Vec::new());
        codec.encode(Epoch(epoch as u64), &runs, &mut payload).unwrap();
        frame(pages.as_mut(), FrameKind::Pages, epoch as u64, &payload);
        if epoch > 0 {
            let end = CheckpointEnd { armed: true, frames: 1, pages: 1, state_len: 0, digest: 0 };
            frame(pages.as_mut(), FrameKind::CheckpointEnd, epoch as u64, &[&end.encode()]);
        }
    }
    path
}

struct Every(Duration);

impl EpochPolicy for Every {
    fn interval(&mut self, last: &EpochStats) -> Duration {
        assert!(last.dirty_pages > 0);
        self.0
    }
}

const GUEST: [&[u64]; 4] = [&[0, 1, 2, 30_000_000], &[1, 2], &[2], &[2, 9]];

#[test]
fn epochs_hold_each_page_once_and_every_page_comes_back() {
    let dir = tempfile::tempdir().unwrap();
    let path = trace(dir.path(), &GUEST);
    assert_eq!(recorded_codec(&path).unwrap(), "raw 0.1.0");
    for (interval, epochs, pages) in [(Duration::ZERO, 3, 5), (Duration::from_secs(3600), 1, 2)] {
        let figures =
            replay(&path, raw().as_mut(), [raw(), raw()], &mut Every(interval), &Clock::default()).unwrap();
        assert_eq!((figures.epochs, figures.pages, figures.recorded_epochs), (epochs, pages, 3));
        assert_eq!((figures.copy_pages, figures.copy_bytes), (4, 4 * 4096 + 8 + 2 * 16));
        assert!(figures.bytes > pages * 4096 && figures.ratio < 1.0 && figures.ratio > 0.98, "{figures:?}");
    }
}

/// Loses the last byte of each batch.
struct Lossy(Box<dyn Codec>);

impl Codec for Lossy {
    fn encode<'a>(
        &'a mut self,
        e: Epoch,
        runs: &'a [PageRun<'a>],
        out: &mut Vec<&'a [u8]>,
    ) -> Result<(), PluginError> {
        self.0.encode(e, runs, out)?;
        if let Some(last) = out.last_mut() {
            *last = &last[..last.len() - 1];
            out.push(&[0]);
        }
        Ok(())
    }

    fn check(&mut self, payload: &[u8], guest_pages: u64) -> Result<u64, PluginError> {
        self.0.check(payload, guest_pages)
    }

    fn decode(&mut self, payload: &[u8], sink: &mut dyn PageSink) -> Result<(), PluginError> {
        self.0.decode(payload, sink)
    }
}

#[test]
fn a_codec_that_loses_something_has_no_figures() {
    let dir = tempfile::tempdir().unwrap();
    let path = trace(dir.path(), &[&[4], &[5, 6]]);
    let error = replay(
        &path,
        raw().as_mut(),
        [Box::new(Lossy(raw())), raw()],
        &mut Every(Duration::ZERO),
        &Clock::default(),
    );
    assert!(matches!(error, Err(ReplayError::Differs(4))), "{error:?}");
}

#[test]
fn a_small_trace_has_the_epochs_and_what_their_pages_were_before() {
    let dir = tempfile::tempdir().unwrap();
    let (path, small) = (trace(dir.path(), &GUEST), dir.path().join("small.trace"));
    trim(&path, (Epoch(2), 2), raw().as_mut(), &small).unwrap();
    assert_eq!(fs::read(&small).unwrap()[..4], [0x28, 0xb5, 0x2f, 0xfd], "compressed");
    let figures =
        replay(&small, raw().as_mut(), [raw(), raw()], &mut Every(Duration::ZERO), &Clock::default());
    let figures = figures.unwrap();
    assert_eq!((figures.copy_pages, figures.epochs, figures.pages), (2, 2, 3));
    let mut source = Source::open(&small).unwrap();
    let Some(Part::Pages(Epoch::COPY, copy)) = source.next_part().unwrap() else { panic!("a copy") };
    let mut image = Image::new();
    raw().decode(&copy, &mut image).unwrap();
    assert_eq!(image.pages(2, 1).unwrap(), [2; PAGE_SIZE], "as epoch 1 had left it");
    let error = trim(&path, (Epoch(2), 3), raw().as_mut(), &small).unwrap_err();
    assert!(matches!(error, TrimError::TooShort { found: 2, .. }), "{error}");
}

#[test]
fn a_page_that_no_guest_has_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let path = trace(dir.path(), &[&[1 << 40]]);
    let error = replay(&path, raw().as_mut(), [raw(), raw()], &mut Every(Duration::ZERO), &Clock::default());
    assert!(matches!(error, Err(ReplayError::Recorded(_))), "{error:?}");
}

#[test]
fn what_is_no_trace_is_told() {
    let dir = tempfile::tempdir().unwrap();
    let file = |name: &str, bytes: &[u8]| {
        fs::write(dir.path().join(name), bytes).unwrap();
        let error = recorded_codec(&dir.path().join(name)).unwrap_err();
        let cause = std::error::Error::source(&error).map(ToString::to_string).unwrap_or_default();
        format!("{error}: {cause}")
    };
    assert!(file("text", b"name = 'web'").contains("This is no trace"));
    assert!(file("empty", b"AVTRACE1").contains("empty or cut short"));
    assert!(file("damaged", b"AVTRACE1\x07\0\0").contains("damaged at byte 8"));
    assert!(recorded_codec(&dir.path().join("none")).unwrap_err().to_string().contains("Cannot open"));
}
