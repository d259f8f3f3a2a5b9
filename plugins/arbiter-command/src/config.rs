//! The plugin's keys.

use aventine_api::schemars::JsonSchema;
use aventine_api::units::Quantity;
use aventine_api::{ConfigError, parse_config};
use serde::Deserialize;
use std::ops::RangeInclusive;
use std::time::Duration;

const DEFAULT_TIMEOUT: Duration = Duration::from_secs(10);
const TIMEOUT_RANGE: RangeInclusive<Duration> = Duration::from_millis(100)..=Duration::from_secs(300);

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(crate = "aventine_api::schemars")]
pub(crate) struct Keys {
    /// The program that decides, and its arguments; session and side are in its environment.
    command: Vec<String>,
    /// The longest that it may run; 10s if not set.
    #[schemars(with = "Option<aventine_api::DurationText>")]
    timeout: Option<String>,
}

/// A checked configuration.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Settings {
    pub(crate) program: String,
    pub(crate) arguments: Vec<String>,
    /// The longest that a run takes.
    pub(crate) timeout: Duration,
}

impl Settings {
    pub(crate) fn parse(text: &str) -> Result<Settings, ConfigError> {
        let Keys { command, timeout } = parse_config(text)?;
        if let Some(at) = command.iter().position(|word| word.contains('\0')) {
            let message = "a command cannot contain a NUL character";
            return Err(ConfigError::bad_value(&["command", &at.to_string()], message, None));
        }
        let help = Some("name a program and its arguments: command = [\"/usr/local/sbin/fence\", \"...\"]");
        let mut words = command.into_iter();
        let program =
            words.next().ok_or_else(|| ConfigError::bad_value(&["command"], "the command is empty", help))?;
        if program.is_empty() {
            return Err(ConfigError::bad_value(&["command", "0"], "the program's name is empty", help));
        }
        let timeout = timeout
            .map_or(Ok(DEFAULT_TIMEOUT), |text| Duration::parse_key(&["timeout"], &text, &TIMEOUT_RANGE))?;
        Ok(Settings { program, arguments: words.collect(), timeout })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use aventine_api::ConfigProblem;

    #[test]
    fn what_is_there_is_understood() {
        let settings = |program: &str, arguments: &[&str], timeout| Settings {
            program: program.into(),
            arguments: arguments.iter().map(|a| (*a).to_owned()).collect(),
            timeout,
        };
        let found = Settings::parse("command = ['fence']").unwrap();
        assert_eq!(found, settings("fence", &[], Duration::from_secs(10)));
        let found = Settings::parse("command = ['./fence', '', '-x']\ntimeout = '500ms'").unwrap();
        assert_eq!(found, settings("./fence", &["", "-x"], Duration::from_millis(500)));
    }

    #[test]
    fn what_is_wrong_is_said_where_it_is() {
        for (text, path) in [
            ("command = []", vec!["command"]),
            ("command = ['']", vec!["command", "0"]),
            ("command = 'fence --now'", vec!["command"]),
            ("command = ['fence', 1]", vec!["command", "1"]),
            ("command = ['fence', \"a\\u0000b\"]", vec!["command", "1"]),
            ("command = ['fence']\ntimeout = '10'", vec!["timeout"]),
            ("command = ['fence']\ntimeout = '99ms'", vec!["timeout"]),
            ("command = ['fence']\ntimeout = '301s'", vec!["timeout"]),
        ] {
            assert_eq!(Settings::parse(text).unwrap_err().path, path, "{text}");
        }
        let missing = Settings::parse("").unwrap_err();
        assert_eq!(missing.problem, ConfigProblem::MissingKey { key: "command".into() });
    }
}
