//! A bench for the plugins that hold frames in the kernel: two taps on a bridge, in a network namespace of the test's own.
//! Needs root and the modules tun and bridge.
//!
//! ```text
//!  guest ══ tap `guest0` ── bridge `br0` ── tap `world0` ══ world
//!           `ifb` plugs here                `plug` plugs here
//! ```

use aventine_api::{Context, Epoch, Factory, Host, NetworkBuffer, PluginError, Premises, Side, Upkeep};
use aventine_conformance::form::{Form, Native};
use aventine_conformance::network::NetworkBench;
use aventine_network_kernel::{Device, Netlink};
use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write};
use std::marker::PhantomData;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

/// Longer than a bridge takes to take up its ports.
const PATIENCE: Duration = Duration::from_secs(20);
const GUEST: &str = "guest0";
const WORLD: &str = "world0";

/// The plugin under test.
pub(crate) trait Kind {
    /// How it is reached.
    type Form: Form;
    const PLUGIN: &'static str;
    /// How the name of the device begins that it holds frames at.
    const PLUGGED: &'static str;
}

/// See the module.
pub(crate) struct Taps<K> {
    guest: Option<File>,
    world: Option<File>,
    buffer: Option<Box<dyn NetworkBuffer>>,
    host: Arc<dyn Host>,
    kind: PhantomData<K>,
}

/// From here on this thread, and what it starts, is in an empty network namespace.
pub(crate) fn enter_namespace() {
    aventine_network_kernel::enter_namespace().expect("this test needs root");
}

/// Opens a tap, which is made if need be and goes with its last user, and sets it up.
pub(crate) fn tap(name: &str) -> File {
    load_modules();
    let file = aventine_network_kernel::open_tap(name).unwrap_or_else(|e| panic!("{name}: {e}"));
    let netlink = &mut Netlink::open().unwrap();
    let device = Device::find(netlink, name).unwrap().expect("the tap just made");
    device.hush(netlink).unwrap();
    device.up(netlink).unwrap();
    file
}

/// The kernel loads by itself what the plugins need, but not what the bench does.
fn load_modules() {
    if !Path::new("/dev/net/tun").exists() {
        let loaded = Command::new("modprobe").args(["-a", "tun", "bridge"]).status();
        assert!(loaded.is_ok_and(|status| status.success()), "modprobe -a tun bridge failed");
    }
}

/// The next frame at a tap.
pub(crate) fn receive(tap: &mut File) -> Option<Vec<u8>> {
    let mut frame = vec![0; 2048];
    let length = tap.read(&mut frame).ok()?;
    frame.truncate(length);
    Some(frame)
}

/// A frame of a kind that nobody else sends.
pub(crate) fn frame(number: u8) -> Vec<u8> {
    let mut frame = [[0x52, 0x54, 0, 0xa7, 0xe0, 0x0d], [0x52, 0x54, 0, 0xa7, 0xe0, 0x0c]].concat();
    frame.extend_from_slice(&[0x88, 0xb5, number]);
    frame.resize(60, 0);
    frame
}

/// Waits for something to become true.
pub(crate) fn until(what: &str, mut is: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !is() {
        assert!(Instant::now() < deadline, "not in {PATIENCE:?}: {what}");
        thread::sleep(Duration::from_millis(1));
    }
}

/// An engine that is not told anything.
pub(crate) struct Nobody;

impl Host for Nobody {
    fn request_epoch(&self) {}
    fn staged(&self, _: Epoch) {}
    fn failed(&self, error: PluginError) {
        eprintln!("{}", error.chain());
    }
}

/// Makes the plugin of this name.
pub(crate) fn plugin<F: Form>(
    name: &str,
    config: &str,
    id: &str,
    side: Side,
    host: Arc<dyn Host>,
) -> Result<Box<dyn NetworkBuffer>, String> {
    let entry = F::entry(aventine_api::Kind::Network, name);
    let Factory::Network(make) = entry.factory else { panic!("{name} is a network plugin") };
    (entry.validate)(config).map_err(|e| e.to_string())?;
    let context = Context {
        guest: "conformance".into(),
        id: id.into(),
        side,
        state_dir: "/nowhere".into(),
        config_dir: "/nowhere".into(),
        host,
    };
    make(config, context).map_err(|e| e.chain())
}

/// Another process of this program engages the plugin at `guest0`, and is killed.
pub(crate) fn crash() {
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "--nocapture", "--include-ignored", "controller_that_crashes"])
        .env("AVENTINE_CONFORMANCE_PLACE", "")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let words = BufReader::new(child.stdout.take().unwrap());
    let holding = words.lines().map_while(Result::ok).any(|line| line == "holding");
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(holding, "the controller ended by itself");
}

/// The plugin's upkeep, for this configuration.
pub(crate) fn upkeep(name: &str) -> (Upkeep, Premises) {
    let entry = Native::entry(aventine_api::Kind::Network, name);
    (
        entry.upkeep.expect("the plugin has one"),
        Premises { guest: "conformance".into(), id: "net0".into(), config_dir: "/nowhere".into() },
    )
}

/// Makes a bridge of these taps, and waits until it forwards from the first to the last.
pub(crate) fn bridge(name: &str, taps: &mut [(&str, &mut File)]) {
    let netlink = &mut Netlink::open().unwrap();
    let bridge = aventine_network_kernel::make_bridge(netlink, name).expect("the bridge module");
    for (tap, _) in taps.iter() {
        Device::find(netlink, tap).unwrap().expect("the tap").enslave(netlink, bridge).unwrap();
    }
    let mut frame = [[0x52, 0x54, 0, 0xa7, 0xe0, 0x0f], [0x52, 0x54, 0, 0xa7, 0xe0, 0x0e]].concat();
    frame.extend_from_slice(&[0x88, 0xb6]);
    frame.resize(60, 0);
    let deadline = Instant::now() + PATIENCE;
    loop {
        let [(_, first), .., (_, last)] = taps else { panic!("two taps at least") };
        first.write_all(&frame).expect("the tap takes frames");
        if std::iter::from_fn(|| receive(last)).any(|f| f == frame) {
            return;
        }
        assert!(Instant::now() < deadline, "the bridge forwards nothing");
        thread::sleep(Duration::from_millis(1));
    }
}

/// Guest and world, joined by a bridge in a namespace of this thread's own.
pub(crate) fn bridged() -> (File, File) {
    enter_namespace();
    let (mut guest, mut world) = (tap(GUEST), tap(WORLD));
    bridge("br0", &mut [(GUEST, &mut guest), (WORLD, &mut world)]);
    (guest, world)
}

impl<K: Kind> NetworkBench for Taps<K> {
    const LIMIT: u64 = 1 << 20;

    fn start(side: Side, host: Arc<dyn Host>) -> Self {
        let (guest, world) = bridged();
        let buffer = Some(Self::make("", side, Arc::clone(&host)));
        Taps { guest: Some(guest), world: Some(world), buffer, host, kind: PhantomData }
    }

    fn place(&self) -> String {
        String::new()
    }

    fn make(_: &str, side: Side, host: Arc<dyn Host>) -> Box<dyn NetworkBuffer> {
        let config = format!("device = '{GUEST}'\nlimit = '1MiB'");
        plugin::<K::Form>(K::PLUGIN, &config, "net0", side, host).unwrap_or_else(|e| panic!("{e}"))
    }

    fn stop(&mut self) {
        self.buffer = None;
    }

    fn connect(&mut self) {}

    fn restart(&mut self) {
        self.buffer = Some(Self::make("", Side::Primary, Arc::clone(&self.host)));
    }

    fn buffer(&mut self) -> &mut dyn NetworkBuffer {
        self.buffer.as_mut().expect("there is a buffer").as_mut()
    }

    fn guest_sends(&mut self, frame: &[u8]) -> bool {
        // A tap takes every frame; the kernel has dealt with it when `write` returns.
        self.guest.as_mut().is_none_or(|tap| tap.write(frame).is_ok_and(|n| n == frame.len()))
    }

    fn world_receives(&mut self) -> Option<Vec<u8>> {
        self.world.as_mut().and_then(receive)
    }

    fn world_sends(&mut self, frame: &[u8]) {
        self.world.as_mut().expect("a world").write_all(frame).expect("the tap takes frames");
    }

    fn guest_receives(&mut self) -> Option<Vec<u8>> {
        self.guest.as_mut().and_then(receive)
    }

    fn vanish(&mut self) {
        // A tap goes with its last user.
        if K::PLUGGED == WORLD {
            self.world = None;
        } else {
            let netlink = &mut Netlink::open().unwrap();
            let all = Device::all(netlink).unwrap();
            let device = all.iter().find(|d| d.name.starts_with(K::PLUGGED)).expect("the plugged device");
            Device::remove(netlink, device.index).unwrap();
        }
    }
}
