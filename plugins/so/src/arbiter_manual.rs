//! Arbiter plugin `manual` as a shared object.

aventine_abi::export_plugin!(aventine_arbiter_manual);
