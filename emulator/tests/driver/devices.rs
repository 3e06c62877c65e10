//! Devices: how many, which, and what they say of themselves.

use cudarc::driver::{CudaContext, result, sys};

use crate::common::code;

case!(there_is_one_unless_asked_otherwise, || {
    assert_eq!(CudaContext::device_count().unwrap(), 1);
    let context = CudaContext::new(0).unwrap();
    assert_eq!(context.name().unwrap(), "kolo emulator 0 (host memory, no GPU)");
    assert_eq!(context.compute_capability().unwrap(), (7, 0));
    assert_eq!(context.total_mem().unwrap(), 4 << 30);
    assert!(context.has_async_alloc());
    assert_eq!(code(CudaContext::new(1)), sys::CUresult::CUDA_ERROR_INVALID_DEVICE);
    let unknown = context.attribute(sys::CUdevice_attribute::CU_DEVICE_ATTRIBUTE_MAXIMUM_SURFACE1D_WIDTH);
    assert_eq!(code(unknown), sys::CUresult::CUDA_ERROR_INVALID_VALUE);
});

case!(there_may_be_none, env = [("KOLO_EMULATOR_DEVICES", "0")], || {
    assert_eq!(code(CudaContext::device_count()), sys::CUresult::CUDA_ERROR_NO_DEVICE);
    assert_eq!(code(CudaContext::new(0)), sys::CUresult::CUDA_ERROR_NO_DEVICE);
});

case!(some_may_be_hidden, env = [("KOLO_EMULATOR_DEVICES", "4"), ("CUDA_VISIBLE_DEVICES", "3,1")], || {
    assert_eq!(CudaContext::device_count().unwrap(), 2);
    let (first, second) = (CudaContext::new(0).unwrap(), CudaContext::new(1).unwrap());
    assert!(first.name().unwrap().starts_with("kolo emulator 3 "));
    assert!(second.name().unwrap().starts_with("kolo emulator 1 "));
    assert_ne!(first.uuid().unwrap().bytes, second.uuid().unwrap().bytes);
});

case!(all_may_be_hidden, env = [("CUDA_VISIBLE_DEVICES", "-1")], || {
    assert_eq!(code(CudaContext::new(0)), sys::CUresult::CUDA_ERROR_NO_DEVICE);
});

case!(contexts_of_a_device_are_one, || {
    let (one, two) = (CudaContext::new(0).unwrap(), CudaContext::new(0).unwrap());
    assert_eq!(one.cu_ctx(), two.cu_ctx());
    drop(one);
    two.new_stream().unwrap().synchronize().unwrap();
    let handle = two.cu_ctx();
    drop(two);
    // The last user is gone, and so is the context.
    // SAFETY: the call checks the handle.
    let stale = unsafe { result::ctx::set_current(handle) };
    assert_eq!(code(stale), sys::CUresult::CUDA_ERROR_INVALID_CONTEXT);
});

case!(a_thread_without_a_context_is_told_so, || {
    let context = CudaContext::new(0).unwrap();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            // SAFETY: the call returns an error and no memory.
            let raw = unsafe { result::malloc_sync(16) };
            assert_eq!(code(raw), sys::CUresult::CUDA_ERROR_INVALID_CONTEXT);
            context.bind_to_thread().unwrap();
            // SAFETY: allocated and freed once.
            unsafe { result::free_sync(result::malloc_sync(16).unwrap()).unwrap() };
        });
    });
});

case!(peers_reach_each_other_if_the_machine_lets_them, env = [("KOLO_EMULATOR_DEVICES", "2")], || {
    let (one, two) = (CudaContext::new(0).unwrap(), CudaContext::new(1).unwrap());
    let mut answer = 0;
    // SAFETY: plain calls with handles of live contexts.
    unsafe {
        sys::cuDeviceCanAccessPeer(&mut answer, one.cu_device(), two.cu_device()).result().unwrap();
        assert_eq!(answer, 1);
        one.bind_to_thread().unwrap();
        sys::cuCtxEnablePeerAccess(two.cu_ctx(), 0).result().unwrap();
        let again = sys::cuCtxEnablePeerAccess(two.cu_ctx(), 0);
        assert_eq!(again, sys::CUresult::CUDA_ERROR_PEER_ACCESS_ALREADY_ENABLED);
        sys::cuCtxDisablePeerAccess(two.cu_ctx()).result().unwrap();
        let never = sys::cuCtxDisablePeerAccess(two.cu_ctx());
        assert_eq!(never, sys::CUresult::CUDA_ERROR_PEER_ACCESS_NOT_ENABLED);
    }
});

case!(peers_may_be_apart, env = [("KOLO_EMULATOR_DEVICES", "2"), ("KOLO_EMULATOR_PEERS", "0")], || {
    let (one, two) = (CudaContext::new(0).unwrap(), CudaContext::new(1).unwrap());
    let mut answer = 1;
    // SAFETY: plain calls with handles of live contexts.
    unsafe {
        sys::cuDeviceCanAccessPeer(&mut answer, one.cu_device(), two.cu_device()).result().unwrap();
        one.bind_to_thread().unwrap();
        let refused = sys::cuCtxEnablePeerAccess(two.cu_ctx(), 0);
        assert_eq!((answer, refused), (0, sys::CUresult::CUDA_ERROR_PEER_ACCESS_UNSUPPORTED));
    }
});

case!(a_missing_function_panics_with_its_name, || {
    let _context = CudaContext::new(0).unwrap();
    let mut mipmap = std::ptr::null_mut();
    // SAFETY: the function is not there, so nothing is called.
    let missing = std::panic::catch_unwind(move || unsafe {
        sys::cuMipmappedArrayGetLevel(&mut mipmap, std::ptr::null_mut(), 0)
    });
    let message = missing.unwrap_err();
    let message = message.downcast_ref::<String>().unwrap();
    assert!(message.contains("cuMipmappedArrayGetLevel"), "{message}");
});

case!(errors_have_names_and_sentences, || {
    for result in [
        sys::CUresult::CUDA_ERROR_OUT_OF_MEMORY,
        sys::CUresult::CUDA_ERROR_ILLEGAL_ADDRESS,
        sys::CUresult::CUDA_ERROR_LAUNCH_TIMEOUT,
    ] {
        let error = result.result().unwrap_err();
        assert_eq!(error.error_name().unwrap().to_str().unwrap(), format!("{result:?}"));
        assert!(error.error_string().unwrap().to_bytes().len() > 5);
    }
});

case!(a_child_by_fork_is_not_initialised, || {
    let context = CudaContext::new(0).unwrap();
    // SAFETY: the child makes one call, which takes no lock that another thread may hold, and ends.
    unsafe {
        let child = libc::fork();
        if child == 0 {
            let mut count = 0;
            let code = sys::cuDeviceGetCount(&mut count);
            libc::_exit(code as i32);
        }
        let mut status = 0;
        assert_eq!(libc::waitpid(child, &mut status, 0), child);
        assert_eq!(libc::WEXITSTATUS(status), sys::CUresult::CUDA_ERROR_NOT_INITIALIZED as i32);
    }
    context.synchronize().unwrap();
});
