//! A disk is measured, on every server that is there.

use aventine_bench::disk::{BenchError, Figures, LoadFigures, Options, measure};
use aventine_disk_block_remus as _;
use std::time::Duration;

fn options() -> Options {
    Options { size: 16 << 20, time: Duration::ZERO, cached: false, standby: None }
}

#[test]
fn every_load_runs_on_every_server() {
    let elsewhere = tempfile::tempdir().unwrap();
    let options = Options { standby: Some(elsewhere.path().to_owned()), ..options() };
    let figures = measure("block-remus", &options).unwrap();
    let Figures { standby_directory, seal_us, sent_per_written, loads, .. } = figures;
    assert_eq!(standby_directory, elsewhere.path());
    assert!(seal_us[0] > 0.0 && seal_us[0] <= seal_us[1], "{seal_us:?}");
    // A change has a head besides its data, and every byte is sent once.
    assert!(sent_per_written > 1.0 && sent_per_written < 1.01, "{sent_per_written}");
    assert_eq!(loads.len(), 8);
    for figures in loads {
        let times = [figures.export_us_per_mib, figures.primary_us_per_mib, figures.standby_us_per_mib];
        let LoadFigures { load, replicated, export, ratio, qemu_nbd, ratio_to_qemu_nbd, .. } = figures;
        // The standby has nothing to do for a read but to follow.
        assert!(times[..2].iter().all(|t| *t > 0.0), "{load}: {times:?}");
        assert!(replicated > 0.0 && export > 0.0 && ratio == replicated / export, "{load}");
        assert_eq!(ratio_to_qemu_nbd, qemu_nbd.map(|rate| replicated / rate), "{load}");
    }
}

#[test]
fn an_unknown_plugin_is_named_with_those_there_are() {
    let error = measure("blok-remus", &options()).unwrap_err();
    assert!(matches!(&error, BenchError::Unknown(..)), "{error}");
    assert_eq!(error.to_string(), "There is no disk plugin blok-remus; there are block-remus");
}

#[test]
fn a_directory_that_is_not_there_is_named() {
    let options = Options { standby: Some("/nowhere/at/all".into()), ..options() };
    let error = measure("block-remus", &options).unwrap_err();
    assert!(
        matches!(&error, BenchError::StandbyDirectory(path, _) if path.starts_with("/nowhere")),
        "{error}"
    );
}
