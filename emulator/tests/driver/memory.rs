//! Memory of the device and of the host, copies and fills.

use cudarc::driver::{CudaContext, result, sys};

use crate::common::{code, gpu, statistic};

const PORTABLE: u32 = sys::CU_MEMHOSTALLOC_PORTABLE;

case!(what_is_copied_there_comes_back, || {
    let (_context, stream) = gpu();
    for count in [1_usize, 3, 255, 256, 1000, 100_003] {
        let data: Vec<u16> = (0..count).map(|at| at as u16 ^ 0x5a5a).collect();
        let on_device = stream.clone_htod(&data).unwrap();
        let twin = stream.clone_dtod(&on_device).unwrap();
        assert_eq!(stream.clone_dtoh(&twin).unwrap(), data, "{count}");
    }
    let zeros = stream.alloc_zeros::<f64>(77).unwrap();
    assert_eq!(stream.clone_dtoh(&zeros).unwrap(), [0.0; 77]);
});

case!(fresh_memory_is_poisoned, || {
    let (context, stream) = gpu();
    // SAFETY: every pattern is a u32; that the memory holds none yet is the point.
    let (on_device, mut pinned) =
        unsafe { (stream.alloc::<u32>(500).unwrap(), context.alloc_pinned_with_flags::<u32>(500, PORTABLE).unwrap()) };
    assert_eq!(stream.clone_dtoh(&on_device).unwrap(), [0xa5a5_a5a5; 500]);
    assert_eq!(pinned.as_mut_slice().unwrap(), [0xa5a5_a5a5; 500]);
});

case!(views_and_fills_touch_what_they_are_told_to, || {
    let (_context, stream) = gpu();
    let mut data = stream.clone_htod(&[7_u8; 100]).unwrap();
    stream.memset_zeros(&mut data.slice_mut(10..20)).unwrap();
    stream.memcpy_htod(&[9_u8; 5], &mut data.slice_mut(95..)).unwrap();
    let back = stream.clone_dtoh(&data).unwrap();
    let expected: Vec<u8> = (0..100)
        .map(|at| {
            if (10..20).contains(&at) {
                0
            } else if at >= 95 {
                9
            } else {
                7
            }
        })
        .collect();
    assert_eq!(back, expected);
    // SAFETY: raw fills of 16 and 32-bit words within live memory.
    unsafe {
        let (address, _guard) = cudarc::driver::DevicePtr::device_ptr(&data, &stream);
        sys::cuMemsetD16Async(address, 0x1234, 2, stream.cu_stream()).result().unwrap();
        sys::cuMemsetD32Async(address + 4, 0x89ab_cdef, 1, stream.cu_stream()).result().unwrap();
        let odd = sys::cuMemsetD32Async(address + 2, 0, 1, stream.cu_stream());
        assert_eq!(odd, sys::CUresult::CUDA_ERROR_INVALID_VALUE);
    }
    assert_eq!(stream.clone_dtoh(&data.slice(..8)).unwrap(), [0x34, 0x12, 0x34, 0x12, 0xef, 0xcd, 0xab, 0x89]);
});

case!(ranges_are_checked, || {
    let (_context, stream) = gpu();
    // SAFETY: the calls are refused, or stay within 64 bytes.
    unsafe {
        let memory = result::malloc_sync(64).unwrap();
        let host = [0_u8; 65];
        let too_long = result::memcpy_htod_async(memory, &host, stream.cu_stream());
        assert_eq!(code(too_long), sys::CUresult::CUDA_ERROR_INVALID_VALUE);
        let beside = result::memcpy_htod_async(memory + 64, &host[..1], stream.cu_stream());
        assert_eq!(code(beside), sys::CUresult::CUDA_ERROR_INVALID_VALUE);
        let fill = result::memset_d8_async(memory + 1, 0, 64, stream.cu_stream());
        assert_eq!(code(fill), sys::CUresult::CUDA_ERROR_INVALID_VALUE);
        result::memcpy_htod_async(memory + 1, &host[..63], stream.cu_stream()).unwrap();
        stream.synchronize().unwrap();
        result::free_sync(memory).unwrap();
        assert_eq!(code(result::free_sync(memory)), sys::CUresult::CUDA_ERROR_INVALID_VALUE);
        assert_eq!(code(result::malloc_sync(0)), sys::CUresult::CUDA_ERROR_INVALID_VALUE);
    }
});

case!(the_limit_holds, env = [("KOLO_EMULATOR_MEMORY", "1MiB")], || {
    let (context, stream) = gpu();
    let half = stream.alloc_zeros::<u8>(512 << 10).unwrap();
    assert_eq!(context.mem_get_info().unwrap(), (512 << 10, 1 << 20));
    let too_much = stream.alloc_zeros::<u8>((512 << 10) + 1);
    assert_eq!(code(too_much), sys::CUresult::CUDA_ERROR_OUT_OF_MEMORY);
    let rest = stream.alloc_zeros::<u8>(512 << 10).unwrap();
    assert_eq!(context.mem_get_info().unwrap().0, 0);
    drop((half, rest));
    stream.synchronize().unwrap();
    assert_eq!(context.mem_get_info().unwrap().0, 1 << 20);
});

case!(without_pools_all_is_synchronous, env = [("KOLO_EMULATOR_POOLS", "0")], || {
    let (context, stream) = gpu();
    assert!(!context.has_async_alloc());
    let data = stream.clone_htod(&[1_u32, 2, 3]).unwrap();
    assert_eq!(stream.clone_dtoh(&data).unwrap(), [1, 2, 3]);
    // SAFETY: the call is refused.
    let pool = unsafe { result::malloc_async(stream.cu_stream(), 16) };
    assert_eq!(code(pool), sys::CUresult::CUDA_ERROR_NOT_SUPPORTED);
});

case!(memory_of_the_program_may_be_registered, || {
    let (context, stream) = gpu();
    let mut host = vec![3_u8; 4096];
    let address = host.as_mut_ptr().cast::<std::ffi::c_void>();
    let count = || statistic("registered_memory");
    context.bind_to_thread().unwrap();
    // SAFETY: the vector lives until it is unregistered, and its bytes are used by the copies below alone.
    unsafe {
        sys::cuMemHostRegister_v2(address, 4096, 0).result().unwrap();
        let twice = sys::cuMemHostRegister_v2(address.add(100), 10, 0);
        assert_eq!(twice, sys::CUresult::CUDA_ERROR_HOST_MEMORY_ALREADY_REGISTERED);
        let mut device = 0;
        sys::cuMemHostGetDevicePointer_v2(&mut device, address, 0).result().unwrap();
        assert_eq!(device, address as u64);
        assert_eq!(count(), 1);
    }
    let on_device = stream.clone_htod(&[5_u8; 4096]).unwrap();
    stream.memcpy_dtoh(&on_device, &mut host).unwrap();
    stream.synchronize().unwrap();
    assert_eq!(host, [5; 4096]);
    // SAFETY: as above.
    unsafe {
        sys::cuMemHostUnregister(address).result().unwrap();
        let gone = sys::cuMemHostUnregister(address);
        assert_eq!(gone, sys::CUresult::CUDA_ERROR_HOST_MEMORY_NOT_REGISTERED);
    }
    assert_eq!(count(), 0);
});

// Pinned memory is read when the stream gets there, pageable memory when the call is made.
case!(pageable_memory_is_taken_at_the_call, env = [("KOLO_EMULATOR_DELAYS", "copy=20000")], || {
    let (context, stream) = gpu();
    // SAFETY: written below, before it is read.
    let mut pinned = unsafe { context.alloc_pinned_with_flags::<u32>(4, PORTABLE).unwrap() };
    pinned.as_mut_slice().unwrap().fill(1);
    let mut pageable = [1_u32; 4];
    // SAFETY: two raw allocations, freed below. The pinned bytes are changed while a copy is queued: what is read then is
    // what this case is about.
    unsafe {
        let (one, two) = (result::malloc_sync(16).unwrap(), result::malloc_sync(16).unwrap());
        let source = pinned.as_mut_ptr().unwrap();
        sys::cuMemcpyHtoDAsync_v2(one, source.cast(), 16, stream.cu_stream()).result().unwrap();
        sys::cuMemcpyHtoDAsync_v2(two, pageable.as_ptr().cast(), 16, stream.cu_stream()).result().unwrap();
        pageable.fill(2);
        source.write(2);
        let mut back = [[0_u32; 4]; 2];
        result::memcpy_dtoh_async(&mut back[0], one, stream.cu_stream()).unwrap();
        result::memcpy_dtoh_async(&mut back[1], two, stream.cu_stream()).unwrap();
        // Copies to pageable memory have happened when they return.
        assert_eq!(back, [[2, 1, 1, 1], [1; 4]]);
        result::free_sync(one).unwrap();
        result::free_sync(two).unwrap();
    }
});

case!(an_address_tells_what_it_is, || {
    let (context, _stream) = gpu();
    // SAFETY: live addresses, and places of the right sizes.
    unsafe {
        let memory = result::malloc_sync(1000).unwrap();
        let pinned = context.alloc_pinned_with_flags::<u8>(10, PORTABLE).unwrap();
        let kind = |address: u64| {
            let mut kind = 0_u32;
            let attribute = sys::CUpointer_attribute::CU_POINTER_ATTRIBUTE_MEMORY_TYPE;
            sys::cuPointerGetAttribute((&raw mut kind).cast(), attribute, address).result().map(|()| kind)
        };
        assert_eq!(kind(memory + 999).unwrap(), 2);
        assert_eq!(kind(pinned.as_ptr().unwrap() as u64).unwrap(), 1);
        let plain = [0_u8; 8];
        assert_eq!(code(kind(plain.as_ptr() as u64)), sys::CUresult::CUDA_ERROR_INVALID_VALUE);
        let (mut base, mut bytes) = (0, 0);
        sys::cuMemGetAddressRange_v2(&mut base, &mut bytes, memory + 500).result().unwrap();
        assert_eq!((base, bytes), (memory, 1000));
        result::free_sync(memory).unwrap();
    }
});

case!(what_is_used_after_all_its_users_is_gone, || {
    let (context, stream) = gpu();
    {
        let _kept = stream.alloc_zeros::<u8>(100).unwrap();
        // SAFETY: never read.
        let _pinned = unsafe { context.alloc_pinned_with_flags::<u8>(100, PORTABLE).unwrap() };
        assert_eq!((statistic("device_memory"), statistic("pinned_memory")), (1, 1));
    }
    stream.synchronize().unwrap();
    assert_eq!((statistic("device_memory"), statistic("pinned_memory")), (0, 0));
    assert_eq!(statistic("streams"), 1);
});

case!(one_device_copies_to_another, env = [("KOLO_EMULATOR_DEVICES", "2")], || {
    let (one, two) = (CudaContext::new(0).unwrap(), CudaContext::new(1).unwrap());
    let (from, to) = (one.new_stream().unwrap(), two.new_stream().unwrap());
    let source = from.clone_htod(&[1_u64, 2, 3]).unwrap();
    let mut target = to.alloc_zeros::<u64>(3).unwrap();
    to.memcpy_dtod(&source, &mut target).unwrap();
    assert_eq!(to.clone_dtoh(&target).unwrap(), [1, 2, 3]);
});
