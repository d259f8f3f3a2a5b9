//! Guest plugin: stock QEMU through QMP.
