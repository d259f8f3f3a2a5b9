//! What the tables of rules have in common.

use crate::Violation;

/// One rule and its case.
#[derive(Clone, Copy)]
pub struct Rule {
    /// The rule's name.
    pub name: &'static str,
    /// What the rule is and what breaking it costs.
    pub meaning: &'static str,
    pub(crate) case: fn(&'static str) -> Result<(), String>,
}

impl Rule {
    /// Tries the rule on a bench of its own.
    ///
    /// `module` is the path of the module in which the kind's macro stands.
    pub fn check(&self, module: &'static str) -> Result<(), Violation> {
        (self.case)(module).map_err(|seen| Violation { rule: self.name, meaning: self.meaning, seen })
    }
}

/// Tries the rule of this name; panics where it is broken. What the kinds' macros call.
#[doc(hidden)]
pub fn check(rules: &[Rule], name: &str, module: &'static str) {
    let rule = rules.iter().find(|r| r.name == name);
    if let Err(violation) = rule.expect("the macro knows the rules").check(module) {
        panic!("{violation}");
    }
}

/// Makes `rules` and the kind's macro of a table of rules. What stands in braces is added to the tests.
macro_rules! table {
    ($d:tt $bench:ident, $kind:ident: $trait:ident { $($more:tt)* } $($name:ident $meaning:literal)*) => {
        /// Every rule, in the order in which an author does best to meet them.
        pub fn rules<B: $trait>() -> Vec<$crate::Rule> {
            vec![$($crate::Rule {
                name: stringify!($name),
                meaning: $meaning,
                case: cases::$name::<B>,
            }),*]
        }

        /// Makes a test of each rule of this kind, on the given bench.
        #[macro_export]
        macro_rules! $kind {
            ($d $bench:ty) => {
                $(
                    #[test]
                    fn $name() {
                        let rules = $crate::$kind::rules::<$d $bench>();
                        $crate::check(&rules, stringify!($name), module_path!());
                    }
                )*
                $($more)*
            };
        }
    };
}

pub(crate) use table;
