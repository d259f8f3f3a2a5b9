//! Arbiter plugin `etcd` as a shared object.

aventine_abi::export_plugin!(aventine_arbiter_etcd);
