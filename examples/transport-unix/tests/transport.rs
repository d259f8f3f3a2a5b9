//! Two ends of the transport in one process.

use aventine_api::{
    Channel, Context, Epoch, ErrorCode, Factory, Host, Link, Listener, PluginEntry, PluginError, Side,
    Transport, inventory,
};
use aventine_transport_unix as _;
use std::io::Write;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};
use tempfile::TempDir;

const PATIENCE: Duration = Duration::from_secs(30);

struct NoEngine;

impl Host for NoEngine {
    fn request_epoch(&self) {}
    fn staged(&self, _: Epoch) {}
    fn failed(&self, error: PluginError) {
        panic!("{}", error.chain());
    }
}

fn entry() -> &'static PluginEntry {
    inventory::iter::<PluginEntry>.into_iter().find(|e| e.name == "unix").expect("the plugin is linked in")
}

fn transport(dir: &TempDir) -> Box<dyn Transport> {
    let Factory::Transport(make) = entry().factory else { panic!("a transport") };
    let context = Context {
        guest: "web".into(),
        id: "transport".into(),
        side: Side::Primary,
        state_dir: dir.path().into(),
        config_dir: dir.path().into(),
        host: Arc::new(NoEngine),
    };
    make("path = 'link'", context).unwrap()
}

fn accept(listener: &mut dyn Listener) -> Box<dyn Link> {
    listener.accept(PATIENCE).unwrap().expect("a primary comes")
}

/// Both ends of a link, the primary's first.
fn link(dir: &TempDir, listener: &mut dyn Listener) -> [Box<dyn Link>; 2] {
    let mut dialling = transport(dir);
    let dialling = thread::spawn(move || dialling.connect(PATIENCE));
    let theirs = accept(listener);
    [dialling.join().unwrap().unwrap(), theirs]
}

fn open([ours, theirs]: &mut [Box<dyn Link>; 2], name: &str) -> (Channel, Channel) {
    let ours = ours.open(name, None, PATIENCE).unwrap();
    (ours, theirs.open(name, None, PATIENCE).unwrap())
}

#[test]
fn bytes_arrive_in_order_in_their_channel_both_ways() {
    let dir = TempDir::new().unwrap();
    let mut listener = transport(&dir).listen(&[]).unwrap();
    let mut link = link(&dir, listener.as_mut());
    let (mut control, mut their_control) = open(&mut link, "control");
    // The primary is ahead: the standby has not opened it.
    let mut pages = link[0].open("pages", None, PATIENCE).unwrap();
    let bulk: Vec<u8> = (0..10_000_000u32).map(|n| n as u8).collect();
    let sent = bulk.clone();
    let sending =
        thread::spawn(move || pages.0.send(&[&sent[..5], &[], &sent[5..4_000_000], &sent[4_000_000..], &[]]));
    control.0.send(&[b"beat"]).unwrap();
    let mut word = [0; 4];
    their_control.1.recv(&mut word).unwrap();
    assert_eq!(&word, b"beat", "bulk is not in front of it");
    their_control.0.send(&[b"seen"]).unwrap();
    control.1.recv(&mut word).unwrap();
    assert_eq!(&word, b"seen");
    let (_, mut their_pages) = link[1].open("pages", None, PATIENCE).unwrap();
    let mut got = vec![0; bulk.len()];
    their_pages.recv(&mut got).unwrap();
    assert!(got == bulk);
    sending.join().unwrap().unwrap();
}

#[test]
fn an_abort_ends_what_waits_and_what_comes_later_on_both_sides() {
    let dir = TempDir::new().unwrap();
    let mut listener = transport(&dir).listen(&[]).unwrap();
    let mut link = link(&dir, listener.as_mut());
    let ((mut tx, mut rx), (mut their_tx, mut their_rx)) = open(&mut link, "control");
    let waiting = thread::spawn(move || rx.recv(&mut [0; 1]).unwrap_err().code());
    let aborter = link[0].aborter();
    // Something that could still be read counts for nothing.
    let (_pages, (mut their_pages, _keep)) = open(&mut link, "pages");
    their_pages.send(&[b"late"]).unwrap();
    let mut pages = _pages.1;
    aborter.abort();
    aborter.abort();
    assert_eq!(waiting.join().unwrap(), ErrorCode::PeerLost);
    assert_eq!(pages.recv(&mut [0; 4]).unwrap_err().code(), ErrorCode::PeerLost);
    assert_eq!(tx.send(&[b"x"]).unwrap_err().code(), ErrorCode::PeerLost);
    assert_eq!(link[0].open("more", None, PATIENCE).err().unwrap().code(), ErrorCode::PeerLost);
    assert_eq!(their_rx.recv(&mut [0; 1]).unwrap_err().code(), ErrorCode::PeerLost);
    assert_eq!(their_tx.send(&[b"x"]).unwrap_err().code(), ErrorCode::PeerLost);
}

#[test]
fn time_limits_are_kept() {
    let dir = TempDir::new().unwrap();
    let limit = Duration::from_millis(50);
    let began = Instant::now();
    assert_eq!(transport(&dir).connect(limit).err().unwrap().code(), ErrorCode::TimedOut);
    let mut listener = transport(&dir).listen(&[]).unwrap();
    assert!(listener.accept(limit).unwrap().is_none());
    // It listens, but does not accept.
    assert_eq!(transport(&dir).connect(limit).err().unwrap().code(), ErrorCode::TimedOut);
    assert!(began.elapsed() >= 3 * limit);
    let mut link = link(&dir, listener.as_mut());
    assert_eq!(link[1].open("pages", None, limit).err().unwrap().code(), ErrorCode::TimedOut);
    let (_ours, _theirs) = open(&mut link, "pages");
}

#[test]
fn strangers_disturb_nobody_and_the_last_listener_has_the_path() {
    let dir = TempDir::new().unwrap();
    let old = transport(&dir).listen(&[]).unwrap();
    let mut listener = transport(&dir).listen(&[]).unwrap();
    let path = dir.path().join("link");
    let _silent = UnixStream::connect(&path).unwrap();
    drop(UnixStream::connect(&path).unwrap());
    UnixStream::connect(&path).unwrap().write_all(&[b'x'; 500]).unwrap();
    let mut link = link(&dir, listener.as_mut());
    let _half_open = UnixStream::connect(&path).unwrap();
    UnixStream::connect(&path).unwrap().write_all(&[b'x'; 500]).unwrap();
    let ((mut tx, _), (_, mut rx)) = open(&mut link, "pages");
    tx.send(&[b"x"]).unwrap();
    rx.recv(&mut [0]).unwrap();
    drop(old);
    let _another = self::link(&dir, listener.as_mut());
}

#[test]
fn a_channel_of_which_both_halves_are_dropped_has_ended() {
    let dir = TempDir::new().unwrap();
    let mut listener = transport(&dir).listen(&[]).unwrap();
    let mut link = link(&dir, listener.as_mut());
    let (ours, (_, mut rx)) = open(&mut link, "disk:disk0");
    drop(ours);
    assert_eq!(rx.recv(&mut [0]).unwrap_err().code(), ErrorCode::PeerLost);
}

#[test]
fn keys_are_checked() {
    assert!((entry().validate)("").unwrap_err().to_string().contains("missing key `path`"));
    assert!((entry().validate)("path = 'a'\npeer = 'b'").unwrap_err().to_string().contains("unknown key"));
    assert!((entry().schema)().contains("\"path\""));
}
