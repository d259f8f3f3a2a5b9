//! Words to people: stdout for what was asked for, stderr for the rest. A reader that has gone is no error.

use std::error::Error;
use std::fmt::Display;
use std::io::{Write, stderr, stdout};

/// Prints what the user asked for.
pub(crate) fn print(text: impl Display) {
    // Whoever reads stdout may leave early (`| head`), and then there is nobody to tell.
    let _ = writeln!(stdout().lock(), "{text}").and_then(|()| stdout().flush());
}

/// Tells the user something.
pub(crate) fn tell(text: impl Display) {
    let _ = writeln!(stderr().lock(), "{text}");
}

/// Tells the user about an error: what, and each cause once.
pub(crate) fn tell_error(error: &(dyn Error + 'static)) {
    tell(format_args!("error: {}", chain(error)));
}

/// `what: cause: cause`. A cause that the text before it ends with is not said again.
pub(crate) fn chain(error: &(dyn Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        let said = cause.to_string();
        if !text.ends_with(&said) {
            text = format!("{text}: {said}");
        }
        next = cause.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("{0}")]
    struct Said(&'static str, #[source] Option<Box<Said>>);

    #[test]
    fn each_cause_is_said_once() {
        let deepest = Said("No such file", None);
        let repeated = Said("Cannot open it", Some(Box::new(deepest)));
        let top = Said("Start failed: Cannot open it", Some(Box::new(repeated)));
        assert_eq!(chain(&top), "Start failed: Cannot open it: No such file");
    }
}
