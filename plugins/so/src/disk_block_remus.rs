//! Disk plugin `block-remus` as a shared object.

aventine_abi::export_plugin!(aventine_disk_block_remus);
