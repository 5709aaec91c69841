//! Sessions: leases in etcd, each of which keeps any number of entries.

mod grants;
mod lease;
mod pool;
mod shared_lease;

pub(crate) use pool::Sessions;
pub(crate) use shared_lease::Session;
