//! One generic body a kernel, instantiated for each type, operation and instruction set.
//!
//! The body works on groups of `G` elements held in registers: all inputs' groups are folded into one accumulator
//! before anything is stored, so that the compiler needs no proof that inputs and outputs do not overlap, and n inputs
//! cost n reads and one write. AVX-512 is left out: its target features are younger than the oldest supported compiler.

use super::lane::{And, Bf16, F16, Lane, Max, Min, Op, Or, Product, Sum, Value, Xor};
use super::{Finish, Sink, Source};
use crate::tensor::{DType, ReduceOp};

/// The instruction set that runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Isa {
    /// Whatever the target guarantees.
    Portable,
    /// AVX2 and F16C, found at run time.
    #[cfg(target_arch = "x86_64")]
    Avx2,
}

impl Isa {
    /// The best that this processor has.
    pub(super) fn detect() -> Self {
        #[cfg(target_arch = "x86_64")]
        if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("f16c") {
            return Self::Avx2;
        }
        Self::Portable
    }
}

/// Runs `reduce_typed::<type, $op, group>` for a data type: a group is 64 bytes of elements.
macro_rules! by_type {
    ($dtype:expr, $op:ty, $args:tt) => {
        match $dtype {
            DType::F16 => reduce_typed::<F16, $op, 32> $args,
            DType::BF16 => reduce_typed::<Bf16, $op, 32> $args,
            DType::F32 => reduce_typed::<f32, $op, 16> $args,
            DType::F64 => reduce_typed::<f64, $op, 8> $args,
            DType::I8 => reduce_typed::<i8, $op, 64> $args,
            DType::I16 => reduce_typed::<i16, $op, 32> $args,
            DType::I32 => reduce_typed::<i32, $op, 16> $args,
            DType::I64 => reduce_typed::<i64, $op, 8> $args,
            DType::U8 => reduce_typed::<u8, $op, 64> $args,
            DType::U16 => reduce_typed::<u16, $op, 32> $args,
            DType::U32 => reduce_typed::<u32, $op, 16> $args,
            DType::U64 => reduce_typed::<u64, $op, 8> $args,
            DType::Bool => unreachable!("a bool has no arithmetic"),
        }
    };
}

/// # Safety
/// As [`super::reduce`], and the processor has `isa`.
pub(super) unsafe fn reduce(
    isa: Isa,
    dtype: DType,
    op: ReduceOp,
    inputs: &[Source],
    count: usize,
    outputs: &[Sink],
    finish: Finish,
) {
    // SAFETY: the caller's promise is that of the functions called.
    unsafe {
        match op {
            ReduceOp::Sum | ReduceOp::Average => by_type!(dtype, Sum, (isa, inputs, count, outputs, finish)),
            ReduceOp::Min => by_type!(dtype, Min, (isa, inputs, count, outputs, finish)),
            ReduceOp::Max => by_type!(dtype, Max, (isa, inputs, count, outputs, finish)),
            ReduceOp::Product => by_type!(dtype, Product, (isa, inputs, count, outputs, finish)),
            ReduceOp::Adasum => unreachable!("adasum combines tensors, not elements"),
            ReduceOp::And => bits::<And>(isa, dtype, inputs, count, outputs, finish),
            ReduceOp::Or => bits::<Or>(isa, dtype, inputs, count, outputs, finish),
            ReduceOp::Xor => bits::<Xor>(isa, dtype, inputs, count, outputs, finish),
        }
    }
}

/// Reduces bits, and finishes the elements that they make in a second pass: nobody scales masks in earnest.
///
/// # Safety
/// As [`reduce`].
unsafe fn bits<O: Op<u8>>(isa: Isa, dtype: DType, inputs: &[Source], count: usize, outputs: &[Sink], finish: Finish) {
    // SAFETY: the caller's promise: elements and accumulators of an integer are the same bytes, in place as well.
    unsafe {
        reduce_typed::<u8, O, 64>(isa, inputs, count * dtype.size(), outputs, Finish::NONE);
        if finish != Finish::NONE {
            for &output in outputs {
                let (Sink::Elements(to) | Sink::Partial(to)) = output;
                reduce(isa, dtype, ReduceOp::Sum, &[Source::Elements(to)], count, &[Sink::Elements(to)], finish);
            }
        }
    }
}

/// # Safety
/// As [`super::copy_scaled`], and the processor has `isa`.
pub(super) unsafe fn scale(isa: Isa, dtype: DType, src: *const u8, dst: *mut u8, count: usize, scale: f64) {
    let (inputs, outputs) = ([Source::Elements(src)], [Sink::Elements(dst)]);
    let finish = Finish { divide_by: 1, postscale: scale };
    // SAFETY: the caller's promise is that of a reduction of one input to one output.
    unsafe { reduce(isa, dtype, ReduceOp::Sum, &inputs, count, &outputs, finish) }
}

/// # Safety
/// As [`reduce`].
unsafe fn reduce_typed<L: Lane, O: Op<L::Value>, const G: usize>(
    isa: Isa,
    inputs: &[Source],
    count: usize,
    outputs: &[Sink],
    finish: Finish,
) {
    // SAFETY: the caller's promise; `isa` says what the processor has.
    unsafe {
        match isa {
            Isa::Portable => body::<L, O, G, false>(inputs, count, outputs, finish),
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 => body_avx2::<L, O, G>(inputs, count, outputs, finish),
        }
    }
}

/// # Safety
/// As [`reduce`], on a processor with AVX2 and F16C.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,f16c")]
unsafe fn body_avx2<L: Lane, O: Op<L::Value>, const G: usize>(
    inputs: &[Source],
    count: usize,
    outputs: &[Sink],
    finish: Finish,
) {
    // SAFETY: the caller's promise.
    unsafe { body::<L, O, G, true>(inputs, count, outputs, finish) }
}

/// # Safety
/// As [`reduce`]; `F16C` only where the processor has it.
#[inline(always)]
unsafe fn body<L: Lane, O: Op<L::Value>, const G: usize, const F16C: bool>(
    inputs: &[Source],
    count: usize,
    outputs: &[Sink],
    finish: Finish,
) {
    let whole = count - count % G;
    // SAFETY: `whole` and the rest together are `count` elements, which the caller promised.
    unsafe {
        match (inputs, outputs) {
            // Two and four members, and one output: the pointers stay in registers.
            ([Source::Elements(a), Source::Elements(b)], [Sink::Elements(out)]) => {
                groups::<L, O, G, F16C, 2>([*a, *b], whole, *out, finish);
            }
            (
                [Source::Elements(a), Source::Elements(b), Source::Elements(c), Source::Elements(d)],
                [Sink::Elements(out)],
            ) => groups::<L, O, G, F16C, 4>([*a, *b, *c, *d], whole, *out, finish),
            _ => {
                for at in (0..whole).step_by(G) {
                    let mut sum = load::<L, G, F16C>(inputs[0], at);
                    for &input in &inputs[1..] {
                        fold::<L::Value, O, G>(&mut sum, load::<L, G, F16C>(input, at));
                    }
                    complete(&mut sum, finish);
                    // Rounded once, however many outputs there are.
                    let elements = L::narrow::<G, F16C>(sum);
                    for &output in outputs {
                        match output {
                            Sink::Elements(to) => write(to, at, elements),
                            Sink::Partial(to) => write(to, at, sum),
                        }
                    }
                }
            }
        }
        if whole < count {
            rest::<L, O, G, F16C>(inputs, whole, count - whole, outputs, finish);
        }
    }
}

/// The whole groups of `N` inputs of elements, to one output.
///
/// # Safety
/// As [`body`].
#[inline(always)]
unsafe fn groups<L: Lane, O: Op<L::Value>, const G: usize, const F16C: bool, const N: usize>(
    inputs: [*const u8; N],
    whole: usize,
    output: *mut u8,
    finish: Finish,
) {
    for at in (0..whole).step_by(G) {
        // SAFETY: `at + G <= whole`, which the caller promised.
        unsafe {
            let mut sum = L::widen::<G, F16C>(read(inputs[0], at));
            for &input in &inputs[1..] {
                fold::<L::Value, O, G>(&mut sum, L::widen::<G, F16C>(read(input, at)));
            }
            complete(&mut sum, finish);
            write(output, at, L::narrow::<G, F16C>(sum));
        }
    }
}

/// The last `len < G` elements: staged, so that they take the very path of whole groups.
///
/// # Safety
/// As [`body`], with `at + len` elements.
#[inline(always)]
unsafe fn rest<L: Lane, O: Op<L::Value>, const G: usize, const F16C: bool>(
    inputs: &[Source],
    at: usize,
    len: usize,
    outputs: &[Sink],
    finish: Finish,
) {
    // SAFETY: only `len < G` elements from `at` on are read and written; the stages hold G.
    unsafe {
        let load = |input| match input {
            Source::Elements(from) => L::widen::<G, F16C>(read_some(from, at, len)),
            Source::Partial(from) => read_some(from, at, len),
        };
        let mut sum = load(inputs[0]);
        for &input in &inputs[1..] {
            fold::<L::Value, O, G>(&mut sum, load(input));
        }
        complete(&mut sum, finish);
        let elements = L::narrow::<G, F16C>(sum);
        for &output in outputs {
            match output {
                Sink::Elements(to) => write_some(to, at, len, elements),
                Sink::Partial(to) => write_some(to, at, len, sum),
            }
        }
    }
}

/// # Safety
/// `G` elements or accumulators from `at` on are readable; `F16C` only where the processor has it.
#[inline(always)]
unsafe fn load<L: Lane, const G: usize, const F16C: bool>(source: Source, at: usize) -> [L::Value; G] {
    // SAFETY: the caller's promise.
    unsafe {
        match source {
            Source::Elements(from) => L::widen::<G, F16C>(read(from, at)),
            Source::Partial(from) => read(from, at),
        }
    }
}

/// # Safety
/// `from` is readable for `at + G` values of `T`, any bits of which are a value.
#[inline(always)]
unsafe fn read<T: Copy, const G: usize>(from: *const u8, at: usize) -> [T; G] {
    // SAFETY: the caller's promise.
    unsafe { from.cast::<T>().add(at).cast::<[T; G]>().read_unaligned() }
}

/// # Safety
/// `to` is writable for `at + G` values of `T`.
#[inline(always)]
unsafe fn write<T: Copy, const G: usize>(to: *mut u8, at: usize, values: [T; G]) {
    // SAFETY: the caller's promise.
    unsafe { to.cast::<T>().add(at).cast::<[T; G]>().write_unaligned(values) }
}

/// # Safety
/// `from` is readable for `at + len` values of `T`, any bits of which are a value, and `len <= G`.
#[inline(always)]
pub(super) unsafe fn read_some<T: Copy + Default, const G: usize>(from: *const u8, at: usize, len: usize) -> [T; G] {
    let mut stage = [T::default(); G];
    // SAFETY: the caller's promise; bytes have no alignment, and the stage is ours.
    unsafe {
        let from = from.cast::<T>().add(at).cast::<u8>();
        std::ptr::copy_nonoverlapping(from, stage.as_mut_ptr().cast(), len * size_of::<T>());
    }
    stage
}

/// # Safety
/// `to` is writable for `at + len` values of `T`, and `len <= G`.
#[inline(always)]
unsafe fn write_some<T: Copy, const G: usize>(to: *mut u8, at: usize, len: usize, values: [T; G]) {
    // SAFETY: the caller's promise; bytes have no alignment, and the values are ours.
    unsafe {
        let to = to.cast::<T>().add(at).cast::<u8>();
        std::ptr::copy_nonoverlapping(values.as_ptr().cast(), to, len * size_of::<T>());
    }
}

#[inline(always)]
fn fold<V: Value, O: Op<V>, const G: usize>(sum: &mut [V; G], next: [V; G]) {
    for (sum, next) in sum.iter_mut().zip(next) {
        *sum = O::apply(*sum, next);
    }
}

#[inline(always)]
fn complete<V: Value, const G: usize>(sum: &mut [V; G], finish: Finish) {
    if finish.divide_by != 1 {
        for sum in sum.iter_mut() {
            *sum = sum.divide(finish.divide_by);
        }
    }
    if finish.postscale != 1.0 {
        for sum in sum.iter_mut() {
            *sum = sum.scale(finish.postscale);
        }
    }
}
