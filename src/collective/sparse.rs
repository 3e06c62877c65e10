//! Sparse allreduce: tensors of which each rank has some rows, as the gradients of embeddings are.

use super::wire::{Named, Wire, meet, unreadable};
use crate::communicator::Communicator;
use crate::device::host::add_rows;
use crate::error::{Error, Result};
use crate::process_set::ProcessSet;
use crate::tensor::{ReduceOp, Reducible, room};

/// The sum, or the average, of what the ranks had of a tensor: [`ProcessSet::allreduce_sparse`].
#[derive(Clone, Debug, PartialEq)]
pub enum Sparse<T> {
    /// The rows that any rank had.
    Rows {
        /// Which, ascending.
        indices: Vec<u64>,
        /// Their elements, row after row.
        values: Vec<T>,
    },
    /// All rows of the tensor: the ranks had so many that this was cheaper. Rows that no rank had are zero.
    Dense(Vec<T>),
}

impl<T: Reducible> Sparse<T> {
    /// Calls `visit` with the index and the elements of each row, by index; `width` is the number of elements of a row.
    ///
    /// ```
    /// let sum = kolo::Sparse::Rows { indices: vec![1, 4], values: vec![0.5_f32, 0.5, 2.0, 3.0] };
    /// let mut embedding = vec![1.0_f32; 10];
    /// sum.for_each_row(2, |index, row| {
    ///     let place = index as usize * 2;
    ///     embedding[place..place + 2].iter_mut().zip(row).for_each(|(weight, gradient)| *weight -= gradient);
    /// });
    /// assert_eq!(embedding, [1.0, 1.0, 0.5, 0.5, 1.0, 1.0, 1.0, 1.0, -1.0, -2.0]);
    /// ```
    ///
    /// # Panics
    /// If `width` is 0.
    pub fn for_each_row(&self, width: usize, mut visit: impl FnMut(u64, &[T])) {
        match self {
            Self::Rows { indices, values } => {
                indices.iter().zip(values.chunks_exact(width)).for_each(|(index, row)| visit(*index, row));
            }
            Self::Dense(values) => (0..).zip(values.chunks_exact(width)).for_each(|(index, row)| visit(index, row)),
        }
    }
}

impl ProcessSet {
    /// Reduces a tensor of which each rank has some rows, under one name, and waits for it.
    ///
    /// The tensor has `rows` rows of `width` elements. This rank has the rows `indices`, in any order, as many as it likes, none
    /// included, and one more than once if it likes: these are added first, in their order. `values` has their elements, row
    /// after row. The result has the rows of all ranks, each the sum over those ranks that have it; `Average` divides by the
    /// number of all ranks, or of those that have not [joined](Self::join). Equal on every rank.
    ///
    /// The ranks tell each other how many rows they have. From that sum `s` all decide alike how it goes, by the bytes that a
    /// rank moves where an element of a row takes `e` bytes: the union of the indices is gathered (8 `s`) or, if that is
    /// less, made of one bit a row (`rows` / 4), and the rows in it are reduced as one tensor (2 `width` `e` min(`s`, `rows`)). If
    /// all rows come to no more than that (2 `width` `e` `rows`), all are reduced, and the result is [`Sparse::Dense`].
    ///
    /// ```
    /// # kolo::threads(2, |kolo| -> kolo::Result<()> {
    /// // Of an embedding of 1000 words in 2 dimensions, rank 0 has seen the words 3 and 7, rank 1 the word 7.
    /// let (indices, values) = [(vec![7, 3], vec![1.0_f32, 1.0, 5.0, 5.0]), (vec![7], vec![2.0, 3.0])][kolo.rank()].clone();
    /// let sum = kolo.allreduce_sparse("embedding", [1000, 2], &indices, &values, kolo::ReduceOp::Sum)?;
    /// assert_eq!(sum, kolo::Sparse::Rows { indices: vec![3, 7], values: vec![5.0, 5.0, 3.0, 4.0] });
    /// # Ok(())
    /// # })?.into_iter().collect::<kolo::Result<Vec<()>>>()?;
    /// # Ok::<(), kolo::Error>(())
    /// ```
    ///
    /// # Collective
    /// Every rank of the set submits the name, with the same shape, type and `op`; in any order among names, from any thread.
    /// It is several operations of that name, one after another: while it lasts, no other call may use the name.
    ///
    /// # Errors
    /// Before any row moves, on every rank, and all stay usable: if an index is not below `rows`, `values` are not `width` for
    /// each index, or `op` is neither Sum nor Average, [`Error::Argument`] on that rank and [`Error::Mismatch`] with the
    /// reason on the others; [`Error::Mismatch`] if shapes, types or operations differ. Else as
    /// [`allreduce`](Self::allreduce).
    pub fn allreduce_sparse<T: Reducible>(
        &self,
        name: &str,
        [rows, width]: [usize; 2],
        indices: &[u64],
        values: &[T],
        op: ReduceOp,
    ) -> Result<Sparse<T>> {
        allreduce(&mut Named { set: self, name }, Shape { rows, width }, indices, values, op)
    }
}

impl Communicator {
    /// Reduces a tensor of which each rank has some rows: [`ProcessSet::allreduce_sparse`], matched by order.
    ///
    /// # Collective
    /// Every rank calls it at the same place in its order, with the same shape, type and `op`.
    ///
    /// # Errors
    /// As [`ProcessSet::allreduce_sparse`]. The communicator stays usable after those that every rank gets.
    pub fn allreduce_sparse<T: Reducible>(
        &mut self,
        [rows, width]: [usize; 2],
        indices: &[u64],
        values: &[T],
        op: ReduceOp,
    ) -> Result<Sparse<T>> {
        allreduce(self, Shape { rows, width }, indices, values, op)
    }
}

/// Rows of a tensor, and elements of a row.
#[derive(Clone, Copy)]
struct Shape {
    rows: usize,
    width: usize,
}

fn allreduce<W: Wire, T: Reducible>(
    wire: &mut W,
    shape: Shape,
    indices: &[u64],
    values: &[T],
    op: ReduceOp,
) -> Result<Sparse<T>> {
    let call = format!("sparse allreduce {op} of {} in {} rows of {}", T::DTYPE, shape.rows, shape.width);
    let own = match op {
        ReduceOp::Sum | ReduceOp::Average => merge(shape, indices, values),
        other => Err(format!("{other} of rows that not all ranks have; use sum or average")),
    };
    let said = own.as_ref().map(|(indices, _)| (indices.len() as u64).to_le_bytes().to_vec());
    let counts = meet(wire, call, None, said.map_err(Clone::clone))?;
    // A rank that has a reason not to go on did not come so far.
    let (indices, values) = own.map_err(Error::argument)?;
    let mut total = 0_u64;
    for (rank, count) in counts.iter().enumerate() {
        let Some(count) = count else { continue };
        let Ok(count) = count.as_slice().try_into().map(u64::from_le_bytes) else {
            return Err(unreadable(wire, rank, "it is no number of rows; every rank must run the same kolo"));
        };
        total = total.saturating_add(count);
    }
    if total == 0 {
        return Ok(Sparse::Rows { indices, values });
    }
    if is_dense(shape, T::DTYPE.size(), total) {
        let mut whole = lay_out(wire, shape.rows, shape.width, op)?;
        for (index, row) in indices.iter().zip(values.chunks_exact(shape.width)) {
            whole[*index as usize * shape.width..][..shape.width].copy_from_slice(row);
        }
        wire.combine(&mut whole, op)?;
        return Ok(Sparse::Dense(whole));
    }
    let union = union(wire, shape.rows, &indices, total)?;
    let mut some = lay_out(wire, union.len(), shape.width, op)?;
    let mut at = 0;
    for (index, row) in indices.iter().zip(values.chunks_exact(shape.width)) {
        // Both ascend, and the union has all of them.
        at += union[at..].partition_point(|other| other < index);
        some[at * shape.width..][..shape.width].copy_from_slice(row);
    }
    wire.combine(&mut some, op)?;
    Ok(Sparse::Rows { indices: union, values: some })
}

/// This rank's rows with ascending indices, each once; or what is wrong with them.
fn merge<T: Reducible>(shape: Shape, indices: &[u64], values: &[T]) -> Result<(Vec<u64>, Vec<T>), String> {
    let Shape { rows, width } = shape;
    if width == 0 || rows.checked_mul(width).is_none() {
        return Err(format!("a tensor of {rows} rows of {width} elements; pass its rows, and the elements of a row"));
    }
    if indices.len().checked_mul(width) != Some(values.len()) {
        return Err(format!(
            "{} values for {} rows of {width} elements; pass the elements of all rows, row after row",
            values.len(),
            indices.len()
        ));
    }
    if let Some(at) = indices.iter().position(|&index| index >= rows as u64) {
        return Err(format!(
            "the index {} at place {at}; the tensor has the rows 0 to {}",
            indices[at],
            rows.max(1) - 1
        ));
    }
    let row = |at: usize| &values[at * width..][..width];
    let mut order: Vec<usize> = (0..indices.len()).collect();
    // Stable: equal ones keep their order.
    order.sort_by_key(|&at| indices[at]);
    let (mut unique, mut merged) = (Vec::with_capacity(order.len()), Vec::with_capacity(values.len()));
    for same in order.chunk_by(|&a, &b| indices[a] == indices[b]) {
        unique.push(indices[same[0]]);
        let start = merged.len();
        merged.extend_from_slice(row(same[0]));
        if same.len() > 1 {
            let rows: Vec<&[T]> = same.iter().map(|&at| row(at)).collect();
            add_rows(&rows, &mut merged[start..]);
        }
    }
    Ok((unique, merged))
}

/// Bytes that a rank moves to learn of the union of `total` indices: gathered, or as a bit a row.
fn union_bytes(rows: usize, total: u64) -> (u128, u128) {
    (8 * u128::from(total), rows as u128 / 4)
}

/// Whether all rows are no more to move than those that the ranks have, and their indices.
fn is_dense(Shape { rows, width }: Shape, size: usize, total: u64) -> bool {
    let row = 2 * width as u128 * size as u128;
    let (gathered, bits) = union_bytes(rows, total);
    row * rows as u128 <= gathered.min(bits) + row * u128::from(total).min(rows as u128)
}

/// The indices that any rank has, ascending.
fn union<W: Wire>(wire: &mut W, rows: usize, mine: &[u64], total: u64) -> Result<Vec<u64>> {
    let (gathered, bits) = union_bytes(rows, total);
    if gathered <= bits {
        let all = wire.gather(mine)?;
        for (rank, indices) in all.iter().enumerate() {
            if indices.iter().any(|&index| index >= rows as u64) {
                return Err(unreadable(wire, rank, "its indices are beyond the tensor's rows; look for unsafe code"));
            }
        }
        let mut union = all.data().to_vec();
        union.sort_unstable();
        union.dedup();
        return Ok(union);
    }
    let mut marks = vec![0_u8; rows.div_ceil(8)];
    mine.iter().for_each(|&index| marks[index as usize / 8] |= 1 << (index % 8));
    wire.combine(&mut marks, ReduceOp::Or)?;
    let marked = |&index: &u64| marks[index as usize / 8] >> (index % 8) & 1 == 1;
    Ok((0..rows as u64).filter(marked).collect())
}

/// Rows that nobody has yet.
fn lay_out<W: Wire, T: Reducible>(wire: &mut W, rows: usize, width: usize, op: ReduceOp) -> Result<Vec<T>> {
    let mut data = room(rows * width, "the rows of all ranks").map_err(|error| wire.decline(error))?;
    if let Some(identity) = op.identity(T::DTYPE) {
        data.fill(bytemuck::pod_read_unaligned(&identity[..T::DTYPE.size()]));
    }
    Ok(data)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_come_in_order_and_once() {
        let shape = Shape { rows: 9, width: 2 };
        let merged = merge(shape, &[8, 0, 8, 3, 8], &[1_i32, 10, 2, 20, 3, 30, 4, 40, 5, 50]);
        assert_eq!(merged, Ok((vec![0, 3, 8], vec![2, 20, 4, 40, 9, 90])));
        assert_eq!(merge::<f32>(shape, &[], &[]), Ok((vec![], vec![])));
    }

    #[test]
    fn what_is_wrong_is_told() {
        let wrong = |rows, width, indices: &[u64], values: &[f32]| {
            merge(Shape { rows, width }, indices, values).expect_err("wrong")
        };
        assert!(wrong(9, 2, &[1], &[0.0]).contains("1 values for 1 rows of 2 elements"));
        assert!(wrong(9, 1, &[1, 9], &[0.0; 2]).contains("the index 9 at place 1; the tensor has the rows 0 to 8"));
        assert!(wrong(9, 0, &[], &[]).contains("9 rows of 0 elements"));
        assert!(wrong(usize::MAX, 2, &[], &[]).contains("rows of 2 elements"));
    }

    #[test]
    fn dense_is_what_moves_less() {
        let dense = |rows, width, total| is_dense(Shape { rows, width }, 4, total);
        assert!(!dense(1000, 64, 10) && !dense(1000, 64, 999));
        assert!(dense(1000, 64, 1000), "all rows, and no indices");
        // Narrow rows: an index costs as much as what it stands for.
        assert!(!dense(1000, 1, 400) && dense(1000, 1, 1000));
        assert!(dense(1, 1, 1));
        assert!(!dense(usize::MAX / 2, 1, 5));
    }
}
