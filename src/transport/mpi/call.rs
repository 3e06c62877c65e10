//! Every MPI function that kolo calls: each returns a `Result`, and each needs [`Serial`], the process-wide lock.
//!
//! MPI runs at `MPI_THREAD_SERIALIZED`, so no two threads may be inside it at once. The functions are methods of the
//! lock's guard: code that does not hold the lock cannot name them.

use std::ffi::{c_int, c_void};
use std::mem::MaybeUninit;
use std::sync::{Mutex, MutexGuard, PoisonError, TryLockError};
use std::time::{Duration, Instant};

use mpi::ffi;

use crate::error::{Error, Result};

static LOCK: Mutex<()> = Mutex::new(());

/// The right to call MPI. One exists at a time in this process.
pub(super) struct Serial {
    _lock: MutexGuard<'static, ()>,
}

/// A communicator handle.
#[derive(Clone, Copy, Debug)]
pub(super) struct Comm(ffi::MPI_Comm);

// SAFETY: a handle is a name (a pointer into the library, or an integer). Only MPI looks behind it, and MPI is only
// entered by the holder of `Serial`.
unsafe impl Send for Comm {}
// SAFETY: as above; all use is serialised by the lock.
unsafe impl Sync for Comm {}

impl Comm {
    /// The communicator of everything the launcher started.
    pub(super) fn world() -> Self {
        // SAFETY: a constant that the bindings' C side defines; reading it has no precondition.
        Self(unsafe { ffi::RSMPI_COMM_WORLD })
    }

    pub(super) fn from_raw(raw: ffi::MPI_Comm) -> Self {
        Self(raw)
    }
}

/// A transfer that MPI was asked for.
#[derive(Debug)]
pub(super) struct Request(ffi::MPI_Request);

// SAFETY: as for `Comm`: a name that only MPI looks behind, under the lock, from any thread.
unsafe impl Send for Request {}

/// A communicator in the making. Where MPI will write its handle is never freed: one word for each start.
#[derive(Debug)]
pub(super) struct Duplicate {
    place: *mut ffi::MPI_Comm,
    request: Request,
}

/// What came of a receive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Received {
    /// A message of so many bytes.
    Bytes(usize),
    /// It was withdrawn before a message matched it.
    Nothing,
}

/// Takes the lock. Nobody holds it while waiting for a peer, except at the very start and end of MPI.
pub(super) fn serial() -> Serial {
    Serial { _lock: LOCK.lock().unwrap_or_else(PoisonError::into_inner) }
}

/// Takes the lock unless another thread keeps it longer than `patience`.
pub(super) fn serial_within(patience: Duration) -> Option<Serial> {
    let end = Instant::now() + patience;
    loop {
        match LOCK.try_lock() {
            Ok(lock) => return Some(Serial { _lock: lock }),
            Err(TryLockError::Poisoned(lock)) => return Some(Serial { _lock: lock.into_inner() }),
            Err(TryLockError::WouldBlock) if Instant::now() >= end => return None,
            Err(TryLockError::WouldBlock) => std::thread::sleep(Duration::from_millis(1)),
        }
    }
}

/// Ends the whole job. Returns only if MPI refuses.
///
/// Waits a moment for the lock, then goes ahead without it: a thread stuck inside MPI must not keep the job alive.
pub(super) fn abort(comm: Comm, code: i32) -> Error {
    let _serial = serial_within(Duration::from_millis(200));
    // SAFETY: MPI is initialised, for a `Comm` of a started world exists. Entering beside another thread breaks
    // SERIALIZED, which is accepted here because the process ends in this call.
    let answer = unsafe { ffi::MPI_Abort(comm.0, code) };
    check("MPI_Abort", answer).err().unwrap_or_else(|| Error::Mpi {
        call: "MPI_Abort",
        text: "it returned, although it should have ended the process".into(),
    })
}

/// Turns a return code into a `Result` in MPI's own words.
fn check(call: &'static str, code: c_int) -> Result<()> {
    if code == ffi::MPI_SUCCESS as c_int {
        return Ok(());
    }
    let mut text = [0_u8; ffi::MPI_MAX_ERROR_STRING as usize];
    let mut length = 0;
    // SAFETY: the buffer is as long as MPI demands for any message.
    let answer = unsafe { ffi::MPI_Error_string(code, text.as_mut_ptr().cast(), &mut length) };
    let text = if answer == ffi::MPI_SUCCESS as c_int {
        words(&text, length)
    } else {
        format!("error code {code}, for which MPI has no text")
    };
    Err(Error::Mpi { call, text: text.into() })
}

fn words(buffer: &[u8], length: c_int) -> String {
    let length = usize::try_from(length).unwrap_or(0).min(buffer.len());
    String::from_utf8_lossy(&buffer[..length]).trim_end_matches('\0').trim().to_owned()
}

/// The version string of the MPI library that this process has loaded. May be asked at any time.
pub(super) fn library() -> String {
    let mut text = [0_u8; ffi::MPI_MAX_LIBRARY_VERSION_STRING as usize];
    let mut length = 0;
    // SAFETY: the buffer is as long as MPI demands; the call is allowed before init and after finalise.
    let answer = unsafe { ffi::MPI_Get_library_version(text.as_mut_ptr().cast(), &mut length) };
    if answer != ffi::MPI_SUCCESS as c_int {
        return "an MPI library that does not tell its version".to_owned();
    }
    // MPICH answers with its whole configuration; the first line names it.
    words(&text, length).lines().next().unwrap_or_default().split_whitespace().collect::<Vec<_>>().join(" ")
}

impl Serial {
    pub(super) fn initialized(&self) -> Result<bool> {
        let mut flag = 0;
        // SAFETY: allowed at any time; writes one int.
        check("MPI_Initialized", unsafe { ffi::MPI_Initialized(&mut flag) })?;
        Ok(flag != 0)
    }

    pub(super) fn finalized(&self) -> Result<bool> {
        let mut flag = 0;
        // SAFETY: allowed at any time; writes one int.
        check("MPI_Finalized", unsafe { ffi::MPI_Finalized(&mut flag) })?;
        Ok(flag != 0)
    }

    /// Starts MPI and returns the thread level that it grants.
    pub(super) fn init(&self) -> Result<c_int> {
        let mut granted = 0;
        // SAFETY: the caller has seen that MPI is not initialised; null arguments are allowed since MPI-2.
        check("MPI_Init_thread", unsafe {
            ffi::MPI_Init_thread(
                std::ptr::null_mut(),
                std::ptr::null_mut(),
                ffi::MPI_THREAD_SERIALIZED as c_int,
                &mut granted,
            )
        })?;
        Ok(granted)
    }

    pub(super) fn thread_level(&self) -> Result<c_int> {
        let mut level = 0;
        // SAFETY: MPI is initialised; writes one int.
        check("MPI_Query_thread", unsafe { ffi::MPI_Query_thread(&mut level) })?;
        Ok(level)
    }

    pub(super) fn finalize(&self) -> Result<()> {
        // SAFETY: called once, on the thread that initialised, by `exit` after every check.
        check("MPI_Finalize", unsafe { ffi::MPI_Finalize() })
    }

    pub(super) fn rank(&self, comm: Comm) -> Result<c_int> {
        let mut rank = 0;
        // SAFETY: a valid communicator of an initialised MPI; writes one int.
        check("MPI_Comm_rank", unsafe { ffi::MPI_Comm_rank(comm.0, &mut rank) })?;
        Ok(rank)
    }

    pub(super) fn size(&self, comm: Comm) -> Result<c_int> {
        let mut size = 0;
        // SAFETY: a valid communicator of an initialised MPI; writes one int.
        check("MPI_Comm_size", unsafe { ffi::MPI_Comm_size(comm.0, &mut size) })?;
        Ok(size)
    }

    /// Makes errors on `comm` come back as codes and not end the process.
    pub(super) fn return_errors(&self, comm: Comm) -> Result<()> {
        // SAFETY: a valid communicator and a predefined handler.
        check("MPI_Comm_set_errhandler", unsafe { ffi::MPI_Comm_set_errhandler(comm.0, ffi::RSMPI_ERRORS_RETURN) })
    }

    /// Starts to duplicate `comm`.
    pub(super) fn idup(&self, comm: Comm) -> Result<Duplicate> {
        let place: *mut ffi::MPI_Comm = Box::leak(Box::<MaybeUninit<ffi::MPI_Comm>>::new_uninit()).as_mut_ptr().cast();
        let mut request = MaybeUninit::uninit();
        // SAFETY: a valid communicator; `place` is never freed, so the late write of the handle finds it.
        check("MPI_Comm_idup", unsafe { ffi::MPI_Comm_idup(comm.0, place, request.as_mut_ptr()) })?;
        // SAFETY: the call succeeded, so it wrote the request.
        Ok(Duplicate { place, request: Request(unsafe { request.assume_init() }) })
    }

    /// The duplicate, once it is made.
    pub(super) fn duplicated(&self, duplicate: &mut Duplicate) -> Result<Option<Comm>> {
        Ok(match self.test(&mut duplicate.request)? {
            None => None,
            // SAFETY: the request is done, so MPI has written the handle and will not touch it again.
            Some(_) => Some(Comm(unsafe { *duplicate.place })),
        })
    }

    /// The largest tag.
    pub(super) fn tag_limit(&self) -> Result<c_int> {
        let mut value: *mut c_int = std::ptr::null_mut();
        let mut found = 0;
        // SAFETY: this predefined attribute belongs to the world communicator and is a pointer to an int, which is
        // written through the pointer to pointer.
        check("MPI_Comm_get_attr", unsafe {
            ffi::MPI_Comm_get_attr(
                Comm::world().0,
                ffi::MPI_TAG_UB as c_int,
                (&raw mut value).cast::<c_void>(),
                &mut found,
            )
        })?;
        // The least that the standard allows.
        const LEAST: c_int = 32_767;
        if found == 0 || value.is_null() {
            return Ok(LEAST);
        }
        // SAFETY: MPI said that it set the pointer; the attribute lives as long as MPI.
        Ok(unsafe { *value }.max(LEAST))
    }

    /// Starts to send `length` bytes.
    ///
    /// # Safety
    ///
    /// The bytes at `from` stay readable and unchanged until [`sent`](Self::sent) says that the request is over.
    pub(super) unsafe fn isend(
        &self,
        comm: Comm,
        from: *const u8,
        length: usize,
        to: c_int,
        tag: c_int,
    ) -> Result<Request> {
        let count = count(length)?;
        let mut request = MaybeUninit::uninit();
        // SAFETY: the caller keeps the memory; the rest are values.
        check("MPI_Isend", unsafe {
            ffi::MPI_Isend(from.cast(), count, ffi::RSMPI_UINT8_T, to, tag, comm.0, request.as_mut_ptr())
        })?;
        // SAFETY: the call succeeded, so it wrote the request.
        Ok(Request(unsafe { request.assume_init() }))
    }

    /// Starts to receive up to `length` bytes.
    ///
    /// # Safety
    ///
    /// The bytes at `into` stay writable, and nobody else touches them, until [`received`](Self::received) says
    /// that the request is over.
    pub(super) unsafe fn irecv(
        &self,
        comm: Comm,
        into: *mut u8,
        length: usize,
        from: c_int,
        tag: c_int,
    ) -> Result<Request> {
        let count = count(length)?;
        let mut request = MaybeUninit::uninit();
        // SAFETY: the caller keeps the memory; the rest are values.
        check("MPI_Irecv", unsafe {
            ffi::MPI_Irecv(into.cast(), count, ffi::RSMPI_UINT8_T, from, tag, comm.0, request.as_mut_ptr())
        })?;
        // SAFETY: the call succeeded, so it wrote the request.
        Ok(Request(unsafe { request.assume_init() }))
    }

    /// Tag and length of the first message of rank `from` that no receive has matched, if there is one.
    pub(super) fn probe(&self, comm: Comm, from: c_int) -> Result<Option<(c_int, usize)>> {
        let (mut flag, mut bytes) = (0, 0);
        let mut status = MaybeUninit::<ffi::MPI_Status>::zeroed();
        // SAFETY: a valid communicator of an initialised MPI; both out parameters are ours; the tag is a constant that the
        // bindings' C side defines.
        check("MPI_Iprobe", unsafe {
            ffi::MPI_Iprobe(from, ffi::RSMPI_ANY_TAG, comm.0, &mut flag, status.as_mut_ptr())
        })?;
        if flag == 0 {
            return Ok(None);
        }
        // SAFETY: zeroes are a valid status: it consists of integers.
        let status = unsafe { status.assume_init() };
        // SAFETY: a status that MPI has filled, and a predefined datatype.
        check("MPI_Get_count", unsafe { ffi::MPI_Get_count(&status, ffi::RSMPI_UINT8_T, &mut bytes) })?;
        Ok(Some((status.MPI_TAG, usize::try_from(bytes).unwrap_or(0))))
    }

    /// The status of a transfer that is over; `None` while it is not.
    fn test(&self, request: &mut Request) -> Result<Option<ffi::MPI_Status>> {
        let mut flag = 0;
        let mut status = MaybeUninit::<ffi::MPI_Status>::zeroed();
        // SAFETY: an active request that this module made, or the null request; both out parameters are ours.
        check("MPI_Test", unsafe { ffi::MPI_Test(&mut request.0, &mut flag, status.as_mut_ptr()) })?;
        // SAFETY: zeroes are a valid status: it consists of integers.
        Ok((flag != 0).then(|| unsafe { status.assume_init() }))
    }

    /// Whether a send is over. After `true` the request is spent and its memory is the caller's again.
    pub(super) fn sent(&self, request: &mut Request) -> Result<bool> {
        Ok(self.test(request)?.is_some())
    }

    /// What came of a receive; `None` while it is pending. After `Some` the request is spent and its memory is the
    /// caller's again.
    pub(super) fn received(&self, request: &mut Request) -> Result<Option<Received>> {
        let Some(status) = self.test(request)? else { return Ok(None) };
        let (mut cancelled, mut bytes) = (0, 0);
        // SAFETY: a status that MPI has filled.
        check("MPI_Test_cancelled", unsafe { ffi::MPI_Test_cancelled(&status, &mut cancelled) })?;
        if cancelled != 0 {
            return Ok(Some(Received::Nothing));
        }
        // SAFETY: a status that MPI has filled, and a predefined datatype.
        check("MPI_Get_count", unsafe { ffi::MPI_Get_count(&status, ffi::RSMPI_UINT8_T, &mut bytes) })?;
        Ok(Some(Received::Bytes(usize::try_from(bytes).unwrap_or(0))))
    }

    /// Asks MPI to withdraw a receive. It is over, with a message or without, when [`received`](Self::received) says so.
    pub(super) fn cancel(&self, request: &mut Request) -> Result<()> {
        // SAFETY: an active receive request.
        check("MPI_Cancel", unsafe { ffi::MPI_Cancel(&mut request.0) })
    }
}

fn count(length: usize) -> Result<c_int> {
    c_int::try_from(length)
        .map_err(|_| Error::argument(format!("a message of {length} bytes; MPI counts with 31 bits, cut it smaller")))
}
