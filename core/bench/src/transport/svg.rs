//! The figures as a picture: a row of bars for goodput and for each size of checkpoint.

use super::Figures;
use std::fmt::Write;

const WIDTH: f64 = 420.0;
const BAR: f64 = 18.0;
const GAP: f64 = 14.0;
const LABELS: f64 = 90.0;
/// Of a bar's number, behind it.
const NUMBER: f64 = 110.0;

impl Figures {
    /// An SVG picture. Bars of one group are to scale.
    pub fn svg(&self) -> String {
        let security = if self.tls { "TLS" } else { "plaintext" };
        let title = format!("{}, {security}, {} stream(s)", self.plugin, self.streams);
        let goodput: Vec<_> = self.ways.iter().map(|w| (w.way, w.goodput_mib)).collect();
        let mut groups = vec![("goodput, MiB/s".to_owned(), goodput)];
        for (at, trip) in self.ways[0].round_trips.iter().enumerate() {
            let medians = self.ways.iter().map(|w| (w.way, w.round_trips[at].us[0])).collect();
            groups.push((format!("round trip of {} pages, median us", trip.pages), medians));
        }
        let (mut body, mut y) = (String::new(), 24.0);
        text(&mut body, 0.0, y, &title);
        for (heading, bars) in groups {
            y += BAR + GAP;
            text(&mut body, 0.0, y, &heading);
            let most = bars.iter().map(|b| b.1).fold(f64::MIN_POSITIVE, f64::max);
            for (way, value) in bars {
                y += BAR + 4.0;
                text(&mut body, 0.0, y, way);
                let length = WIDTH * value / most;
                let top = y - BAR + 4.0;
                // Writing to a string does not fail.
                let _ = write!(
                    body,
                    r##"<rect x="{LABELS}" y="{top:.0}" width="{length:.1}" height="{BAR}" fill="#4a7ab0"/>"##
                );
                text(&mut body, LABELS + length + 6.0, y, &format!("{value:.0}"));
            }
        }
        let (width, height) = (LABELS + WIDTH + NUMBER, y + GAP);
        format!(
            r#"<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" font-family="sans-serif" font-size="13">{body}</svg>
"#
        )
    }
}

fn text(body: &mut String, x: f64, y: f64, words: &str) {
    let words = words.replace('&', "&amp;").replace('<', "&lt;");
    let _ = write!(body, r#"<text x="{x:.0}" y="{y:.0}">{words}</text>"#);
}

#[cfg(test)]
mod tests {
    use super::super::{RoundTrip, WayFigures};
    use super::*;

    #[test]
    fn the_longest_bar_of_a_group_has_the_whole_width() {
        let way = |way, goodput_mib| WayFigures {
            way,
            goodput_mib,
            sending_s_per_gib: 1.0,
            receiving_s_per_gib: 1.0,
            round_trips: vec![RoundTrip { pages: 1, us: [goodput_mib, 9.0] }],
        };
        let figures = Figures {
            plugin: "a<b".into(),
            tls: true,
            streams: 1,
            ways: vec![way("plugin", 50.0), way("tcp", 100.0)],
            ratio: 0.5,
            round_trip_ratios: vec![0.5],
        };
        let svg = figures.svg();
        assert_eq!(svg.matches(r#"width="210.0""#).count(), 2);
        assert_eq!(svg.matches(r#"width="420.0""#).count(), 2);
        assert!(svg.contains("a&lt;b, TLS, 1 stream(s)"));
    }
}
