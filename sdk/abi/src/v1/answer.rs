//! Errors and answers.

use abi_stable::StableAbi;
use abi_stable::std_types::{RErr, ROk, RResult};
use aventine_api::{ErrorCode, PluginError};
use std::any::Any;
use std::error::Error;

/// What a call across the boundary answers.
pub type Answer<T> = RResult<T, ErrorV1>;

/// An error that needs no allocation: the number of its [`ErrorCode`], and its chain of causes as text.
#[derive(Clone, Copy, StableAbi)]
#[repr(C)]
pub struct ErrorV1 {
    code: u8,
    len: u16,
    /// The messages of the chain, the outermost first, with a zero byte between them; what does not fit is cut off.
    text: [u8; ErrorV1::TEXT],
}

impl ErrorV1 {
    const TEXT: usize = 508;

    fn new(code: ErrorCode) -> ErrorV1 {
        ErrorV1 { code: code as u8, len: 0, text: [0; ErrorV1::TEXT] }
    }

    /// A defect of the plugin.
    pub(super) fn internal(message: &str) -> ErrorV1 {
        let mut error = ErrorV1::new(ErrorCode::Internal);
        error.push(message);
        error
    }

    /// The plugin's panic.
    pub(super) fn panicked(panic: &(dyn Any + Send)) -> ErrorV1 {
        let said = panic.downcast_ref::<&str>().copied();
        let said = said.or_else(|| panic.downcast_ref::<String>().map(String::as_str));
        let mut error = ErrorV1::internal("The plugin panicked and is not called any more");
        error.cause(said.unwrap_or("it gave no reason"));
        error
    }

    fn cause(&mut self, message: &str) {
        if usize::from(self.len) < ErrorV1::TEXT {
            self.text[usize::from(self.len)] = 0;
            self.len += 1;
            self.push(message);
        }
    }

    fn push(&mut self, message: &str) {
        let at = usize::from(self.len);
        let mut room = (ErrorV1::TEXT - at).min(message.len());
        while !message.is_char_boundary(room) {
            room -= 1;
        }
        // A zero byte of the message's own must not look like the start of a cause.
        let bytes = message.as_bytes()[..room].iter().map(|b| if *b == 0 { b' ' } else { *b });
        self.text[at..at + room].iter_mut().zip(bytes).for_each(|(to, from)| *to = from);
        self.len += room as u16;
    }

    fn code(&self) -> ErrorCode {
        const CODES: [ErrorCode; 9] = [
            ErrorCode::Config,
            ErrorCode::Unavailable,
            ErrorCode::PeerLost,
            ErrorCode::Limit,
            ErrorCode::Corrupt,
            ErrorCode::Io,
            ErrorCode::Refused,
            ErrorCode::TimedOut,
            ErrorCode::Internal,
        ];
        CODES.into_iter().find(|c| *c as u8 == self.code).unwrap_or(ErrorCode::Internal)
    }
}

impl From<&PluginError> for ErrorV1 {
    fn from(error: &PluginError) -> ErrorV1 {
        let mut flat = ErrorV1::new(error.code());
        flat.push(&error.to_string());
        let mut next = error.source();
        while let Some(cause) = next {
            flat.cause(&cause.to_string());
            next = cause.source();
        }
        flat
    }
}

impl From<ErrorV1> for PluginError {
    fn from(error: ErrorV1) -> PluginError {
        let text = String::from_utf8_lossy(&error.text[..usize::from(error.len).min(ErrorV1::TEXT)]);
        let chain = text
            .split('\0')
            .rev()
            .fold(None, |source, message| Some(Box::new(Told { message: message.to_owned(), source })));
        let outermost = chain.map_or_else(|| Told { message: String::new(), source: None }, |told| *told);
        PluginError::new(error.code(), outermost)
    }
}

/// A link of a chain that was told across the boundary.
#[derive(Debug)]
struct Told {
    message: String,
    source: Option<Box<Told>>,
}

impl std::fmt::Display for Told {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.message)
    }
}

impl Error for Told {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        self.source.as_deref().map(|s| s as &dyn Error)
    }
}

/// The native form of an answer.
pub(super) fn native<T>(answer: Answer<T>) -> Result<T, PluginError> {
    match answer {
        ROk(value) => Ok(value),
        RErr(error) => Err(error.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(chain: &[&str]) -> PluginError {
        let told = chain
            .iter()
            .rev()
            .fold(None, |source, message| Some(Box::new(Told { message: (*message).to_owned(), source })));
        PluginError::new(ErrorCode::Limit, *told.unwrap())
    }

    #[test]
    fn an_error_crosses_with_its_code_and_its_chain() {
        let there = error(&["Could not send", "the pipe\0is full", "no space"]);
        let back = PluginError::from(ErrorV1::from(&there));
        assert_eq!(back.code(), ErrorCode::Limit);
        assert_eq!(back.chain(), "Could not send: the pipe is full: no space");
        assert_eq!(back.to_string(), "Could not send");
    }

    #[test]
    fn what_is_too_long_is_cut_between_characters() {
        let long = "ü".repeat(300);
        for chain in [vec!["x", &long], vec![&long, "x"], vec![&long, &long, &long]] {
            let back = PluginError::from(ErrorV1::from(&error(&chain)));
            assert!(chain.join(": ").starts_with(back.chain().trim_end_matches([':', ' '])), "{back:?}");
        }
        let code = ErrorV1 { code: 200, ..ErrorV1::internal("x") };
        assert_eq!(PluginError::from(code).code(), ErrorCode::Internal);
    }
}
