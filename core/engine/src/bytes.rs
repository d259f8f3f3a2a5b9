//! Memory for pages: the engine's own, or what the transport lends so that its device reads or writes it by itself.

use aventine_api::LentMemory;
use std::ops::{Deref, DerefMut};

pub(crate) enum Bytes {
    Own(Vec<u8>),
    Lent(Box<dyn LentMemory>),
}

impl Bytes {
    /// As a vector, which costs a copy of what is lent.
    pub(crate) fn into_vec(self) -> Vec<u8> {
        match self {
            Bytes::Own(bytes) => bytes,
            Bytes::Lent(memory) => memory.bytes().to_vec(),
        }
    }

    /// The engine's own memory; what is lent goes back.
    pub(crate) fn into_own(self) -> Option<Vec<u8>> {
        match self {
            Bytes::Own(bytes) => Some(bytes),
            Bytes::Lent(_) => None,
        }
    }
}

impl Deref for Bytes {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match self {
            Bytes::Own(bytes) => bytes,
            Bytes::Lent(memory) => memory.bytes(),
        }
    }
}

impl DerefMut for Bytes {
    fn deref_mut(&mut self) -> &mut [u8] {
        match self {
            Bytes::Own(bytes) => bytes,
            Bytes::Lent(memory) => memory.bytes_mut(),
        }
    }
}
