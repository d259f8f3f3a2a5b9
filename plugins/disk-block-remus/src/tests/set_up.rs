use super::*;
use crate::meta::{Found, Meta, Place, Role};
use aventine_api::{Factory, Kind, PluginEntry, inventory};
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
    primary.disk.replicate(Box::new(End(wire.clone())), None).unwrap();
    let error = standby.disk.receive(Box::new(End(wire.clone())), Box::new(Back(wire.clone()))).unwrap_err();
    assert_eq!(error.code(), ErrorCode::Refused);
    let text = error.chain();
    assert!(text.contains("4096 bytes here") && text.contains("primary's has 8192"), "{text}");
    assert_eq!(fs::read(dir.path().join(STANDBY)).unwrap(), [2; 4096]);
    assert!(!dir.path().join("standby.img.aventine").exists());
    wire.cut();
}

fn meta(pair: &Pair, image: &str) -> Meta {
    match Place::of(&pair.dir.path().join(image), pair.dir.path()).read().unwrap() {
        Found::Meta(meta) => *meta,
        _ => panic!("{image} has no metadata"),
    }
}

/// The standby goes, and its image is free.
fn drop_standby(pair: &mut Pair) {
    let other = Half::open(pair.dir.path(), Side::Standby, "other", MIB).unwrap();
    drop(std::mem::replace(&mut pair.standby, other));
}

fn start(pair: &Pair, image: &str, accept: Option<String>) -> Result<Half, PluginError> {
    let other = Half::open(pair.dir.path(), Side::Standby, "other image", MIB)?;
    let context = Context {
        guest: "web".to_owned(),
        id: "disk0".to_owned(),
        side: Side::Primary,
        state_dir: pair.dir.path().to_owned(),
        config_dir: pair.dir.path().to_owned(),
        host: Arc::clone(&other.disk.host),
    };
    let settings = Settings {
        image: image.into(),
        route: None,
        buffer: MIB,
        durable: Durable::Flush,
        direct: true,
        accept_outdated: accept,
    };
    Half::with(settings, context, other.events)
}

#[test]
fn an_image_that_may_be_old_is_started_from_only_by_its_name() {
    let mut pair = Pair::copying(&pattern(MIB, 3), 64 * MIB);
    pair.finish_copy();
    pair.epoch(1);
    pair.await_point();
    assert_eq!(meta(&pair, STANDBY).head.role, Role::Following);
    pair.wire.cut();
    drop_standby(&mut pair);
    let error = start(&pair, STANDBY, None).err().unwrap();
    assert_eq!(error.code(), ErrorCode::Refused);
    assert!(error.chain().contains("never taken over"), "{}", error.chain());
    let id = meta(&pair, STANDBY).head.id.to_string();
    assert!(error.chain().contains(&format!("accept_outdated = \"{id}\"")), "{}", error.chain());

    assert!(start(&pair, STANDBY, Some("0".repeat(32))).is_err(), "another state's name");
    drop(start(&pair, STANDBY, Some(id.clone())).unwrap());
    assert_eq!(meta(&pair, STANDBY).head.role, Role::Active);
    drop(start(&pair, STANDBY, Some(id)).unwrap());
}

#[test]
fn an_image_that_the_other_side_took_over_is_outdated() {
    let mut pair = Pair::armed(&pattern(MIB, 3), 64 * MIB);
    pair.block.write(7, b"lost", false).unwrap();
    pair.primary.disk.disengage(aventine_api::Disengage::NotOwner).unwrap();
    pair.wire.cut();
    let standby = Half::open(pair.dir.path(), Side::Standby, "spare", MIB).unwrap();
    drop(std::mem::replace(&mut pair.primary, standby));
    pair.block = pair.standby.disk.block();
    let error = start(&pair, PRIMARY, None).err().unwrap();
    assert_eq!(error.code(), ErrorCode::Refused);
    let id = meta(&pair, PRIMARY).head.id.to_string();
    assert!(
        error.chain().contains("took the guest over") && error.chain().contains(&id),
        "{}",
        error.chain()
    );
    assert!(Half::open(pair.dir.path(), Side::Standby, PRIMARY, MIB).is_ok(), "a standby may have it");
    start(&pair, PRIMARY, Some(id)).unwrap();
}

#[test]
fn damaged_metadata_start_no_guest() {
    let pair = Pair::armed(&pattern(MIB, 3), 64 * MIB);
    let place = pair.dir.path().join("damaged.img.aventine");
    fs::write(pair.dir.path().join("damaged.img"), pattern(MIB, 3)).unwrap();
    fs::write(&place, "following\n").unwrap();
    let error = start(&pair, "damaged.img", None).err().unwrap();
    assert_eq!(error.code(), ErrorCode::Refused);
    assert!(error.chain().contains(&place.display().to_string()), "{}", error.chain());
    fs::remove_file(place).unwrap();
    start(&pair, "damaged.img", None).unwrap();
}

#[test]
fn a_copy_that_was_cut_leaves_its_note() {
    let mut pair = Pair::copying(&pattern(8 * MIB, 3), 64 * MIB);
    pair.wire.cut();
    assert_eq!(
        pair.standby.event(),
        Event::Failed(ErrorCode::PeerLost, "The test cut the channel".to_owned())
    );
    assert_eq!(meta(&pair, STANDBY).head.role, Role::Copying);
    let error = pair.standby.disk.activate(Epoch(1)).unwrap_err();
    assert_eq!(error.code(), ErrorCode::Refused);
    assert!(error.chain().contains("no epoch of the disk is committed"), "{}", error.chain());
    drop_standby(&mut pair);
    let id = meta(&pair, STANDBY).head.id.to_string();
    let error = start(&pair, STANDBY, Some(id)).err().unwrap();
    assert!(error.chain().contains("holds part of a copy"), "{}", error.chain());
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
    assert!(pair.standby.disk.replicate(Box::new(End(spare())), None).is_err());
    assert!(pair.primary.disk.receive(Box::new(End(spare())), Box::new(Back(spare()))).is_err());
    assert!(pair.primary.disk.replicate(Box::new(End(spare())), None).is_err());
    assert!(pair.standby.disk.receive(Box::new(End(spare())), Box::new(Back(spare()))).is_err());
    assert!(pair.standby.disk.seal(Epoch(2)).is_err());
    assert!(pair.primary.disk.commit(Epoch(1)).is_err());
    assert!(pair.primary.disk.apply(Epoch(1)).is_err());
}
