//! What the suites of several kinds share: a rule, and the tests that are made of a table of them.

use crate::Violation;
use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

/// What a case saw, where that breaks its rule.
pub(crate) type Seen = Result<(), String>;

/// One rule and its case.
#[derive(Clone, Copy)]
pub struct Rule {
    /// The rule's name.
    pub name: &'static str,
    /// What the rule is and what breaking it costs.
    pub meaning: &'static str,
    pub(crate) case: fn(&'static str) -> Seen,
}

impl Rule {
    /// Tries the rule on a bench of its own.
    ///
    /// `module` is the path of the module in which the suite's macro stands.
    pub fn check(&self, module: &'static str) -> Result<(), Violation> {
        (self.case)(module).map_err(|seen| Violation { rule: self.name, meaning: self.meaning, seen })
    }
}

/// Tries the rule of this name; panics where it is broken.
pub(crate) fn check(rules: &[Rule], name: &str, module: &'static str) {
    let rule = rules.iter().find(|r| r.name == name);
    if let Err(violation) = rule.expect("the macro knows the rules").check(module) {
        panic!("{violation}");
    }
}

/// Calls the plugin, which must not panic.
pub(crate) fn calmly<T>(what: &str, call: impl FnOnce() -> T) -> Result<T, String> {
    catch_unwind(AssertUnwindSafe(call)).map_err(|cause| {
        let text = cause.downcast_ref::<&str>().map(|t| (*t).to_owned());
        let text = text.or_else(|| cause.downcast_ref::<String>().cloned());
        format!("{what} panicked: {}", text.unwrap_or_default())
    })
}

/// A thread, as the kernel shows it.
pub(crate) struct Sleeper(Option<PathBuf>);

impl Sleeper {
    /// The calling thread.
    pub(crate) fn here() -> Sleeper {
        Sleeper(
            fs::read_link("/proc/thread-self").ok().map(|task| Path::new("/proc").join(task).join("stat")),
        )
    }

    /// Looks until the thread sleeps in a call, or has ended; not for ever, as a plugin may wait without sleeping.
    pub(crate) fn await_sleep(&self) {
        for _ in 0..1000 {
            // What is behind the name in parentheses begins with the state.
            let stat = self.0.as_ref().and_then(|path| fs::read_to_string(path).ok()).unwrap_or_default();
            if stat.rsplit_once(") ").is_none_or(|(_, rest)| rest.starts_with('S')) {
                return;
            }
            thread::sleep(Duration::from_millis(1));
        }
    }
}

/// The name that libtest has for the test `name` in `module`: without the crate.
pub(crate) fn test_name(module: &'static str, name: &str) -> String {
    match module.split_once("::") {
        Some((_, modules)) => format!("{modules}::{name}"),
        None => name.to_owned(),
    }
}

/// The table of a kind's rules: `rules`, `check`, and the macro `$kind!`, which makes a test of each rule, and of the `child`
/// that is a process of its own. Each case is a function of this name in `cases`, `by desk` given the kind's `Desk`, `by module`
/// the module of the tests.
macro_rules! suite {
    (@case desk $name:ident) => { |module| cases::$name::<B>(&mut desk::Desk::start(module)) };
    (@case module $name:ident) => { cases::$name::<B> };
    (
        $d:tt $kind:ident for $bench:ident, $in:ident, by $how:ident $(, child $child:ident $deed:ident $started:literal)?;
        $($name:ident $meaning:literal)*
    ) => {
        /// Every rule, in the order in which an author does best to meet them.
        pub fn rules<B: $bench>() -> Vec<$crate::Rule> {
            vec![$($crate::Rule {
                name: stringify!($name),
                meaning: $meaning,
                case: $crate::suite::suite!(@case $how $name),
            }),*]
        }

        /// Tries the rule of this name; panics where it is broken. What the suite's macro calls.
        pub fn check<B: $bench>(name: &str, module: &'static str) {
            crate::suite::check(&rules::<B>(), name, module);
        }

        #[doc = concat!("Makes a test of each rule, on the given [`", stringify!($bench), "`](crate::", stringify!($in), "::", stringify!($bench), ").")]
        #[macro_export]
        macro_rules! $kind {
            ($d bench:ty) => {
                $(
                    #[test]
                    fn $name() {
                        $crate::$in::check::<$d bench>(stringify!($name), module_path!());
                    }
                )*
                $(
                    /// Not a case: a process that cases start, and kill.
                    #[test]
                    #[ignore = $started]
                    fn $child() {
                        $crate::$in::$deed::<$d bench>();
                    }
                )?
            };
        }
    };
}
pub(crate) use suite;
