use std::error::Error;

/// What kind of failure a [`PluginError`] is: decides what the engine does and what the user is told to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum ErrorCode {
    /// The configuration asks for something impossible.
    Config = 1,
    /// Something the plugin needs is missing on this machine (program, module, device, permission).
    Unavailable = 2,
    /// The other host or its end of a channel is gone.
    PeerLost = 3,
    /// A configured limit is reached.
    Limit = 4,
    /// Bytes from outside do not make sense.
    Corrupt = 5,
    /// A system call failed.
    Io = 6,
    /// The plugin refuses on purpose, to keep a promise.
    Refused = 7,
    /// A call that takes a time limit reached it.
    TimedOut = 8,
    /// A defect of the plugin.
    Internal = 9,
}

/// The error every plugin method returns: a code for the engine, and the plugin's own error with its chain of causes.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub struct PluginError {
    code: ErrorCode,
    message: String,
    source: Option<Box<dyn Error + Send + Sync>>,
}

impl PluginError {
    /// Wraps the plugin's own error; its causes stay in the chain.
    pub fn new<E: Error + Send + Sync + 'static>(code: ErrorCode, error: E) -> PluginError {
        let message = error.to_string();
        // The wrapped error's own text is the message here, so that the chain goes on with its cause.
        let source = error.source().map(|s| Box::new(Cause::of(s)) as Box<dyn Error + Send + Sync>);
        PluginError { code, message, source }
    }

    /// What kind of failure this is.
    pub fn code(&self) -> ErrorCode {
        self.code
    }

    /// The whole chain in one line: `what: cause: cause`.
    pub fn chain(&self) -> String {
        let mut text = self.to_string();
        let mut next = self.source();
        while let Some(e) = next {
            text = format!("{text}: {e}");
            next = e.source();
        }
        text
    }
}

/// A link of somebody else's chain, kept as text because it is only borrowed.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
struct Cause {
    message: String,
    source: Option<Box<Cause>>,
}

impl Cause {
    fn of(error: &(dyn Error + 'static)) -> Cause {
        Cause { message: error.to_string(), source: error.source().map(|s| Box::new(Cause::of(s))) }
    }
}
