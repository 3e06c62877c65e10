//! What every call goes through: the trace, injected faults, the checks that come before all others, and the pointers
//! that a C caller hands over.

use std::cell::Cell;
use std::ffi::{CStr, c_char};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use crate::codes::{self, Code, Result};
use crate::context::{self, Context};
use crate::{device, trace};

/// What must hold before a call does anything.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Level {
    /// Nothing.
    Free,
    /// `cuInit` has been called, in this very process.
    Driver,
    /// The thread has a current context, and the context has no sticky error.
    Context,
    /// As `Context`, but the call releases something: it does so even after a sticky error, and then returns the error.
    Release,
}

/// A call in progress.
pub(crate) struct Call {
    context: Option<Arc<Context>>,
}

impl Call {
    /// The thread's current context. Calls of the levels below `Context` have none.
    pub(crate) fn context(&self) -> Result<&Arc<Context>> {
        self.context.as_ref().ok_or(codes::INVALID_CONTEXT)
    }
}

/// The process that called `cuInit`; its children by fork must not go on with what it left.
static PROCESS: AtomicU32 = AtomicU32::new(0);

thread_local! {
    static IN_HOST_FUNCTION: Cell<bool> = const { Cell::new(false) };
}

/// Remembers which process has initialised the driver.
pub(crate) fn initialised() {
    PROCESS.store(std::process::id(), Ordering::Release);
}

/// Marks this thread as one that runs the caller's host functions, which may make no calls.
pub(crate) fn in_host_function(inside: bool) {
    IN_HOST_FUNCTION.set(inside);
}

/// Runs one call of the API; returns what the caller gets.
pub(crate) fn enter(name: &str, level: Level, body: impl FnOnce(&Call) -> Result<()>) -> u32 {
    let code = match checked(name, level, body) {
        Ok(()) => 0,
        Err(Code(code)) => code,
    };
    trace::call(name, code);
    code
}

fn checked(name: &str, level: Level, body: impl FnOnce(&Call) -> Result<()>) -> Result<()> {
    if let Some(code) = crate::faults::of_call(name) {
        return Err(code);
    }
    if level == Level::Free {
        return body(&Call { context: None });
    }
    if IN_HOST_FUNCTION.get() {
        return Err(codes::NOT_PERMITTED);
    }
    // A child by fork has none of the threads that move streams.
    if device::devices().is_none() || PROCESS.load(Ordering::Acquire) != std::process::id() {
        return Err(codes::NOT_INITIALIZED);
    }
    if level == Level::Driver {
        return body(&Call { context: context::current() });
    }
    let context = context::current().ok_or(codes::INVALID_CONTEXT)?;
    let call = Call { context: Some(context.clone()) };
    if level == Level::Release {
        body(&call)?;
        return context.check();
    }
    context.check()?;
    body(&call)
}

/// Where a result goes.
#[repr(transparent)]
#[derive(Clone, Copy, Debug)]
pub(crate) struct Out<T>(*mut T);

impl<T> Out<T> {
    /// Hands the result over.
    pub(crate) fn set(self, value: T) -> Result<()> {
        if self.0.is_null() {
            return Err(codes::INVALID_VALUE);
        }
        // SAFETY: the caller of the C function gives a place for one T, and nobody else uses it during the call.
        unsafe { self.0.write_unaligned(value) };
        Ok(())
    }

    /// Whether the caller wants no result.
    pub(crate) fn is_null(&self) -> bool {
        self.0.is_null()
    }

    /// Hands the result over to a caller that may not want it.
    pub(crate) fn set_if_wanted(self, value: T) {
        if !self.0.is_null() {
            // SAFETY: as in `set`.
            unsafe { self.0.write_unaligned(value) };
        }
    }
}

impl Out<c_char> {
    /// Hands over a text of at most `bytes` bytes with its final zero.
    pub(crate) fn set_text(self, text: &str, bytes: usize) -> Result<()> {
        if self.0.is_null() || bytes == 0 {
            return Err(codes::INVALID_VALUE);
        }
        let kept = text.len().min(bytes - 1);
        // SAFETY: the caller gives a place for `bytes` bytes, and `kept` and a zero are no more than that.
        unsafe {
            self.0.copy_from_nonoverlapping(text.as_ptr().cast(), kept);
            self.0.add(kept).write(0);
        }
        Ok(())
    }
}

/// A value or an array that the caller hands in.
#[repr(transparent)]
#[derive(Clone, Copy, Debug)]
pub(crate) struct In<T>(*const T);

impl<T: Copy> In<T> {
    /// The value, if the caller gave one.
    pub(crate) fn get(self) -> Result<T> {
        self.at(0)
    }

    /// The value at `index` of an array that the caller promises to be longer than that.
    pub(crate) fn at(self, index: usize) -> Result<T> {
        if self.0.is_null() {
            return Err(codes::INVALID_VALUE);
        }
        // SAFETY: the caller of the C function gives an array of more than `index` elements, valid during the call.
        Ok(unsafe { self.0.add(index).read_unaligned() })
    }

    /// The pointer itself, if it is one.
    pub(crate) fn pointer(self) -> Result<*const T> {
        if self.0.is_null() { Err(codes::INVALID_VALUE) } else { Ok(self.0) }
    }
}

impl In<c_char> {
    /// A text that ends with a zero.
    pub(crate) fn text(self) -> Result<String> {
        if self.0.is_null() {
            return Err(codes::INVALID_VALUE);
        }
        // SAFETY: the caller of the C function gives a text that ends with a zero, valid during the call.
        let text = unsafe { CStr::from_ptr(self.0) };
        Ok(text.to_string_lossy().into_owned())
    }
}

/// Defines functions of the driver API. `at LEVEL` says what must hold before the body runs.
macro_rules! api {
    ($($(#[$doc:meta])* fn $name:ident($($arg:ident: $type:ty),* $(,)?) at $level:ident |$call:pat_param| $body:block)*) => {
        /// The names of the functions that this module defines.
        pub(crate) const NAMES: &[&str] = &[$(stringify!($name)),*];

        $($(#[$doc])*
        #[unsafe(no_mangle)]
        pub(crate) extern "C" fn $name($($arg: $type),*) -> u32 {
            $crate::entry::enter(stringify!($name), $crate::entry::Level::$level, |$call| $body)
        })*
    };
}

/// Whether a function of this name is exported.
pub(crate) fn exports(name: &str) -> bool {
    use crate::{context, copy, device, event, graph, host_memory, ipc, launch, memory, module, pool, stream};
    let modules = [
        NAMES,
        context::NAMES,
        copy::NAMES,
        device::NAMES,
        event::NAMES,
        graph::NAMES,
        host_memory::NAMES,
        ipc::NAMES,
        launch::NAMES,
        memory::NAMES,
        module::NAMES,
        pool::NAMES,
        stream::NAMES,
    ];
    modules.iter().any(|names| names.contains(&name))
}

/// Prints what an operation's failure was; the code that reaches the caller later says much less.
pub(crate) fn complain(message: &str) {
    trace::note(message);
    eprintln!("kolo emulator: {message}");
}

api! {
    /// The name of a code.
    fn cuGetErrorName(code: u32, text: Out<*const c_char>) at Free |_| {
        let name = codes::name(code).ok_or(codes::INVALID_VALUE)?;
        text.set(name.as_ptr())
    }

    /// The sentence that goes with a code.
    fn cuGetErrorString(code: u32, text: Out<*const c_char>) at Free |_| {
        let sentence = codes::text(code).ok_or(codes::INVALID_VALUE)?;
        text.set(sentence.as_ptr())
    }
}
