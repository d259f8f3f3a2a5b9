//! Network plugin: a userspace buffer between a QEMU stream netdev and an uplink.
