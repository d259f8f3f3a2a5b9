//! Fuzz targets; see `tests/fuzz`.

use crate::verdict::{VerdictError, Verdicts, line};
use aventine_api::{SessionId, Side};
use std::cell::LazyCell;
use std::fs;
use tempfile::TempDir;

const SESSION: SessionId = SessionId([0xa5; 16]);

thread_local! {
    static DIR: LazyCell<TempDir> = LazyCell::new(|| {
        // In memory where that is there: a verdict is synced.
        tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).expect("a directory")
    });
}

/// The contents of a verdict file that is there before this side claims. They are the verdict, or they are an error;
/// nothing is written over.
pub fn verdict(data: &[u8]) {
    DIR.with(|dir| {
        let verdicts = Verdicts { dir: dir.path().to_owned(), guest: "web".into() };
        let file = dir.path().join(format!("web.{SESSION}"));
        fs::write(&file, data).expect("the file can be written");
        let claimed = [Side::Primary, Side::Standby].map(|side| verdicts.claim(SESSION, side));
        for claimed in claimed {
            match claimed {
                Ok(owner) => assert_eq!(data, line(SESSION, owner)),
                Err(VerdictError::Corrupt { found, .. }) => {
                    assert!(found.len() <= 1024);
                    assert!([Side::Primary, Side::Standby].iter().all(|&s| data != line(SESSION, s)));
                }
                Err(error) => panic!("{error}"),
            }
        }
        assert_eq!(fs::read(&file).expect("the file can be read"), data);
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use aventine_fuzz::replay;

    #[test]
    fn a_verdict_is_read_whole_or_not_at_all() {
        let seeds = [
            ("primary", line(SESSION, Side::Primary)),
            ("standby", line(SESSION, Side::Standby)),
            ("another-session", line(SessionId([1; 16]), Side::Standby)),
            ("long", [line(SESSION, Side::Primary), vec![b' '; 300]].concat()),
        ];
        replay("verdict", &seeds, verdict);
    }
}
