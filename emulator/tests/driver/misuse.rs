//! Mistakes of kernels: each is an error of the device, which stays.

use std::sync::Arc;

use cudarc::driver::{CudaContext, CudaStream, PushKernelArg as _, result, sys};

use crate::common::{BASIC, MEET, WAIT, blocks_of, code, gpu, kernel};

/// The stream and the context have failed with this code, and every call says so from now on. After a reset all is well.
fn has_failed(context: &Arc<CudaContext>, stream: &Arc<CudaStream>, expected: sys::CUresult) {
    assert_eq!(code(stream.synchronize()), expected);
    assert_eq!(code(stream.alloc_zeros::<u8>(1).map(drop)), expected);
    assert_eq!(code(context.synchronize()), expected);
    // SAFETY: nothing of the context is used after this, other than to be dropped.
    unsafe {
        sys::cuDevicePrimaryCtxReset_v2(context.cu_device()).result().unwrap();
        let mut fresh = std::ptr::null_mut();
        sys::cuDevicePrimaryCtxRetain(&mut fresh, context.cu_device()).result().unwrap();
        result::ctx::set_current(fresh).unwrap();
        let memory = result::malloc_sync(16).unwrap();
        result::free_sync(memory).unwrap();
        sys::cuDevicePrimaryCtxRelease_v2(context.cu_device()).result().unwrap();
    }
}

/// Runs a kernel that writes past the end of 1000 floats.
fn stray(past: u64) -> (Arc<CudaContext>, Arc<CudaStream>, u64) {
    let (context, stream) = gpu();
    let function = kernel(&context, BASIC, "kolo_test_stray");
    // SAFETY: the kernel writes outside of it, which is the point.
    let memory = unsafe { result::malloc_sync(4000).unwrap() };
    let mut launch = stream.launch_builder(&function);
    launch.arg(&memory).arg(&1000_u64).arg(&past);
    // SAFETY: as above.
    unsafe { launch.launch(blocks_of(1, 1)).unwrap() };
    (context, stream, memory)
}

case!(a_write_far_past_the_end_is_illegal, leaves = "device_memory 1", || {
    let (context, stream, _) = stray(1000);
    has_failed(&context, &stream, sys::CUresult::CUDA_ERROR_ILLEGAL_ADDRESS);
});

case!(a_write_just_past_the_end_is_seen_when_memory_is_freed, || {
    let (context, stream, memory) = stray(1);
    stream.synchronize().unwrap();
    // SAFETY: allocated above.
    let freed = unsafe { result::free_sync(memory) };
    assert_eq!(code(freed), sys::CUresult::CUDA_ERROR_ILLEGAL_ADDRESS);
    has_failed(&context, &stream, sys::CUresult::CUDA_ERROR_ILLEGAL_ADDRESS);
});

case!(memory_that_was_freed_is_gone, || {
    let (context, stream) = gpu();
    let function = kernel(&context, BASIC, "kolo_test_fill");
    // SAFETY: freed before its use, which is the point.
    let memory = unsafe { result::malloc_sync(4000).unwrap() };
    unsafe_free(memory);
    let mut launch = stream.launch_builder(&function);
    launch.arg(&memory).arg(&1000_u32).arg(&1_u32);
    // SAFETY: as above.
    unsafe { launch.launch(blocks_of(1, 32)).unwrap() };
    has_failed(&context, &stream, sys::CUresult::CUDA_ERROR_ILLEGAL_ADDRESS);
});

fn unsafe_free(memory: u64) {
    // SAFETY: the callers allocated it.
    unsafe { result::free_sync(memory).unwrap() };
}

case!(a_null_pointer_is_illegal, || {
    let (context, stream) = gpu();
    let function = kernel(&context, BASIC, "kolo_test_trap");
    let mut launch = stream.launch_builder(&function);
    launch.arg(&0_u64);
    // SAFETY: the kernel reads at 0, which is the point.
    unsafe { launch.launch(blocks_of(1, 1)).unwrap() };
    has_failed(&context, &stream, sys::CUresult::CUDA_ERROR_ILLEGAL_ADDRESS);
});

case!(sixteen_bytes_at_an_odd_address_are_misaligned, leaves = "device_memory 1", || {
    let (context, stream) = gpu();
    let function = kernel(&context, BASIC, "kolo_test_wide");
    // SAFETY: 64 bytes; leaked, since the device fails.
    let memory = unsafe { result::malloc_sync(64).unwrap() };
    let (odd, to) = (memory + 4, memory + 32);
    let mut launch = stream.launch_builder(&function);
    launch.arg(&odd).arg(&to);
    // SAFETY: as above.
    unsafe { launch.launch(blocks_of(1, 1)).unwrap() };
    has_failed(&context, &stream, sys::CUresult::CUDA_ERROR_MISALIGNED_ADDRESS);
});

case!(a_trap_is_a_failed_launch, leaves = "device_memory 1", || {
    let (context, stream) = gpu();
    let function = kernel(&context, BASIC, "kolo_test_trap");
    // SAFETY: four bytes; leaked, since the device fails.
    let memory = unsafe { result::malloc_sync(4).unwrap() };
    let mut launch = stream.launch_builder(&function);
    launch.arg(&memory);
    // SAFETY: as above.
    unsafe { launch.launch(blocks_of(2, 64)).unwrap() };
    has_failed(&context, &stream, sys::CUresult::CUDA_ERROR_LAUNCH_FAILED);
});

/// Runs a kernel of `meet.cu` that misuses barriers or shared memory.
fn meets_wrongly(name: &str, index: Option<u32>, expected: sys::CUresult) {
    let (context, stream) = gpu();
    let function = kernel(&context, MEET, name);
    // SAFETY: room for every thread; leaked, since the device fails.
    let memory = unsafe { result::malloc_sync(4096).unwrap() };
    let mut launch = stream.launch_builder(&function);
    launch.arg(&memory);
    if let Some(index) = &index {
        launch.arg(index);
    }
    // SAFETY: as above.
    unsafe { launch.launch(blocks_of(2, 64)).unwrap() };
    has_failed(&context, &stream, expected);
}

case!(threads_that_left_do_not_meet, leaves = "device_memory 1", || {
    meets_wrongly("kolo_test_left", None, sys::CUresult::CUDA_ERROR_LAUNCH_FAILED);
});

case!(threads_that_diverged_do_not_meet, leaves = "device_memory 1", || {
    meets_wrongly("kolo_test_diverged", None, sys::CUresult::CUDA_ERROR_LAUNCH_FAILED);
});

case!(
    threads_that_diverged_do_not_meet_by_ucontext,
    env = [("KOLO_EMULATOR_FIBERS", "ucontext")],
    leaves = "device_memory 1",
    || {
        meets_wrongly("kolo_test_diverged", None, sys::CUresult::CUDA_ERROR_LAUNCH_FAILED);
    }
);

case!(an_index_outside_of_shared_memory_is_illegal, leaves = "device_memory 1", || {
    meets_wrongly("kolo_test_shared_index", Some(1), sys::CUresult::CUDA_ERROR_ILLEGAL_ADDRESS);
});

case!(a_wait_in_vain_times_out, env = [("KOLO_EMULATOR_SPIN_LIMIT_MS", "50")], leaves = "device_memory 1", || {
    let (context, stream) = gpu();
    let function = kernel(&context, WAIT, "kolo_test_for_ever");
    // SAFETY: four bytes; leaked, since the device fails.
    let memory = unsafe { result::malloc_sync(4).unwrap() };
    // SAFETY: as above.
    unsafe { result::memset_d8_sync(memory, 0, 4).unwrap() };
    context.synchronize().unwrap();
    let mut launch = stream.launch_builder(&function);
    launch.arg(&memory).arg(&u64::MAX);
    // SAFETY: as above.
    unsafe { launch.launch(blocks_of(3, 40)).unwrap() };
    has_failed(&context, &stream, sys::CUresult::CUDA_ERROR_LAUNCH_TIMEOUT);
});

// One kernel fails; what is queued behind it is not done, but nobody waits for ever.
case!(work_behind_a_failure_is_skipped, leaves = "device_memory 1, pinned_memory 1", || {
    let (context, stream) = gpu();
    let function = kernel(&context, BASIC, "kolo_test_trap");
    // SAFETY: freshly made; leaked, since the device fails.
    let (memory, pinned) =
        unsafe { (result::malloc_sync(4).unwrap(), result::malloc_host(4, 1).unwrap().cast::<u32>()) };
    // SAFETY: pinned memory of four bytes.
    unsafe { pinned.write(17) };
    let mut launch = stream.launch_builder(&function);
    launch.arg(&memory);
    // SAFETY: the copy goes from live memory to live memory.
    unsafe {
        launch.launch(blocks_of(1, 1)).unwrap();
        let copied = sys::cuMemcpyDtoHAsync_v2(pinned.cast(), memory, 4, stream.cu_stream());
        assert!(matches!(copied, sys::CUresult::CUDA_SUCCESS | sys::CUresult::CUDA_ERROR_LAUNCH_FAILED));
        assert_eq!(code(stream.synchronize()), sys::CUresult::CUDA_ERROR_LAUNCH_FAILED);
        assert_eq!(pinned.read(), 17);
    }
    has_failed(&context, &stream, sys::CUresult::CUDA_ERROR_LAUNCH_FAILED);
});
