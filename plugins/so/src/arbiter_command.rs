aventine_abi::export_plugin!(aventine_arbiter_command);
