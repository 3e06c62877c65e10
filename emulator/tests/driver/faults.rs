//! Faults that are injected, by environment and while the program runs.

use cudarc::driver::{CudaContext, PushKernelArg as _, sys};

use crate::common::{BASIC, blocks_of, code, gpu, kernel, set_faults, statistic};

case!(
    a_call_fails_and_the_next_one_does_not,
    env = [("KOLO_EMULATOR_FAULTS", "cuMemAllocAsync:2=OUT_OF_MEMORY")],
    || {
        let (_context, stream) = gpu();
        let _first = stream.alloc_zeros::<u8>(10).unwrap();
        assert_eq!(code(stream.alloc_zeros::<u8>(10).map(drop)), sys::CUresult::CUDA_ERROR_OUT_OF_MEMORY);
        let _third = stream.alloc_zeros::<u8>(10).unwrap();
    }
);

case!(the_driver_may_not_start, env = [("KOLO_EMULATOR_FAULTS", "cuInit:1+=NO_DEVICE")], || {
    assert_eq!(code(CudaContext::new(0).map(drop)), sys::CUresult::CUDA_ERROR_NO_DEVICE);
});

case!(a_refused_launch_is_not_sticky, env = [("KOLO_EMULATOR_FAULTS", "cuLaunchKernel=701")], || {
    let (context, stream) = gpu();
    let function = kernel(&context, BASIC, "kolo_test_fill");
    let mut data = stream.alloc_zeros::<u32>(64).unwrap();
    for attempt in 0..2 {
        let mut launch = stream.launch_builder(&function);
        launch.arg(&mut data).arg(&64_u32).arg(&5_u32);
        // SAFETY: the arguments are those of the kernel, within the data.
        let launched = unsafe { launch.launch(blocks_of(1, 32)) }.map(drop);
        if attempt == 0 {
            assert_eq!(code(launched), sys::CUresult::CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES);
        } else {
            launched.unwrap();
        }
    }
    assert_eq!(stream.clone_dtoh(&data).unwrap(), [5; 64]);
});

case!(
    a_kernel_fails_where_it_runs,
    env = [("KOLO_EMULATOR_FAULTS", "kernel/kolo_test_fill:2=ECC_UNCORRECTABLE")],
    || {
        let (context, stream) = gpu();
        let function = kernel(&context, BASIC, "kolo_test_fill");
        let mut data = stream.alloc_zeros::<u32>(64).unwrap();
        for attempt in 0..3 {
            let mut launch = stream.launch_builder(&function);
            launch.arg(&mut data).arg(&64_u32).arg(&attempt);
            // SAFETY: as above.
            match unsafe { launch.launch(blocks_of(1, 32)) } {
                Ok(_) => {}
                // The second launch may have failed already when the third is called.
                Err(error) => assert!(attempt == 2 && error.0 == sys::CUresult::CUDA_ERROR_ECC_UNCORRECTABLE),
            }
        }
        assert_eq!(code(stream.synchronize()), sys::CUresult::CUDA_ERROR_ECC_UNCORRECTABLE);
        assert_eq!(code(stream.clone_dtoh(&data).map(drop)), sys::CUresult::CUDA_ERROR_ECC_UNCORRECTABLE);
        assert_eq!(statistic("kernel/kolo_test_fill"), 1);
        // What was made goes as it came, whatever the calls return. cudarc keeps such errors for the next call.
        drop(data);
        assert!(context.check_err().is_err());
    }
);

case!(faults_may_come_later, || {
    let (_context, stream) = gpu();
    let data = stream.clone_htod(&[1_u8; 8]).unwrap();
    set_faults(c"cuMemcpyDtoHAsync_v2:2=LAUNCH_FAILED,cuStreamSynchronize=46");
    assert_eq!(stream.clone_dtoh(&data).unwrap(), [1; 8]);
    assert_eq!(code(stream.clone_dtoh(&data).map(drop)), sys::CUresult::CUDA_ERROR_LAUNCH_FAILED);
    assert_eq!(code(stream.synchronize()), sys::CUresult::CUDA_ERROR_DEVICE_UNAVAILABLE);
    set_faults(c"");
    stream.synchronize().unwrap();
});

// An error in a drop comes up in the next call of the same context: cudarc's way.
case!(
    an_error_while_dropping_comes_up_later,
    env = [("KOLO_EMULATOR_FAULTS", "cuMemFreeAsync=1")],
    leaves = "device_memory 1",
    || {
        let (context, stream) = gpu();
        drop(stream.alloc_zeros::<u8>(10).unwrap());
        assert_eq!(code(stream.alloc_zeros::<u8>(10).map(drop)), sys::CUresult::CUDA_ERROR_INVALID_VALUE);
        context.check_err().unwrap();
        stream.alloc_zeros::<u8>(10).unwrap();
    }
);

case!(a_failing_copy_fails_the_device, env = [("KOLO_EMULATOR_FAULTS", "copy:2=700")], || {
    let (_context, stream) = gpu();
    let data = stream.clone_htod(&[1_u8; 8]).unwrap();
    assert_eq!(code(stream.clone_dtoh(&data).map(drop)), sys::CUresult::CUDA_ERROR_ILLEGAL_ADDRESS);
    assert_eq!(code(stream.synchronize()), sys::CUresult::CUDA_ERROR_ILLEGAL_ADDRESS);
});
