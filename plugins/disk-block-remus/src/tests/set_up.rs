use super::*;
use aventine_api::{Factory, Kind, PluginEntry, inventory};
use aventine_disk_common::marker::{Mark, Marker};
use std::os::unix::fs::{MetadataExt, PermissionsExt};

fn refusal(dir: &Path, side: Side) -> (ErrorCode, String) {
    let Err(error) = Half::open(dir, side, PRIMARY, 64 * MIB) else { panic!("it was opened") };
    (error.code(), error.chain())
}

#[test]
fn the_plugin_is_registered() {
    let entry = inventory::iter::<PluginEntry>().find(|e| e.name == "block-remus").unwrap();
    assert_eq!(entry.factory.kind(), Kind::Disk);
    assert!((entry.validate)("image = \"a\"").is_ok());
    assert!((entry.validate)("image = \"a\"\nsize = 5").is_err());
    let dir = tempfile::tempdir().unwrap();
    let half = Half::open(dir.path(), Side::Standby, "unused", MIB).unwrap();
    let context = Context {
        guest: "web".to_owned(),
        id: "disk0".to_owned(),
        side: Side::Standby,
        state_dir: dir.path().to_owned(),
        config_dir: dir.path().to_owned(),
        host: Arc::clone(&half.disk.host),
    };
    let Factory::Disk(make) = entry.factory else { panic!("not a disk") };
    let disk = make("spec = \"remus:backup:9000|aio:web.img\"", context).unwrap();
    assert_eq!(disk.route().as_deref(), Some("backup:9000"));
    assert!(disk.depth() >= 1);
}

#[test]
fn a_primary_needs_an_image_that_nobody_else_has() {
    let dir = tempfile::tempdir().unwrap();
    let (code, text) = refusal(dir.path(), Side::Primary);
    assert_eq!(code, ErrorCode::Unavailable);
    assert!(text.contains("primary.img does not exist"), "{text}");

    fs::write(dir.path().join(PRIMARY), [1; 4096]).unwrap();
    let first = Half::open(dir.path(), Side::Primary, PRIMARY, MIB).unwrap();
    for side in [Side::Primary, Side::Standby] {
        let (code, text) = refusal(dir.path(), side);
        assert_eq!(code, ErrorCode::Refused);
        assert!(text.contains(&format!("in use by process {}", std::process::id())), "{text}");
    }
    drop(first);
    assert_eq!(Half::open(dir.path(), Side::Primary, PRIMARY, MIB).unwrap().read_all(), [1; 4096]);
}

#[test]
fn a_missing_image_of_the_standby_is_made_private_and_sparse() {
    let dir = tempfile::tempdir().unwrap();
    let image = fs::File::create(dir.path().join(PRIMARY)).unwrap();
    image.set_len(64 * MIB as u64).unwrap();
    drop(image);
    let mut pair = Pair::copying_in(dir, 64 * MIB);
    pair.block.write(10_000_000, b"something", false).unwrap();
    pair.finish_copy();
    pair.epoch(1);
    pair.assert_same();
    let meta = fs::metadata(pair.dir.path().join(STANDBY)).unwrap();
    assert_eq!(meta.permissions().mode() & 0o777, 0o600);
    assert!(meta.blocks() * 512 < MIB as u64, "{} blocks", meta.blocks());
    assert!(pair.primary.disk.stats().replicated_bytes < MIB as u64);
}

#[test]
fn an_image_of_another_size_is_refused_with_both_sizes() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join(PRIMARY), [1; 8192]).unwrap();
    fs::write(dir.path().join(STANDBY), [2; 4096]).unwrap();
    let mut primary = Half::open(dir.path(), Side::Primary, PRIMARY, MIB).unwrap();
    let mut standby = Half::open(dir.path(), Side::Standby, STANDBY, MIB).unwrap();
    let wire = Arc::new(Wire::default());
    wire.change(|s| s.capacity = 4);
    primary.disk.replicate(Box::new(End(wire.clone()))).unwrap();
    let error = standby.disk.receive(Box::new(End(wire.clone()))).unwrap_err();
    assert_eq!(error.code(), ErrorCode::Refused);
    let text = error.chain();
    assert!(text.contains("4096 bytes here") && text.contains("primary's has 8192"), "{text}");
    assert_eq!(fs::read(dir.path().join(STANDBY)).unwrap(), [2; 4096]);
    assert!(!dir.path().join("standby.img.aventine").exists());
    wire.cut();
}

#[test]
fn an_image_between_two_epochs_is_not_started_from() {
    let contents = pattern(MIB, 3);
    let mut pair = Pair::copying(&contents, 64 * MIB);
    let marker = Marker::of(&pair.dir.path().join(STANDBY), pair.dir.path());
    let start = |pair: &Pair| Half::open(pair.dir.path(), Side::Primary, STANDBY, MIB).map(drop);
    pair.finish_copy();
    pair.epoch(1);
    assert_eq!(marker.read().unwrap(), Some(Mark::Following));
    pair.wire.cut();
    drop(std::mem::replace(
        &mut pair.standby,
        Half::open(pair.dir.path(), Side::Standby, "other", MIB).unwrap(),
    ));
    let error = start(&pair).unwrap_err();
    assert_eq!(error.code(), ErrorCode::Refused);
    assert!(error.chain().contains("never taken over"), "{}", error.chain());
    assert!(error.chain().contains(&marker.path().display().to_string()), "{}", error.chain());

    marker.write(Mark::Copying).unwrap();
    let error = start(&pair).unwrap_err();
    assert!(error.chain().contains("holds part of a copy"), "{}", error.chain());
    assert!(Half::open(pair.dir.path(), Side::Standby, STANDBY, MIB).is_ok(), "a standby copies it again");
    marker.remove().unwrap();
    start(&pair).unwrap();
}

#[test]
fn a_copy_that_was_cut_leaves_its_note() {
    let mut pair = Pair::copying(&pattern(8 * MIB, 3), 64 * MIB);
    pair.wire.cut();
    assert_eq!(
        pair.standby.event(),
        Event::Failed(ErrorCode::PeerLost, "The test cut the channel".to_owned())
    );
    let marker = Marker::of(&pair.dir.path().join(STANDBY), pair.dir.path());
    assert_eq!(marker.read().unwrap(), Some(Mark::Copying));
    let error = pair.standby.disk.activate(Epoch(1)).unwrap_err();
    assert_eq!(error.code(), ErrorCode::Refused);
    assert!(error.chain().contains("no epoch of the disk is committed"), "{}", error.chain());
}

#[test]
fn a_disk_that_was_taken_over_can_be_started_from() {
    let mut pair = Pair::armed(&pattern(MIB, 3), 64 * MIB);
    pair.wire.cut();
    pair.standby.disk.activate(Epoch(1)).unwrap();
    pair.standby.disk.block().write(5, b"after", true).unwrap();
    drop(pair.standby);
    let half = Half::open(pair.dir.path(), Side::Primary, STANDBY, MIB).unwrap();
    assert_eq!(half.read_all()[5..10], *b"after");
}

#[test]
fn verbs_of_the_other_side_are_refused() {
    let mut pair = Pair::armed(&[1; 4096], MIB);
    let spare = || {
        Arc::new(Wire {
            state: Mutex::new(WireState { cut: true, ..WireState::default() }),
            ..Wire::default()
        })
    };
    assert!(pair.standby.disk.replicate(Box::new(End(spare()))).is_err());
    assert!(pair.primary.disk.receive(Box::new(End(spare()))).is_err());
    assert!(pair.primary.disk.replicate(Box::new(End(spare()))).is_err());
    assert!(pair.standby.disk.receive(Box::new(End(spare()))).is_err());
    assert!(pair.standby.disk.seal(Epoch(2)).is_err());
    assert!(pair.primary.disk.commit(Epoch(1)).is_err());
    assert!(pair.primary.disk.apply(Epoch(1)).is_err());
}
