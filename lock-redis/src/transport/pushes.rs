use std::{convert::Infallible, sync::Arc};

use redis::{PushInfo, PushKind, Value};

/// Listener for what the server pushes over a tracking connection. Called by the connection's
/// driver: must not block.
pub(crate) trait Listener: Send + Sync + 'static {
    /// A key that was read over the connection has changed.
    fn changed(&self, key: &[u8]);

    /// Changes of `concerned` keys may have been missed: the connection ended, another server keeps
    /// them, or the server forgot all at once.
    fn missed(&self, concerned: &dyn Fn(&str) -> bool);
}

/// Passes on what the server pushes.
pub(super) fn pushes_to(
    listener: Arc<dyn Listener>,
) -> impl Fn(PushInfo) -> Result<(), Infallible> + Send + Sync + 'static {
    move |push| {
        match (push.kind, push.data.first()) {
            (PushKind::Invalidate, Some(Value::Array(keys))) => {
                for key in keys {
                    if let Value::BulkString(key) = key {
                        listener.changed(key);
                    }
                }
            }
            // The whole data set was flushed, or the connection is gone.
            (PushKind::Invalidate | PushKind::Disconnection, _) => listener.missed(&|_| true),
            _ => {}
        }
        Ok(())
    }
}
