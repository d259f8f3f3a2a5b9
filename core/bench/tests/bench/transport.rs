//! A transport is measured, beside what it is compared with.

use aventine_bench::transport::{BenchError, Setup, measure};
use aventine_transport_tcp as _;

fn setup(plugin: &str) -> Setup {
    Setup { plugin: plugin.into(), keys: None, streams: 2, bytes: 16 << 20 }
}

#[test]
fn pages_take_every_way() {
    let figures = measure(&setup("tcp")).unwrap();
    let names: Vec<_> = figures.ways.iter().map(|w| w.way).collect();
    assert_eq!(names, ["plugin", "bare TCP"]);
    for way in &figures.ways {
        assert!(
            way.goodput_mib > 0.0 && way.sending_s_per_gib > 0.0 && way.receiving_s_per_gib > 0.0,
            "{way:?}"
        );
        let pages: Vec<_> = way.round_trips.iter().map(|t| t.pages).collect();
        assert_eq!(pages, [1, 100, 10_000]);
        assert!(way.round_trips.iter().all(|t| 0.0 < t.us[0] && t.us[0] <= t.us[1]), "{way:?}");
    }
    assert_eq!(figures.ratio, figures.ways[0].goodput_mib / figures.ways[1].goodput_mib);
    assert!(figures.svg().starts_with("<svg "));
}

#[test]
fn an_unknown_transport_is_named_with_those_there_are() {
    let error = measure(&setup("tpc")).unwrap_err();
    assert!(matches!(&error, BenchError::Unknown(..)), "{error}");
    assert_eq!(error.to_string(), "There is no transport plugin tpc; there are tcp");
}
