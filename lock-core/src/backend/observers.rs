use std::sync::{OnceLock, Weak};

use crate::AcquisitionObserver;

/// Observers of one acquisition, in a list that only grows: there are one or two of them, usually
/// none, and then it takes no memory and one atomic load.
#[derive(Debug, Default)]
pub(crate) struct Observers(OnceLock<Box<Node>>);

#[derive(Debug)]
struct Node {
    observer: Weak<dyn AcquisitionObserver>,
    next: Observers,
}

impl Observers {
    pub(super) fn add(&self, observer: Weak<dyn AcquisitionObserver>) {
        let mut node = Box::new(Node {
            observer,
            next: Self::default(),
        });
        let mut last = self;
        while let Err(refused) = last.0.set(node) {
            node = refused;
            match last.0.get() {
                Some(taken) => last = &taken.next,
                None => return,
            }
        }
    }

    pub(super) fn for_each(&self, act: impl Fn(&dyn AcquisitionObserver)) {
        let mut rest = self;
        while let Some(node) = rest.0.get() {
            if let Some(observer) = node.observer.upgrade() {
                act(&*observer);
            }
            rest = &node.next;
        }
    }
}
