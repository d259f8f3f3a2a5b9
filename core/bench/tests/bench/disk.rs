//! A disk is measured, on every server that is there.

use aventine_bench::disk::{BenchError, Figures, Frontend, LoadFigures, Options, measure};
use aventine_disk_block_remus as _;
use std::time::Duration;

fn options() -> Options {
    let frontends = vec![Frontend::Nbd, Frontend::VhostUser];
    Options { size: 16 << 20, time: Duration::ZERO, frontends, cached: false, standby: None }
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
    assert_eq!(loads.len(), 16);
    for figures in loads {
        let times = [figures.export_us_per_mib, figures.primary_us_per_mib, figures.standby_us_per_mib];
        let LoadFigures { load, frontend, replicated, export, copy, qemu_nbd, .. } = figures;
        let LoadFigures { ratio, ratio_to_copy, ratio_to_qemu_nbd, .. } = figures;
        // The standby has nothing to do for a read but to follow.
        assert!(times[..2].iter().all(|t| *t > 0.0), "{load}: {times:?}");
        assert!(replicated > 0.0 && export > 0.0 && ratio == replicated / export, "{load}");
        assert_eq!(copy.is_some_and(|rate| rate > 0.0), load.contains("write"), "{load}");
        assert_eq!(ratio_to_copy, copy.map(|rate| replicated / rate), "{load}");
        assert!(qemu_nbd.is_none() || frontend == Frontend::Nbd, "{load}");
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
