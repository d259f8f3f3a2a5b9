//! Tests that run in a lab host: the same test, started again there.
//!
//! ```text
//! test runner ─► test binary, test NAME ─► inside() ─► lab host ─► the same binary, --exact NAME ─► inside() ─► the body
//! ```

use crate::{Host, Lab, chain};
use std::any::type_name_of_val;
use std::env;
use std::process::{Command, Output};

/// Says to a test that it runs in a lab host, and which.
const HOST: &str = "AVENTINE_LAB_HOST";

/// Whether this process runs in a lab host.
pub fn is_inside() -> bool {
    env::var_os(HOST).is_some()
}

/// Runs `body` as root in a machine of its own with Debian's kernel. To be called first and only once in a test, with a
/// closure written there: the test is known by the closure's name.
///
/// The body sees this machine's files, at the same paths, and may write anything: it is gone afterwards. It has 1 GiB of
/// memory, a network device eth0 without anybody at the other end, a disk /dev/vda of zeroes, and all modules of the kernel
/// for `modprobe`. `/run` is empty. The environment is this process's, without `TMPDIR`.
///
/// # Panics
///
/// If the body does, or does not come to its end within five minutes; with the host's console.
#[track_caller]
pub fn inside<F: FnOnce()>(body: F) {
    if is_inside() {
        return body();
    }
    let name = test_name(type_name_of_val(&body));
    let lab = Lab::start(1).unwrap_or_else(|error| panic!("{}", chain(&error)));
    assert_test(&lab.hosts[0], &name);
}

/// Runs the test `name` of this test binary on `host`, and shows what it prints.
#[track_caller]
pub fn assert_test(host: &Host, name: &str) {
    let again = || -> std::io::Result<_> { Ok((env::current_exe()?, env::current_dir()?)) };
    let (program, directory) =
        again().unwrap_or_else(|error| panic!("No way to start a test again: {error}"));
    let mut command = Command::new(program);
    command.args(["--exact", name, "--nocapture", "--include-ignored", "--test-threads=1"]);
    command.current_dir(directory).envs(env::vars_os().filter(|(name, _)| name != "TMPDIR"));
    command.env(HOST, host.number().to_string());
    match host.run(&command) {
        Ok(Output { status, stdout, stderr }) => {
            let (output, errors) = (String::from_utf8_lossy(&stdout), String::from_utf8_lossy(&stderr));
            print!("{output}");
            eprint!("{errors}");
            // A name that no test has is no failure to the test binary.
            let ran = output.contains("test result: ok. 1 passed");
            assert!(
                status.success() && ran,
                "{name} failed in the lab ({status}); the console says:\n{}",
                host.console()
            );
        }
        Err(error) => panic!("{name}: {}", chain(&error)),
    }
}

/// `CRATE::MODULE::TEST::{{closure}}` is the closure of the test that the test binary knows as `MODULE::TEST`.
fn test_name(closure: &str) -> String {
    let test = closure.trim_end_matches("::{{closure}}");
    test.split_once("::").map_or(test, |(_, name)| name).to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_test_is_known_by_its_closure() {
        let closure = || {};
        let name = "inside::tests::a_test_is_known_by_its_closure";
        assert_eq!(test_name(type_name_of_val(&closure)), name);
    }
}
