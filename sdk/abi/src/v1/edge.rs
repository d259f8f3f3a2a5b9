//! Where one side's calls arrive at the other's values.

use super::answer::{Answer, ErrorV1};
use abi_stable::std_types::{RErr, ROk};
use aventine_api::{Host, PluginError};
use std::mem::ManuallyDrop;
use std::ops::{Deref, DerefMut};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// A native value that the other side calls. `P` points to it: a `Box`, an `Arc` or a reference.
///
/// Once a call has panicked, every later call on it, and on whatever came out of it, answers an error, but for those that end
/// protection.
pub(super) struct Exported<P> {
    inner: ManuallyDrop<P>,
    dead: Arc<AtomicBool>,
}

impl<P> Exported<P> {
    pub(super) fn new(inner: P) -> Exported<P> {
        Exported { inner: ManuallyDrop::new(inner), dead: Arc::default() }
    }

    /// Something that came out of this value: it is dead when this is.
    pub(super) fn part<Q>(&self, inner: Q) -> Exported<Q> {
        Exported { inner: ManuallyDrop::new(inner), dead: Arc::clone(&self.dead) }
    }
}

impl<P: Deref> Exported<P> {
    /// A call that cannot fail but by a panic.
    pub(super) fn ask<R>(&self, call: impl FnOnce(&P::Target) -> R) -> Answer<R> {
        caught(&self.dead, || Ok(call(&self.inner)))
    }

    /// A call by several threads.
    pub(super) fn share<R>(&self, call: impl FnOnce(&P::Target) -> Result<R, PluginError>) -> Answer<R> {
        caught(&self.dead, || call(&self.inner))
    }

    /// A call by the owner.
    pub(super) fn call<'a, R>(
        &'a mut self,
        call: impl FnOnce(&'a mut P::Target) -> Result<R, PluginError>,
    ) -> Answer<R>
    where
        P: DerefMut,
    {
        caught(&self.dead, || call(&mut self.inner))
    }

    /// A call by the owner that is made even of a dead value: what gives the guest back what was taken from it.
    pub(super) fn last_call<R>(
        &mut self,
        call: impl FnOnce(&mut P::Target) -> Result<R, PluginError>,
    ) -> Answer<R>
    where
        P: DerefMut,
    {
        let panicked = AtomicBool::new(false);
        let answer = caught(&panicked, || call(&mut self.inner));
        self.dead.fetch_or(panicked.into_inner(), Ordering::AcqRel);
        answer
    }
}

impl<P> Drop for Exported<P> {
    fn drop(&mut self) {
        // SAFETY: nobody uses `inner` after its owner's drop.
        let dropped = catch_unwind(AssertUnwindSafe(|| unsafe { ManuallyDrop::drop(&mut self.inner) }));
        // A payload can panic in its own drop.
        dropped.unwrap_or_else(std::mem::forget);
    }
}

/// Calls native code; after a panic, never again. What a panic left half done is therefore never looked at.
#[inline]
pub(super) fn caught<R>(dead: &AtomicBool, call: impl FnOnce() -> Result<R, PluginError>) -> Answer<R> {
    if dead.load(Ordering::Acquire) {
        return RErr(ErrorV1::internal("The plugin panicked before and is not called any more"));
    }
    match catch_unwind(AssertUnwindSafe(call)) {
        Ok(Ok(answer)) => ROk(answer),
        Ok(Err(error)) => RErr(ErrorV1::from(&error)),
        Err(panic) => {
            dead.store(true, Ordering::Release);
            let error = ErrorV1::panicked(&*panic);
            std::mem::forget(panic);
            RErr(error)
        }
    }
}

/// Takes what natively cannot fail, and tells the engine of the first failure.
pub(super) struct Reporter {
    host: Arc<dyn Host>,
    told: AtomicBool,
}

impl Reporter {
    pub(super) fn new(host: &Arc<dyn Host>) -> Reporter {
        Reporter { host: Arc::clone(host), told: AtomicBool::new(false) }
    }

    /// The answer, or else this.
    pub(super) fn or<T>(&self, answer: Answer<T>, otherwise: T) -> T {
        match answer {
            ROk(value) => value,
            RErr(error) => {
                if !self.told.swap(true, Ordering::Relaxed) {
                    self.host.failed(error.into());
                }
                otherwise
            }
        }
    }
}

/// The value with this number; an error names what it should have been.
pub(super) fn known<T>(found: Option<T>, what: &str, number: u8) -> Result<T, PluginError> {
    let unknown =
        || ErrorV1::internal(&format!("The other side of the plugin interface gave {number} as {what}"));
    found.ok_or_else(|| unknown().into())
}
