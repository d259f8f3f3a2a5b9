//! A disk is measured, on every server that is there.

use aventine_bench::disk::{BenchError, Figures, LoadFigures, measure};
use aventine_disk_block_remus as _;
use std::time::Duration;

#[test]
fn every_load_runs_on_every_server() {
    let Figures { seal_us, sent_per_written, loads, .. } =
        measure("block-remus", 16 << 20, Duration::ZERO).unwrap();
    assert!(seal_us[0] > 0.0 && seal_us[0] <= seal_us[1], "{seal_us:?}");
    // A change has a head besides its data, and every byte is sent once.
    assert!(sent_per_written > 1.0 && sent_per_written < 1.01, "{sent_per_written}");
    assert_eq!(loads.len(), 8);
    for LoadFigures { load, replicated, export, ratio, qemu_nbd, ratio_to_qemu_nbd, .. } in loads {
        assert!(replicated > 0.0 && export > 0.0 && ratio == replicated / export, "{load}");
        assert_eq!(ratio_to_qemu_nbd, qemu_nbd.map(|rate| replicated / rate), "{load}");
    }
}

#[test]
fn an_unknown_plugin_is_named_with_those_there_are() {
    let error = measure("blok-remus", 16 << 20, Duration::ZERO).unwrap_err();
    assert!(matches!(&error, BenchError::Unknown(..)), "{error}");
    assert_eq!(error.to_string(), "There is no disk plugin blok-remus; there are block-remus");
}
