aventine_abi::export_plugin!(aventine_arbiter_shared_file);
