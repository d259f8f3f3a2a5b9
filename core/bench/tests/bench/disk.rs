//! A disk is measured, on every server that is there.

use aventine_bench::disk::{BenchError, Figures, Frontend, LoadFigures, Named, Options, Storage, measure};
use aventine_disk_block_remus as _;
use aventine_disk_common::image::{Image, OpenError};
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::time::Duration;

fn options() -> Options {
    let frontends = vec![Frontend::Nbd, Frontend::VhostUser];
    let storage = Storage::Made { standby: None };
    Options { size: 16 << 20, time: Duration::ZERO, frontends, cached: false, storage, apart: false }
}

#[test]
fn every_load_runs_on_every_server() {
    let elsewhere = tempfile::tempdir().unwrap();
    let storage = Storage::Made { standby: Some(elsewhere.path().to_owned()) };
    let options = Options { storage, ..options() };
    let figures = measure("block-remus", &options).unwrap();
    let Figures { standby_directory, seal_us, sent_per_written, loads, .. } = figures;
    assert_eq!(standby_directory.as_deref(), Some(elsewhere.path()));
    assert!(seal_us[0] > 0.0 && seal_us[0] <= seal_us[1], "{seal_us:?}");
    // A change has a head besides its data, and every byte is sent once.
    assert!(sent_per_written > 1.0 && sent_per_written < 1.01, "{sent_per_written}");
    assert_eq!(loads.len(), 16);
    for figures in loads {
        let times =
            [figures.export_us_per_mib.unwrap(), figures.primary_us_per_mib, figures.standby_us_per_mib];
        let LoadFigures { load, frontend, replicated, export, copy, qemu_nbd, .. } = figures;
        let LoadFigures { ratio, ratio_to_copy, ratio_to_qemu_nbd, .. } = figures;
        // The standby has nothing to do for a read but to follow.
        assert!(times[..2].iter().all(|t| *t > 0.0), "{load}: {times:?}");
        assert!(replicated > 0.0 && export.unwrap() > 0.0, "{load}");
        assert_eq!(ratio, export.map(|rate| replicated / rate), "{load}");
        assert_eq!(copy.is_some_and(|rate| rate > 0.0), load.contains("write"), "{load}");
        assert_eq!(ratio_to_copy, copy.map(|rate| replicated / rate), "{load}");
        assert!(qemu_nbd.is_none() || frontend == Frontend::Nbd, "{load}");
        assert_eq!(ratio_to_qemu_nbd, qemu_nbd.map(|rate| replicated / rate), "{load}");
    }
}

#[test]
fn each_side_has_processors_of_its_own_and_they_are_shared_again() {
    let all = std::thread::available_parallelism().unwrap().get();
    match measure("block-remus", &Options { apart: true, ..options() }) {
        Ok(figures) => assert!(figures.apart && figures.processors >= all, "{} of {all}", figures.processors),
        Err(error) => assert!(matches!(error, BenchError::OneProcessor) && all == 1, "{error}"),
    }
    assert_eq!(std::thread::available_parallelism().unwrap().get(), all);
}

#[test]
fn an_unknown_plugin_is_named_with_those_there_are() {
    let error = measure("blok-remus", &options()).unwrap_err();
    assert!(matches!(&error, BenchError::Unknown(..)), "{error}");
    assert_eq!(error.to_string(), "There is no disk plugin blok-remus; there are block-remus");
}

#[test]
fn a_directory_that_is_not_there_is_named() {
    let storage = Storage::Made { standby: Some("/nowhere/at/all".into()) };
    let options = Options { storage, ..options() };
    let error = measure("block-remus", &options).unwrap_err();
    assert!(
        matches!(&error, BenchError::StandbyDirectory(path, _) if path.starts_with("/nowhere")),
        "{error}"
    );
}

/// Images of so many MiB.
fn images<const N: usize>(dir: &Path, mib: [u64; N]) -> [PathBuf; N] {
    let mut number = 0;
    mib.map(|mib| {
        number += 1;
        let path = dir.join(format!("{number}.img"));
        File::create(&path).unwrap().set_len(mib << 20).unwrap();
        path
    })
}

fn table(image: &Path) -> String {
    format!("image = '{}'", image.display())
}

#[test]
fn disks_that_are_named_are_measured_and_what_is_not_named_is_left_out() {
    let dir = tempfile::tempdir().unwrap();
    let [here, there, export, from, to] = images(dir.path(), [20, 20, 18, 17, 40]);
    let named = Named { primary: table(&here), standby: table(&there), export: None, copy: None };
    let options = |named| Options { size: 32 << 20, storage: Storage::Named(named), ..options() };
    let figures = measure("block-remus", &options(named.clone())).unwrap();
    assert_eq!((figures.size, figures.direct, figures.directory), (20 << 20, None, None));
    assert_eq!(figures.loads.len(), 16);
    for load in figures.loads {
        assert!(load.replicated > 0.0, "{load:?}");
        let left_out = [load.export, load.ratio, load.copy, load.ratio_to_copy, load.qemu_nbd];
        assert_eq!((left_out, load.export_us_per_mib), ([None; 5], None));
    }
    assert!(fs::read(&here).unwrap() == fs::read(&there).unwrap(), "they are not replicated");

    let named = Named { export: Some(export.clone()), copy: Some([from.clone(), to.clone()]), ..named };
    let figures = measure("block-remus", &options(named)).unwrap();
    // As much as all of them have.
    assert_eq!(figures.size, 17 << 20);
    for load in figures.loads {
        assert!(load.export.is_some_and(|rate| load.ratio == Some(load.replicated / rate)), "{load:?}");
        assert_eq!(load.copy.is_some_and(|rate| rate > 0.0), load.load.contains("write"), "{load:?}");
    }
    let [from, to] = [from, to].map(|path| fs::read(path).unwrap());
    assert!(from[..17 << 20] == to[..17 << 20], "it is not copied");
}

#[test]
fn disks_that_cannot_be_measured_are_refused_before_any_is_overwritten() {
    let dir = tempfile::tempdir().unwrap();
    let [here, there, export, small] = images(dir.path(), [20, 20, 18, 15]);
    let good =
        Named { primary: table(&here), standby: table(&there), export: Some(export.clone()), copy: None };
    let refused = |named| {
        let options = Options { storage: Storage::Named(named), ..options() };
        let error = measure("block-remus", &options).unwrap_err();
        assert!(fs::read(&export).unwrap().iter().all(|byte| *byte == 0), "{error} came too late");
        error
    };
    let error = refused(Named { standby: "imago = 'x'".into(), ..good.clone() });
    assert!(matches!(&error, BenchError::Table(_, "standby", _)), "{error}");
    let lock = Image::open(&small).unwrap();
    let error = refused(Named { copy: Some([small.clone(), dir.path().join("none")]), ..good.clone() });
    assert!(matches!(&error, BenchError::Image(OpenError::InUse { .. })), "{error}");
    drop(lock);
    let error = refused(Named { copy: Some([there, small]), ..good });
    assert!(matches!(error, BenchError::Small(bytes) if bytes == 15 << 20), "{error}");
}
