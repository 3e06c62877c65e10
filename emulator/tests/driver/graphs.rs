//! Captures and graphs.

use std::sync::Arc;

use cudarc::driver::{CudaContext, CudaFunction, CudaGraph, CudaStream, DriverError, PushKernelArg as _, result, sys};

use crate::common::{BASIC, blocks_of, code, gpu, kernel, statistic};

const MODE: sys::CUstreamCaptureMode = sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;

fn end(stream: &Arc<CudaStream>) -> Result<Option<CudaGraph>, DriverError> {
    stream.end_capture(sys::CUgraphInstantiate_flags(0))
}

fn scale(stream: &Arc<CudaStream>, function: &CudaFunction, memory: u64, by: f32) {
    let mut launch = stream.launch_builder(function);
    launch.arg(&memory).arg(&4_u64).arg(&by);
    // SAFETY: the callers give four floats.
    unsafe { launch.launch(blocks_of(1, 32)).unwrap() };
}

/// Four ones on the device.
fn ones() -> u64 {
    // SAFETY: sixteen fresh bytes, freed by the callers.
    unsafe {
        let memory = result::malloc_sync(16).unwrap();
        result::memcpy_htod_sync(memory, &[1.0_f32; 4]).unwrap();
        memory
    }
}

fn read(memory: u64) -> [f32; 4] {
    let mut back = [0.0; 4];
    // SAFETY: sixteen live bytes.
    unsafe { result::memcpy_dtoh_sync(&mut back, memory).unwrap() };
    back
}

fn free(memory: u64) {
    // SAFETY: each case frees what it got from `ones`, once.
    unsafe { result::free_sync(memory).unwrap() };
}

case!(a_graph_does_again_what_was_captured, || {
    let (context, one) = gpu();
    let two = context.new_stream().unwrap();
    let function = kernel(&context, BASIC, "kolo_test_scale");
    let memory = ones();
    one.begin_capture(MODE).unwrap();
    scale(&one, &function, memory, 2.0);
    // Another stream joins by an event, and comes back by one.
    two.wait(&one.record_event(None).unwrap()).unwrap();
    scale(&two, &function, memory, 5.0);
    one.wait(&two.record_event(None).unwrap()).unwrap();
    assert_eq!(one.capture_status().unwrap(), sys::CUstreamCaptureStatus::CU_STREAM_CAPTURE_STATUS_ACTIVE);
    let graph = end(&one).unwrap().unwrap();
    assert_eq!(one.capture_status().unwrap(), sys::CUstreamCaptureStatus::CU_STREAM_CAPTURE_STATUS_NONE);
    // Nothing has been done yet.
    assert_eq!(read(memory), [1.0; 4]);
    graph.upload().unwrap();
    graph.launch().unwrap();
    graph.launch().unwrap();
    one.synchronize().unwrap();
    assert_eq!(read(memory), [100.0; 4]);
    assert_eq!(statistic("kernel/kolo_test_scale"), 4);
    assert_eq!(statistic("graphs"), 2);
    drop(graph);
    assert_eq!(statistic("graphs"), 0);
    free(memory);
});

case!(waiting_ends_a_capture_in_vain, || {
    let (_context, stream) = gpu();
    stream.begin_capture(MODE).unwrap();
    assert_eq!(code(stream.synchronize()), sys::CUresult::CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED);
    let status = stream.capture_status().unwrap();
    assert_eq!(status, sys::CUstreamCaptureStatus::CU_STREAM_CAPTURE_STATUS_INVALIDATED);
    assert_eq!(code(end(&stream).map(drop)), sys::CUresult::CUDA_ERROR_STREAM_CAPTURE_INVALIDATED);
    stream.synchronize().unwrap();
});

case!(allocating_ends_a_capture_in_vain, || {
    let (_context, stream) = gpu();
    stream.begin_capture(MODE).unwrap();
    // SAFETY: refused.
    let refused = unsafe { result::malloc_sync(16) };
    assert_eq!(code(refused), sys::CUresult::CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED);
    assert_eq!(code(end(&stream).map(drop)), sys::CUresult::CUDA_ERROR_STREAM_CAPTURE_INVALIDATED);
});

case!(a_capture_knows_no_event_from_outside, || {
    let (context, one) = gpu();
    let two = context.new_stream().unwrap();
    let outside = two.record_event(None).unwrap();
    one.begin_capture(MODE).unwrap();
    assert_eq!(code(one.wait(&outside)), sys::CUresult::CUDA_ERROR_STREAM_CAPTURE_ISOLATION);
    assert_eq!(code(end(&one).map(drop)), sys::CUresult::CUDA_ERROR_STREAM_CAPTURE_INVALIDATED);
});

case!(a_stream_that_joins_must_come_back, || {
    let (context, one) = gpu();
    let two = context.new_stream().unwrap();
    let function = kernel(&context, BASIC, "kolo_test_scale");
    let memory = ones();
    one.begin_capture(MODE).unwrap();
    two.wait(&one.record_event(None).unwrap()).unwrap();
    scale(&two, &function, memory, 5.0);
    assert_eq!(code(end(&one).map(drop)), sys::CUresult::CUDA_ERROR_STREAM_CAPTURE_UNJOINED);
    two.synchronize().unwrap();
    assert_eq!(read(memory), [1.0; 4]);
    free(memory);
});

case!(a_captured_event_has_no_time, || {
    let (_context, stream) = gpu();
    stream.begin_capture(MODE).unwrap();
    let event = stream.record_event(None).unwrap();
    assert_eq!(code(event.try_is_complete()), sys::CUresult::CUDA_ERROR_CAPTURED_EVENT);
    assert_eq!(code(end(&stream).map(drop)), sys::CUresult::CUDA_ERROR_STREAM_CAPTURE_INVALIDATED);
    // Recorded again, it is an event as any other.
    event.record(&stream).unwrap();
    event.synchronize().unwrap();
});

case!(captures_begin_and_end_once_and_where_they_may, || {
    let (context, stream) = gpu();
    assert_eq!(code(end(&stream).map(drop)), sys::CUresult::CUDA_ERROR_ILLEGAL_STATE);
    let null = context.default_stream();
    assert_eq!(code(null.begin_capture(MODE)), sys::CUresult::CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED);
    stream.begin_capture(MODE).unwrap();
    assert_eq!(code(stream.begin_capture(MODE)), sys::CUresult::CUDA_ERROR_ILLEGAL_STATE);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let elsewhere = end(&stream).map(drop);
            assert_eq!(code(elsewhere), sys::CUresult::CUDA_ERROR_STREAM_CAPTURE_WRONG_THREAD);
        });
    });
    drop(end(&stream).unwrap().unwrap());
});

// With cudarc's event tracking each launch waits for the last use of its slices, which was before the capture.
case!(event_tracking_and_captures_do_not_mix, || {
    let context = CudaContext::new(0).unwrap();
    let (stream, other) = (context.new_stream().unwrap(), context.new_stream().unwrap());
    let mut data = other.alloc_zeros::<u8>(16).unwrap();
    other.memcpy_htod(&[1_u8; 16], &mut data).unwrap();
    context.synchronize().unwrap();
    stream.begin_capture(MODE).unwrap();
    let refused = stream.memset_zeros(&mut data);
    assert_eq!(code(refused), sys::CUresult::CUDA_ERROR_STREAM_CAPTURE_INVALIDATED);
    // The wait itself has failed before, in a place where cudarc can only keep the error for later.
    assert_eq!(code(context.check_err()), sys::CUresult::CUDA_ERROR_STREAM_CAPTURE_ISOLATION);
    assert_eq!(code(end(&stream).map(drop)), sys::CUresult::CUDA_ERROR_STREAM_CAPTURE_INVALIDATED);
});
