//! `aventine bench`: what plugins cost.

use crate::cli::Bench;
use crate::exit::Exit;
use crate::output::{print, tell_error};
use aventine_api::Kind;
use aventine_bench::network::{Figures, measure};

pub(crate) fn bench(what: Bench) -> Exit {
    let Bench::Network { plugin, epochs, frames, json } = what;
    let all = || aventine_registry::names(Kind::Network).into_iter().map(str::to_owned).collect();
    let plugins = if plugin.is_empty() { all() } else { plugin };
    if !json {
        print(HEADINGS);
    }
    let mut exit = Exit::Done;
    for plugin in plugins {
        match measure(&plugin, epochs, frames) {
            Ok(figures) if json => print(serde_json::to_string(&figures).unwrap_or_else(|e| e.to_string())),
            Ok(figures) => print(line(&figures)),
            Err(error) => {
                tell_error(&error);
                exit = Exit::Error;
            }
        }
    }
    exit
}

const HEADINGS: &str = "plugin       seal us (99 %)     release us (99 %)   frames/s   without it    ratio";

fn line(figures: &Figures) -> String {
    let Figures { plugin, seal_us, release_us, floor_frames_per_second, frames_per_second, ratio } = figures;
    format!(
        "{plugin:<12} {:>7.1} ({:>7.1}) {:>9.1} ({:>8.1}) {frames_per_second:>10.0} {floor_frames_per_second:>12.0} {ratio:>8.2}",
        seal_us[0], seal_us[1], release_us[0], release_us[1],
    )
}
