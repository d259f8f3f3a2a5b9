//! What is used of the C interface of libibverbs and librdmacm, whose layouts have been the same since 2009: the structures as
//! their headers have them, up to the last field that is used, and the functions that the libraries export.
//!
//! Of a structure that the libraries make, only what is read here is named; it is never made or moved here. What is made here
//! has the size that the headers say: the tests compare every size and place with what a C compiler says of the headers.

use std::ffi::{c_char, c_int, c_uint, c_void};

/// A device that is open: the start of `ibv_context`.
#[repr(C)]
pub(crate) struct Context {
    device: *mut c_void,
    pub(crate) ops: ContextOps,
}

/// The functions that a device's driver has, of which the headers' inline functions call four.
#[repr(C)]
pub(crate) struct ContextOps {
    before_poll: [*mut c_void; 11],
    pub(crate) poll_cq: Option<unsafe extern "C" fn(*mut Cq, c_int, *mut Wc) -> c_int>,
    pub(crate) req_notify_cq: Option<unsafe extern "C" fn(*mut Cq, c_int) -> c_int>,
    between: [*mut c_void; 12],
    pub(crate) post_send: Option<unsafe extern "C" fn(*mut Qp, *mut SendWr, *mut *mut SendWr) -> c_int>,
    pub(crate) post_recv: Option<unsafe extern "C" fn(*mut Qp, *mut RecvWr, *mut *mut RecvWr) -> c_int>,
    after: [*mut c_void; 5],
}

/// `ibv_pd`; never looked into.
#[repr(C)]
pub(crate) struct Pd([u8; 0]);

/// The start of `ibv_cq`.
#[repr(C)]
pub(crate) struct Cq {
    pub(crate) context: *mut Context,
}

/// The start of `ibv_qp`.
#[repr(C)]
pub(crate) struct Qp {
    pub(crate) context: *mut Context,
}

/// `ibv_mr`.
#[repr(C)]
pub(crate) struct Mr {
    context: *mut Context,
    pd: *mut Pd,
    addr: *mut c_void,
    length: usize,
    handle: u32,
    pub(crate) lkey: u32,
    pub(crate) rkey: u32,
}

/// `ibv_comp_channel`.
#[repr(C)]
pub(crate) struct CompChannel {
    context: *mut Context,
    pub(crate) fd: c_int,
    refcnt: c_int,
}

/// `ibv_qp_init_attr`.
#[repr(C)]
pub(crate) struct QpInitAttr {
    pub(crate) qp_context: *mut c_void,
    pub(crate) send_cq: *mut Cq,
    pub(crate) recv_cq: *mut Cq,
    pub(crate) srq: *mut c_void,
    pub(crate) max_send_wr: u32,
    pub(crate) max_recv_wr: u32,
    pub(crate) max_send_sge: u32,
    pub(crate) max_recv_sge: u32,
    pub(crate) max_inline_data: u32,
    pub(crate) qp_type: c_uint,
    pub(crate) sq_sig_all: c_int,
}

/// `IBV_QPT_RC`.
pub(crate) const QPT_RC: c_uint = 2;

/// `ibv_sge`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Sge {
    pub(crate) addr: u64,
    pub(crate) length: u32,
    pub(crate) lkey: u32,
}

/// `ibv_recv_wr`.
#[repr(C)]
pub(crate) struct RecvWr {
    pub(crate) wr_id: u64,
    pub(crate) next: *mut RecvWr,
    pub(crate) sg_list: *mut Sge,
    pub(crate) num_sge: c_int,
}

/// `ibv_send_wr`, of a write.
#[repr(C)]
pub(crate) struct SendWr {
    pub(crate) wr_id: u64,
    pub(crate) next: *mut SendWr,
    pub(crate) sg_list: *mut Sge,
    pub(crate) num_sge: c_int,
    pub(crate) opcode: c_uint,
    pub(crate) send_flags: c_uint,
    /// Big-endian.
    pub(crate) imm_data: u32,
    pub(crate) remote_addr: u64,
    pub(crate) rkey: u32,
    /// Unions that only other operations use.
    pub(crate) rest: [u64; 9],
}

/// `IBV_WR_RDMA_WRITE`.
pub(crate) const WR_RDMA_WRITE: c_uint = 0;
/// `IBV_WR_RDMA_WRITE_WITH_IMM`.
pub(crate) const WR_RDMA_WRITE_WITH_IMM: c_uint = 1;
/// `IBV_SEND_SIGNALED`.
pub(crate) const SEND_SIGNALED: c_uint = 2;
/// `IBV_ACCESS_LOCAL_WRITE`.
pub(crate) const ACCESS_LOCAL_WRITE: c_int = 1;
/// `IBV_ACCESS_REMOTE_WRITE`.
pub(crate) const ACCESS_REMOTE_WRITE: c_int = 2;

/// `ibv_wc`.
#[repr(C)]
#[derive(Clone, Copy, Default)]
pub(crate) struct Wc {
    pub(crate) wr_id: u64,
    pub(crate) status: c_uint,
    pub(crate) opcode: c_uint,
    pub(crate) vendor_err: u32,
    pub(crate) byte_len: u32,
    /// Big-endian.
    pub(crate) imm_data: u32,
    pub(crate) qp_num: u32,
    pub(crate) src_qp: u32,
    pub(crate) wc_flags: c_uint,
    pub(crate) pkey_index: u16,
    pub(crate) slid: u16,
    pub(crate) sl: u8,
    pub(crate) dlid_path_bits: u8,
}

/// `IBV_WC_SUCCESS`.
pub(crate) const WC_SUCCESS: c_uint = 0;
/// `IBV_WC_RECV_RDMA_WITH_IMM`.
pub(crate) const WC_RECV_RDMA_WITH_IMM: c_uint = 129;

/// `rdma_event_channel`.
#[repr(C)]
pub(crate) struct EventChannel {
    pub(crate) fd: c_int,
}

/// The start of `rdma_cm_id`.
#[repr(C)]
pub(crate) struct CmId {
    pub(crate) verbs: *mut Context,
    channel: *mut EventChannel,
    context: *mut c_void,
    pub(crate) qp: *mut Qp,
}

/// `rdma_conn_param`.
#[repr(C)]
pub(crate) struct ConnParam {
    pub(crate) private_data: *const c_void,
    pub(crate) private_data_len: u8,
    pub(crate) responder_resources: u8,
    pub(crate) initiator_depth: u8,
    pub(crate) flow_control: u8,
    pub(crate) retry_count: u8,
    pub(crate) rnr_retry_count: u8,
    pub(crate) srq: u8,
    pub(crate) qp_num: u32,
}

/// The start of `rdma_cm_event`.
#[repr(C)]
pub(crate) struct CmEvent {
    pub(crate) id: *mut CmId,
    listen_id: *mut CmId,
    pub(crate) event: c_uint,
    pub(crate) status: c_int,
    pub(crate) conn: ConnParam,
}

/// `RDMA_PS_TCP`: reliable connections.
pub(crate) const PS_TCP: c_uint = 0x0106;

/// `RDMA_OPTION_ID`, and of these `RDMA_OPTION_ID_ACK_TIMEOUT`: a byte.
pub(crate) const OPTION_ID: c_int = 0;
pub(crate) const OPTION_ID_ACK_TIMEOUT: c_int = 3;

/// `rdma_cm_event_type`.
pub(crate) mod event {
    use std::ffi::c_uint;

    pub(crate) const ADDR_RESOLVED: c_uint = 0;
    pub(crate) const ROUTE_RESOLVED: c_uint = 2;
    pub(crate) const CONNECT_REQUEST: c_uint = 4;
    pub(crate) const REJECTED: c_uint = 8;
    pub(crate) const ESTABLISHED: c_uint = 9;
    pub(crate) const DISCONNECTED: c_uint = 10;
    pub(crate) const DEVICE_REMOVAL: c_uint = 11;
}

/// A `sockaddr`, known by its pointer.
pub(crate) type SockAddr = c_void;

/// Declares the functions that a library exports, and how they are found in it.
macro_rules! functions {
    ($(#[$doc:meta])* $name:ident { $($function:ident($($argument:ty),*) $(-> $result:ty)?;)* }) => {
        $(#[$doc])*
        pub(crate) struct $name {
            $(pub(crate) $function: unsafe extern "C" fn($($argument),*) $(-> $result)?,)*
        }

        impl $name {
            /// Finds them.
            ///
            /// # Safety
            /// `library` is the one that these functions belong to, and stays loaded.
            pub(crate) unsafe fn find(library: &libloading::Library) -> Result<$name, libloading::Error> {
                Ok($name {
                    // SAFETY: the types are those of the library's header.
                    $($function: unsafe { *library.get(concat!(stringify!($function), "\0"))? },)*
                })
            }
        }
    };
}

functions! {
    /// libibverbs.
    Verbs {
        ibv_alloc_pd(*mut Context) -> *mut Pd;
        ibv_dealloc_pd(*mut Pd) -> c_int;
        ibv_reg_mr(*mut Pd, *mut c_void, usize, c_int) -> *mut Mr;
        ibv_dereg_mr(*mut Mr) -> c_int;
        ibv_create_comp_channel(*mut Context) -> *mut CompChannel;
        ibv_destroy_comp_channel(*mut CompChannel) -> c_int;
        ibv_create_cq(*mut Context, c_int, *mut c_void, *mut CompChannel, c_int) -> *mut Cq;
        ibv_destroy_cq(*mut Cq) -> c_int;
        ibv_get_cq_event(*mut CompChannel, *mut *mut Cq, *mut *mut c_void) -> c_int;
        ibv_ack_cq_events(*mut Cq, c_uint);
        ibv_wc_status_str(c_uint) -> *const c_char;
    }
}

functions! {
    /// librdmacm.
    Manager {
        rdma_create_event_channel() -> *mut EventChannel;
        rdma_destroy_event_channel(*mut EventChannel);
        rdma_create_id(*mut EventChannel, *mut *mut CmId, *mut c_void, c_uint) -> c_int;
        rdma_destroy_id(*mut CmId) -> c_int;
        rdma_set_option(*mut CmId, c_int, c_int, *mut c_void, usize) -> c_int;
        rdma_migrate_id(*mut CmId, *mut EventChannel) -> c_int;
        rdma_bind_addr(*mut CmId, *mut SockAddr) -> c_int;
        rdma_listen(*mut CmId, c_int) -> c_int;
        rdma_get_src_port(*mut CmId) -> u16;
        rdma_resolve_addr(*mut CmId, *mut SockAddr, *mut SockAddr, c_int) -> c_int;
        rdma_resolve_route(*mut CmId, c_int) -> c_int;
        rdma_create_qp(*mut CmId, *mut Pd, *mut QpInitAttr) -> c_int;
        rdma_destroy_qp(*mut CmId);
        rdma_connect(*mut CmId, *mut ConnParam) -> c_int;
        rdma_accept(*mut CmId, *mut ConnParam) -> c_int;
        rdma_reject(*mut CmId, *const c_void, u8) -> c_int;
        rdma_disconnect(*mut CmId) -> c_int;
        rdma_get_cm_event(*mut EventChannel, *mut *mut CmEvent) -> c_int;
        rdma_ack_cm_event(*mut CmEvent) -> c_int;
        rdma_event_str(c_uint) -> *const c_char;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use aventine_lab::{chain, packages};
    use std::mem::{offset_of, size_of};
    use std::process::Command;

    /// Of each structure: its name in C, its size where this side makes it, and where fields are.
    struct Layout {
        name: &'static str,
        size: Option<usize>,
        fields: Vec<(&'static str, usize)>,
    }

    macro_rules! layout {
        ($name:literal, $ty:ty $(, size $size:expr)?; $($field:ident at $theirs:literal),* $(,)?) => {
            Layout {
                name: $name,
                size: [$(Some($size),)? None][0],
                fields: vec![$(($theirs, offset_of!($ty, $field))),*],
            }
        };
    }

    fn layouts() -> Vec<Layout> {
        let ops = offset_of!(Context, ops);
        let mut context = layout!("ibv_context", Context; ops at "ops");
        let calls = [
            ("ops.poll_cq", offset_of!(ContextOps, poll_cq)),
            ("ops.req_notify_cq", offset_of!(ContextOps, req_notify_cq)),
            ("ops.post_send", offset_of!(ContextOps, post_send)),
            ("ops.post_recv", offset_of!(ContextOps, post_recv)),
        ];
        context.fields.extend(calls.map(|(name, at)| (name, ops + at)));
        let param = |at| offset_of!(CmEvent, conn) + at;
        let mut event = layout!("rdma_cm_event", CmEvent; id at "id", event at "event", status at "status");
        event.fields.extend([
            ("param.conn.private_data", param(offset_of!(ConnParam, private_data))),
            ("param.conn.private_data_len", param(offset_of!(ConnParam, private_data_len))),
        ]);
        vec![
            context,
            event,
            layout!("ibv_context_ops", ContextOps, size size_of::<ContextOps>(); poll_cq at "poll_cq"),
            layout!("ibv_cq", Cq; context at "context"),
            layout!("ibv_qp", Qp; context at "context"),
            layout!("ibv_mr", Mr, size size_of::<Mr>(); lkey at "lkey", rkey at "rkey"),
            layout!("ibv_comp_channel", CompChannel, size size_of::<CompChannel>(); fd at "fd"),
            layout!(
                "ibv_qp_init_attr", QpInitAttr, size size_of::<QpInitAttr>(); send_cq at "send_cq",
                recv_cq at "recv_cq", srq at "srq", max_send_wr at "cap.max_send_wr",
                max_recv_wr at "cap.max_recv_wr", max_send_sge at "cap.max_send_sge",
                max_recv_sge at "cap.max_recv_sge", max_inline_data at "cap.max_inline_data",
                qp_type at "qp_type", sq_sig_all at "sq_sig_all",
            ),
            layout!("ibv_sge", Sge, size size_of::<Sge>(); addr at "addr", length at "length", lkey at "lkey"),
            layout!(
                "ibv_recv_wr", RecvWr, size size_of::<RecvWr>(); wr_id at "wr_id", next at "next",
                sg_list at "sg_list", num_sge at "num_sge",
            ),
            layout!(
                "ibv_send_wr", SendWr, size size_of::<SendWr>(); wr_id at "wr_id", next at "next",
                sg_list at "sg_list", num_sge at "num_sge", opcode at "opcode", send_flags at "send_flags",
                imm_data at "imm_data", remote_addr at "wr.rdma.remote_addr", rkey at "wr.rdma.rkey",
            ),
            layout!(
                "ibv_wc", Wc, size size_of::<Wc>(); wr_id at "wr_id", status at "status", opcode at "opcode",
                imm_data at "imm_data", byte_len at "byte_len", wc_flags at "wc_flags",
                dlid_path_bits at "dlid_path_bits",
            ),
            layout!("rdma_event_channel", EventChannel, size size_of::<EventChannel>(); fd at "fd"),
            layout!("rdma_cm_id", CmId; verbs at "verbs", channel at "channel", qp at "qp"),
            layout!(
                "rdma_conn_param", ConnParam, size size_of::<ConnParam>(); private_data at "private_data",
                private_data_len at "private_data_len", responder_resources at "responder_resources",
                initiator_depth at "initiator_depth", flow_control at "flow_control",
                retry_count at "retry_count", rnr_retry_count at "rnr_retry_count", srq at "srq",
                qp_num at "qp_num",
            ),
        ]
    }

    /// Names in C, and what is taken for their values.
    const VALUES: [(&str, i64); 18] = [
        ("IBV_QPT_RC", QPT_RC as i64),
        ("IBV_WR_RDMA_WRITE", WR_RDMA_WRITE as i64),
        ("IBV_WR_RDMA_WRITE_WITH_IMM", WR_RDMA_WRITE_WITH_IMM as i64),
        ("IBV_SEND_SIGNALED", SEND_SIGNALED as i64),
        ("IBV_ACCESS_LOCAL_WRITE", ACCESS_LOCAL_WRITE as i64),
        ("IBV_ACCESS_REMOTE_WRITE", ACCESS_REMOTE_WRITE as i64),
        ("IBV_WC_SUCCESS", WC_SUCCESS as i64),
        ("IBV_WC_RECV_RDMA_WITH_IMM", WC_RECV_RDMA_WITH_IMM as i64),
        ("RDMA_PS_TCP", PS_TCP as i64),
        ("RDMA_OPTION_ID", OPTION_ID as i64),
        ("RDMA_OPTION_ID_ACK_TIMEOUT", OPTION_ID_ACK_TIMEOUT as i64),
        ("RDMA_CM_EVENT_ADDR_RESOLVED", event::ADDR_RESOLVED as i64),
        ("RDMA_CM_EVENT_ROUTE_RESOLVED", event::ROUTE_RESOLVED as i64),
        ("RDMA_CM_EVENT_CONNECT_REQUEST", event::CONNECT_REQUEST as i64),
        ("RDMA_CM_EVENT_REJECTED", event::REJECTED as i64),
        ("RDMA_CM_EVENT_ESTABLISHED", event::ESTABLISHED as i64),
        ("RDMA_CM_EVENT_DISCONNECTED", event::DISCONNECTED as i64),
        ("RDMA_CM_EVENT_DEVICE_REMOVAL", event::DEVICE_REMOVAL as i64),
    ];

    /// Debian's headers, and its compiler.
    #[test]
    fn layouts_are_those_of_the_headers() {
        let root = packages::unpacked("rdma-dev", &["libibverbs-dev", "librdmacm-dev"]);
        let root = root.unwrap_or_else(|error| panic!("{}", chain(&error)));
        let mut checks = String::new();
        let mut check = |what: String, is: i64| {
            checks += &format!("_Static_assert({what} == {is}, \"not {is}\");\n");
        };
        for Layout { name, size, fields } in layouts() {
            if let Some(size) = size {
                check(format!("sizeof(struct {name})"), size as i64);
            }
            for (field, at) in fields {
                check(format!("offsetof(struct {name}, {field})"), at as i64);
            }
        }
        VALUES.iter().for_each(|(name, value)| check((*name).to_owned(), *value));
        assert!(checks.lines().count() > 70);
        let dir = tempfile::tempdir().unwrap();
        let source = dir.path().join("layouts.c");
        let compile = |checks: &str| {
            let headers = "#include <stddef.h>\n#include <infiniband/verbs.h>\n#include <rdma/rdma_cma.h>\n";
            std::fs::write(&source, format!("{headers}{checks}")).unwrap();
            let mut compiler = Command::new("cc");
            compiler.arg("-fsyntax-only").arg("-I").arg(root.join("usr/include")).arg(&source);
            compiler.output().unwrap()
        };
        let output = compile(&checks);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let output = compile("_Static_assert(sizeof(struct ibv_wc) == 1, \"\");");
        assert!(!output.status.success(), "a wrong layout was not found");
    }
}
