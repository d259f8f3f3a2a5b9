//! Fuzz targets; see `tests/fuzz`.

use crate::decision::{Decisions, ReadError};
use aventine_api::{SessionId, Side};

const SESSION: SessionId = SessionId([0xa5; 16]);

/// The contents of a decision file. A decision stands there as a line of its own, and no contradiction passes.
pub fn decision(data: &[u8]) {
    let decisions = Decisions { file: "decisions".into() };
    let Ok(owner) = decisions.find(data, SESSION) else { return };
    let line = |side: Side| format!("{SESSION} {}", side.name());
    let text = String::from_utf8_lossy(data).to_ascii_lowercase();
    let says = |side: Side| {
        let words = |l: &str| l.split_whitespace().collect::<Vec<_>>().join(" ");
        text.lines().any(|l| words(l) == line(side))
    };
    assert_eq!(
        (says(Side::Primary), says(Side::Standby)),
        match owner {
            Some(side) => (side == Side::Primary, side == Side::Standby),
            None => (false, false),
        }
    );
    for side in [Side::Primary, Side::Standby] {
        let more = [data, b"\n", line(side).as_bytes()].concat();
        match decisions.find(&more, SESSION) {
            Ok(now) => assert!(now == Some(side) && owner.is_none_or(|before| before == side)),
            Err(ReadError::Contradiction { .. }) => assert_eq!(owner, Some(side.other())),
            Err(error) => panic!("{error}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use aventine_fuzz::replay;

    #[test]
    fn nothing_but_a_line_decides() {
        let other = SessionId([0x17; 16]);
        let seeds = [
            ("standby", format!("{SESSION} standby\n").into_bytes()),
            ("primary", format!("\n  {SESSION}\tprimary \r\n{SESSION} primary\n").into_bytes()),
            ("others", format!("{other} standby\n{other} primary\n").into_bytes()),
            ("contradiction", format!("{SESSION} standby\n{SESSION} primary\n").into_bytes()),
        ];
        replay("decision", &seeds, decision);
    }
}
