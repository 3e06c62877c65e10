//! Devices: how many there are, what they are called, and what they can do.

use std::ffi::{c_char, c_int, c_uint};
use std::sync::{Mutex, OnceLock, PoisonError};

use crate::codes::{self, Result};
use crate::context::Primary;
use crate::entry::{self, Out};
use crate::settings::{self, settings};

/// A device that the process sees.
pub(crate) struct Device {
    /// Its number in the machine, whatever CUDA_VISIBLE_DEVICES says.
    pub(crate) physical: usize,
    pub(crate) primary: Mutex<Primary>,
    /// Bytes of its memory that this process holds.
    used: Mutex<u64>,
}

static DEVICES: OnceLock<Vec<Device>> = OnceLock::new();

/// The devices, once `cuInit` has been called.
pub(crate) fn devices() -> Option<&'static [Device]> {
    DEVICES.get().map(Vec::as_slice)
}

/// The device of this number.
pub(crate) fn device(ordinal: usize) -> Result<&'static Device> {
    devices().ok_or(codes::NOT_INITIALIZED)?.get(ordinal).ok_or(codes::INVALID_DEVICE)
}

fn by_number(number: c_int) -> Result<&'static Device> {
    device(usize::try_from(number).map_err(|_| codes::INVALID_DEVICE)?)
}

impl Device {
    /// Takes `bytes` of the device's memory.
    pub(crate) fn take(&self, bytes: u64) -> Result<()> {
        let mut used = self.used.lock().unwrap_or_else(PoisonError::into_inner);
        let after = used.checked_add(bytes).filter(|&after| after <= settings().memory);
        *used = after.ok_or(codes::OUT_OF_MEMORY)?;
        Ok(())
    }

    pub(crate) fn give_back(&self, bytes: u64) {
        *self.used.lock().unwrap_or_else(PoisonError::into_inner) -= bytes;
    }

    /// Bytes of its memory that are free, as far as this process knows.
    pub(crate) fn free(&self) -> u64 {
        settings().memory - *self.used.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Threads a block at most.
pub(crate) const MAX_THREADS: u32 = 1024;
/// Blocks in x, y and z at most.
pub(crate) const MAX_GRID: [u32; 3] = [i32::MAX as u32, 65_535, 65_535];
/// Threads in x, y and z at most.
pub(crate) const MAX_BLOCK: [u32; 3] = [1024, 1024, 64];
/// Bytes of shared memory a block, unless it asks for more.
pub(crate) const SHARED: u32 = 48 << 10;
/// Bytes of shared memory a block that asks for more.
pub(crate) const SHARED_ON_REQUEST: u32 = 96 << 10;

/// The attributes that are known, by their number in the API. A caller that asks for another one gets an error rather than
/// an invented value.
fn attribute(number: c_int) -> Result<u32> {
    let settings = settings();
    Ok(match number {
        1 => MAX_THREADS,
        2..=4 => MAX_BLOCK[number as usize - 2],
        5..=7 => MAX_GRID[number as usize - 5],
        8 => SHARED,
        // Constant memory, warp, pitch, registers a block, clock in kHz.
        9 => 64 << 10,
        10 => 32,
        11 => i32::MAX as u32,
        12 => 65_536,
        13 => 1_000_000,
        // Copies overlap with kernels; multiprocessors; no limit on the time of a kernel; not integrated; host memory maps.
        15 => 1,
        16 => settings.blocks.div_ceil(4),
        17 | 18 => 0,
        19 => 1,
        // Compute mode: shared by all. Concurrent kernels. No ECC. PCI bus and device.
        20 => 0,
        31 => 1,
        32 => 0,
        33 => 1,
        34 | 35 | 50 => 0,
        // Memory clock and bus width, cache, threads a multiprocessor, engines, one address space.
        36 => 1_000_000,
        37 => 64,
        38 => 1 << 20,
        39 => 2048,
        40 => 2,
        41 => 1,
        // Compute capability: what the committed PTX is made for.
        75 => 7,
        76 => 0,
        78 => 1,
        81 => SHARED_ON_REQUEST,
        82 => 65_536,
        // Managed memory, one board of its own, pageable memory of the host, and what follows from them: none.
        83 | 84 | 85 | 86 | 88 | 89 | 90 | 100 => 0,
        // Waits and writes of a stream, of 32 bits and not of 64; cooperative launches.
        92 | 122 => 1,
        93 | 123 => 0,
        95 => 1,
        97 => SHARED_ON_REQUEST,
        99 => 1,
        // Memory by handles (cuMemCreate): none.
        101..=105 => 0,
        106 => 16,
        115 => settings.pools.into(),
        // Reads of other cards, handles of pools.
        116 | 119 => 0,
        // Events between processes.
        125 => 1,
        _ => return Err(codes::INVALID_VALUE),
    })
}

api! {
    /// Reads the settings and finds the devices.
    fn cuInit(flags: c_uint) at Free |_| {
        if flags != 0 {
            return Err(codes::INVALID_VALUE);
        }
        let devices = DEVICES.get_or_init(|| {
            let make = |&physical: &usize| {
                Device { physical, primary: Mutex::default(), used: Mutex::new(0) }
            };
            let devices: Vec<Device> = settings().visible.iter().map(make).collect();
            entry::initialised();
            crate::statistics::report_at_exit();
            devices
        });
        if devices.is_empty() { Err(codes::NO_DEVICE) } else { Ok(()) }
    }

    /// The newest API that is understood: 12.8.
    fn cuDriverGetVersion(version: Out<c_int>) at Free |_| {
        version.set(12_080)
    }

    /// How many devices the process sees.
    fn cuDeviceGetCount(count: Out<c_int>) at Driver |_| {
        count.set(devices().unwrap_or_default().len() as c_int)
    }

    /// A device's handle: its number.
    fn cuDeviceGet(handle: Out<c_int>, ordinal: c_int) at Driver |_| {
        by_number(ordinal)?;
        handle.set(ordinal)
    }

    /// A name that nobody can take for a GPU's.
    fn cuDeviceGetName(name: Out<c_char>, bytes: c_int, handle: c_int) at Driver |_| {
        let device = by_number(handle)?;
        let bytes = usize::try_from(bytes).map_err(|_| codes::INVALID_VALUE)?;
        name.set_text(&format!("kolo emulator {} (host memory, no GPU)", device.physical), bytes)
    }

    /// The UUID, by which processes know that they share a device.
    fn cuDeviceGetUuid_v2(uuid: Out<[u8; 16]>, handle: c_int) at Driver |_| {
        uuid.set(settings::uuid(by_number(handle)?.physical))
    }

    /// The same, under its older name.
    fn cuDeviceGetUuid(uuid: Out<[u8; 16]>, handle: c_int) at Driver |_| {
        uuid.set(settings::uuid(by_number(handle)?.physical))
    }

    /// The address on the PCI bus; each device has a bus of its own.
    fn cuDeviceGetPCIBusId(text: Out<c_char>, bytes: c_int, handle: c_int) at Driver |_| {
        let bytes = usize::try_from(bytes).map_err(|_| codes::INVALID_VALUE)?;
        text.set_text(&format!("0000:{:02x}:00.0", by_number(handle)?.physical + 1), bytes)
    }

    /// Bytes of a device's memory.
    fn cuDeviceTotalMem_v2(bytes: Out<usize>, handle: c_int) at Driver |_| {
        by_number(handle)?;
        bytes.set(settings().memory as usize)
    }

    /// What a device can do.
    fn cuDeviceGetAttribute(value: Out<c_int>, number: c_int, handle: c_int) at Driver |_| {
        let device = by_number(handle)?;
        if number == 33 {
            return value.set(device.physical as c_int + 1);
        }
        value.set(attribute(number)?.min(i32::MAX as u32) as c_int)
    }

    /// Whether one device reaches the memory of another.
    fn cuDeviceCanAccessPeer(answer: Out<c_int>, handle: c_int, peer: c_int) at Driver |_| {
        by_number(handle)?;
        by_number(peer)?;
        answer.set(c_int::from(handle != peer && settings().peers))
    }
}
