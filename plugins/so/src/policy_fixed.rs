//! Epoch policy plugin `fixed` as a shared object.

aventine_abi::export_plugin!(aventine_policy_fixed);
