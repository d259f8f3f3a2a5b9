aventine_abi::export_plugin!(aventine_guest_qemu);
