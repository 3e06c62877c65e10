//! Runs every operation with every setting on the ranks of a job, and counts the cases.

use std::collections::hash_map::DefaultHasher;
use std::hash::Hasher;

use kolo::{Algorithm, Communicator, DType, Element, Kolo, ReduceOp, Result, SharedBuffer};

use super::sample::{Random, Sample, draw, poison, same};

/// Bytes of a slot in these jobs: small, so that short tensors fill several.
pub(crate) const SLOT: usize = 4096;
/// Bytes that ride in an announcement.
const INLINE: usize = 48;
/// Elements before and after a buffer that no operation may touch.
const GUARD: usize = 3;

/// One job.
pub(crate) struct Bench<'a> {
    pub kolo: &'a Kolo,
    pub world: Communicator,
    pub random: Random,
    /// Whether every rank shares one host.
    pub local: bool,
    /// Whether every algorithm promises the bits of a sum in rank order.
    pub everything_is_ordered: bool,
    pub cases: usize,
    /// Turns the kinds of buffer from case to case.
    turn: usize,
    /// Of results that must be equal on all ranks, whatever their order of summing.
    hash: DefaultHasher,
}

/// Memory of both kinds, as long as the longest operation needs.
struct Memory<T: Element> {
    private: Vec<T>,
    shared: SharedBuffer<T>,
}

impl<T: Sample> Memory<T> {
    fn new(kolo: &Kolo, count: usize) -> Result<Self> {
        let len = count + 2 * GUARD;
        Ok(Self { private: vec![poison(); len], shared: kolo.alloc(len)? })
    }

    /// Poisons everything, writes `data` where the buffer begins, and gives the buffer of `count` elements.
    fn fill(&mut self, shared: bool, count: usize, data: &[T]) -> &mut [T] {
        let all: &mut [T] = if shared { &mut self.shared } else { &mut self.private };
        all.fill(poison());
        let buffer = &mut all[GUARD..GUARD + count];
        buffer[..data.len()].copy_from_slice(data);
        buffer
    }

    /// The buffer, after a look at what lies around it.
    fn look(&self, shared: bool, count: usize, what: &str) -> &[T] {
        let all: &[T] = if shared { &self.shared } else { &self.private };
        let (before, rest) = all.split_at(GUARD);
        let (buffer, after) = rest.split_at(count);
        let untouched = |guard: &[T]| same(guard, &vec![poison(); guard.len()]);
        assert!(untouched(before) && untouched(after), "{what}: written beyond the buffer");
        buffer
    }
}

/// What is left of them on one host is two-shot, which has its own turn.
fn another_two_shot(algorithm: Algorithm) -> bool {
    matches!(algorithm, Algorithm::TwoLevel | Algorithm::OrderedChain)
}

/// Whether a case of this kind is one of many that differ in the kernel alone, which has its own tests for every type and
/// operation: these cases take turns where others run all.
fn takes_turns(dtype: DType, op: Option<ReduceOp>) -> bool {
    matches!(dtype, DType::I8 | DType::I16 | DType::U16 | DType::U32)
        || matches!(op, Some(ReduceOp::And | ReduceOp::Or | ReduceOp::Xor))
}

/// The operations that reduce single elements of the type.
fn operations<T: Sample>() -> impl Iterator<Item = ReduceOp> {
    ReduceOp::ALL.into_iter().filter(|op| op.takes(T::DTYPE) && *op != ReduceOp::Adasum)
}

/// The counts at which something changes, for elements of `size` bytes.
pub(crate) fn counts(size: usize) -> Vec<usize> {
    let (inline, slot) = (INLINE / size, SLOT / size);
    vec![0, 1, inline - 1, inline, inline + 1, 37, slot - 1, slot, slot + 1, 5 * slot + 7]
}

impl<'a> Bench<'a> {
    pub(crate) fn new(kolo: &'a Kolo) -> Result<Self> {
        let mut world = kolo.communicator()?;
        let mut seed = [std::time::UNIX_EPOCH.elapsed().map_or(0, |since| since.as_nanos() as u64)];
        world.broadcast(&mut seed, 0)?;
        if kolo.rank() == 0 {
            println!("seed {}", seed[0]);
        }
        let local = kolo.local_size() == kolo.size();
        Ok(Self {
            kolo,
            world,
            random: Random::new(seed[0]),
            local,
            everything_is_ordered: false,
            cases: 0,
            turn: 0,
            hash: DefaultHasher::new(),
        })
    }

    /// The algorithms that can serve, by whether they promise the bits of a sum in rank order.
    pub(crate) fn algorithms(&mut self) -> Vec<(Algorithm, bool)> {
        let serves = |algorithm: &Algorithm| self.world.set_algorithm(*algorithm).is_ok();
        let able: Vec<Algorithm> = Algorithm::ALL.into_iter().filter(serves).collect();
        let local = self.local;
        let ordered = |algorithm| match algorithm {
            Algorithm::Auto | Algorithm::TwoLevel => local,
            Algorithm::Ring | Algorithm::BinomialTree => false,
            _ => true,
        };
        able.into_iter().map(|algorithm| (algorithm, ordered(algorithm))).collect()
    }

    /// The next kind of buffer: whether it is shared, and whether the operation runs in place.
    ///
    /// Kinds take turns, one a case, with a stride that shares no factor with the lists: so each count and each algorithm
    /// meets each kind, under some op and type.
    fn buffers(&mut self) -> (bool, bool) {
        self.turn += 1;
        let kind = self.turn + self.turn / 7;
        (kind & 1 != 0, kind & 2 != 0)
    }

    /// Whether it is the turn of a case that takes turns with others like it.
    fn has_turn(&mut self) -> bool {
        self.turn += 1;
        self.turn.is_multiple_of(3)
    }

    /// Allreduce of one type: every op, count and algorithm.
    pub(crate) fn allreduce<T: Sample>(&mut self) -> Result<()> {
        let (ranks, me) = (self.kolo.size(), self.kolo.rank());
        let longest = counts(size_of::<T>()).into_iter().max().unwrap_or(0);
        let (mut input, mut output) = (Memory::<T>::new(self.kolo, longest)?, Memory::<T>::new(self.kolo, longest)?);
        let mut algorithms = self.algorithms();
        algorithms.retain(|(algorithm, _)| !self.local || T::DTYPE == DType::F32 || !another_two_shot(*algorithm));
        for op in operations::<T>() {
            for count in counts(size_of::<T>()) {
                let seed = self.random.any();
                let data: Vec<Vec<T>> = (0..ranks).map(|rank| draw(seed, rank, count)).collect();
                let columns: Vec<Vec<T>> = (0..count).map(|at| data.iter().map(|row| row[at]).collect()).collect();
                let want: Vec<T> = columns.iter().map(|column| T::ordered(column, op)).collect();
                let chosen = if takes_turns(T::DTYPE, Some(op)) {
                    let turn = self.turn % algorithms.len();
                    &algorithms[turn..=turn]
                } else {
                    &algorithms[..]
                };
                for &(algorithm, ordered) in chosen {
                    self.world.set_algorithm(algorithm)?;
                    let (shared, in_place) = self.buffers();
                    let what =
                        format!("allreduce {op} of {count} {}, {algorithm}, shared {shared}, {in_place}", T::DTYPE);
                    let from = input.fill(shared, count, &data[me]);
                    let got = if in_place {
                        self.world.allreduce(from, op)?;
                        input.look(shared, count, &what)
                    } else {
                        let to = output.fill(shared, count, &[]);
                        self.world.allreduce_into(from, to, op)?;
                        assert!(same(input.look(shared, count, &what), &data[me]), "{what}: input changed");
                        output.look(shared, count, &what)
                    };
                    if ordered || self.everything_is_ordered {
                        assert!(same(got, &want), "{what}: not the bits of rank order");
                    } else {
                        let close = got.iter().zip(&columns).position(|(&got, column)| !T::is_close(got, column, op));
                        assert_eq!(close, None, "{what}: wrong at this element");
                        self.hash.write(bytemuck::cast_slice(got));
                    }
                    self.cases += 1;
                }
                self.world.set_algorithm(Algorithm::Auto)?;
                self.compare_ranks(&format!("allreduce {op} of {count} {}", T::DTYPE))?;
            }
        }
        Ok(())
    }

    /// Whether all ranks have seen the same results since the last call.
    fn compare_ranks(&mut self, what: &str) -> Result<()> {
        let mut hashes = vec![0; self.kolo.size()];
        self.world.allgather(&[self.hash.finish()], &mut hashes)?;
        assert!(hashes.iter().all(|hash| *hash == hashes[0]), "{what}: the ranks have different bits");
        Ok(())
    }

    /// Broadcast, allgather, reduce-scatter and barrier of one type.
    pub(crate) fn others<T: Sample>(&mut self) -> Result<()> {
        let (ranks, me) = (self.kolo.size(), self.kolo.rank());
        let longest = ranks * counts(size_of::<T>()).into_iter().max().unwrap_or(0);
        let (mut input, mut output) = (Memory::<T>::new(self.kolo, longest)?, Memory::<T>::new(self.kolo, longest)?);
        for count in counts(size_of::<T>()) {
            let (shared, _) = self.buffers();
            let seed = self.random.any();
            for root in 0..ranks {
                let what = format!("broadcast of {count} {} from {root}, shared {shared}", T::DTYPE);
                let data = draw(seed, root, count);
                let buffer = input.fill(shared, count, if me == root { &data } else { &[] });
                self.world.broadcast(buffer, root)?;
                assert!(same(input.look(shared, count, &what), &data), "{what}");
                self.cases += 1;
            }
            let what = format!("allgather of {count} {}, shared {shared}", T::DTYPE);
            let data: Vec<Vec<T>> = (0..ranks).map(|rank| draw(seed, rank, count)).collect();
            let from = input.fill(shared, count, &data[me]);
            self.world.allgather(from, output.fill(shared, count * ranks, &[]))?;
            assert!(same(output.look(shared, count * ranks, &what), &data.concat()), "{what}");
            assert!(same(input.look(shared, count, &what), &data[me]), "{what}: input changed");
            self.cases += 1;
            for op in operations::<T>() {
                if takes_turns(T::DTYPE, Some(op)) && !self.has_turn() {
                    continue;
                }
                let what = format!("reduce_scatter {op} of {count} {}, shared {shared}", T::DTYPE);
                let data: Vec<Vec<T>> = (0..ranks).map(|rank| draw(seed, rank, count * ranks)).collect();
                let from = input.fill(shared, count * ranks, &data[me]);
                self.world.reduce_scatter(from, output.fill(shared, count, &[]), op)?;
                let got = output.look(shared, count, &what);
                for (at, &got) in got.iter().enumerate() {
                    let column: Vec<T> = data.iter().map(|row| row[me * count + at]).collect();
                    let right = if self.local {
                        same(&[got], &[T::ordered(&column, op)])
                    } else {
                        T::is_close(got, &column, op)
                    };
                    assert!(right, "{what}: {got:?} at {at}, from {column:?}");
                }
                assert!(same(input.look(shared, count * ranks, &what), &data[me]), "{what}: input changed");
                self.cases += 1;
            }
            self.world.barrier()?;
            self.cases += 1;
        }
        Ok(())
    }

    /// Reduce, gather, scatter and alltoall of one type, with blocks of one size and of their own; reduce-scatter of rows
    /// that do not come out even.
    pub(crate) fn blocks<T: Sample>(&mut self) -> Result<()> {
        for count in counts(size_of::<T>()) {
            if takes_turns(T::DTYPE, None) && !self.has_turn() {
                continue;
            }
            self.reduce::<T>(count)?;
            self.uneven_reduce_scatter::<T>(count)?;
            self.even_blocks::<T>(count)?;
            self.uneven_blocks::<T>(count)?;
        }
        Ok(())
    }

    fn reduce<T: Sample>(&mut self, count: usize) -> Result<()> {
        let (ranks, me) = (self.kolo.size(), self.kolo.rank());
        let (mut input, mut output) = (Memory::<T>::new(self.kolo, count)?, Memory::<T>::new(self.kolo, count)?);
        for op in operations::<T>() {
            if takes_turns(T::DTYPE, Some(op)) && !self.has_turn() {
                continue;
            }
            let (shared, in_place) = self.buffers();
            let root = self.turn % ranks;
            let what = format!("reduce {op} of {count} {} to {root}, shared {shared}, {in_place}", T::DTYPE);
            let seed = self.random.any();
            let data: Vec<Vec<T>> = (0..ranks).map(|rank| draw(seed, rank, count)).collect();
            let from = input.fill(shared, count, &data[me]);
            let got = if in_place {
                self.world.reduce(from, op, root)?;
                input.look(shared, count, &what)
            } else {
                let to = output.fill(shared, count, &[]);
                let to = if me == root { to } else { &mut to[..0] };
                self.world.reduce_into(from, to, op, root)?;
                assert!(same(input.look(shared, count, &what), &data[me]), "{what}: input changed");
                output.look(shared, count, &what)
            };
            if me != root {
                let untouched = if in_place { data[me].clone() } else { vec![poison(); count] };
                assert!(same(got, &untouched), "{what}: written though it is not the root");
            } else {
                self.check_reduced(&what, got, &data, 0, op);
            }
            self.cases += 1;
        }
        Ok(())
    }

    /// `got` is the reduction of the elements from `start` on.
    fn check_reduced<T: Sample>(&self, what: &str, got: &[T], data: &[Vec<T>], start: usize, op: ReduceOp) {
        for (at, &got) in got.iter().enumerate() {
            let column: Vec<T> = data.iter().map(|row| row[start + at]).collect();
            let right =
                if self.local { same(&[got], &[T::ordered(&column, op)]) } else { T::is_close(got, &column, op) };
            assert!(right, "{what}: {got:?} at {at}, from {column:?}");
        }
    }

    fn uneven_reduce_scatter<T: Sample>(&mut self, rows: usize) -> Result<()> {
        let (ranks, me) = (self.kolo.size(), self.kolo.rank());
        for op in operations::<T>() {
            if takes_turns(T::DTYPE, Some(op)) && !self.has_turn() {
                continue;
            }
            let (shared, _) = self.buffers();
            let row = 1 + self.turn % 3;
            let count = rows * row;
            let what = format!("reduce_scatter {op} of {rows} rows of {row} {}, shared {shared}", T::DTYPE);
            let seed = self.random.any();
            let data: Vec<Vec<T>> = (0..ranks).map(|rank| draw(seed, rank, count)).collect();
            let rows_of = |rank: usize| rows / ranks + usize::from(rank < rows % ranks);
            let (start, len) = ((0..me).map(rows_of).sum::<usize>() * row, rows_of(me) * row);
            assert_eq!(self.world.reduce_scatter_len(count, row), len);
            let (mut input, mut output) = (Memory::<T>::new(self.kolo, count)?, Memory::<T>::new(self.kolo, len)?);
            let from = input.fill(shared, count, &data[me]);
            self.world.reduce_scatter_rows(from, row, output.fill(shared, len, &[]), op)?;
            self.check_reduced(&what, output.look(shared, len, &what), &data, start, op);
            assert!(same(input.look(shared, count, &what), &data[me]), "{what}: input changed");
            self.cases += 1;
        }
        Ok(())
    }

    fn even_blocks<T: Sample>(&mut self, count: usize) -> Result<()> {
        let (ranks, me) = (self.kolo.size(), self.kolo.rank());
        let all = count * ranks;
        let (mut input, mut output) = (Memory::<T>::new(self.kolo, all)?, Memory::<T>::new(self.kolo, all)?);
        let (shared, _) = self.buffers();
        let seed = self.random.any();
        let data: Vec<Vec<T>> = (0..ranks).map(|rank| draw(seed, rank, all)).collect();
        for root in 0..ranks {
            let what = format!("gather of {count} {} to {root}, shared {shared}", T::DTYPE);
            let from = input.fill(shared, count, &data[me][..count]);
            let to = output.fill(shared, all, &[]);
            self.world.gather(from, if me == root { to } else { &mut to[..0] }, root)?;
            let want = if me == root {
                data.iter().flat_map(|row| &row[..count]).copied().collect()
            } else {
                vec![poison(); all]
            };
            assert!(same(output.look(shared, all, &what), &want), "{what}");

            let what = format!("scatter of {count} {} from {root}, shared {shared}", T::DTYPE);
            let from = input.fill(shared, all, &data[me]);
            let from = if me == root { from } else { &mut from[..0] };
            self.world.scatter(from, output.fill(shared, count, &[]), root)?;
            assert!(same(output.look(shared, count, &what), &data[root][me * count..][..count]), "{what}");
            self.cases += 2;
        }
        let what = format!("alltoall of {count} {}, shared {shared}", T::DTYPE);
        let from = input.fill(shared, all, &data[me]);
        self.world.alltoall(from, output.fill(shared, all, &[]))?;
        let want: Vec<T> = data.iter().flat_map(|row| &row[me * count..][..count]).copied().collect();
        assert!(same(output.look(shared, all, &what), &want), "{what}");
        assert!(same(input.look(shared, all, &what), &data[me]), "{what}: input changed");
        self.cases += 1;
        Ok(())
    }

    fn uneven_blocks<T: Sample>(&mut self, most: usize) -> Result<()> {
        let (ranks, me) = (self.kolo.size(), self.kolo.rank());
        let mut random = Random::new(self.random.any());
        // What each rank has for each; some have nothing, for some or for all.
        let counts: Vec<Vec<usize>> =
            (0..ranks)
                .map(|_| {
                    let nothing = random.any().is_multiple_of(4);
                    (0..ranks)
                        .map(|_| {
                            if nothing || random.any().is_multiple_of(3) {
                                0
                            } else {
                                random.any() as usize % (most + 1)
                            }
                        })
                        .collect()
                })
                .collect();
        let seed = random.any();
        let data: Vec<Vec<T>> =
            counts.iter().enumerate().map(|(rank, counts)| draw(seed, rank, counts.iter().sum())).collect();
        let start = |from: usize, to: usize| counts[from][..to].iter().sum::<usize>();
        let block = |from: usize, to: usize| &data[from][start(from, to)..][..counts[from][to]];
        let lengths: Vec<usize> = data.iter().map(Vec::len).collect();

        let what = format!("of up to {most} {} a block, {counts:?}", T::DTYPE);
        let all = self.world.allgatherv(&data[me])?;
        assert!(same(all.data(), &data.concat()) && all.counts() == lengths, "allgatherv {what}");
        let received = self.world.alltoallv(&data[me], &counts[me])?;
        for from in 0..ranks {
            assert!(same(received.block(from), block(from, me)), "alltoallv {what}: from {from}");
        }
        for root in 0..ranks {
            let gathered = self.world.gatherv(&data[me], root)?;
            let (want, lengths) =
                if me == root { (data.concat(), lengths.clone()) } else { (Vec::new(), vec![0; ranks]) };
            assert!(same(gathered.data(), &want) && gathered.counts() == lengths, "gatherv {what} to {root}");
            let (input, counts): (&[T], &[usize]) = if me == root { (&data[me], &counts[me]) } else { (&[], &[]) };
            let got = self.world.scatterv(input, counts, root)?;
            assert!(same(&got, block(root, me)), "scatterv {what} from {root}");
            self.cases += 2;
        }
        self.cases += 2;
        Ok(())
    }

    /// Everything that moves, of the type that only moves.
    pub(crate) fn bools(&mut self) -> Result<()> {
        let (ranks, me) = (self.kolo.size(), self.kolo.rank());
        let mut shared: SharedBuffer<bool> = self.kolo.alloc(ranks * (5 * SLOT + 7))?;
        for count in counts(1) {
            let seed = self.random.any();
            let data: Vec<Vec<bool>> = (0..ranks)
                .map(|rank| draw::<u8>(seed, rank, count).into_iter().map(|byte| byte & 1 == 1).collect())
                .collect();
            for (root, from) in data.iter().enumerate() {
                let mut private: Vec<bool> =
                    if me == root { from.clone() } else { from.iter().map(|bit| !bit).collect() };
                self.world.broadcast(&mut private, root)?;
                assert_eq!(private, *from, "broadcast of {count} bools from {root}");
                shared[..count].copy_from_slice(&data[me]);
                self.world.broadcast(&mut shared[..count], root)?;
                assert_eq!(shared[..count], *from, "broadcast of {count} shared bools from {root}");
                // The named way.
                private.copy_from_slice(&data[me]);
                self.kolo.broadcast("bools", &mut private, root)?;
                assert_eq!(private, *from, "named broadcast of {count} bools from {root}");
                private.copy_from_slice(&data[me]);
                let handle = self.kolo.broadcast_async("bools", private.into_boxed_slice(), root)?;
                assert_eq!(*handle.wait()?, **from, "asynchronous broadcast of {count} bools from {root}");
                self.cases += 4;
            }
            let (all, named) = (self.world.allgatherv(&data[me])?, self.kolo.allgather("bools", &data[me])?);
            assert!(all.data() == data.concat() && all == named, "allgather of {count} bools");
            let mut cut = vec![count / ranks; ranks];
            cut[ranks - 1] += count % ranks;
            let mine = |from: usize| &data[from][cut[..me].iter().sum()..][..cut[me]];
            let want: Vec<bool> = (0..ranks).flat_map(mine).copied().collect();
            let (got, named) = (self.world.alltoallv(&data[me], &cut)?, self.kolo.alltoall("bools", &data[me], &cut)?);
            assert!(got.data() == want && got == named, "alltoall of {count} bools");
            let root = count % ranks;
            let (input, sizes): (&[bool], &[usize]) = if me == root { (&data[me], &cut) } else { (&[], &[]) };
            assert_eq!(self.world.scatterv(input, sizes, root)?, mine(root), "scatter of {count} bools");
            let gathered = self.world.gatherv(&data[me], root)?;
            assert_eq!(gathered.data(), if me == root { data.concat() } else { Vec::new() }, "gather of {count} bools");
            self.cases += 6;
            let mut gathered = vec![true; count * ranks];
            self.world.allgather(&data[me], &mut gathered)?;
            assert_eq!(gathered, data.concat(), "allgather of {count} bools");
            self.world.allgather(&data[me], &mut shared[..count * ranks])?;
            assert_eq!(shared[..count * ranks], data.concat(), "allgather of {count} bools to shared memory");
            self.cases += 2;
            if ranks > 1 {
                // Around the ring: the even ranks send first.
                let (next, before) = ((me + 1) % ranks, (me + ranks - 1) % ranks);
                let mut received = vec![true; count];
                for turn in 0..2 {
                    if (me % 2 == 0) == (turn == 0) {
                        self.world.send(&data[me], next)?;
                    } else {
                        self.world.recv(&mut received, before)?;
                    }
                }
                assert_eq!(received, data[before], "{count} bools from {before}");
                self.cases += 1;
            }
        }
        Ok(())
    }
}
