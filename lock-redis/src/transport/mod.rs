//! The way to the server that has a key: connections that are made again, sentinels, cluster slots.

pub(crate) mod address;
pub(crate) mod breaker;
pub(crate) mod cluster;
pub(crate) mod connection;
mod pushes;
pub(crate) mod reconnect;
pub(crate) mod routing;
pub(crate) mod sentinel;
mod sentinel_view;
pub(crate) mod slots;
pub(crate) mod upstream;
