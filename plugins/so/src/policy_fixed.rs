aventine_abi::export_plugin!(aventine_policy_fixed);
