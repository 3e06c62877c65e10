//! Sparse allreduce: tensors of which each rank has some rows, as the gradients of embeddings are.

use std::sync::{Arc, Mutex, PoisonError};

use super::wire::{Deferred, Wire, at_once, meet, unreadable};
use crate::communicator::Communicator;
use crate::device::host::add_rows;
use crate::error::{Error, Result};
use crate::handle::{Course, Declined, Handle, Label};
use crate::process_set::ProcessSet;
use crate::tensor::{GiveBack, Lent, ReduceOp, Reducible, room};

// What the steps are called that may follow the first. Each asks for the same whenever it comes.
const INDICES: Label = "its indices";
const MARKS: Label = "which rows";
const ROWS: Label = "its rows";
const ALL_ROWS: Label = "all rows";

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
        let (course, sum) = begin(Deferred::named(self, name), Shape { rows, width }, indices, values, op);
        self.set.run_course(name, course)?;
        sum.take().ok_or_else(|| Error::Cancelled(name.into()))
    }

    /// Begins to reduce a tensor of which each rank has some rows; the handle gives the rows of all.
    ///
    /// As [`allreduce_sparse`](Self::allreduce_sparse). The rows are copied before this returns, and move in all their steps while
    /// nobody waits.
    ///
    /// ```
    /// # kolo::threads(2, |kolo| -> kolo::Result<()> {
    /// let handle = kolo.allreduce_sparse_async("embedding", [1000, 2], &[3], &[0.5_f32, 1.0], kolo::ReduceOp::Sum)?;
    /// assert_eq!(handle.wait()?, kolo::Sparse::Rows { indices: vec![3], values: vec![1.0, 2.0] });
    /// # Ok(())
    /// # })?.into_iter().collect::<kolo::Result<Vec<()>>>()?;
    /// # Ok::<(), kolo::Error>(())
    /// ```
    ///
    /// # Collective
    /// As [`allreduce_sparse`](Self::allreduce_sparse). Ranks may differ in whether they wait. Once the ranks have met in the first
    /// step, a cancel poisons the set. Until the handle's operation has ended, no other call may use the name.
    ///
    /// # Errors
    /// As [`allreduce_async`](Self::allreduce_async). All others come from the handle: those of
    /// [`allreduce_sparse`](Self::allreduce_sparse).
    pub fn allreduce_sparse_async<T: Reducible>(
        &self,
        name: &str,
        [rows, width]: [usize; 2],
        indices: &[u64],
        values: &[T],
        op: ReduceOp,
    ) -> Result<Handle<Sparse<T>>> {
        let (course, sum) = begin(Deferred::named(self, name), Shape { rows, width }, indices, values, op);
        self.set.begin_course(name, course, sum)
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
        let shape = Shape { rows, width };
        at_once(allreduce(self, shape, merge_for(shape, indices, values, op), op))
    }

    /// Begins to reduce a tensor of which each rank has some rows: [`ProcessSet::allreduce_sparse_async`], matched by order.
    ///
    /// # Collective
    /// As [`allreduce_sparse`](Self::allreduce_sparse). Ranks may differ in whether they wait.
    ///
    /// # Errors
    /// As [`allreduce_async`](Self::allreduce_async). All others come from the handle: those of
    /// [`allreduce_sparse`](Self::allreduce_sparse).
    pub fn allreduce_sparse_async<T: Reducible>(
        &mut self,
        [rows, width]: [usize; 2],
        indices: &[u64],
        values: &[T],
        op: ReduceOp,
    ) -> Result<Handle<Sparse<T>>> {
        let queue = self.queue()?;
        let wire = Deferred::ordered(self, queue.next_title("allreduce_sparse"));
        let (course, sum) = begin(wire, Shape { rows, width }, indices, values, op);
        queue.embark("allreduce_sparse", course, sum)
    }
}

/// Rows of a tensor, and elements of a row.
#[derive(Clone, Copy)]
struct Shape {
    rows: usize,
    width: usize,
}

/// The result of an operation in flight.
struct Sum<T>(Mutex<Option<Sparse<T>>>);

impl<T: Reducible> GiveBack<Sparse<T>> for Sum<T> {
    fn take(&self) -> Option<Sparse<T>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    fn cancelled(&self) -> Option<Sparse<T>> {
        None
    }
}

/// An operation to come, and where its result will be.
fn begin<T: Reducible>(
    mut wire: Deferred,
    shape: Shape,
    indices: &[u64],
    values: &[T],
    op: ReduceOp,
) -> (Box<Course>, Arc<Sum<T>>) {
    let own = merge_for(shape, indices, values, op);
    let (desk, sum) = (Arc::clone(&wire.desk), Arc::new(Sum(Mutex::new(None))));
    let course = {
        let sum = Arc::clone(&sum);
        Course::new(desk, async move {
            let rows = allreduce(&mut wire, shape, own, op).await?;
            *sum.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(rows);
            Ok(())
        })
    };
    (course, sum)
}

/// Ascending indices, each once, and the elements of their rows.
type Rows<T> = (Vec<u64>, Vec<T>);

/// This rank's rows for `op`; or what is wrong with the call.
fn merge_for<T: Reducible>(shape: Shape, indices: &[u64], values: &[T], op: ReduceOp) -> Result<Rows<T>, String> {
    match op {
        ReduceOp::Sum | ReduceOp::Average => merge(shape, indices, values),
        other => Err(format!("{other} of rows that not all ranks have; use sum or average")),
    }
}

async fn allreduce<W: Wire, T: Reducible>(
    wire: &mut W,
    shape: Shape,
    own: Result<Rows<T>, String>,
    op: ReduceOp,
) -> Result<Sparse<T>> {
    let call = format!("sparse allreduce {op} of {} in {} rows of {}", T::DTYPE, shape.rows, shape.width);
    let said = own.as_ref().map(|(indices, _)| (indices.len() as u64).to_le_bytes().to_vec());
    let counts = meet(wire, call, None, said.map_err(Clone::clone)).await?;
    // A rank that has a reason not to go on did not come so far.
    let (indices, values) = own.map_err(Error::argument)?;
    // Who has joined does not know how many rows there will be.
    let all_know = counts.iter().all(Option::is_some);
    let mut total = 0_u64;
    for (rank, count) in counts.iter().enumerate() {
        let Some(count) = count else { continue };
        let Ok(count) = count.as_slice().try_into().map(u64::from_le_bytes) else {
            let reason = "it is no number of rows; every rank must run the same kolo";
            return Err(unreadable(wire, Declined::Unknown, rank, reason));
        };
        total = total.saturating_add(count);
    }
    if total == 0 {
        return Ok(Sparse::Rows { indices, values });
    }
    if is_dense(shape, T::DTYPE.size(), total) {
        let mut whole = lay_out(wire, ALL_ROWS, shape.rows, shape.width, op)?;
        for (index, row) in indices.iter().zip(values.chunks_exact(shape.width)) {
            whole[*index as usize * shape.width..][..shape.width].copy_from_slice(row);
        }
        let whole = Lent::new(whole);
        wire.combine(ALL_ROWS, whole.all(), op, None).await?;
        return Ok(Sparse::Dense(whole.take()));
    }
    let union = union(wire, shape.rows, &indices, total).await?;
    let mut some = lay_out(wire, ROWS, union.len(), shape.width, op)?;
    let mut at = 0;
    for (index, row) in indices.iter().zip(values.chunks_exact(shape.width)) {
        // Both ascend, and the union has all of them.
        at += union[at..].partition_point(|other| other < index);
        some[at * shape.width..][..shape.width].copy_from_slice(row);
    }
    let some = Lent::new(some);
    wire.combine(ROWS, some.all(), op, all_know.then_some(shape.width)).await?;
    Ok(Sparse::Rows { indices: union, values: some.take() })
}

/// This rank's rows with ascending indices, each once; or what is wrong with them.
fn merge<T: Reducible>(shape: Shape, indices: &[u64], values: &[T]) -> Result<Rows<T>, String> {
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
async fn union<W: Wire>(wire: &mut W, rows: usize, mine: &[u64], total: u64) -> Result<Vec<u64>> {
    let (gathered, bits) = union_bytes(rows, total);
    if gathered <= bits {
        let mine = Lent::new(mine.to_vec());
        let all = wire.gather::<u64>(Some(INDICES), mine.all()).await?;
        for (rank, indices) in all.iter().enumerate() {
            if indices.iter().any(|&index| index >= rows as u64) {
                let reason = "its indices are beyond the tensor's rows; look for unsafe code";
                return Err(unreadable(wire, Declined::Step(ROWS), rank, reason));
            }
        }
        let mut union = all.into_data();
        union.sort_unstable();
        union.dedup();
        return Ok(union);
    }
    let mut marks = vec![0_u8; rows.div_ceil(8)];
    mine.iter().for_each(|&index| marks[index as usize / 8] |= 1 << (index % 8));
    let marks = Lent::new(marks);
    wire.combine(MARKS, marks.all(), ReduceOp::Or, None).await?;
    let marks = marks.take();
    let marked = |&index: &u64| marks[index as usize / 8] >> (index % 8) & 1 == 1;
    Ok((0..rows as u64).filter(marked).collect())
}

/// Rows that nobody has yet.
fn lay_out<W: Wire, T: Reducible>(
    wire: &mut W,
    next: Label,
    rows: usize,
    width: usize,
    op: ReduceOp,
) -> Result<Vec<T>> {
    let mut data =
        room(rows * width, "the rows of all ranks").map_err(|error| wire.decline(Declined::Step(next), error))?;
    if let Some(identity) = op.identity(T::DTYPE) {
        data.fill(bytemuck::pod_read_unaligned(&identity[..T::DTYPE.size()]));
    }
    Ok(data)
}

#[cfg(all(test, not(kolo_loom)))]
mod tests {
    use super::*;
    use crate::runtime::Builder;

    /// The rows of a step: another number each time, on every rank; of few rows almost all.
    fn rows_of(rank: usize, step: usize, rows: usize) -> Vec<u64> {
        let mixed = |row: &u64| row * 7 + rank as u64 * 3 + step as u64;
        let has =
            |row: &u64| if rows < 10 { *row != step as u64 } else { mixed(row).is_multiple_of(5 + step as u64 % 3) };
        (0..rows as u64).filter(has).collect()
    }

    /// Each way that rows go: gathered indices, one bit a row, all rows.
    const WAYS: [([usize; 2], usize); 3] = [([4000, 8], 40), ([300, 8], 200), ([9, 4], 9)];

    #[test]
    fn a_steady_tensor_sends_no_full_request_after_its_first_step() {
        for (ranks, job) in [(2, Builder::new()), (3, Builder::new().hosts([2, 1]))] {
            let outcomes = job.threads(ranks, |kolo| -> Result<()> {
                for (at, (shape, most)) in WAYS.into_iter().enumerate() {
                    let name = format!("rows {at}");
                    let mut published = Vec::new();
                    for step in 0..6 {
                        let indices = rows_of(kolo.rank(), step, most);
                        let values = vec![1.0_f32; indices.len() * shape[1]];
                        let sum = if step % 2 == 0 {
                            kolo.allreduce_sparse(&name, shape, &indices, &values, ReduceOp::Sum)?
                        } else {
                            kolo.allreduce_sparse_async(&name, shape, &indices, &values, ReduceOp::Sum)?.wait()?
                        };
                        let mut counts = vec![0.0; shape[0]];
                        for index in (0..kolo.size()).flat_map(|rank| rows_of(rank, step, most)) {
                            counts[index as usize] += 1.0;
                        }
                        sum.for_each_row(shape[1], |index, row| {
                            assert!(row.iter().all(|value| *value == counts[index as usize]), "{index}: {row:?}");
                            counts[index as usize] = 0.0;
                        });
                        assert!(counts.iter().all(|count| *count == 0.0), "rows are missing");
                        assert_eq!(matches!(sum, Sparse::Dense(_)), at == 2);
                        published.push(kolo.world().set.published());
                    }
                    assert!(published.iter().all(|frames| *frames == published[0]), "way {at}: {published:?}");
                }
                kolo.barrier()
            });
            outcomes.expect("no rank panics").into_iter().collect::<Result<Vec<()>>>().expect("no rank fails");
        }
    }

    #[test]
    fn rows_move_while_nobody_waits_and_a_wrong_call_is_told_to_all() {
        let outcomes = Builder::new().threads(2, |kolo| -> Result<()> {
            let mut world = kolo.communicator()?;
            let begin = |world: &mut Communicator| -> Result<_> {
                let by_name = kolo.allreduce_sparse_async("x", [9, 1], &[3], &[2_i32], ReduceOp::Sum)?;
                Ok((by_name, world.allreduce_sparse_async([9, 1], &[3], &[2_i32], ReduceOp::Sum)?))
            };
            // Rank 0's cannot end before rank 1 begins: its name is taken.
            let first = (kolo.rank() == 0).then(|| begin(&mut world)).transpose()?;
            if first.is_some() {
                assert!(kolo.allreduce_sparse("x", [9, 1], &[3], &[2_i32], ReduceOp::Sum).is_err(), "taken");
                assert!(kolo.allreduce("x", &mut [2_i32], ReduceOp::Sum).is_err(), "taken");
            }
            kolo.barrier()?;
            let (by_name, in_order) = first.map_or_else(|| begin(&mut world), Ok)?;
            while !(by_name.poll() && in_order.poll()) {
                std::thread::yield_now();
            }
            let want = Sparse::Rows { indices: vec![3], values: vec![4] };
            assert_eq!((by_name.wait()?, in_order.wait()?), (want.clone(), want));
            for odd in 0..2 {
                let index = [3, 9][usize::from(kolo.rank() == odd)];
                let by_name = kolo.allreduce_sparse_async("x", [9, 1], &[index], &[2_i32], ReduceOp::Sum)?;
                let in_order = world.allreduce_sparse_async([9, 1], &[index], &[2_i32], ReduceOp::Sum)?;
                for error in [by_name.wait().expect_err("one is wrong"), in_order.wait().expect_err("one is wrong")] {
                    let fits = if kolo.rank() == odd {
                        matches!(error, Error::Argument(_))
                    } else {
                        matches!(error, Error::Mismatch(_))
                    };
                    assert!(fits && error.to_string().contains("the index 9 at place 0"), "{error}");
                }
            }
            // Not steps of each other: one of another type is told of all.
            let odd = if kolo.rank() == 0 {
                kolo.allreduce_sparse_async("y", [9, 1], &[3], &[2_i32], ReduceOp::Sum)?.wait().map(drop)
            } else {
                kolo.allreduce_sparse_async("y", [9, 1], &[3], &[2.0_f32], ReduceOp::Sum)?.wait().map(drop)
            };
            let Err(Error::Mismatch(mismatch)) = odd else { panic!("the types differ: {odd:?}") };
            assert_eq!(
                (&*mismatch.name, mismatch.views[1].1.as_str()),
                ("y", "sparse allreduce sum of f32 in 9 rows of 1")
            );
            kolo.barrier()
        });
        outcomes.expect("no rank panics").into_iter().collect::<Result<Vec<()>>>().expect("no rank fails");
    }

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
