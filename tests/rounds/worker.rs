//! A rank of a round: steps of operations whose results are known, until something happens.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use kolo::{Communicator, Error, Kolo, Options, ReduceOp, Result};
use xtask::random::Random;
use xtask::record;

use super::fault::{Fault, Nature};

/// The settings by which the conductor tells the ranks what is to come.
pub(crate) const SEED: &str = "TEST_SEED";
pub(crate) const FAULT: &str = "TEST_FAULT";
pub(crate) const VICTIM: &str = "TEST_VICTIM";
/// A file; once it is there, the job comes to its end.
pub(crate) const FINISH: &str = "TEST_FINISH";

/// What rank 0 prints once all ranks work.
pub(crate) const AT_WORK: &str = "all are at work";

/// Before it nothing happens, so that every rank is at work.
const FIRST: u64 = 3;
/// Steps that follow a mistake.
const AFTERWARDS: u64 = 20;

/// Lengths of many kinds: none, inline, one slot, several.
const LENGTHS: [usize; 8] = [0, 1, 7, 40, 1000, 5000, 20_000, 70_000];

/// What a rank knows of its round.
struct Plan {
    seed: u64,
    fault: Fault,
    is_victim: bool,
    /// The step at which the victim's own faults come, and how far into it.
    step: u64,
    point: Point,
    finish: PathBuf,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Point {
    Before,
    /// With operations in flight.
    Between,
    /// In another thread, some time later.
    Meanwhile(Duration),
}

pub(crate) fn main() -> ExitCode {
    kolo::run(|kolo| {
        let plan = Plan::of(kolo);
        let outcome = work(kolo, &plan);
        if let Err(error) = &outcome {
            record::note(kolo.rank(), "error", &error.to_string());
        }
        outcome
    })
}

impl Plan {
    fn of(kolo: &Kolo) -> Self {
        let text = |name: &str| std::env::var(name).unwrap_or_else(|error| panic!("{name}: {error}"));
        let seed = text(SEED).parse().expect("a number");
        let fault = Fault::parse(&text(FAULT)).expect("a fault");
        let mut random = Random::new(seed);
        let step = FIRST + 1 + random.below(25) as u64;
        let point = match random.below(3) {
            0 => Point::Before,
            1 => Point::Between,
            _ => Point::Meanwhile(Duration::from_micros(random.below(3000) as u64)),
        };
        let is_victim = text(VICTIM) == kolo.rank().to_string();
        Self { seed, fault, is_victim, step, point, finish: text(FINISH).into() }
    }

    /// Whether something goes wrong here by this rank's own doing.
    fn comes(&self, step: u64, point: Point) -> bool {
        let own = self.is_victim && self.fault.nature() == Nature::Own && step == self.step;
        own && point == self.own_point()
    }

    /// Only an exit can come at any time: a thread cannot panic, fail or leave for another.
    fn own_point(&self) -> Point {
        match (self.point, self.fault) {
            (point, Fault::Exit) => point,
            // It would withdraw what is in flight, which is another story.
            (_, Fault::Leave) => Point::Before,
            (Point::Meanwhile(_), _) => Point::Between,
            (point, _) => point,
        }
    }
}

fn work(kolo: &Kolo, plan: &Plan) -> Result<()> {
    let mut all = kolo.communicator()?;
    for step in 0.. {
        if plan.comes(step, Point::Before) {
            let end = strike(kolo, plan);
            if plan.fault == Fault::Leave {
                return Ok(());
            }
            end?;
        }
        if plan.fault.nature() == Nature::Mistake && step == plan.step {
            mistake(kolo, plan)?;
        }
        one_step(kolo, &mut all, plan, step)?;
        if step == FIRST && kolo.rank() == 0 {
            println!("{AT_WORK}");
        }
        let mut over = [u8::from(kolo.rank() == 0 && plan.finish.exists())];
        if plan.fault.nature() == Nature::Mistake {
            over = [u8::from(step >= plan.step + AFTERWARDS)];
        }
        kolo.allreduce("over", &mut over, ReduceOp::Max)?;
        if over == [1] {
            record::note(kolo.rank(), "finished", "");
            return Ok(());
        }
    }
    Ok(())
}

/// What the victim does to itself. Returns only the errors.
fn strike(kolo: &Kolo, plan: &Plan) -> Result<()> {
    record::note(kolo.rank(), "fault", &format!("{:?}", plan.own_point()));
    match plan.fault {
        Fault::Exit => std::process::exit(plan.seed as i32 & 1),
        Fault::Panic => panic!("on purpose"),
        Fault::Error => Err(Error::Argument("on purpose".into())),
        _ => Ok(()),
    }
}

/// What a rank contributes. Sums of so few small integers are exact in f32, in whatever order.
fn value(rank: usize, step: u64, tensor: usize, at: usize) -> f32 {
    ((rank as u64 * 37 + step * 11 + tensor as u64 * 5 + at as u64) % 1000) as f32
}

fn input(rank: usize, step: u64, tensor: usize, count: usize) -> Vec<f32> {
    (0..count).map(|at| value(rank, step, tensor, at)).collect()
}

fn sum(ranks: usize, step: u64, tensor: usize, count: usize) -> Vec<f32> {
    (0..count).map(|at| (0..ranks).map(|rank| value(rank, step, tensor, at)).sum()).collect()
}

/// Notes a wrong result, which ends this rank.
fn right(kolo: &Kolo, holds: bool, what: &str) -> Result<()> {
    if holds {
        return Ok(());
    }
    record::note(kolo.rank(), "wrong", what);
    Err(Error::Argument(format!("a wrong result: {what}").into()))
}

fn one_step(kolo: &Kolo, all: &mut Communicator, plan: &Plan, step: u64) -> Result<()> {
    let (rank, ranks) = (kolo.rank(), kolo.size());
    // Equal on every rank.
    let mut random = Random::new(plan.seed ^ (step + 1) << 20);
    let lengths: Vec<usize> = (0..4).map(|_| LENGTHS[random.below(LENGTHS.len())]).collect();
    let root = random.below(ranks);
    let begin = |tensor: usize| {
        let data = input(rank, step, tensor, lengths[tensor]);
        kolo.allreduce_async(&format!("gradient {tensor}"), data, ReduceOp::Sum)
    };
    let handles = (0..3).map(begin).collect::<Result<Vec<_>>>()?;
    if plan.comes(step, Point::Between) {
        strike(kolo, plan)?;
    }
    if matches!(plan.point, Point::Meanwhile(_)) && plan.comes(step, plan.point) {
        meanwhile(kolo, plan);
    }
    for (tensor, handle) in handles.into_iter().enumerate() {
        let got = handle.wait()?;
        right(kolo, got == sum(ranks, step, tensor, lengths[tensor]), &format!("gradient {tensor}, step {step}"))?;
    }
    let mut data = input(rank, step, 3, lengths[3]);
    all.allreduce(&mut data, ReduceOp::Sum)?;
    right(kolo, data == sum(ranks, step, 3, lengths[3]), &format!("allreduce, step {step}"))?;
    let mut data = input(rank, step, 4, 100);
    all.broadcast(&mut data, root)?;
    right(kolo, data == input(root, step, 4, 100), &format!("broadcast from {root}, step {step}"))?;
    let mut data = input(rank, step, 5, 3);
    kolo.broadcast("weights", &mut data, root)?;
    right(kolo, data == input(root, step, 5, 3), &format!("named broadcast from {root}, step {step}"))
}

/// An exit from another thread, wherever this one is by then.
fn meanwhile(kolo: &Kolo, plan: &Plan) {
    let Point::Meanwhile(after) = plan.point else { return };
    let (rank, code) = (kolo.rank(), plan.seed as i32 & 1);
    std::thread::spawn(move || {
        let begin = Instant::now();
        while begin.elapsed() < after {
            std::thread::yield_now();
        }
        record::note(rank, "fault", &format!("after {after:?}, in another thread"));
        std::process::exit(code)
    });
}

/// Every rank submits one name, the victim with something else about it.
fn mistake(kolo: &Kolo, plan: &Plan) -> Result<()> {
    let count = LENGTHS[1 + plan.seed as usize % (LENGTHS.len() - 1)];
    let mut data = input(kolo.rank(), 0, 0, count + 1);
    let options = Options { prescale: 0.5, ..Options::default() };
    if plan.is_victim {
        record::note(kolo.rank(), "fault", &format!("of {count} elements"));
    }
    let usual = if plan.fault == Fault::WrongRoot {
        |kolo: &Kolo, data: &mut [f32]| kolo.broadcast("odd", data, 0)
    } else {
        |kolo: &Kolo, data: &mut [f32]| kolo.allreduce("odd", data, ReduceOp::Sum)
    };
    let outcome = match plan.fault {
        _ if !plan.is_victim => usual(kolo, &mut data[..count]),
        Fault::WrongType => {
            let mut other = vec![7_i32; count];
            let outcome = kolo.allreduce("odd", &mut other, ReduceOp::Sum);
            right(kolo, other.iter().all(|value| *value == 7), "a tensor of another type was touched")?;
            outcome
        }
        Fault::WrongShape => kolo.allreduce("odd", &mut data, ReduceOp::Sum),
        Fault::WrongOp => kolo.allreduce("odd", &mut data[..count], ReduceOp::Max),
        Fault::WrongScale => kolo.allreduce_with("odd", &mut data[..count], ReduceOp::Sum, &options),
        Fault::WrongKind => kolo.broadcast("odd", &mut data[..count], 0),
        _ => kolo.broadcast("odd", &mut data[..count], 1),
    };
    let victim: u32 = std::env::var(VICTIM).ok().and_then(|text| text.parse().ok()).expect("a rank");
    let Err(Error::Mismatch(mismatch)) = &outcome else {
        right(kolo, false, &format!("{} was no mismatch but {outcome:?}", plan.fault))?;
        return outcome;
    };
    let view = |rank: u32| mismatch.views.iter().find(|(who, _)| *who == rank).map(|(_, view)| view);
    let others = (0..kolo.size() as u32).filter(|rank| *rank != victim);
    let odd = mismatch.views.len() == kolo.size() && others.into_iter().all(|rank| view(rank) != view(victim));
    right(kolo, odd, &format!("the views do not show rank {victim}: {mismatch}"))?;
    right(kolo, data == input(kolo.rank(), 0, 0, count + 1), "a tensor of a mistake was touched")?;
    record::note(kolo.rank(), "mistake", &mismatch.to_string());
    Ok(())
}
