//! Named operations on borrowed tensors.

use std::cell::RefCell;
use std::fmt;
use std::marker::PhantomData;
use std::sync::Arc;

use super::{Call, Flight, Memory, NamedSet, wait};
use crate::coordinator::Ticket;
use crate::error::Result;

/// Lends tensors to named operations: all that began in a scope have ended when it returns.
///
/// Made by [`Kolo::scope`](crate::Kolo::scope). A borrowed tensor cannot be touched until then:
///
/// ```compile_fail
/// # kolo::threads(1, |kolo| -> kolo::Result<()> {
/// let mut gradient = vec![1.0_f32; 4];
/// kolo.scope(|scope| {
///     scope.allreduce_async("gradient", &mut gradient, kolo::ReduceOp::Sum)?;
///     gradient[0] = 2.0; // in flight: borrowed by the operation
///     Ok(())
/// })
/// # });
/// ```
///
/// and it must outlive the scope:
///
/// ```compile_fail
/// # kolo::threads(1, |kolo| -> kolo::Result<()> {
/// kolo.scope(|scope| {
///     let mut gradient = vec![1.0_f32; 4];
///     scope.allreduce_async("gradient", &mut gradient, kolo::ReduceOp::Sum)?;
///     Ok(())
/// })
/// # });
/// ```
///
/// Both are right like this:
///
/// ```
/// # kolo::threads(1, |kolo| -> kolo::Result<()> {
/// let mut gradient = vec![1.0_f32; 4];
/// kolo.scope(|scope| {
///     scope.allreduce_async("gradient", &mut gradient, kolo::ReduceOp::Sum)?;
///     Ok(())
/// })?;
/// gradient[0] = 2.0;
/// # Ok(())
/// # })?.into_iter().collect::<kolo::Result<Vec<()>>>()?;
/// # Ok::<(), kolo::Error>(())
/// ```
///
/// It has the operations whose results have their place beforehand: allreduce, also of groups, reduce and broadcast. The
/// others make a new result, which a scope has nobody to give to: their `_async` forms take an owned tensor.
pub struct Scope<'scope, 'env: 'scope> {
    pub(crate) set: Arc<NamedSet>,
    begun: RefCell<Vec<(Ticket, Arc<Flight>)>>,
    /// Invariant: a scope must not pretend to live shorter or longer than it does.
    scope: PhantomData<&'scope mut &'scope ()>,
    env: PhantomData<&'env mut &'env ()>,
}

impl fmt::Debug for Scope<'_, '_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Scope").field("begun", &self.begun.borrow().len()).finish_non_exhaustive()
    }
}

/// An operation in flight on a borrowed tensor. Dropping it changes nothing: the scope waits.
pub struct ScopedHandle<'scope> {
    set: Arc<NamedSet>,
    ticket: Ticket,
    flight: Arc<Flight>,
    scope: PhantomData<&'scope ()>,
}

impl fmt::Debug for ScopedHandle<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ScopedHandle").field("name", self.flight.name()).finish_non_exhaustive()
    }
}

impl ScopedHandle<'_> {
    /// The tensor's name.
    #[must_use]
    pub fn name(&self) -> &str {
        self.flight.name()
    }

    /// Whether the operation has ended, well or not.
    #[must_use]
    pub fn poll(&self) -> bool {
        self.flight.is_over()
    }

    /// Waits until the operation has ended. The tensor stays borrowed until the scope returns.
    ///
    /// # Errors
    /// As [`Handle::wait`](super::Handle::wait).
    pub fn wait(self) -> Result<()> {
        wait(&self.set, self.ticket, &self.flight)
    }
}

impl<'scope, 'env> Scope<'scope, 'env> {
    /// Runs `body` and waits for all operations that it began, also if it fails; cancels them if it panics.
    pub(crate) fn run<R>(
        set: &Arc<NamedSet>,
        body: impl for<'s> FnOnce(&'s Scope<'s, 'env>) -> Result<R>,
    ) -> Result<R> {
        let scope = Scope { set: Arc::clone(set), begun: RefCell::default(), scope: PhantomData, env: PhantomData };
        // Cancels whatever is still in flight when it is dropped: on unwinding, and after an error below.
        let guard = CancelOnDrop(&scope);
        let result = body(guard.0);
        let mut first = Ok(());
        for (ticket, flight) in scope.begun.borrow().iter() {
            first = first.and(wait(&scope.set, *ticket, flight));
        }
        drop(guard);
        let value = result?;
        first.map(|()| value)
    }

    /// Begins an operation on memory borrowed for `'env`.
    pub(crate) fn begin(&'scope self, name: &str, call: &Call, memory: Memory) -> Result<ScopedHandle<'scope>> {
        let (ticket, flight) = self.set.begin(name, call, memory, false)?;
        self.begun.borrow_mut().push((ticket, Arc::clone(&flight)));
        Ok(ScopedHandle { set: Arc::clone(&self.set), ticket, flight, scope: PhantomData })
    }
}

struct CancelOnDrop<'a, 'scope, 'env>(&'a Scope<'scope, 'env>);

impl Drop for CancelOnDrop<'_, '_, '_> {
    fn drop(&mut self) {
        for (ticket, flight) in self.0.begun.borrow().iter() {
            if !flight.is_over() {
                self.0.set.cancel(*ticket);
            }
        }
    }
}
