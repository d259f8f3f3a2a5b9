//! System calls made by another process on our behalf.
//!
//! A userfaultfd belongs to the address space of the process that made it, so QEMU's has to be made by QEMU. Its main
//! thread is stopped, is made to execute one system call, and goes on where it was:
//!
//! ```text
//! seize, interrupt ─► stopped ─► { registers set, run to the system call's exit }* ─► interrupt ─► stopped
//!                                                                     registers as they were, detach ◄─┘
//! ```
//! The second interrupt is what makes it invisible: the kernel decides whether an interrupted system call of the
//! thread's own is restarted when the thread leaves a stop of that kind, and only then.
//!
//! A tracer that dies in between leaves the thread with foreign registers. A QEMU that dies with its tracer needs no care;
//! for any other one, [`apart`] does it in a process that nobody has a reason to kill.

#[cfg(not(target_arch = "x86_64"))]
compile_error!("guest-qemu sets the registers of QEMU's main thread and knows those of x86-64 only");

use rustix::io::Errno;
use rustix::pipe::PipeFlags;
use rustix::process::{Pid, WaitId, WaitIdOptions, WaitOptions};
use std::fs::File;
use std::io;
use std::os::fd::RawFd;
use std::os::unix::fs::FileExt;

/// What a thread reports when it stops for the interrupt, not for a signal.
const INTERRUPTED: i32 = (libc::PTRACE_EVENT_STOP << 8) | libc::SIGTRAP;
/// What it reports at the entry and at the exit of a system call, with `PTRACE_O_TRACESYSGOOD`.
const AT_SYSCALL: i32 = libc::SIGTRAP | 0x80;

const PTRACE_GETSIGMASK: libc::c_uint = 0x420a;
const PTRACE_SETSIGMASK: libc::c_uint = 0x420b;
/// The size of the kernel's signal set, which the two requests above take as their address.
const SIGSET: usize = 8;

/// Why another process could not be made to execute a system call.
#[derive(Debug, thiserror::Error)]
pub(crate) enum InjectError {
    #[error("Could not trace QEMU while {doing}; a sandbox or kernel.yama.ptrace_scope may forbid it")]
    Trace { doing: &'static str, source: io::Error },
    #[error("Could not read the memory map of QEMU")]
    Map(#[source] io::Error),
    #[error("Found no system call instruction in QEMU's vDSO")]
    NoInstruction,
    #[error("QEMU ended while it was being set up")]
    Ended,
    #[error("The system call {name} failed inside QEMU")]
    Call { name: &'static str, source: io::Error },
}

/// A process whose main thread is stopped. It goes on when this is dropped. Must stay on one thread: the kernel
/// accepts requests from the tracing thread only.
pub(crate) struct StoppedProcess {
    pid: Pid,
    instruction: u64,
    saved: libc::user_regs_struct,
    mask: u64,
}

impl StoppedProcess {
    /// Stops the main thread of `pid`. `instruction` comes from [`find_instruction`]. Allocates nothing.
    pub(crate) fn stop(pid: Pid, instruction: u64) -> Result<StoppedProcess, InjectError> {
        let options = libc::PTRACE_O_TRACESYSGOOD as usize;
        request(pid, libc::PTRACE_SEIZE, 0, options).map_err(trace("attaching to it"))?;
        // From here on dropping detaches, whatever happens.
        // SAFETY: registers are plain numbers, for which zero is a value.
        let saved = unsafe { std::mem::zeroed() };
        let mut process = StoppedProcess { pid, instruction, saved, mask: 0 };
        process.interrupt()?;
        process.until_interrupted()?;
        let (saved, mask) = (&raw mut process.saved as usize, &raw mut process.mask as usize);
        request(pid, libc::PTRACE_GETREGS, 0, saved).map_err(trace("reading its registers"))?;
        request(pid, PTRACE_GETSIGMASK, SIGSET, mask).map_err(trace("reading its signal mask"))?;
        // No signal may run a handler of QEMU's between the two ends of a system call.
        let all = u64::MAX;
        request(pid, PTRACE_SETSIGMASK, SIGSET, &raw const all as usize)
            .map_err(trace("blocking its signals"))?;
        Ok(process)
    }

    /// Has the process execute one system call and answers its result.
    pub(crate) fn call(
        &mut self,
        name: &'static str,
        number: libc::c_long,
        args: [u64; 3],
    ) -> Result<u64, InjectError> {
        let mut registers = self.saved;
        registers.rip = self.instruction;
        registers.rax = number as u64;
        // Not inside a system call of its own: keeps the kernel from restarting that one now.
        registers.orig_rax = u64::MAX;
        [registers.rdi, registers.rsi, registers.rdx] = args;
        self.set_registers(&registers)?;
        for _ in ["entry", "exit"] {
            request(self.pid, libc::PTRACE_SYSCALL, 0, 0).map_err(trace("running it"))?;
            while self.wait()? != AT_SYSCALL {
                request(self.pid, libc::PTRACE_SYSCALL, 0, 0).map_err(trace("running it"))?;
            }
        }
        let result = &raw mut registers as usize;
        request(self.pid, libc::PTRACE_GETREGS, 0, result).map_err(trace("reading its registers"))?;
        match registers.rax as i64 {
            error @ -4095..=-1 => {
                Err(InjectError::Call { name, source: io::Error::from_raw_os_error(-error as i32) })
            }
            value => Ok(value as u64),
        }
    }

    /// Lets the process go on as if nothing had happened.
    pub(crate) fn resume(self) -> Result<(), InjectError> {
        self.interrupt()?;
        self.go_on(0)?;
        self.until_interrupted()?;
        self.set_registers(&self.saved)?;
        let mask = &raw const self.mask as usize;
        request(self.pid, PTRACE_SETSIGMASK, SIGSET, mask).map_err(trace("restoring its signal mask"))
    }

    fn set_registers(&self, registers: &libc::user_regs_struct) -> Result<(), InjectError> {
        let address = std::ptr::from_ref(registers) as usize;
        request(self.pid, libc::PTRACE_SETREGS, 0, address).map_err(trace("setting its registers"))
    }

    /// Asks for an interrupt stop. A running thread comes to it by itself; one that is stopped has to go on first.
    fn interrupt(&self) -> Result<(), InjectError> {
        request(self.pid, libc::PTRACE_INTERRUPT, 0, 0).map_err(trace("interrupting it"))
    }

    /// Waits for the interrupt stop; signals on the way are delivered.
    fn until_interrupted(&self) -> Result<(), InjectError> {
        loop {
            match self.wait()? {
                INTERRUPTED => return Ok(()),
                signal => self.go_on(signal)?,
            }
        }
    }

    fn go_on(&self, signal: i32) -> Result<(), InjectError> {
        request(self.pid, libc::PTRACE_CONT, 0, signal as usize).map_err(trace("running it"))
    }

    /// Waits for the next stop. The end of the process is left for its owner to collect.
    fn wait(&self) -> Result<i32, InjectError> {
        let options = WaitIdOptions::EXITED | WaitIdOptions::STOPPED | WaitIdOptions::NOWAIT;
        loop {
            match rustix::process::waitid(WaitId::Pid(self.pid), options) {
                Ok(Some(status)) => return status.trapping_signal().ok_or(InjectError::Ended),
                Ok(None) | Err(Errno::INTR) => {}
                Err(e) => return Err(trace("waiting for it")(e.into())),
            }
        }
    }
}

impl Drop for StoppedProcess {
    fn drop(&mut self) {
        // Fails only when the process is gone.
        let _gone = request(self.pid, libc::PTRACE_DETACH, 0, 0);
    }
}

fn trace(doing: &'static str) -> impl Fn(io::Error) -> InjectError {
    move |source| match source.raw_os_error() {
        Some(libc::ESRCH) => InjectError::Ended,
        _ => InjectError::Trace { doing, source },
    }
}

fn request(pid: Pid, request: libc::c_uint, address: usize, data: usize) -> io::Result<()> {
    // SAFETY: every caller passes as `data` either a plain number or the address of a live value of the type that the
    // request reads or writes.
    match unsafe { libc::ptrace(request, pid.as_raw_nonzero().get(), address, data) } {
        -1 => Err(io::Error::last_os_error()),
        _ => Ok(()),
    }
}

/// Runs `work` in a process made for it, which shares our descriptors and goes on when we are killed: a process whose
/// registers are changed must not lose who changes them back. Only a `work` that allocates nothing and takes no lock may
/// run there. Answers the number that it made.
pub(crate) fn apart(work: impl FnOnce() -> Result<RawFd, ApartError>) -> Result<RawFd, InjectError> {
    let (read, write) =
        rustix::pipe::pipe_with(PipeFlags::CLOEXEC).map_err(|e| trace("making a pipe")(e.into()))?;
    // SAFETY: the child is a copy of this thread alone. By this function's contract it makes system calls and nothing
    // else until it exits.
    let child = unsafe { libc::syscall(libc::SYS_clone, libc::CLONE_FILES | libc::SIGCHLD, 0, 0, 0, 0) };
    match child {
        -1 => return Err(trace("making a process that does it")(io::Error::last_os_error())),
        0 => {
            // SAFETY: plain system calls; a terminal's signals must not reach this process.
            unsafe { libc::setsid() };
            let (step, value) = match work() {
                Ok(value) => (0, value),
                Err(ApartError { step, errno }) => (step as i32, errno),
            };
            let mut report = [0; 8];
            report[..4].copy_from_slice(&step.to_ne_bytes());
            report[4..].copy_from_slice(&value.to_ne_bytes());
            let written = rustix::io::write(&write, &report).is_ok();
            // SAFETY: ends this process and runs nothing of the parent's.
            unsafe { libc::_exit(i32::from(!written)) }
        }
        _ => {}
    }
    let child = Pid::from_raw(child as i32);
    let ended = loop {
        match rustix::process::waitpid(child, WaitOptions::empty()) {
            Err(Errno::INTR) => {}
            ended => break ended,
        }
    };
    let mut report = [0; 8];
    let whole = ended.is_ok_and(|e| e.is_some_and(|(_, status)| status.exit_status() == Some(0)))
        && rustix::io::read(&read, &mut report) == Ok(report.len());
    if !whole {
        return Err(InjectError::Ended);
    }
    let number = |at: usize| i32::from_ne_bytes([report[at], report[at + 1], report[at + 2], report[at + 3]]);
    let source = || io::Error::from_raw_os_error(number(4));
    Err(match number(0) {
        0 => return Ok(number(4)),
        step if step == Step::Call as i32 => {
            InjectError::Call { name: "userfaultfd or madvise", source: source() }
        }
        step if step == Step::Ended as i32 => InjectError::Ended,
        _ => InjectError::Trace { doing: "making it execute a system call", source: source() },
    })
}

/// What failed apart, in a form that crosses processes.
pub(crate) struct ApartError {
    step: Step,
    errno: i32,
}

#[derive(Clone, Copy)]
enum Step {
    Trace = 1,
    Call,
    Ended,
}

impl From<InjectError> for ApartError {
    fn from(error: InjectError) -> ApartError {
        let (step, source) = match &error {
            InjectError::Call { source, .. } => (Step::Call, source),
            InjectError::Trace { source, .. } | InjectError::Map(source) => (Step::Trace, source),
            InjectError::NoInstruction | InjectError::Ended => {
                return ApartError { step: Step::Ended, errno: 0 };
            }
        };
        ApartError { step, errno: source.raw_os_error().unwrap_or(0) }
    }
}

impl From<Errno> for ApartError {
    fn from(error: Errno) -> ApartError {
        ApartError { step: Step::Trace, errno: error.raw_os_error() }
    }
}

/// The address of a `syscall` instruction in the process: the vDSO always has one.
pub(crate) fn find_instruction(pid: Pid) -> Result<u64, InjectError> {
    let maps = std::fs::read_to_string(format!("/proc/{pid}/maps")).map_err(InjectError::Map)?;
    let vdso = maps.lines().find(|line| line.ends_with("[vdso]")).ok_or(InjectError::NoInstruction)?;
    let (start, end) = crate::track::address_range(vdso).ok_or(InjectError::NoInstruction)?;
    let mut code = vec![0; (end - start) as usize];
    let memory = File::open(format!("/proc/{pid}/mem")).map_err(InjectError::Map)?;
    memory.read_exact_at(&mut code, start).map_err(InjectError::Map)?;
    let at = code.windows(2).position(|pair| pair == [0x0f, 0x05]).ok_or(InjectError::NoInstruction)?;
    Ok(start + at as u64)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;
    use std::process::{Command, Stdio};

    /// A shell that waits in read(2): the interrupted read must be restarted and must return what was sent.
    #[test]
    fn the_process_executes_the_call_and_goes_on_where_it_was() {
        let mut child = Command::new("sh")
            .args(["-c", "echo ready; read line; echo got $line"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let pid = Pid::from_child(&child);
        let mut output = child.stdout.take().unwrap();
        output.read_exact(&mut [0; 6]).unwrap();
        let instruction = find_instruction(pid).unwrap();
        for _ in 0..1000 {
            let mut stopped = StoppedProcess::stop(pid, instruction).unwrap();
            let answer = stopped.call("getpid", libc::SYS_getpid, [0; 3]).unwrap();
            assert_eq!(answer, pid.as_raw_nonzero().get() as u64);
            let error = stopped.call("close", libc::SYS_close, [9999, 0, 0]).unwrap_err();
            assert_eq!(error.to_string(), "The system call close failed inside QEMU");
            stopped.resume().unwrap();
        }
        io::Write::write_all(&mut child.stdin.take().unwrap(), b"this\n").unwrap();
        let mut text = String::new();
        output.read_to_string(&mut text).unwrap();
        assert_eq!(text, "got this\n");
        assert!(child.wait().unwrap().success());
    }

    #[test]
    fn a_process_that_is_gone_is_reported_and_left_for_its_owner() {
        let mut child = Command::new("true").spawn().unwrap();
        let pid = Pid::from_child(&child);
        let ended = WaitIdOptions::EXITED | WaitIdOptions::NOWAIT;
        rustix::process::waitid(WaitId::Pid(pid), ended).unwrap();
        assert!(StoppedProcess::stop(pid, 0).is_err());
        assert!(child.wait().unwrap().success());
    }
}
