//! Arbiter plugin `shared-file` as a shared object.

aventine_abi::export_plugin!(aventine_arbiter_shared_file);
