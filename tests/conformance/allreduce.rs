//! Allreduce, of one tensor at a time and of several that are ready together.

use std::cell::OnceCell;

use kolo::{Algorithm, Options, ReduceOp, Result};

use super::bench::{Bench, Order, Team};
use super::memory::{Buffer, Memory, shape};
use super::sample::{Rows, Sample, numbers, samples};
use super::value::Number;
use super::want::{Scale, Want, operations};

const NAME: &str = "allreduce";

/// What one tensor of each rank is reduced from, and what must come.
struct Reduction<'a, T> {
    data: &'a Rows<T>,
    sample: Sample,
    op: ReduceOp,
    scale: Scale,
    /// Made for the first case that runs.
    want: OnceCell<Want<T>>,
}

impl<'a, T: Number> Reduction<'a, T> {
    fn new(data: &'a Rows<T>, sample: Sample, op: ReduceOp, scale: Scale) -> Self {
        Self { data, sample, op, scale, want: OnceCell::new() }
    }

    fn want(&self) -> &Want<T> {
        self.want.get_or_init(|| Want::new(self.data, self.sample, self.op, self.scale))
    }

    /// The same on all ranks, and different from one sample and op to the next.
    fn turn(&self) -> usize {
        self.sample.count + self.op as usize
    }

    fn options(&self) -> Options {
        Options { prescale: self.scale.before, postscale: self.scale.after, ..Options::default() }
    }

    /// The tensor's name.
    fn name(&self) -> String {
        format!("{} of {} {}", self.op, self.sample, T::DTYPE)
    }

    fn buffer(&self, bench: &Bench<'_>, team: &Team, memory: Memory) -> Result<Buffer<T>> {
        Buffer::of(bench.kolo, memory, &self.data[team.me()])
    }
}

pub(crate) fn run<T: Number>(bench: &mut Bench<'_>, team: &mut Team) -> Result<()> {
    let draw = |sample| (sample, numbers::<T>(bench.task.seed, team.size(), sample));
    let all: Vec<(Sample, Rows<T>)> = samples::<T>().into_iter().map(draw).collect();
    let algorithms = algorithms(team);
    let adasum = T::DTYPE.is_float().then_some(ReduceOp::Adasum);
    for op in operations::<T>().chain(adasum) {
        // The formula of Adasum says enough of what is not finite.
        let samples = all.iter().filter(|(sample, _)| op != ReduceOp::Adasum || !sample.special);
        let reductions: Vec<_> = samples.map(|(sample, data)| Reduction::new(data, *sample, op, Scale::NONE)).collect();
        for reduction in &reductions {
            by_order(bench, team, reduction)?;
            by_name(bench, team, reduction)?;
            if op == ReduceOp::Adasum {
                continue;
            }
            for &(algorithm, ordered) in &algorithms {
                by_algorithm(bench, team, reduction, algorithm, ordered)?;
            }
            for scale in Scale::SOME {
                by_name(bench, team, &Reduction::new(reduction.data, reduction.sample, op, scale))?;
            }
        }
        together(bench, team, &reductions)?;
    }
    Ok(())
}

/// The algorithms that can serve here besides the one of the table, and whether they keep the order of ranks.
fn algorithms(team: &mut Team) -> Vec<(Algorithm, bool)> {
    let ordered = team.ordered;
    let named = Algorithm::ALL.into_iter().filter(|algorithm| *algorithm != Algorithm::Auto);
    let able: Vec<_> = named
        .filter(|algorithm| team.comm.set_algorithm(*algorithm).is_ok())
        .map(|algorithm| (algorithm, algorithm.is_ordered() || algorithm == Algorithm::TwoLevel && ordered))
        .collect();
    team.comm.set_algorithm(Algorithm::Auto).expect("the table serves everywhere");
    able
}

fn by_order<T: Number>(bench: &mut Bench<'_>, team: &mut Team, reduction: &Reduction<'_, T>) -> Result<()> {
    let Reduction { data, sample, op, .. } = reduction;
    for memory in Memory::ALL {
        if bench.begin(team, NAME, &T::DTYPE, format_args!("{op} of {sample}, by order, in place, {memory}")) {
            let mut buffer = reduction.buffer(bench, team, memory)?;
            team.comm.allreduce(buffer.slice_mut(), *op)?;
            bench.reduced(team, &buffer, reduction.want());
        }
        if bench.begin(team, NAME, &T::DTYPE, format_args!("{op} of {sample}, by order, apart, {memory}")) {
            let input = reduction.buffer(bench, team, memory)?;
            let mut output = Buffer::poisoned(bench.kolo, memory, sample.count)?;
            team.comm.allreduce_into(input.slice(), output.slice_mut(), *op)?;
            bench.reduced(team, &output, reduction.want());
            bench.unchanged(&input, &data[team.me()]);
        }
        if bench.begin(team, NAME, &T::DTYPE, format_args!("{op} of {sample}, by order, async, {memory}")) {
            let buffer = reduction.buffer(bench, team, memory)?;
            let handle = team.comm.allreduce_async(buffer, *op)?;
            bench.reduced(team, &handle.wait()?, reduction.want());
        }
    }
    let memory = Memory::turn(reduction.turn());
    if bench.begin(team, NAME, &T::DTYPE, format_args!("{op} of {sample}, by order, apart, async, {memory}")) {
        let input = reduction.buffer(bench, team, memory)?;
        let output = Buffer::poisoned(bench.kolo, memory, sample.count)?;
        let (input, output) = team.comm.allreduce_into_async(input, output, *op)?.wait()?;
        bench.reduced(team, &output, reduction.want());
        bench.unchanged(&input, &data[team.me()]);
    }
    Ok(())
}

fn by_algorithm<T: Number>(
    bench: &mut Bench<'_>,
    team: &mut Team,
    reduction: &Reduction<'_, T>,
    algorithm: Algorithm,
    ordered: bool,
) -> Result<()> {
    let Reduction { sample, op, .. } = reduction;
    let memory = Memory::turn(reduction.turn());
    if bench.begin(team, NAME, &T::DTYPE, format_args!("{op} of {sample}, by order, in place, {memory}, {algorithm}")) {
        let mut buffer = reduction.buffer(bench, team, memory)?;
        team.comm.set_algorithm(algorithm)?;
        team.comm.allreduce(buffer.slice_mut(), *op)?;
        team.comm.set_algorithm(Algorithm::Auto)?;
        bench.reduced_by(if ordered { Order::Ranks } else { Order::OfItsOwn }, &buffer, reduction.want());
    }
    Ok(())
}

fn by_name<T: Number>(bench: &mut Bench<'_>, team: &mut Team, reduction: &Reduction<'_, T>) -> Result<()> {
    let Reduction { sample, op, scale, .. } = reduction;
    let (name, options) = (reduction.name(), reduction.options());
    // Factors are not of the memory's making: they take turns through it.
    let turn = reduction.turn();
    let memories = if *scale == Scale::NONE { &Memory::ALL[..] } else { &Memory::ALL[turn % 4..][..1] };
    for &memory in memories {
        let (t, what) = (&T::DTYPE, format!("{op} of {sample}{scale}"));
        if bench.begin(team, NAME, t, format_args!("{what}, by name, in place, {memory}")) {
            let mut buffer = reduction.buffer(bench, team, memory)?;
            team.named.allreduce_with(&name, buffer.slice_mut(), *op, &options)?;
            bench.reduced(team, &buffer, reduction.want());
        }
        let shape = shape(sample.count, turn + memory as usize);
        if bench.begin(team, NAME, t, format_args!("{what}, by name, async, shape {shape:?}, {memory}")) {
            let buffer = reduction.buffer(bench, team, memory)?.shaped(&shape);
            let handle = team.named.allreduce_async_with(&name, buffer, *op, &options)?;
            bench.reduced(team, &handle.wait()?, reduction.want());
        }
        if bench.begin(team, NAME, t, format_args!("{what}, by name, async in a scope, {memory}")) {
            let mut buffer = reduction.buffer(bench, team, memory)?;
            team.named.scope(|scope| {
                scope.allreduce_async_with(&name, buffer.slice_mut(), *op, &options)?;
                Ok(())
            })?;
            bench.reduced(team, &buffer, reduction.want());
        }
    }
    by_name_apart(bench, team, reduction)
}

/// From one buffer into another. Memories take turns, and so do the forms beyond the first, which has the factors.
fn by_name_apart<T: Number>(bench: &mut Bench<'_>, team: &mut Team, reduction: &Reduction<'_, T>) -> Result<()> {
    let Reduction { data, sample, op, scale, .. } = reduction;
    let (t, what) = (&T::DTYPE, format!("{op} of {sample}{scale}"));
    let (name, options) = (reduction.name(), reduction.options());
    let (turn, mine) = (reduction.turn(), &data[team.me()]);
    let memory = Memory::turn(turn);
    let buffers = |bench: &Bench<'_>, team: &Team| {
        let input = reduction.buffer(bench, team, memory)?;
        Ok((input, Buffer::poisoned(bench.kolo, Memory::turn(turn + 1), sample.count)?))
    };
    if bench.begin(team, NAME, t, format_args!("{what}, by name, apart, {memory}")) {
        let (input, mut output) = buffers(bench, team)?;
        team.named.allreduce_into_with(&name, input.slice(), output.slice_mut(), *op, &options)?;
        bench.reduced(team, &output, reduction.want());
        bench.unchanged(&input, mine);
    }
    let shape = shape(sample.count, turn);
    let has_turn = |form: usize| *scale == Scale::NONE && turn % 3 == form;
    if has_turn(0)
        && bench.begin(team, NAME, t, format_args!("{what}, by name, apart, async, shape {shape:?}, {memory}"))
    {
        let (input, output) = buffers(bench, team)?;
        let handle = team.named.allreduce_into_async(&name, input.shaped(&shape), output, *op)?;
        let (input, output) = handle.wait()?;
        bench.reduced(team, &output, reduction.want());
        bench.unchanged(&input, mine);
    }
    if has_turn(1) && bench.begin(team, NAME, t, format_args!("{what}, by name, apart, async in a scope, {memory}")) {
        let (input, mut output) = buffers(bench, team)?;
        team.named.scope(|scope| {
            scope.allreduce_into_async(&name, input.slice(), output.slice_mut(), *op)?;
            Ok(())
        })?;
        bench.reduced(team, &output, reduction.want());
        bench.unchanged(&input, mine);
    }
    // Each of two neighbours in another form.
    if has_turn(2)
        && bench.begin(team, NAME, t, format_args!("{what}, by name, in place on every other rank, {memory}"))
    {
        let (mut input, mut output) = buffers(bench, team)?;
        if team.me().is_multiple_of(2) {
            team.named.allreduce_into(&name, input.slice(), output.slice_mut(), *op)?;
            bench.reduced(team, &output, reduction.want());
            bench.unchanged(&input, mine);
        } else {
            team.named.allreduce(&name, input.slice_mut(), *op)?;
            bench.reduced(team, &input, reduction.want());
        }
    }
    Ok(())
}

/// All lengths of one op in flight at once, submitted in an order of each rank's own: what is ready together is fused, unless
/// the job says otherwise. In a scope, some of them are apart, on each rank others.
fn together<T: Number>(bench: &mut Bench<'_>, team: &mut Team, reductions: &[Reduction<'_, T>]) -> Result<()> {
    for form in ["async", "async in a scope"] {
        let memory = |reduction: &Reduction<'_, T>| Memory::turn(reduction.turn() + form.len());
        let key = |reduction: &Reduction<'_, T>| {
            let (op, sample, memory) = (reduction.op, reduction.sample, memory(reduction));
            bench.wanted(
                team,
                NAME,
                &T::DTYPE,
                format_args!("{op} of {sample}, by name, {form}, with others, {memory}"),
            )
        };
        let keys: Vec<Option<String>> = reductions.iter().map(key).collect();
        if keys.iter().all(Option::is_none) {
            continue;
        }
        let buffer = |reduction: &Reduction<'_, T>| reduction.buffer(bench, team, memory(reduction));
        let mut buffers = reductions.iter().map(buffer).collect::<Result<Vec<_>>>()?;
        let room =
            |reduction: &Reduction<'_, T>| Buffer::poisoned(bench.kolo, memory(reduction), reduction.sample.count);
        let mut room = reductions.iter().map(room).collect::<Result<Vec<_>>>()?;
        let is_apart = |at: usize| form != "async" && (at + team.me()).is_multiple_of(3);
        let name = |reduction: &Reduction<'_, T>| format!("{} with others", reduction.name());
        let me = team.me();
        if form == "async" {
            let mut work: Vec<_> = reductions.iter().zip(buffers.drain(..)).enumerate().collect();
            work.rotate_left(me % reductions.len());
            let begin = |(at, (reduction, buffer)): (usize, (&Reduction<'_, T>, Buffer<T>))| {
                Ok((at, team.named.allreduce_async(&name(reduction), buffer, reduction.op)?))
            };
            let begun = work.into_iter().map(begin).collect::<Result<Vec<_>>>()?;
            let end = |(at, handle): (usize, kolo::Handle<Buffer<T>>)| Ok((at, handle.wait()?));
            let mut ended = begun.into_iter().map(end).collect::<Result<Vec<_>>>()?;
            ended.sort_by_key(|(at, _)| *at);
            buffers = ended.into_iter().map(|(_, buffer)| buffer).collect();
        } else {
            team.named.scope(|scope| {
                let mut work: Vec<_> = reductions.iter().zip(buffers.iter_mut().zip(&mut room)).enumerate().collect();
                work.rotate_left(me % reductions.len());
                for (at, (reduction, (buffer, room))) in work {
                    let (name, op) = (name(reduction), reduction.op);
                    if is_apart(at) {
                        scope.allreduce_into_async(&name, buffer.slice(), room.slice_mut(), op)?;
                    } else {
                        scope.allreduce_async(&name, buffer.slice_mut(), op)?;
                    }
                }
                Ok(())
            })?;
        }
        for (at, (reduction, key)) in reductions.iter().zip(keys).enumerate() {
            let Some(key) = key else { continue };
            bench.begin_wanted(team, key);
            let got = if is_apart(at) { &room[at] } else { &buffers[at] };
            bench.reduced_by(team.order_of_fused(reduction.want()), got, reduction.want());
            if is_apart(at) {
                bench.unchanged(&buffers[at], &reduction.data[me]);
            }
        }
    }
    Ok(())
}
