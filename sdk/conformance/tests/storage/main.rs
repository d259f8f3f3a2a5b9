//! Each rule of what a guest keeps, its disks and its memory, is broken on purpose and caught by name.

mod disk;
mod faulty_disk;
mod faulty_guest;
mod guest;
