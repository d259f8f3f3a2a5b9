aventine_abi::export_plugin!(aventine_network_userspace);
