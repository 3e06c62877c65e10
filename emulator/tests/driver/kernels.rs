//! Kernels: how they are found, what they are given, and how their threads meet.

use std::sync::Arc;

use cudarc::driver::{CudaContext, DeviceRepr, LaunchConfig, PushKernelArg as _, sys};
use cudarc::nvrtc::Ptx;

use crate::common::{BASIC, MEET, WAIT, blocks_of, code, gpu, kernel, statistic};

#[repr(C)]
#[derive(Clone, Copy)]
struct Table {
    from: [u64; 16],
    count: u32,
    scale: f32,
}

// SAFETY: plain numbers, laid out as in the kernel.
unsafe impl DeviceRepr for Table {}

case!(a_kernel_scales, || {
    let (context, stream) = gpu();
    let scale = kernel(&context, BASIC, "kolo_test_scale");
    let mut data = stream.clone_htod(&(0..1000).map(|at| at as f32).collect::<Vec<_>>()).unwrap();
    let mut launch = stream.launch_builder(&scale);
    launch.arg(&mut data).arg(&900_u64).arg(&0.5_f32);
    // SAFETY: the arguments are those of the kernel, within the data.
    unsafe { launch.launch(blocks_of(4, 256)).unwrap() };
    let expected: Vec<f32> = (0..1000).map(|at| at as f32 * if at < 900 { 0.5 } else { 1.0 }).collect();
    assert_eq!(stream.clone_dtoh(&data).unwrap(), expected);
    assert_eq!(statistic("kernel/kolo_test_scale"), 1);
});

case!(a_structure_goes_by_value, || {
    let (context, stream) = gpu();
    let function = kernel(&context, BASIC, "kolo_test_table");
    let source = stream.clone_htod(&[1.0_f32, 2.0, 3.0, 4.0]).unwrap();
    let (address, _guard) = cudarc::driver::DevicePtr::device_ptr(&source, &stream);
    let mut table = Table { from: [0; 16], count: 4, scale: 10.0 };
    (0..4).for_each(|at| table.from[at] = address + 4 * (3 - at as u64));
    let mut to = stream.alloc_zeros::<f32>(4).unwrap();
    let mut launch = stream.launch_builder(&function);
    launch.arg(&table).arg(&mut to);
    // SAFETY: as above.
    unsafe { launch.launch(blocks_of(1, 32)).unwrap() };
    assert_eq!(stream.clone_dtoh(&to).unwrap(), [40.0, 30.0, 20.0, 10.0]);
});

case!(atomics_add_up, || {
    let (context, stream) = gpu();
    let function = kernel(&context, BASIC, "kolo_test_count");
    let (mut counter, mut sum, mut precise) = (
        stream.alloc_zeros::<u32>(1).unwrap(),
        stream.alloc_zeros::<f32>(1).unwrap(),
        stream.alloc_zeros::<f64>(1).unwrap(),
    );
    let mut launch = stream.launch_builder(&function);
    launch.arg(&mut counter).arg(&mut sum).arg(&mut precise);
    // SAFETY: as above.
    unsafe { launch.launch(blocks_of(10, 100)).unwrap() };
    assert_eq!(stream.clone_dtoh(&counter).unwrap(), [1000]);
    assert_eq!(stream.clone_dtoh(&sum).unwrap(), [500.0]);
    assert_eq!(stream.clone_dtoh(&precise).unwrap(), [250.0]);
});

case!(threads_know_where_they_stand, || {
    let (context, stream) = gpu();
    let function = kernel(&context, BASIC, "kolo_test_index");
    let mut to = stream.alloc_zeros::<u32>(4 * 2 * 3 * 2 * 4 * 3 * 2).unwrap();
    let mut launch = stream.launch_builder(&function);
    launch.arg(&mut to);
    let config = LaunchConfig { grid_dim: (2, 3, 2), block_dim: (4, 3, 2), shared_mem_bytes: 0 };
    // SAFETY: as above.
    unsafe { launch.launch(config).unwrap() };
    let mut expected = Vec::new();
    for (z, y, x) in (0..12).map(|block| (block / 6, block / 2 % 3, block % 2)) {
        for (c, b, a) in (0..24).map(|thread| (thread / 12, thread / 4 % 3, thread % 4)) {
            expected.extend([a | b << 10 | c << 20, x, y, z]);
        }
    }
    assert_eq!(stream.clone_dtoh(&to).unwrap(), expected);
});

case!(launches_are_checked, || {
    let (context, stream) = gpu();
    let function = kernel(&context, MEET, "kolo_test_unwritten");
    let data = stream.alloc_zeros::<u32>(64).unwrap();
    let launched = |config| {
        let mut launch = stream.launch_builder(&function);
        launch.arg(&data);
        // SAFETY: refused, all of them.
        unsafe { launch.launch(config) }
    };
    let refused = sys::CUresult::CUDA_ERROR_INVALID_VALUE;
    assert_eq!(code(launched(blocks_of(1, 1025))), refused);
    assert_eq!(code(launched(blocks_of(0, 32))), refused);
    assert_eq!(code(launched(LaunchConfig { shared_mem_bytes: 48 * 1024 + 1, ..blocks_of(1, 32) })), refused);
    assert_eq!(code(launched(LaunchConfig { block_dim: (32, 32, 2), ..blocks_of(1, 32) })), refused);
});

case!(kernel_and_stream_are_of_one_device, env = [("KOLO_EMULATOR_DEVICES", "2")], || {
    let (context, _stream) = gpu();
    let function = kernel(&context, BASIC, "kolo_test_trap");
    let other = CudaContext::new(1).unwrap().new_stream().unwrap();
    let mut launch = other.launch_builder(&function);
    launch.arg(&0_u64);
    // SAFETY: refused.
    let mixed = unsafe { launch.launch(blocks_of(1, 1)) };
    assert_eq!(code(mixed.map(drop)), sys::CUresult::CUDA_ERROR_INVALID_HANDLE);
});

case!(what_is_no_module_is_refused, || {
    let (context, _stream) = gpu();
    let load = |text: &str| context.load_module(Ptx::from_src(text)).map(drop);
    assert_eq!(code(load("this is no PTX")), sys::CUresult::CUDA_ERROR_INVALID_PTX);
    let newer = BASIC.replace(".version 8.1", ".version 9.9");
    assert_eq!(code(load(&newer)), sys::CUresult::CUDA_ERROR_UNSUPPORTED_PTX_VERSION);
    let other = BASIC.replace(".target sm_70", ".target sm_90");
    assert_eq!(code(load(&other)), sys::CUresult::CUDA_ERROR_NO_BINARY_FOR_GPU);
    let binary = context.load_module(Ptx::from_binary(b"\x7fELF\x02\x01".to_vec())).map(drop);
    assert_eq!(code(binary), sys::CUresult::CUDA_ERROR_NO_BINARY_FOR_GPU);
    let module = context.load_module(Ptx::from_src(BASIC)).unwrap();
    assert_eq!(code(module.load_function("kolo_test_nothing").map(drop)), sys::CUresult::CUDA_ERROR_NOT_FOUND);
});

case!(ptx_and_source_must_agree, || {
    let (context, _stream) = gpu();
    // A table of fifteen addresses, as an older source may have had.
    let stale = BASIC.replace(".b8 kolo_test_table_param_0[136]", ".b8 kolo_test_table_param_0[128]");
    assert_ne!(stale, BASIC);
    assert_eq!(code(context.load_module(Ptx::from_src(stale)).map(drop)), sys::CUresult::CUDA_ERROR_INVALID_IMAGE);
    // A kernel that was never compiled for the host.
    let renamed = BASIC.replace("kolo_test_scale", "kolo_test_elsewhere");
    let module = context.load_module(Ptx::from_src(renamed)).unwrap();
    let missing = module.load_function("kolo_test_elsewhere").map(drop);
    assert_eq!(code(missing), sys::CUresult::CUDA_ERROR_NOT_FOUND);
});

/// Sums by tree and by shuffle, over blocks of several sizes, and all kinds of exchanges.
fn threads_meet() {
    let (context, stream) = gpu();
    let (tree, warps) = (kernel(&context, MEET, "kolo_test_block_sum"), kernel(&context, MEET, "kolo_test_warp_sum"));
    for threads in [32_u32, 64, 256] {
        let count = threads as usize * 3;
        let numbers: Vec<f32> = (0..count).map(|at| (at % 17) as f32).collect();
        let doubles: Vec<f64> = numbers.iter().map(|&number| number.into()).collect();
        let expected: Vec<f32> = numbers.chunks(threads as usize).map(|block| block.iter().sum()).collect();
        let (from, mut to) = (stream.clone_htod(&numbers).unwrap(), stream.alloc_zeros::<f32>(3).unwrap());
        let mut launch = stream.launch_builder(&tree);
        launch.arg(&from).arg(&mut to);
        // SAFETY: as above.
        unsafe { launch.launch(blocks_of(3, threads)).unwrap() };
        assert_eq!(stream.clone_dtoh(&to).unwrap(), expected, "{threads}");
        let (from, mut to) = (stream.clone_htod(&doubles).unwrap(), stream.alloc_zeros::<f64>(3).unwrap());
        let mut launch = stream.launch_builder(&warps);
        launch.arg(&from).arg(&mut to);
        let config = LaunchConfig { shared_mem_bytes: threads / 4, ..blocks_of(3, threads) };
        // SAFETY: as above.
        unsafe { launch.launch(config).unwrap() };
        let got: Vec<f32> = stream.clone_dtoh(&to).unwrap().iter().map(|&sum| sum as f32).collect();
        assert_eq!(got, expected, "{threads}");
    }
    lanes_exchange(&context);
}

fn lanes_exchange(context: &Arc<CudaContext>) {
    let stream = context.new_stream().unwrap();
    let function = kernel(context, MEET, "kolo_test_exchange");
    let values: Vec<i32> = (0..32).map(|lane| lane * 7 % 32).collect();
    let (from, mut to) = (stream.clone_htod(&values).unwrap(), stream.alloc_zeros::<i32>(256).unwrap());
    let mut launch = stream.launch_builder(&function);
    launch.arg(&from).arg(&mut to).arg(&16_u32);
    // SAFETY: as above.
    unsafe { launch.launch(blocks_of(1, 32)).unwrap() };
    let got = stream.clone_dtoh(&to).unwrap();
    let ballot = (0..32).fold(0, |bits, lane| bits | (values[lane] as u32 & 1) << lane) as i32;
    for (lane, got) in got.chunks(8).enumerate() {
        let expected = [
            values[3],
            values[if lane < 2 { lane } else { lane - 2 }],
            values[if lane + 5 < 32 { lane + 5 } else { lane }],
            values[lane ^ 6],
            ballot,
            1 + 2,
            if lane < 16 { values[lane / 8 * 8 + 1] } else { -1 },
            values[(lane + 1) % 32],
        ];
        assert_eq!(got, expected, "lane {lane}");
    }
}

case!(threads_meet_in_fibers, || {
    threads_meet();
});

case!(threads_meet_in_fibers_by_ucontext, env = [("KOLO_EMULATOR_FIBERS", "ucontext")], || {
    threads_meet();
});

case!(threads_meet_in_another_order, env = [("KOLO_EMULATOR_ORDER", "12345")], || {
    threads_meet();
});

/// A kernel that lacks a barrier; whether the result is right all the same.
fn right_without_barrier() -> bool {
    let (context, stream) = gpu();
    let function = kernel(&context, MEET, "kolo_test_no_barrier");
    let numbers: Vec<f32> = (0..256).map(|at| at as f32).collect();
    let (from, mut to) = (stream.clone_htod(&numbers).unwrap(), stream.alloc_zeros::<f32>(256).unwrap());
    let mut launch = stream.launch_builder(&function);
    launch.arg(&from).arg(&mut to);
    // SAFETY: as above.
    unsafe { launch.launch(blocks_of(1, 256)).unwrap() };
    let got = stream.clone_dtoh(&to).unwrap();
    got.iter().rev().eq(&numbers)
}

case!(a_missing_barrier_is_seen, || {
    assert!(!right_without_barrier());
});

case!(shared_memory_holds_nothing_at_first, || {
    let (context, stream) = gpu();
    let function = kernel(&context, MEET, "kolo_test_unwritten");
    let mut to = stream.alloc_zeros::<u32>(64).unwrap();
    for _ in 0..2 {
        let mut launch = stream.launch_builder(&function);
        launch.arg(&mut to);
        // SAFETY: as above.
        unsafe { launch.launch(blocks_of(3, 64)).unwrap() };
        assert_eq!(stream.clone_dtoh(&to).unwrap(), [0xa5a5_a5a5; 64]);
    }
});

/// Threads that wait for threads of their block, and of other blocks.
fn threads_wait() {
    let (context, stream) = gpu();
    let function = kernel(&context, WAIT, "kolo_test_wait_thread");
    let (mut flag, mut to) = (stream.alloc_zeros::<u32>(1).unwrap(), stream.alloc_zeros::<u32>(1).unwrap());
    let mut launch = stream.launch_builder(&function);
    launch.arg(&mut flag).arg(&mut to);
    // SAFETY: as above.
    unsafe { launch.launch(blocks_of(1, 128)).unwrap() };
    assert_eq!(stream.clone_dtoh(&to).unwrap(), [7]);
    let function = kernel(&context, WAIT, "kolo_test_wait_blocks");
    let (mut arrived, mut data) = (stream.alloc_zeros::<u32>(1).unwrap(), stream.alloc_zeros::<u32>(16).unwrap());
    let mut to = stream.alloc_zeros::<u32>(16 * 32).unwrap();
    let mut launch = stream.launch_builder(&function);
    launch.arg(&mut arrived).arg(&mut data).arg(&mut to);
    // SAFETY: as above; all 16 blocks run together.
    unsafe { launch.launch_cooperative(blocks_of(16, 32)).unwrap() };
    assert_eq!(stream.clone_dtoh(&to).unwrap(), [16 * 17 / 2; 16 * 32]);
}

case!(threads_wait_in_fibers, || {
    threads_wait();
});

case!(threads_wait_in_fibers_by_ucontext, env = [("KOLO_EMULATOR_FIBERS", "ucontext")], || {
    threads_wait();
});

case!(streams_wait_for_each_other_in_kernels, || {
    let (context, one) = gpu();
    let two = context.new_stream().unwrap();
    let function = kernel(&context, WAIT, "kolo_test_rounds");
    let (mut left, mut right) = (one.alloc_zeros::<u32>(2).unwrap(), one.alloc_zeros::<u32>(2).unwrap());
    let mut sums = one.alloc_zeros::<u32>(2).unwrap();
    one.synchronize().unwrap();
    let (address, _guard) = cudarc::driver::DevicePtrMut::device_ptr_mut(&mut sums, &one);
    let (left, _left) = cudarc::driver::DevicePtrMut::device_ptr_mut(&mut left, &one);
    let (right, _right) = cudarc::driver::DevicePtrMut::device_ptr_mut(&mut right, &one);
    for (stream, own, peer, sum) in [(&one, left, right, address), (&two, right, left, address + 4)] {
        let mut launch = stream.launch_builder(&function);
        launch.arg(&own).arg(&peer).arg(&200_u32).arg(&sum);
        // SAFETY: live memory, which both kernels use by the rules of flags.
        unsafe { launch.launch(blocks_of(1, 1)).unwrap() };
    }
    one.synchronize().unwrap();
    two.synchronize().unwrap();
    let mut got = [0_u32; 2];
    // SAFETY: eight bytes of live memory.
    unsafe { cudarc::driver::result::memcpy_dtoh_sync(&mut got, address).unwrap() };
    assert_eq!(got, [3 * 200 * 201 / 2; 2]);
});

case!(as_many_blocks_run_together_as_is_said, env = [("KOLO_EMULATOR_BLOCKS", "4")], || {
    let (context, stream) = gpu();
    let function = kernel(&context, WAIT, "kolo_test_wait_blocks");
    let (mut arrived, mut data) = (stream.alloc_zeros::<u32>(1).unwrap(), stream.alloc_zeros::<u32>(8).unwrap());
    let mut to = stream.alloc_zeros::<u32>(8).unwrap();
    let mut launch = stream.launch_builder(&function);
    launch.arg(&mut arrived).arg(&mut data).arg(&mut to);
    // SAFETY: refused.
    let too_many = unsafe { launch.launch_cooperative(blocks_of(8, 1)) };
    assert_eq!(code(too_many.map(drop)), sys::CUresult::CUDA_ERROR_COOPERATIVE_LAUNCH_TOO_LARGE);
    let each = function.occupancy_max_active_blocks_per_multiprocessor(32, 0, None).unwrap();
    let count = context.attribute(sys::CUdevice_attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT).unwrap();
    assert_eq!(each * count as u32, 4);
});
