//! The NBD export of a disk plugin's block device.
