//! Tensors of any type, and what the ranks' tensors come to.

use half::f16;

use crate::coordinator::Kind;
use crate::engine::testing::Random;
use crate::tensor::{DType, RawSlice, ReduceOp};

#[derive(Clone, Debug, PartialEq)]
pub(super) enum Data {
    F16(Vec<f16>),
    F32(Vec<f32>),
    F64(Vec<f64>),
    I32(Vec<i32>),
    U8(Vec<u8>),
}

pub(super) const DTYPES: [DType; 5] = [DType::F16, DType::F32, DType::F64, DType::I32, DType::U8];

/// Halves and integers are small whole numbers; where floats have fractions, the order of a sum shows in its bits.
pub(super) fn draw(dtype: DType, count: usize, random: &mut Random) -> Data {
    let small = |random: &mut Random| random.below(7) as i32 - 3;
    let broken = |random: &mut Random| (random.any() % 2_000_003) as f64 / 1009.0 - 900.0;
    match dtype {
        DType::F16 => Data::F16((0..count).map(|_| f16::from_f32(small(random) as f32)).collect()),
        DType::F32 => Data::F32((0..count).map(|_| broken(random) as f32).collect()),
        DType::F64 => Data::F64((0..count).map(|_| broken(random)).collect()),
        DType::I32 => Data::I32((0..count).map(|_| small(random)).collect()),
        DType::U8 => Data::U8((0..count).map(|_| random.below(4) as u8).collect()),
        other => panic!("{other} is not drawn here"),
    }
}

macro_rules! fold_floats {
    ($wide:ty, $rows:expr, $op:expr, $factors:expr, $to:expr) => {{
        let rows: Vec<Vec<$wide>> = $rows;
        let (pre, post) = ($factors.0 as $wide, $factors.1 as $wide);
        (0..rows[0].len())
            .map(|at| {
                let mut all = rows.iter().map(|row| row[at] * pre);
                let first = all.next().unwrap_or_default();
                let sum = all.fold(first, |sum, value| match $op {
                    ReduceOp::Sum | ReduceOp::Average => sum + value,
                    ReduceOp::Min => sum.min(value),
                    ReduceOp::Max => sum.max(value),
                    ReduceOp::Product => sum * value,
                    other => panic!("{other} of floats"),
                });
                let sum = if $op == ReduceOp::Average { sum / rows.len() as $wide } else { sum };
                $to(sum * post)
            })
            .collect()
    }};
}

macro_rules! fold_integers {
    ($rows:expr, $op:expr) => {{
        let rows = $rows;
        (0..rows[0].len())
            .map(|at| {
                let all = rows.iter().map(|row| row[at]);
                let sum = all.reduce(|sum, value| match $op {
                    ReduceOp::Sum | ReduceOp::Average => sum.wrapping_add(value),
                    ReduceOp::Min => sum.min(value),
                    ReduceOp::Max => sum.max(value),
                    ReduceOp::Product => sum.wrapping_mul(value),
                    ReduceOp::And => sum & value,
                    ReduceOp::Or => sum | value,
                    ReduceOp::Xor => sum ^ value,
                    ReduceOp::Adasum => panic!("adasum of integers"),
                });
                sum.unwrap_or_default()
            })
            .collect()
    }};
}

macro_rules! rows {
    ($inputs:expr, $variant:ident, $of:expr) => {
        $inputs
            .iter()
            .map(|input| match input {
                Data::$variant(values) => values.iter().map($of).collect::<Vec<_>>(),
                other => panic!("{other:?} among others"),
            })
            .collect::<Vec<_>>()
    };
}

/// What `me` gets: the ranks' inputs in rank order, combined one after the other.
pub(super) fn reference(kind: Kind, inputs: &[Data], factors: (f64, f64), me: usize) -> Data {
    let op = match kind {
        Kind::Broadcast { root } => return inputs[root as usize].clone(),
        Kind::Reduce { root, .. } if root as usize != me => return inputs[me].clone(),
        Kind::Allreduce { op } | Kind::Reduce { op, .. } => op,
        other => panic!("{other} has a reference of its own"),
    };
    match &inputs[0] {
        Data::F16(_) => {
            let rows = rows!(inputs, F16, |x: &f16| x.to_f32());
            Data::F16(fold_floats!(f32, rows, op, factors, f16::from_f32))
        }
        Data::F32(_) => Data::F32(fold_floats!(f32, rows!(inputs, F32, |x: &f32| *x), op, factors, |x| x)),
        Data::F64(_) => Data::F64(fold_floats!(f64, rows!(inputs, F64, |x: &f64| *x), op, factors, |x| x)),
        Data::I32(_) => Data::I32(fold_integers!(rows!(inputs, I32, |x: &i32| *x), op)),
        Data::U8(_) => Data::U8(fold_integers!(rows!(inputs, U8, |x: &u8| *x), op)),
    }
}

impl Data {
    pub(super) fn raw(&mut self) -> RawSlice {
        match self {
            Self::F16(values) => RawSlice::of_mut(values),
            Self::F32(values) => RawSlice::of_mut(values),
            Self::F64(values) => RawSlice::of_mut(values),
            Self::I32(values) => RawSlice::of_mut(values),
            Self::U8(values) => RawSlice::of_mut(values),
        }
    }

    pub(super) fn bytes(&self) -> &[u8] {
        match self {
            Self::F16(values) => bytemuck::cast_slice(values),
            Self::F32(values) => bytemuck::cast_slice(values),
            Self::F64(values) => bytemuck::cast_slice(values),
            Self::I32(values) => bytemuck::cast_slice(values),
            Self::U8(values) => bytemuck::cast_slice(values),
        }
    }

    /// Equal but for the rounding of another order of sums.
    pub(super) fn is_close(&self, want: &Self) -> bool {
        let close = |a: f64, b: f64| (a - b).abs() <= 1e-3 * b.abs().max(1000.0);
        match (self, want) {
            (Self::F32(a), Self::F32(b)) => {
                a.len() == b.len() && a.iter().zip(b).all(|(a, b)| close((*a).into(), (*b).into()))
            }
            (Self::F64(a), Self::F64(b)) => a.len() == b.len() && a.iter().zip(b).all(|(a, b)| close(*a, *b)),
            _ => self.bytes() == want.bytes(),
        }
    }
}
