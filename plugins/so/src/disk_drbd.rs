//! Disk plugin `drbd` as a shared object.

aventine_abi::export_plugin!(aventine_disk_drbd);
