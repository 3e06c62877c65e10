//! Handles that are no pointers: one that was destroyed, or that is of another kind, is an error and not a crash.

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use crate::codes::{self, Result};

/// No stream, event or module has a handle that another kind has had. The first ones mean the default streams.
static NEXT: AtomicUsize = AtomicUsize::new(0x1000);

/// All objects of one kind.
pub(crate) struct Registry<T> {
    objects: Mutex<Option<HashMap<usize, Arc<T>>>>,
}

impl<T> Registry<T> {
    pub(crate) const fn new() -> Self {
        Self { objects: Mutex::new(None) }
    }

    fn with<R>(&self, act: impl FnOnce(&mut HashMap<usize, Arc<T>>) -> R) -> R {
        let mut objects = self.objects.lock().unwrap_or_else(PoisonError::into_inner);
        act(objects.get_or_insert_default())
    }

    /// Gives the object that `make` makes of its handle a place.
    pub(crate) fn add(&self, make: impl FnOnce(usize) -> T) -> (usize, Arc<T>) {
        let handle = NEXT.fetch_add(0x10, Ordering::Relaxed);
        let object = Arc::new(make(handle));
        self.with(|objects| objects.insert(handle, object.clone()));
        (handle, object)
    }

    pub(crate) fn get(&self, handle: usize) -> Result<Arc<T>> {
        self.with(|objects| objects.get(&handle).cloned()).ok_or(codes::INVALID_HANDLE)
    }

    pub(crate) fn remove(&self, handle: usize) -> Result<Arc<T>> {
        self.with(|objects| objects.remove(&handle)).ok_or(codes::INVALID_HANDLE)
    }

    /// Forgets those that are not wanted.
    pub(crate) fn retain(&self, wanted: impl Fn(&T) -> bool) {
        self.with(|objects| objects.retain(|_, object| wanted(object)));
    }

    pub(crate) fn all(&self) -> Vec<Arc<T>> {
        self.with(|objects| objects.values().cloned().collect())
    }

    pub(crate) fn count(&self) -> usize {
        self.with(|objects| objects.len())
    }
}
