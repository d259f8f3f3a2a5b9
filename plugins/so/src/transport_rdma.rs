//! Transport plugin `rdma` as a shared object.

aventine_abi::export_plugin!(aventine_transport_rdma);
