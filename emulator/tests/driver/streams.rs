//! Streams and events: what is in order, and what is not.

use std::ffi::c_void;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc;
use std::time::Duration;

use cudarc::driver::{CudaContext, CudaStream, result, sys};

use crate::common::{code, gpu, statistic};

/// A function of the host that holds its stream until it is let go.
struct Gate {
    open: mpsc::Sender<()>,
    _receiver: Box<mpsc::Receiver<()>>,
}

impl Gate {
    fn on(stream: &CudaStream) -> Self {
        extern "C" fn wait(data: *mut c_void) {
            // SAFETY: the gate keeps the receiver where it is, and lives until its stream has been drained.
            let wait = unsafe { &*data.cast::<mpsc::Receiver<()>>() };
            wait.recv_timeout(Duration::from_secs(30)).expect("somebody opens the gate");
        }
        let (open, receiver) = mpsc::channel();
        let receiver = Box::new(receiver);
        let data = (&raw const *receiver).cast_mut().cast();
        // SAFETY: as above.
        unsafe { result::stream::launch_host_function(stream.cu_stream(), wait, data).unwrap() };
        Self { open, _receiver: receiver }
    }

    fn open(&self) {
        self.open.send(()).expect("the stream waits");
    }
}

case!(calls_return_before_the_work_is_done, || {
    let (_context, stream) = gpu();
    let gate = Gate::on(&stream);
    let event = stream.record_event(None).unwrap();
    assert!(!event.try_is_complete().unwrap());
    // SAFETY: a live stream.
    let status = unsafe { sys::cuStreamQuery(stream.cu_stream()) };
    assert_eq!(status, sys::CUresult::CUDA_ERROR_NOT_READY);
    gate.open();
    event.synchronize().unwrap();
    assert!(event.try_is_complete().unwrap());
    stream.synchronize().unwrap();
});

case!(a_wait_is_for_the_record_before_it, || {
    let (context, one) = gpu();
    let (two, three) = (context.new_stream().unwrap(), context.new_stream().unwrap());
    let event = context.new_event(None).unwrap();
    // Never recorded: nobody waits.
    two.wait(&event).unwrap();
    two.synchronize().unwrap();
    let first = Gate::on(&one);
    event.record(&one).unwrap();
    two.wait(&event).unwrap();
    let second = Gate::on(&one);
    event.record(&one).unwrap();
    three.wait(&event).unwrap();
    first.open();
    // The second record is still out, and yet the second stream goes on.
    two.synchronize().unwrap();
    // SAFETY: a live stream.
    let status = unsafe { sys::cuStreamQuery(three.cu_stream()) };
    assert_eq!(status, sys::CUresult::CUDA_ERROR_NOT_READY);
    second.open();
    three.synchronize().unwrap();
    one.synchronize().unwrap();
});

/// Copies on one stream what another has been told to write there; returns what it got.
fn handed_over(joined: bool) -> u32 {
    let (context, one) = gpu();
    let two = context.new_stream().unwrap();
    // SAFETY: raw calls on live memory; what happens out of order is what the case is about.
    unsafe {
        let shared = result::malloc_sync(4).unwrap();
        result::memcpy_htod_sync(shared, &[1_u32]).unwrap();
        sys::cuMemsetD32Async(shared, 9, 1, one.cu_stream()).result().unwrap();
        if joined {
            two.join(&one).unwrap();
        }
        let mut got = [0_u32];
        result::memcpy_dtoh_async(&mut got, shared, two.cu_stream()).unwrap();
        one.synchronize().unwrap();
        result::free_sync(shared).unwrap();
        got[0]
    }
}

// Fills begin late, copies do not: whoever forgets to wait reads the old value.
case!(a_forgotten_wait_is_seen, env = [("KOLO_EMULATOR_DELAYS", "set=100000")], || {
    assert_eq!((handed_over(false), handed_over(true)), (1, 9));
});

case!(a_stream_that_nobody_waits_for_is_behind, || {
    let (context, one) = gpu();
    let two = context.new_stream().unwrap();
    // SAFETY: raw calls on live memory.
    unsafe {
        let shared = result::malloc_sync(4).unwrap();
        result::memset_d8_sync(shared, 1, 4).unwrap();
        context.synchronize().unwrap();
        let gate = Gate::on(&one);
        result::memset_d8_async(shared, 9, 4, one.cu_stream()).unwrap();
        let mut got = [0_u32];
        // Without a wait: the old value, however long the writer takes.
        result::memcpy_dtoh_async(&mut got, shared, two.cu_stream()).unwrap();
        assert_eq!(got, [0x0101_0101]);
        gate.open();
        two.join(&one).unwrap();
        result::memcpy_dtoh_async(&mut got, shared, two.cu_stream()).unwrap();
        assert_eq!(got, [0x0909_0909]);
        result::free_sync(shared).unwrap();
    }
});

case!(the_null_stream_is_in_order_with_blocking_ones, || {
    let (context, free) = gpu();
    let mut blocking = std::ptr::null_mut();
    let null = std::ptr::null_mut();
    // SAFETY: raw calls with handles of live objects.
    unsafe {
        sys::cuStreamCreate(&mut blocking, 0).result().unwrap();
        let memory = result::malloc_sync(4).unwrap();
        let gate = Gate::on(&free);
        // The NULL stream does not wait for a non-blocking one, and a blocking one does for it.
        result::memset_d8_async(memory, 1, 4, null).unwrap();
        result::memset_d8_async(memory, 2, 4, blocking).unwrap();
        let mut got = [0_u32];
        result::memcpy_dtoh_async(&mut got, memory, null).unwrap();
        assert_eq!(got, [0x0202_0202]);
        gate.open();
        free.synchronize().unwrap();
        result::free_sync(memory).unwrap();
        result::stream::destroy(blocking).unwrap();
    }
    context.synchronize().unwrap();
});

case!(each_thread_has_a_stream_of_its_own, || {
    let (context, _stream) = gpu();
    let own = context.per_thread_stream();
    let gate = Gate::on(&own);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            // The other thread's: it is idle, whatever this one's does.
            context.per_thread_stream().synchronize().unwrap();
        });
    });
    gate.open();
    own.synchronize().unwrap();
});

case!(host_functions_run_in_order_and_may_not_call, || {
    static SEEN: AtomicU32 = AtomicU32::new(0);
    extern "C" fn note(data: *mut c_void) {
        let before = SEEN.load(Ordering::Relaxed);
        // SAFETY: a call that is refused.
        let refused = unsafe { sys::cuCtxSynchronize() };
        let right = before == data as usize as u32 && refused == sys::CUresult::CUDA_ERROR_NOT_PERMITTED;
        SEEN.store(if right { before + 1 } else { 1000 }, Ordering::Relaxed);
    }
    let (_context, stream) = gpu();
    for number in 0..10_usize {
        // SAFETY: the function takes a number for a pointer.
        unsafe { result::stream::launch_host_function(stream.cu_stream(), note, number as *mut c_void).unwrap() };
    }
    stream.synchronize().unwrap();
    assert_eq!(SEEN.load(Ordering::Relaxed), 10);
});

case!(a_destroyed_stream_does_what_it_was_told, || {
    let (context, _stream) = gpu();
    let doomed = context.new_stream().unwrap();
    let gate = Gate::on(&doomed);
    let event = doomed.record_event(None).unwrap();
    let handle = doomed.cu_stream();
    drop(doomed);
    assert!(!event.try_is_complete().unwrap());
    // SAFETY: the call checks the handle.
    let gone = unsafe { sys::cuStreamSynchronize(handle) };
    assert_eq!(gone, sys::CUresult::CUDA_ERROR_INVALID_HANDLE);
    gate.open();
    event.synchronize().unwrap();
});

case!(priorities_are_kept, || {
    let (context, _stream) = gpu();
    let (least, greatest) = result::stream::get_priority_range().unwrap();
    assert!(greatest < least);
    let urgent = context.new_stream_with_priority(greatest).unwrap();
    let mut priority = 0;
    // SAFETY: a live stream.
    unsafe { sys::cuStreamGetPriority(urgent.cu_stream(), &mut priority).result().unwrap() };
    assert_eq!(priority, greatest);
});

case!(events_tell_the_time_between_them, || {
    let (context, stream) = gpu();
    let flags = Some(sys::CUevent_flags::CU_EVENT_DEFAULT);
    let start = stream.record_event(flags).unwrap();
    let end = stream.record_event(flags).unwrap();
    stream.synchronize().unwrap();
    assert!(start.elapsed_ms(&end).unwrap() >= 0.0);
    // It waits for both, and events that were made without a clock have no time.
    let untimed = context.new_event(Some(sys::CUevent_flags::CU_EVENT_DISABLE_TIMING)).unwrap();
    untimed.record(&stream).unwrap();
    assert_eq!(code(start.elapsed_ms(&untimed)), sys::CUresult::CUDA_ERROR_INVALID_HANDLE);
});

// cudarc's own bookkeeping: two events for each slice, waits on each use.
case!(event_tracking_orders_streams, || {
    let context = CudaContext::new(0).unwrap();
    let (one, two) = (context.new_stream().unwrap(), context.new_stream().unwrap());
    assert!(context.is_event_tracking());
    let mut data = one.alloc_zeros::<u32>(1000).unwrap();
    one.synchronize().unwrap();
    let gate = Gate::on(&one);
    one.memcpy_htod(&[5_u32; 1000], &mut data).unwrap();
    std::thread::scope(|scope| {
        let open = &gate.open;
        scope.spawn(move || open.send(()).expect("the stream waits"));
        // The other stream reads only when the first one has written.
        assert_eq!(two.clone_dtoh(&data).unwrap(), [5; 1000]);
    });
    assert!(statistic("events") >= 2);
});

case!(words_of_memory_order_streams, || {
    let (context, one) = gpu();
    let two = context.new_stream().unwrap();
    // SAFETY: raw calls on live memory and streams.
    unsafe {
        let flag = result::malloc_sync(4).unwrap();
        result::memset_d8_sync(flag, 0, 4).unwrap();
        context.synchronize().unwrap();
        sys::cuStreamWaitValue32_v2(one.cu_stream(), flag, 3, 0).result().unwrap();
        let event = one.record_event(None).unwrap();
        sys::cuStreamWriteValue32_v2(two.cu_stream(), flag, 2, 0).result().unwrap();
        two.synchronize().unwrap();
        assert!(!event.try_is_complete().unwrap());
        sys::cuStreamWriteValue32_v2(two.cu_stream(), flag, 4, 0).result().unwrap();
        event.synchronize().unwrap();
        result::free_sync(flag).unwrap();
    }
});
