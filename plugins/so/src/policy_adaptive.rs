//! Epoch policy plugin `adaptive` as a shared object.

aventine_abi::export_plugin!(aventine_policy_adaptive);
