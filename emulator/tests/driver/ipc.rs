//! Memory and events between processes.

use cudarc::driver::{CudaContext, PushKernelArg as _, result, sys};

use crate::common::{Link, WAIT, blocks_of, gpu, kernel, statistic};

/// CU_IPC_MEM_LAZY_ENABLE_PEER_ACCESS: the only flag there is.
const LAZY: u32 = 1;

fn bytes_of(handle: &sys::CUipcMemHandle) -> [u8; 64] {
    handle.reserved.map(|byte| byte as u8)
}

fn handle_of(bytes: [u8; 64]) -> sys::CUipcMemHandle {
    sys::CUipcMemHandle_st { reserved: bytes.map(|byte| byte as _) }
}

/// Exports memory; the other process gets the handle.
fn export(link: &mut Link, memory: u64) {
    let mut handle = handle_of([0; 64]);
    // SAFETY: a place for a handle.
    unsafe { sys::cuIpcGetMemHandle(&mut handle, memory).result().unwrap() };
    link.send(&bytes_of(&handle));
}

fn open(handle: sys::CUipcMemHandle, flags: u32) -> Result<u64, sys::CUresult> {
    let mut memory = 0;
    // SAFETY: a place for an address; the handle is checked.
    match unsafe { sys::cuIpcOpenMemHandle_v2(&mut memory, handle, flags) } {
        sys::CUresult::CUDA_SUCCESS => Ok(memory),
        code => Err(code),
    }
}

fn import(link: &mut Link) -> u64 {
    open(handle_of(link.receive()), LAZY).unwrap()
}

fn close(memory: u64) {
    // SAFETY: opened by the callers.
    unsafe { sys::cuIpcCloseMemHandle(memory).result().unwrap() };
}

fn read<const N: usize>(memory: u64) -> [u32; N] {
    let mut back = [0; N];
    // SAFETY: the callers have as much memory there.
    unsafe { result::memcpy_dtoh_sync(&mut back, memory).unwrap() };
    back
}

fn write(memory: u64, words: &[u32]) {
    // SAFETY: as above. Copies to a device at once are done when they return.
    unsafe { result::memcpy_htod_sync(memory, words).unwrap() };
}

fn allocate(bytes: usize) -> u64 {
    // SAFETY: the callers free it.
    unsafe { result::malloc_sync(bytes).unwrap() }
}

fn free(memory: u64) {
    // SAFETY: allocated by the callers, freed once.
    unsafe { result::free_sync(memory).unwrap() };
}

two_processes!(memory_is_shared,
    first: |link| {
        let (_context, _stream) = gpu();
        let memory = allocate(1000 * 4);
        write(memory, &[3; 1000]);
        export(&mut link, memory);
        link.meet();
        assert_eq!(read::<1000>(memory)[999], 4);
        free(memory);
        link.join();
    },
    second: |link| {
        let (_context, _stream) = gpu();
        let handle = handle_of(link.receive());
        assert_eq!(open(handle, 0), Err(sys::CUresult::CUDA_ERROR_INVALID_VALUE));
        let memory = open(handle, LAZY).unwrap();
        assert_eq!(read::<1000>(memory), [3; 1000]);
        // A second opening gives the same address, and must be closed as well.
        assert_eq!(open(handle, LAZY), Ok(memory));
        close(memory);
        write(memory + 999 * 4, &[4]);
        assert_eq!(statistic("imported_memory"), 1);
        close(memory);
        assert_eq!(statistic("imported_memory"), 0);
        link.meet();
    }
);

two_processes!(what_may_not_be_shared_is_refused,
    first: |link| {
        let (_context, stream) = gpu();
        let mut handle = handle_of([0; 64]);
        let of_a_pool = stream.alloc_zeros::<u8>(100).unwrap();
        let (address, _guard) = cudarc::driver::DevicePtr::device_ptr(&of_a_pool, &stream);
        // SAFETY: a place for a handle.
        let refused = unsafe { sys::cuIpcGetMemHandle(&mut handle, address) };
        assert_eq!(refused, sys::CUresult::CUDA_ERROR_INVALID_VALUE);
        let memory = allocate(100);
        // SAFETY: as above.
        unsafe { sys::cuIpcGetMemHandle(&mut handle, memory).result().unwrap() };
        // Not by the process that has it already.
        assert_eq!(open(handle, LAZY), Err(sys::CUresult::CUDA_ERROR_INVALID_CONTEXT));
        free(memory);
        // Freed since: the other one gets nothing else in its place.
        link.send(&bytes_of(&handle));
        link.meet();
        link.join();
    },
    second: |link| {
        let (_context, _stream) = gpu();
        let handle = handle_of(link.receive());
        assert_eq!(open(handle, LAZY), Err(sys::CUresult::CUDA_ERROR_MAP_FAILED));
        assert_eq!(open(handle_of([7; 64]), LAZY), Err(sys::CUresult::CUDA_ERROR_INVALID_VALUE));
        link.meet();
    }
);

two_processes!(memory_of_a_device_that_is_out_of_reach_is_refused,
    env = [("KOLO_EMULATOR_DEVICES", "2"), ("KOLO_EMULATOR_PEERS", "0")],
    first: |link| {
        let (_context, _stream) = gpu();
        let memory = allocate(100);
        export(&mut link, memory);
        link.meet();
        free(memory);
        link.join();
    },
    second: |link| {
        let handle = handle_of(link.receive());
        let near = CudaContext::new(0).unwrap();
        near.bind_to_thread().unwrap();
        close(open(handle, LAZY).unwrap());
        let far = CudaContext::new(1).unwrap();
        far.bind_to_thread().unwrap();
        assert_eq!(open(handle, LAZY), Err(sys::CUresult::CUDA_ERROR_PEER_ACCESS_UNSUPPORTED));
        link.meet();
    }
);

two_processes!(memory_outlives_the_process_that_made_it,
    first: |link| {
        let (_context, _stream) = gpu();
        let memory = import(&mut link);
        let unopened = handle_of(link.receive());
        link.kill();
        assert_eq!(read::<4>(memory), [11, 12, 13, 14]);
        close(memory);
        // What had not been opened by then cannot be opened any more.
        assert_eq!(open(unopened, LAZY), Err(sys::CUresult::CUDA_ERROR_MAP_FAILED));
    },
    second: |link| {
        let (_context, _stream) = gpu();
        let (one, two) = (allocate(16), allocate(16));
        write(one, &[11, 12, 13, 14]);
        export(&mut link, one);
        export(&mut link, two);
        link.until_gone();
    }
);

/// An event that other processes may open.
fn shared_event(context: &CudaContext) -> sys::CUevent {
    context.bind_to_thread().unwrap();
    let mut event = std::ptr::null_mut();
    // SAFETY: a place for an event.
    unsafe { sys::cuEventCreate(&mut event, 4 | 2).result().unwrap() };
    event
}

fn export_event(link: &mut Link, event: sys::CUevent) {
    let mut handle = sys::CUipcEventHandle_st { reserved: [0; 64] };
    // SAFETY: a place for a handle, and a live event.
    unsafe { sys::cuIpcGetEventHandle(&mut handle, event).result().unwrap() };
    link.send(&handle.reserved.map(|byte| byte as u8));
}

fn import_event(link: &mut Link) -> sys::CUevent {
    let handle = sys::CUipcEventHandle_st { reserved: link.receive().map(|byte: u8| byte as _) };
    let mut event = std::ptr::null_mut();
    // SAFETY: a place for an event; the handle is checked.
    unsafe { sys::cuIpcOpenEventHandle(&mut event, handle).result().unwrap() };
    event
}

fn destroy(event: sys::CUevent) {
    // SAFETY: made or opened by the callers.
    unsafe { result::event::destroy(event).unwrap() };
}

// The delay makes the writer late: without the event the reader would see the old words.
two_processes!(events_order_processes, env = [("KOLO_EMULATOR_DELAYS", "set=30000")],
    first: |link| {
        let (context, stream) = gpu();
        let memory = allocate(16);
        write(memory, &[1; 4]);
        let event = shared_event(&context);
        export(&mut link, memory);
        export_event(&mut link, event);
        link.meet();
        // SAFETY: live memory, stream and event.
        unsafe {
            result::memset_d8_async(memory, 2, 16, stream.cu_stream()).unwrap();
            result::event::record(event, stream.cu_stream()).unwrap();
        }
        // Recorded: from now on the other one may wait.
        link.meet();
        link.meet();
        destroy(event);
        free(memory);
        link.join();
    },
    second: |link| {
        let (_context, stream) = gpu();
        let memory = import(&mut link);
        let event = import_event(&mut link);
        link.meet();
        link.meet();
        let mut words = [0_u32; 4];
        // SAFETY: live memory, stream and event.
        unsafe {
            sys::cuStreamWaitEvent(stream.cu_stream(), event, 0).result().unwrap();
            result::memcpy_dtoh_async(&mut words, memory, stream.cu_stream()).unwrap();
            assert_eq!(sys::cuEventQuery(event), sys::CUresult::CUDA_SUCCESS);
        }
        assert_eq!(words, [0x0202_0202; 4]);
        destroy(event);
        close(memory);
        link.meet();
    }
);

two_processes!(a_wait_for_a_killed_process_ends,
    env = [("KOLO_EMULATOR_SPIN_LIMIT_MS", "100")],
    leaves = "events 1",
    first: |link| {
        let (context, stream) = gpu();
        let event = import_event(&mut link);
        link.kill();
        // SAFETY: live stream and event.
        unsafe { sys::cuStreamWaitEvent(stream.cu_stream(), event, 0).result().unwrap() };
        assert_eq!(stream.synchronize().unwrap_err().0, sys::CUresult::CUDA_ERROR_LAUNCH_TIMEOUT);
        drop((stream, context));
    },
    second: |link| {
        let (context, stream) = gpu();
        let event = shared_event(&context);
        extern "C" fn for_ever(_: *mut std::ffi::c_void) {
            loop {
                std::thread::park();
            }
        }
        // SAFETY: live stream and event; the function takes nothing.
        unsafe {
            result::stream::launch_host_function(stream.cu_stream(), for_ever, std::ptr::null_mut()).unwrap();
            result::event::record(event, stream.cu_stream()).unwrap();
        }
        export_event(&mut link, event);
        link.until_gone();
    }
);

fn rounds(link: &mut Link) {
    const ROUNDS: u32 = 300;
    let (context, stream) = gpu();
    let function = kernel(&context, WAIT, "kolo_test_rounds");
    let (own, sum) = (allocate(8), allocate(4));
    write(own, &[0, 0]);
    export(link, own);
    let peer = import(link);
    link.meet();
    let mut launch = stream.launch_builder(&function);
    launch.arg(&own).arg(&peer).arg(&ROUNDS).arg(&sum);
    // SAFETY: live memory, which both kernels use by the rules of flags.
    unsafe { launch.launch(blocks_of(1, 1)).unwrap() };
    stream.synchronize().unwrap();
    assert_eq!(read::<1>(sum), [3 * ROUNDS * (ROUNDS + 1) / 2]);
    link.meet();
    close(peer);
    free(own);
    free(sum);
}

two_processes!(kernels_of_two_processes_wait_for_each_other,
    first: |link| {
        rounds(&mut link);
        link.join();
    },
    second: |link| {
        rounds(&mut link);
    }
);
