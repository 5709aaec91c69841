use tokio_util::sync::CancellationToken;

/// An event that happens once: fires for everybody who waits, and for everybody who waits later.
/// Clones are the same signal.
#[derive(Clone, Debug, Default)]
pub struct Signal(CancellationToken);

impl Signal {
    /// A signal that has not fired.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Fires; once is enough.
    pub fn fire(&self) {
        self.0.cancel();
    }

    /// Says whether it has fired.
    #[must_use]
    pub fn has_fired(&self) -> bool {
        self.0.is_cancelled()
    }

    /// Waits until it fires.
    ///
    /// # Cancel safety
    ///
    /// Nothing is lost when it is dropped.
    pub async fn fired(&self) {
        self.0.cancelled().await;
    }

    /// A signal that fires with this one, or before it by itself.
    pub(crate) fn child(&self) -> Self {
        Self(self.0.child_token())
    }
}
