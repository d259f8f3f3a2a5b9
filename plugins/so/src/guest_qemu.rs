//! Guest plugin `qemu` as a shared object.

aventine_abi::export_plugin!(aventine_guest_qemu);
