//! Each rule of the storage of a guest, its disks and its memory, is broken on purpose and caught by name.

mod disk;
mod faulty_disk;
