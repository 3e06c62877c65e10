//! kolo's own kernels, with the committed PTX: each is run and compared with a plain reference.
//!
//! Values are small whole numbers, so that every type holds every result exactly and one reference serves all types. How
//! results are rounded is tested beside the kernels; here it is whether kernels, arguments and memory fit together.

use std::sync::Arc;

use cudarc::driver::{CudaContext, CudaModule, CudaStream, DeviceRepr, PushKernelArg as _, result};
use cudarc::nvrtc::Ptx;

use crate::common::{blocks_of, gpu, statistic};
use crate::elements::{self, Kind};

/// The committed PTX.
const UNITS: &[(&str, &str)] = &[
    ("adasum", include_str!("../../../kernels/prebuilt/adasum.ptx")),
    ("move", include_str!("../../../kernels/prebuilt/move.ptx")),
    ("norm", include_str!("../../../kernels/prebuilt/norm.ptx")),
    ("peers", include_str!("../../../kernels/prebuilt/peers.ptx")),
    ("quantise", include_str!("../../../kernels/prebuilt/quantise.ptx")),
    ("reduce", include_str!("../../../kernels/prebuilt/reduce.ptx")),
    ("update", include_str!("../../../kernels/prebuilt/update.ptx")),
];

const THREADS: u32 = 256;

/// Arguments, as the kernels declare them.
macro_rules! arguments {
    ($(struct $name:ident { $($field:ident: $type:ty),* $(,)? })*) => { $(
        #[repr(C)]
        #[derive(Clone, Copy, Debug, Default)]
        struct $name { $($field: $type),* }

        // SAFETY: numbers and arrays of them, laid out as in C.
        unsafe impl DeviceRepr for $name {}
    )* };
}

arguments! {
    struct Tensor { address: u64, scale: f64 }
    struct Tile { in_tensor: u64, in_fused: u64, tensor: u32, count: u32 }
    struct Move { tiles: u64, tensors: u64, fused: u64, tile_count: u32, unpack: u32 }
    struct Reduce {
        inputs: [u64; 8], outputs: [u64; 8], count: u64, divide_by: u64, postscale: f64, n: u32, m: u32,
    }
    struct Squares { moved: Move, sums: u64 }
    struct Total { sums: u64, result: u64, max_norm: f64, unscale: f64, count: u32, unused: u32 }
    struct Norm { norm: f64, factor: f64, finite: u32, unused: u32 }
    struct Quantise { elements: u64, bytes: u64, scales: u64, count: u64 }
    struct Dots { inputs: [u64; 8], tiles: u64, sums: u64, tile_count: u32, n: u32 }
    struct Totals { sums: u64, firsts: u64, totals: u64, tensors: u32, pairs: u32 }
    struct Combine { reduce: Reduce, tiles: u64, weights: u64, tile_count: u32, unused: u32 }
    struct Team { flags: [u64; 8], error: u64, patience: u64, ranks: u32, rank: u32 }
    struct Peers { team: Team, reduce: Reduce, settle: u32, unused: u32 }
    struct Parameter { values: u64, gradient: u64, first: u64, second: u64, step: f64, root: f64, fresh: u32, unused: u32 }
    struct Update { tiles: u64, parameters: u64, norm: u64, tile_count: u32, unused: u32 }
    struct Sgd { update: Update, rate: f64, momentum: f64, share: f64, decay: f64, flags: u32, unused: u32 }
    struct Adam {
        update: Update, beta1: f64, share1: f64, beta2: f64, share2: f64, epsilon: f64, decay: f64, flags: u32, unused: u32,
    }
}

/// A device with kolo's modules, and memory that goes with it.
struct Gpu {
    context: Arc<CudaContext>,
    stream: Arc<CudaStream>,
    modules: Vec<(&'static str, Arc<CudaModule>)>,
    memory: std::cell::RefCell<Vec<u64>>,
}

impl Gpu {
    fn new() -> Self {
        let (context, stream) = gpu();
        let load = |(name, ptx): &(&'static str, &str)| (*name, context.load_module(Ptx::from_src(*ptx)).unwrap());
        let modules = UNITS.iter().map(load).collect();
        Self { context, stream, modules, memory: Vec::new().into() }
    }

    fn launch<T: DeviceRepr>(&self, unit: &str, kernel: &str, blocks: u32, argument: &T) {
        self.launch_on(&self.stream, unit, kernel, blocks, argument);
        self.stream.synchronize().unwrap_or_else(|error| panic!("{kernel}: {error:?}"));
    }

    fn launch_on<T: DeviceRepr>(&self, stream: &Arc<CudaStream>, unit: &str, kernel: &str, blocks: u32, argument: &T) {
        let module = &self.modules.iter().find(|(name, _)| *name == unit).expect("a unit").1;
        let function = module.load_function(kernel).unwrap_or_else(|error| panic!("{kernel}: {error:?}"));
        let mut launch = stream.launch_builder(&function);
        launch.arg(argument);
        // SAFETY: the arguments are made as the kernels declare them, with live memory.
        unsafe { launch.launch(blocks_of(blocks, THREADS)) }.unwrap_or_else(|error| panic!("{kernel}: {error:?}"));
    }

    fn bytes(&self, bytes: &[u8]) -> u64 {
        // SAFETY: fresh memory of as many bytes; `drop` frees it.
        unsafe {
            let memory = result::malloc_sync(bytes.len()).unwrap();
            result::memcpy_htod_sync(memory, bytes).unwrap();
            self.memory.borrow_mut().push(memory);
            memory
        }
    }

    /// Structures, one after the other.
    fn table<T: DeviceRepr + Copy>(&self, entries: &[T]) -> u64 {
        // SAFETY: plain numbers without padding; read as bytes.
        let bytes = unsafe { std::slice::from_raw_parts(entries.as_ptr().cast(), size_of_val(entries)) };
        self.bytes(bytes)
    }

    /// Elements of a type.
    fn elements(&self, kind: Kind, values: &[f64]) -> u64 {
        self.bytes(&elements::encode(kind, values))
    }

    /// Elements at an address that is a multiple of the element's size alone.
    fn odd_elements(&self, kind: Kind, values: &[f64]) -> u64 {
        let bytes = [vec![0; elements::bytes(kind)], elements::encode(kind, values)].concat();
        self.bytes(&bytes) + elements::bytes(kind) as u64
    }

    fn read(&self, kind: Kind, memory: u64, count: usize) -> Vec<f64> {
        let mut bytes = vec![0_u8; count * elements::bytes(kind)];
        // SAFETY: the callers have as much memory there.
        unsafe { result::memcpy_dtoh_sync(&mut bytes, memory).unwrap() };
        elements::decode(kind, &bytes)
    }
}

impl Drop for Gpu {
    fn drop(&mut self) {
        self.context.bind_to_thread().unwrap();
        for memory in self.memory.borrow_mut().drain(..) {
            // SAFETY: allocated by `bytes`, freed once.
            unsafe { result::free_sync(memory).unwrap() };
        }
    }
}

impl Reduce {
    fn of(inputs: &[u64], outputs: &[u64], count: usize) -> Self {
        let (n, m) = (inputs.len() as u32, outputs.len() as u32);
        let mut argument = Self { count: count as u64, divide_by: 1, postscale: 1.0, n, m, ..Self::default() };
        argument.inputs[..inputs.len()].copy_from_slice(inputs);
        argument.outputs[..outputs.len()].copy_from_slice(outputs);
        argument
    }
}

/// Whole numbers from `least` to `most`, in no order.
fn numbers(count: usize, least: i32, most: i32, seed: usize) -> Vec<f64> {
    (0..count)
        .map(|at| f64::from(least) + ((at * 7919 + seed * 104_729) % (most - least + 1) as usize) as f64)
        .collect()
}

const COUNT: usize = 1003;

fn moves(gpu: &Gpu) {
    let pairs = [("f32", "f16"), ("f32", "bf16"), ("f64", "f32")].into_iter();
    let pairs = pairs.chain(elements::KINDS.iter().map(|kind| (*kind, *kind))).chain([("bytes", "bytes")]);
    for (source, fused) in pairs {
        let plain = source == "bytes";
        let (from, to) = if plain { ("u8", "u8") } else { (source, fused) };
        let (scale, inverse) = if plain { (1.0, 1.0) } else { (2.0, 0.5) };
        let (one, two) = (numbers(700, 0, 60, 1), numbers(37, 0, 60, 2));
        let tensors = [gpu.elements(from, &one), gpu.odd_elements(from, &two)];
        let sizes = [elements::bytes(from) as u64, elements::bytes(to) as u64];
        // Two tiles of the first tensor, one of the second, with room for an element in between.
        let tile = |tensor, at: u64, fused: u64, count| Tile {
            in_tensor: at * sizes[0],
            in_fused: fused * sizes[1],
            tensor,
            count,
        };
        let tiles = gpu.table(&[tile(0, 0, 0, 401), tile(0, 401, 401, 299), tile(1, 0, 701, 37)]);
        let fused_memory = gpu.elements(to, &vec![0.0; 738]);
        let list = |scale| gpu.table(&tensors.map(|address| Tensor { address, scale }));
        let argument = |tensors, unpack| Move { tiles, tensors, fused: fused_memory, tile_count: 3, unpack };
        let kernel = if plain { "kolo_move_bytes".to_owned() } else { format!("kolo_move_{source}_{fused}") };
        gpu.launch("move", &kernel, 2, &argument(list(scale), 0));
        let packed = gpu.read(to, fused_memory, 738);
        let expected: Vec<f64> = one.iter().chain([&0.0]).chain(&two).map(|value| value * scale).collect();
        assert_eq!(packed, expected, "{kernel}");
        // SAFETY: live memory of the tensors.
        unsafe {
            result::memset_d8_sync(tensors[0], 0, 700 * sizes[0] as usize).unwrap();
            result::memset_d8_sync(tensors[1], 0, 37 * sizes[0] as usize).unwrap();
        }
        gpu.launch("move", &kernel, 3, &argument(list(inverse), 1));
        assert_eq!(gpu.read(from, tensors[0], 700), one, "{kernel}");
        assert_eq!(gpu.read(from, tensors[1], 37), two, "{kernel}");
    }
}

fn reductions(gpu: &Gpu) {
    type Fold = fn(f64, f64) -> f64;
    let operations: [(&str, Fold); 4] =
        [("sum", |a, b| a + b), ("product", |a, b| a * b), ("min", f64::min), ("max", f64::max)];
    for &kind in elements::KINDS {
        // Sums and products of signed integers are those of unsigned ones.
        let skipped = |name: &str| kind.starts_with('i') && matches!(name, "sum" | "product");
        for (name, fold) in operations.iter().filter(|(name, _)| !skipped(name)) {
            let inputs: Vec<Vec<f64>> = (0..3).map(|input| numbers(COUNT, 1, 5, input)).collect();
            let expected: Vec<f64> = (0..COUNT)
                .map(|at| inputs[1..].iter().fold(inputs[0][at], |sum, input| fold(sum, input[at])))
                .collect();
            for odd in [false, true] {
                let place =
                    |values: &Vec<f64>| if odd { gpu.odd_elements(kind, values) } else { gpu.elements(kind, values) };
                let outputs = [gpu.elements(kind, &vec![0.0; COUNT]), gpu.odd_elements(kind, &vec![0.0; COUNT])];
                let places: Vec<u64> = inputs.iter().map(place).collect();
                let kernel = format!("kolo_reduce_{name}_{kind}");
                // One output, and both.
                for outputs in [&outputs[..1], &outputs] {
                    gpu.launch("reduce", &kernel, 2, &Reduce::of(&places, outputs, COUNT));
                    for &output in outputs {
                        assert_eq!(gpu.read(kind, output, COUNT), expected, "{kernel}");
                    }
                }
            }
        }
        let values: Vec<f64> = numbers(COUNT, 0, 20, 4).iter().map(|value| value * 2.0).collect();
        let (input, output) = (gpu.elements(kind, &values), gpu.elements(kind, &vec![0.0; COUNT]));
        let argument = Reduce { divide_by: 2, postscale: 3.0, ..Reduce::of(&[input], &[output], COUNT) };
        gpu.launch("reduce", &format!("kolo_scale_{kind}"), 2, &argument);
        let expected: Vec<f64> = values.iter().map(|value| value / 2.0 * 3.0).collect();
        assert_eq!(gpu.read(kind, output, COUNT), expected, "{kind}");
    }
    type Bits = fn(u8, u8) -> u8;
    let bits: [(&str, Bits); 3] = [("and", |a, b| a & b), ("or", |a, b| a | b), ("xor", |a, b| a ^ b)];
    for (name, fold) in bits {
        let inputs = [numbers(COUNT, 0, 255, 5), numbers(COUNT, 0, 255, 6)];
        let output = gpu.elements("u8", &vec![0.0; COUNT]);
        let argument = Reduce::of(&inputs.each_ref().map(|values| gpu.elements("u8", values)), &[output], COUNT);
        gpu.launch("reduce", &format!("kolo_reduce_{name}_bits"), 2, &argument);
        let expected: Vec<f64> = (0..COUNT).map(|at| fold(inputs[0][at] as u8, inputs[1][at] as u8).into()).collect();
        assert_eq!(gpu.read("u8", output, COUNT), expected, "{name}");
    }
}

/// One tensor of `COUNT` elements, cut in two.
fn two_tiles(gpu: &Gpu, kind: Kind, cut: u32) -> u64 {
    let at = u64::from(cut) * elements::bytes(kind) as u64;
    let first = Tile { count: cut, ..Tile::default() };
    gpu.table(&[first, Tile { in_tensor: at, in_fused: at, count: COUNT as u32 - cut, ..Tile::default() }])
}

fn norms(gpu: &Gpu) {
    for &kind in elements::FLOATS {
        let values = numbers(COUNT, -9, 9, 7);
        let fused = gpu.elements(kind, &values);
        let (sums, result) = (gpu.elements("f64", &[0.0; 2]), gpu.table(&[Norm::default()]));
        let moved = Move {
            tiles: two_tiles(gpu, kind, 601),
            fused,
            tile_count: 2,
            unpack: 1,
            tensors: gpu.table(&[Tensor::default()]),
        };
        gpu.launch("norm", &format!("kolo_squares_{kind}"), 2, &Squares { moved, sums });
        let squares = |values: &[f64]| values.iter().map(|value| value * value).sum::<f64>();
        let expected = [squares(&values[..601]), squares(&values[601..])];
        assert_eq!(gpu.read("f64", sums, 2), expected, "{kind}");
        let total = Total { sums, result, max_norm: 1.0, unscale: 0.5, count: 2, unused: 0 };
        gpu.launch("norm", "kolo_norm", 1, &total);
        let norm = (expected[0] + expected[1]).sqrt() * 0.5;
        assert_eq!(gpu.read("f64", result, 2), [norm, 0.5 * (1.0 / norm)]);
    }
}

fn quantisation(gpu: &Gpu) {
    for kind in ["f16", "bf16", "f32"] {
        // Every block has a 127, so that its scale is 1.
        let mut values = numbers(COUNT, -100, 100, 8);
        values.iter_mut().step_by(256).for_each(|value| *value = 127.0);
        let back = gpu.odd_elements(kind, &vec![0.0; COUNT]);
        let (bytes, scales) = (gpu.elements("i8", &vec![0.0; COUNT]), gpu.elements("f32", &[0.0; 4]));
        let mut argument = Quantise { elements: gpu.odd_elements(kind, &values), bytes, scales, count: COUNT as u64 };
        gpu.launch("quantise", &format!("kolo_quantise_{kind}"), 2, &argument);
        assert_eq!(gpu.read("i8", bytes, COUNT), values, "{kind}");
        assert_eq!(gpu.read("f32", scales, 4), [1.0; 4], "{kind}");
        argument.elements = back;
        gpu.launch("quantise", &format!("kolo_dequantise_{kind}"), 2, &argument);
        assert_eq!(gpu.read(kind, back, COUNT), values, "{kind}");
    }
}

fn adasum(gpu: &Gpu) {
    for &kind in elements::FLOATS {
        let inputs = [numbers(COUNT, -9, 9, 9), numbers(COUNT, -9, 9, 10)];
        let places = inputs.each_ref().map(|values| gpu.elements(kind, values));
        let tiles = two_tiles(gpu, kind, 501);
        let sums = gpu.elements("f64", &[0.0; 6]);
        let mut dots = Dots { tiles, sums, tile_count: 2, n: 2, ..Dots::default() };
        dots.inputs[..2].copy_from_slice(&places);
        gpu.launch("adasum", &format!("kolo_dots_{kind}"), 2, &dots);
        let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
        let of = |range: std::ops::Range<usize>| {
            let (a, b) = (&inputs[0][range.clone()], &inputs[1][range]);
            [dot(a, a), dot(a, b), dot(b, b)]
        };
        assert_eq!(gpu.read("f64", sums, 6), [of(0..501), of(501..COUNT)].concat(), "{kind}");
        let (firsts, totals) = (gpu.elements("u32", &[0.0, 2.0]), gpu.elements("f64", &[0.0; 3]));
        gpu.launch("adasum", "kolo_dots_total", 1, &Totals { sums, firsts, totals, tensors: 1, pairs: 3 });
        assert_eq!(gpu.read("f64", totals, 3), of(0..COUNT), "{kind}");
        let (output, weights) = (gpu.elements(kind, &vec![0.0; COUNT]), gpu.elements("f64", &[2.0, 3.0]));
        let reduce = Reduce::of(&places, &[output], 0);
        let combine = Combine { reduce, tiles, weights, tile_count: 2, unused: 0 };
        gpu.launch("adasum", &format!("kolo_combine_{kind}"), 2, &combine);
        let expected: Vec<f64> = (0..COUNT).map(|at| 2.0 * inputs[0][at] + 3.0 * inputs[1][at]).collect();
        assert_eq!(gpu.read(kind, output, COUNT), expected, "{kind}");
    }
}

/// Two ranks, as two streams of one device: here their kernels do run together.
fn peers(gpu: &Gpu) {
    let streams = [gpu.stream.clone(), gpu.context.new_stream().unwrap()];
    let flags = [(); 2].map(|()| gpu.bytes(&vec![0; 4 * 128 * 17]));
    let errors = [(); 2].map(|()| gpu.elements("u32", &[0.0]));
    let team = |rank: usize| {
        let mut team =
            Team { error: errors[rank], patience: 20_000_000_000, ranks: 2, rank: rank as u32, ..Team::default() };
        team.flags[..2].copy_from_slice(&flags);
        team
    };
    for &kind in elements::FLOATS {
        // One-shot: all of it, into the rank's own output. Two-shot: a half each, into both.
        for slices in [[0..COUNT, 0..COUNT], [0..512, 512..COUNT]] {
            let inputs = [numbers(COUNT, -9, 9, 11), numbers(COUNT, -9, 9, 12)];
            let places = inputs.each_ref().map(|values| gpu.elements(kind, values));
            let results = [(); 2].map(|()| gpu.elements(kind, &vec![0.0; COUNT]));
            let kernel = format!("kolo_allreduce_sum_{kind}");
            for (rank, stream) in streams.iter().enumerate() {
                let slice = &slices[rank];
                let place = |address: u64| address + (slice.start * elements::bytes(kind)) as u64;
                let own = [place(results[rank])];
                let outputs = if slice.len() == COUNT { &own[..] } else { &results.map(place) };
                let reduce = Reduce { postscale: 2.0, ..Reduce::of(&places.map(place), outputs, slice.len()) };
                gpu.launch_on(stream, "peers", &kernel, 3, &Peers { team: team(rank), reduce, settle: 1, unused: 0 });
            }
            streams.iter().for_each(|stream| stream.synchronize().unwrap());
            let expected: Vec<f64> = (0..COUNT).map(|at| 2.0 * (inputs[0][at] + inputs[1][at])).collect();
            for rank in 0..2 {
                assert_eq!(gpu.read("u32", errors[rank], 1), [0.0], "{kernel}");
                assert_eq!(gpu.read(kind, results[rank], COUNT), expected, "{kernel}");
            }
        }
    }
    for (rank, stream) in streams.iter().enumerate() {
        gpu.launch_on(stream, "peers", "kolo_meet", 3, &team(rank));
    }
    streams.iter().for_each(|stream| stream.synchronize().unwrap());
    // A rank that is alone gives up after its patience, and says whom it missed.
    let alone = Team { patience: 1_000_000, ..team(1) };
    gpu.launch("peers", "kolo_meet", 1, &alone);
    assert_eq!(gpu.read("u32", errors[1], 1)[0] as u32 & 0xffff, 1);
}

fn updates(gpu: &Gpu) {
    let pairs = [("f16", "f16"), ("bf16", "bf16"), ("f32", "f16"), ("f32", "bf16"), ("f32", "f32"), ("f64", "f64")];
    for (kind, gradient_kind) in pairs {
        let (values, gradients) = (numbers(COUNT, -9, 9, 13), numbers(COUNT, -9, 9, 14));
        let zeros = vec![0.0; COUNT];
        let parameter = Parameter {
            values: gpu.elements(kind, &values),
            gradient: gpu.odd_elements(gradient_kind, &gradients),
            first: gpu.elements(kind, &zeros),
            second: gpu.elements(kind, &zeros),
            step: 0.125,
            root: 1.0,
            fresh: 1,
            unused: 0,
        };
        let update = Update {
            tiles: two_tiles(gpu, kind, 400),
            parameters: gpu.table(&[parameter]),
            norm: 0,
            tile_count: 2,
            unused: 0,
        };
        let sgd = Sgd { update, rate: 0.5, momentum: 0.0, share: 1.0, decay: 0.0, flags: 1, unused: 0 };
        let kernel = format!("kolo_sgd_{kind}_{gradient_kind}");
        gpu.launch("update", &kernel, 2, &sgd);
        let stepped: Vec<f64> = values.iter().zip(&gradients).map(|(value, gradient)| value - 0.5 * gradient).collect();
        assert_eq!(gpu.read(kind, parameter.values, COUNT), stepped, "{kernel}");
        assert_eq!(gpu.read(kind, parameter.first, COUNT), gradients, "{kernel}");
        if !matches!(kind, "f32" | "f64") {
            continue;
        }
        // The betas' shares are powers of two, so that moments are exact; the root and the quotient round.
        let adam = Adam {
            update,
            beta1: 0.5,
            share1: 0.5,
            beta2: 0.75,
            share2: 0.25,
            epsilon: 0.0,
            decay: 0.0,
            flags: 0,
            unused: 0,
        };
        let kernel = format!("kolo_adam_{kind}_{gradient_kind}");
        gpu.launch("update", &kernel, 2, &adam);
        for (at, got) in gpu.read(kind, parameter.values, COUNT).into_iter().enumerate() {
            let (first, second) = (0.5 * gradients[at], 0.25 * gradients[at] * gradients[at]);
            let expected = stepped[at] - 0.125 * (first / second.sqrt());
            // 0 over 0 is no number, on either side.
            let near = (got - expected).abs() < 1e-6 || (got.is_nan() && expected.is_nan());
            assert!(near, "{kernel}: {got} {expected}");
        }
        assert_eq!(gpu.read(kind, parameter.second, COUNT), gradients.iter().map(|g| 0.25 * g * g).collect::<Vec<_>>());
    }
}

fn all() {
    let gpu = Gpu::new();
    moves(&gpu);
    reductions(&gpu);
    norms(&gpu);
    quantisation(&gpu);
    adasum(&gpu);
    peers(&gpu);
    updates(&gpu);
    let entries =
        UNITS.iter().flat_map(|(_, ptx)| ptx.lines()).filter_map(|line| line.strip_prefix(".visible .entry "));
    let names: Vec<&str> = entries.map(|line| line.trim_end_matches('(')).collect();
    assert!(names.len() > 100, "{names:?}");
    let idle: Vec<_> = names.iter().filter(|name| statistic(&format!("kernel/{name} ")) == 0).collect();
    assert!(idle.is_empty(), "never run: {idle:?}");
}

case!(every_kernel_does_what_it_says, || {
    all();
});

case!(every_kernel_does_it_in_another_order, env = [("KOLO_EMULATOR_ORDER", "7")], || {
    all();
});
