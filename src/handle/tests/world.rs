//! Ranks of one thread over the shipping code: a seed decides who is polled, who submits what when, and the time.

use std::sync::Arc;
use std::time::Duration;

use super::super::{Call, Driver, Flight, Handle, Landing, Memory, NamedSet, Options, Uneven, Way};
use super::data::{DTYPES, Data, draw, reference};
use crate::coordinator::{Kind, Params, Ticket};
use crate::engine::testing::{Random, Shape};
use crate::engine::{Built, Pieces};
use crate::error::{Error, Result};
use crate::plan::moves::Move;
use crate::tensor::{Blocks, DType, Hold, Piece, Received, ReduceOp};
use crate::transport::sim::Network;
use crate::transport::{Link, Stamp};

/// A named set for every rank, each with a driver that the test is.
pub(super) fn sets(shape: &Shape, params: &Params) -> Vec<Arc<NamedSet>> {
    let shape = Shape { negotiated: true, ..shape.clone() };
    let ranks: usize = shape.hosts.iter().sum();
    let network = Network::seeded(ranks, shape.seed);
    let all: Vec<u32> = (0..ranks as u32).collect();
    let link = |rank: usize, channel: u8, piece: usize| -> Box<dyn Link> {
        let stamp = Stamp { job: 2, epoch: 0, set: 0, channel };
        Box::new(network.link(stamp, all.clone(), rank, piece).expect("a link"))
    };
    let named = |(rank, channel): (usize, crate::engine::Channel)| {
        let negotiation = (shape.hosts.len() > 1).then(|| link(rank, 2, 1 << 16));
        let driver = Driver::manual(Arc::clone(channel.port()));
        let built = Built { channel, user: link(rank, 1, 64), negotiation };
        NamedSet::new(driver, built, params.clone()).expect("a set")
    };
    shape.channels().into_iter().enumerate().map(named).collect()
}

/// What all ranks are to ask for, but for one of them now and then.
#[derive(Clone, Debug)]
struct Plan {
    kind: Kind,
    dtype: DType,
    shape: Vec<usize>,
    factors: (f64, f64),
    /// This rank asks for something else.
    odd: Option<(usize, Odd)>,
}

#[derive(Clone, Copy, Debug)]
enum Odd {
    Dtype,
    Shape,
    Op,
    Kind,
    Prescale,
    /// The call does not get as far as a request.
    Refused,
}

const ODDS: [Odd; 6] = [Odd::Dtype, Odd::Shape, Odd::Op, Odd::Kind, Odd::Prescale, Odd::Refused];

fn draw_plan(ranks: usize, random: &mut Random) -> Plan {
    let dtype = DTYPES[random.below(DTYPES.len())];
    let float = !matches!(dtype, DType::I32 | DType::U8);
    let kind = match random.below(12) {
        0 => Kind::Broadcast { root: random.below(ranks) as u32 },
        8 => Kind::Reduce { op: ReduceOp::Sum, root: random.below(ranks) as u32 },
        9 | 10 => return draw_moves(ranks, random),
        1 if float => Kind::Allreduce { op: ReduceOp::Average },
        2 if !float => Kind::Allreduce { op: [ReduceOp::And, ReduceOp::Or, ReduceOp::Xor][random.below(3)] },
        at => Kind::Allreduce {
            op: [ReduceOp::Sum, ReduceOp::Sum, ReduceOp::Min, ReduceOp::Max, ReduceOp::Product][at % 5],
        },
    };
    let shape = match random.below(10) {
        0 => vec![0],
        1 => vec![],
        2 => vec![2, 3, 1 + random.below(4)],
        3 => vec![1000 + random.below(4000)],
        _ => vec![1 + random.below(20)],
    };
    let scaled = float && matches!(kind, Kind::Allreduce { .. }) && random.below(4) == 0;
    let factors = if scaled { ([0.5, 1.0, 2.0][random.below(3)], [0.25, 1.0][random.below(2)]) } else { (1.0, 1.0) };
    let odd = (ranks > 1 && random.below(10) == 0).then(|| (random.below(ranks), ODDS[random.below(6)]));
    Plan { kind, dtype, shape, factors, odd }
}

/// Rows that change places; how many, each rank draws anew at each step.
fn draw_moves(ranks: usize, random: &mut Random) -> Plan {
    let kind = Kind::Move(if random.below(2) == 0 { Move::Allgather } else { Move::AllToAll });
    let odd = (ranks > 1 && random.below(10) == 0).then(|| {
        let how = [Odd::Shape, Odd::Op, Odd::Kind, Odd::Prescale, Odd::Refused][random.below(5)];
        (random.below(ranks), how)
    });
    Plan { kind, dtype: DType::F32, shape: vec![0, 1 + random.below(3)], factors: (1.0, 1.0), odd }
}

/// How many of `rows` rows go to each of `ranks`.
fn split(rows: usize, ranks: usize) -> Vec<usize> {
    (0..ranks).map(|rank| rows / ranks + usize::from(rank < rows % ranks)).collect()
}

impl Plan {
    fn input(&self, seed: u64, name: usize, step: usize, rank: usize) -> Data {
        let salt = (name as u64) << 32 | (step as u64) << 16 | rank as u64;
        let mut random = Random::new(seed ^ salt.wrapping_mul(0x2545_f491_4f6c_dd1d));
        let count = if self.kind.has_own_rows() {
            [0, 1, 7, 300][random.below(4)] * self.row()
        } else {
            self.shape.iter().product()
        };
        draw(self.dtype, count, &mut random)
    }

    fn row(&self) -> usize {
        self.shape[1..].iter().product()
    }

    /// Whether a rank takes the result somewhere else. Each decides for itself.
    fn is_apart(&self, seed: u64, name: usize, step: usize, rank: usize) -> bool {
        let salt = (rank as u64) << 32 | (step as u64) << 16 | name as u64;
        let random = &mut Random::new(seed ^ salt.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        matches!(self.kind, Kind::Allreduce { .. } | Kind::Reduce { .. }) && random.below(2) == 0
    }

    /// What lies where the result shall go.
    fn room(&self) -> Data {
        draw(self.dtype, self.shape.iter().product(), &mut Random::new(3))
    }

    /// Whether a rank gets a result.
    fn gets_result(&self, rank: usize) -> bool {
        !matches!(self.kind, Kind::Reduce { root, .. } if root as usize != rank)
    }

    /// What rank `me` gets of rows that change places, with the elements from each rank.
    fn blocks(&self, inputs: &[Data], me: usize) -> (Vec<f32>, Vec<usize>) {
        let (mut all, mut counts) = (Vec::new(), Vec::new());
        for input in inputs {
            let Data::F32(values) = input else { panic!("{input:?} changes places") };
            let splits = split(values.len() / self.row(), inputs.len());
            let before: usize = splits[..me].iter().sum();
            let block = match self.kind {
                Kind::Move(Move::AllToAll) => &values[before * self.row()..][..splits[me] * self.row()],
                _ => &values[..],
            };
            all.extend_from_slice(block);
            counts.push(block.len());
        }
        (all, counts)
    }

    /// What `rank` asks for.
    fn of(&self, rank: usize) -> Self {
        let mut own = self.clone();
        match self.odd {
            Some((odd, how)) if odd == rank => match how {
                // And, Or and Xor take integers only.
                Odd::Dtype if matches!(own.kind, Kind::Allreduce { op } if !op.takes(DType::F32)) => {
                    own.dtype = if own.dtype == DType::I32 { DType::U8 } else { DType::I32 };
                }
                Odd::Dtype => own.dtype = if own.dtype == DType::F32 { DType::F64 } else { DType::F32 },
                Odd::Shape => own.shape.push(2),
                Odd::Op if own.kind == (Kind::Allreduce { op: ReduceOp::Min }) => {
                    own.kind = Kind::Allreduce { op: ReduceOp::Max };
                }
                Odd::Op => own.kind = Kind::Allreduce { op: ReduceOp::Min },
                Odd::Kind if matches!(own.kind, Kind::Broadcast { .. }) => {
                    own.kind = Kind::Allreduce { op: ReduceOp::Sum };
                }
                Odd::Kind => {
                    own.kind = Kind::Broadcast { root: 0 };
                    own.factors = (1.0, 1.0);
                }
                Odd::Prescale => {
                    own.dtype = DType::F64;
                    own.kind = Kind::Allreduce { op: ReduceOp::Sum };
                    own.factors.0 = 8.0;
                }
                Odd::Refused => {}
            },
            _ => {}
        }
        own
    }
}

enum Buffer {
    Borrowed(Data),
    /// What is read, and what is written.
    Apart(Data, Data),
    Owned(Handle<Vec<f32>>),
    OwnedApart(Handle<(Vec<f32>, Vec<f32>)>),
    Blocks(Handle<Blocks<f32>>),
    /// The handle was dropped.
    Gone,
}

struct InFlight {
    ticket: Ticket,
    flight: Arc<Flight>,
    buffer: Buffer,
}

struct Rank {
    set: Arc<NamedSet>,
    /// Of each name: the next step, and the submission in flight.
    next: Vec<usize>,
    flying: Vec<Option<InFlight>>,
    /// Not scheduled before this turn.
    late: usize,
    over: bool,
}

impl Rank {
    /// Submissions made so far of a name.
    fn submitted(&self, name: usize) -> usize {
        self.next[name] + usize::from(self.flying[name].is_some())
    }
}

/// What a run met: a test that never gets there proves nothing.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Seen {
    pub(super) reduced: usize,
    pub(super) apart: usize,
    pub(super) moved: usize,
    pub(super) mismatched: usize,
    pub(super) withdrawn: usize,
    pub(super) poisoned: usize,
}

impl Seen {
    pub(super) fn add(&mut self, other: Self) {
        self.reduced += other.reduced;
        self.apart += other.apart;
        self.moved += other.moved;
        self.mismatched += other.mismatched;
        self.withdrawn += other.withdrawn;
        self.poisoned += other.poisoned;
    }
}

fn begin_moves(set: &Arc<NamedSet>, name: &str, plan: &Plan, values: Vec<f32>) -> Result<Handle<Blocks<f32>>> {
    let mut shape = plan.shape.clone();
    shape[0] = values.len() / plan.row();
    let counts = match plan.kind {
        Kind::Move(Move::AllToAll) => split(shape[0], set.team().size()).iter().map(|rows| rows * plan.row()).collect(),
        _ => vec![values.len()],
    };
    let (hold, input) = Hold::new(values);
    let result = Received::<f32>::new();
    let uneven = Some(Uneven { counts, result: Landing::One(Arc::clone(&result) as _) });
    let pieces = Pieces::One([Piece { input, output: input.part(0, 0) }]);
    let call = Call::new(plan.kind, DType::F32, shape, Options::default());
    set.handle(name, &call, Memory { uneven, hold: Some(hold as _), ..Memory::of(pieces) }, result)
}

fn ticket<B>(handle: &Handle<B>) -> Ticket {
    match handle.way {
        Way::Named(_, ticket) => ticket,
        Way::Course(..) | Way::Ordered(_) => panic!("a named operation of one step"),
    }
}

pub(super) struct World {
    seed: u64,
    random: Random,
    plans: Vec<Vec<Plan>>,
    ranks: Vec<Rank>,
    one_host: bool,
    time: Duration,
    /// Cancels may come after the ranks have agreed.
    reckless: bool,
    cancels: bool,
    seen: Seen,
}

const LAYOUTS: [&[usize]; 11] = [&[1], &[2], &[2], &[3], &[4], &[6], &[1, 1], &[2, 1], &[2, 2], &[3, 1], &[1, 2, 2]];

impl World {
    pub(super) fn new(seed: u64) -> Self {
        let mut random = Random::new(seed.wrapping_mul(0x9e37_79b9).wrapping_add(77));
        let hosts = LAYOUTS[random.below(LAYOUTS.len())].to_vec();
        let count: usize = hosts.iter().sum();
        let names = 1 + random.below(9);
        let steps = 1 + random.below(4);
        let params = Params {
            capacity: 1 + random.below(2 * names),
            evict_after: random.below(4) as u64,
            fusion_bytes: [1, 200, 4096, 1 << 20][random.below(4)],
            window: Duration::from_micros([0, 50, 200][random.below(3)]),
            ..Params::default()
        };
        let one_host = hosts.len() == 1;
        let shape = Shape { hosts, seed: random.any(), ..Shape::one_host(1) };
        let cancels = random.below(2) == 0;
        // Between hosts a withdrawal takes time: the ranks may agree meanwhile, however early it was.
        let reckless = cancels && (!one_host || random.below(4) == 0);
        let plans = (0..names)
            .map(|_| {
                let mut plan = draw_plan(count, &mut random);
                let mut was_refused = false;
                let mut next = |random: &mut Random| {
                    // Mostly the same request again, which is what the cache is for.
                    if random.below(4) == 0 {
                        plan = draw_plan(count, random);
                    }
                    // A rank that gives up what has just failed elsewhere would ask for it again, alone.
                    // Two refusals of one rank that the log has not seen are one to its peers.
                    let refused = matches!(plan.odd, Some((_, Odd::Refused)));
                    plan.odd = plan.odd.filter(|_| random.below(3) == 0 && !reckless && !was_refused);
                    was_refused = refused && plan.odd.is_some();
                    plan.clone()
                };
                (0..steps).map(|_| next(&mut random)).collect()
            })
            .collect();
        let late = random.below(count);
        let lateness = [0, 0, 300][random.below(3)];
        let rank = |(at, set)| Rank {
            set,
            next: vec![0; names],
            flying: (0..names).map(|_| None).collect(),
            late: if at == late { lateness } else { 0 },
            over: false,
        };
        let ranks = sets(&shape, &params).into_iter().enumerate().map(rank).collect();
        Self { seed, random, plans, ranks, one_host, time: Duration::ZERO, reckless, cancels, seen: Seen::default() }
    }

    pub(super) fn run(mut self) -> Seen {
        let mut idle = 0;
        let mut turn = 0;
        while !self.ranks.iter().all(|rank| self.is_done(rank)) {
            turn += 1;
            let at = self.random.below(self.ranks.len());
            if turn < self.ranks[at].late {
                continue;
            }
            for _ in 0..=self.random.below(5) {
                idle = if self.act(at) { 0 } else { idle + 1 };
            }
            assert!(idle < 20_000, "nothing moves: {}", self.describe());
        }
        self.settle();
        self.seen
    }

    fn is_done(&self, rank: &Rank) -> bool {
        rank.flying.iter().all(Option::is_none)
            && (rank.over || rank.next.iter().zip(&self.plans).all(|(next, plans)| *next == plans.len()))
    }

    /// One thing that a rank does. Whether anything came of it.
    fn act(&mut self, at: usize) -> bool {
        self.time += Duration::from_micros(self.random.below(40) as u64);
        self.ranks[at].set.driver.set_time(self.time);
        match self.random.below(if self.cancels { 9 } else { 8 }) {
            0..=2 => self.submit(at),
            8 => self.cancel(at),
            3 => {
                self.urge(at);
                false
            }
            _ => {
                let polled = self.ranks[at].set.try_poll(self.time);
                let (step, _) = polled.expect("no other thread");
                self.collect(at);
                step != crate::engine::Step::Pending
            }
        }
    }

    fn submit(&mut self, at: usize) -> bool {
        let name = self.random.below(self.plans.len());
        let rank = &mut self.ranks[at];
        let step = rank.next[name];
        let Some(plan) = self.plans[name].get(step) else { return false };
        if rank.over {
            return false;
        }
        let text = format!("n{name}");
        if rank.flying[name].is_some() {
            // A name that is in flight is refused, whatever it asks for, and nothing else changes.
            if self.random.below(20) == 0 && !rank.flying[name].as_ref().is_some_and(|it| it.flight.is_over()) {
                let error =
                    rank.set.owned(&text, plan.kind, vec![0_f32; 3], Options::default()).expect_err("in flight");
                assert!(matches!(error, Error::Argument(_) | Error::Poisoned(_)), "{error}");
            }
            return false;
        }
        if matches!(plan.odd, Some((odd, Odd::Refused)) if odd == at) {
            rank.set.refuse(&text, "on purpose");
            rank.next[name] += 1;
            return true;
        }
        let own = plan.of(at);
        let mut data = own.input(self.seed, name, step, at);
        let options = Options { prescale: own.factors.0, postscale: own.factors.1, deadline: None };
        let apart = own.is_apart(self.seed, name, step, at).then(|| own.room());
        let begun = match &data {
            Data::F32(values) if own.kind.has_own_rows() => {
                let handle = begin_moves(&rank.set, &text, &own, values.clone());
                handle.map(|handle| InFlight {
                    ticket: ticket(&handle),
                    flight: Arc::clone(&handle.flight),
                    buffer: Buffer::Blocks(handle),
                })
            }
            Data::F32(values) if own.shape.len() == 1 && self.random.below(2) == 0 => {
                let drops = self.random.below(4) == 0;
                if let Some(Data::F32(room)) = apart {
                    let handle = rank.set.owned_apart(&text, own.kind, (values.clone(), room), options);
                    handle.map(|handle| InFlight {
                        ticket: ticket(&handle),
                        flight: Arc::clone(&handle.flight),
                        buffer: if drops { Buffer::Gone } else { Buffer::OwnedApart(handle) },
                    })
                } else {
                    let handle = rank.set.owned(&text, own.kind, values.clone(), options);
                    handle.map(|handle| InFlight {
                        ticket: ticket(&handle),
                        flight: Arc::clone(&handle.flight),
                        buffer: if drops { Buffer::Gone } else { Buffer::Owned(handle) },
                    })
                }
            }
            _ => {
                let call = Call::new(own.kind, own.dtype, own.shape.clone(), options);
                let input = data.raw();
                let (piece, buffer) = match apart {
                    None => (Piece::in_place(input), Buffer::Borrowed(data)),
                    Some(mut room) => {
                        let piece = rank.set.as_written(own.kind, Piece { input, output: room.raw() });
                        (piece, Buffer::Apart(data, room))
                    }
                };
                let begun = rank.set.begin(&text, &call, Memory::borrowed(piece), self.random.below(3) == 0);
                begun.map(|(ticket, flight)| InFlight { ticket, flight, buffer })
            }
        };
        match begun {
            Ok(flying) => rank.flying[name] = Some(flying),
            Err(Error::Poisoned(_)) if self.reckless => rank.over = true,
            Err(error) => panic!("{text} of rank {at}: {error}; {}", self.describe()),
        }
        true
    }

    fn urge(&mut self, at: usize) {
        let name = self.random.below(self.plans.len());
        if let Some(flying) = &self.ranks[at].flying[name] {
            self.ranks[at].set.urge(flying.ticket);
        }
    }

    fn cancel(&mut self, at: usize) -> bool {
        let name = self.random.below(self.plans.len());
        let step = self.ranks[at].next[name];
        // While a rank has not even submitted it, nobody can have agreed to run it.
        let early = self.ranks.iter().any(|rank| rank.submitted(name) <= step);
        if !(early || self.reckless) || self.random.below(3) > 0 {
            return false;
        }
        let rank = &mut self.ranks[at];
        let Some(flying) = rank.flying[name].take_if(|flying| !flying.flight.is_over()) else { return false };
        match flying.buffer {
            Buffer::Owned(handle) => assert!(handle.cancel().is_some()),
            Buffer::OwnedApart(handle) => {
                let (input, _) = handle.cancel().expect("both come back");
                let plan = self.plans[name][step].of(at);
                let was = plan.input(self.seed, name, step, at);
                assert!(Data::F32(input).bytes() == was.bytes(), "n{name}, step {step}, rank {at}: {plan:?}");
            }
            Buffer::Blocks(handle) => assert!(handle.cancel().is_none(), "there is no result yet"),
            Buffer::Borrowed(_) | Buffer::Apart(..) | Buffer::Gone => rank.set.cancel(flying.ticket),
        }
        let outcome = flying.flight.outcome().expect("a cancelled operation is over");
        match outcome.expect_err("it had not ended") {
            Error::Cancelled(_) => self.seen.withdrawn += 1,
            Error::Poisoned(_) if self.reckless => rank.over = true,
            error => panic!("cancel of n{name} on rank {at}: {error}"),
        }
        true
    }

    /// Looks at what has ended on a rank.
    fn collect(&mut self, at: usize) {
        for name in 0..self.plans.len() {
            let rank = &mut self.ranks[at];
            let Some(flying) = rank.flying[name].take_if(|flying| flying.flight.is_over()) else { continue };
            let step = rank.next[name];
            rank.next[name] += 1;
            let outcome = flying.flight.outcome().expect("it is over");
            let plan = self.plans[name][step].clone();
            let context = format!("n{name}, step {step}, rank {at}, {plan:?}");
            if let Buffer::Apart(input, room) = &flying.buffer {
                let own = plan.of(at);
                assert!(input.bytes() == own.input(self.seed, name, step, at).bytes(), "{context}: the input");
                let untouched = matches!(outcome, Err(Error::Mismatch(_))) || !own.gets_result(at);
                assert!(!untouched || room.bytes() == own.room().bytes(), "{context}: the room for a result");
            }
            match (outcome, plan.odd) {
                (Ok(()), None) => {
                    let inputs: Vec<Data> =
                        (0..self.ranks.len()).map(|rank| plan.input(self.seed, name, step, rank)).collect();
                    let got = match flying.buffer {
                        Buffer::Borrowed(data) => data,
                        Buffer::Apart(..) | Buffer::OwnedApart(_) if !plan.gets_result(at) => continue,
                        Buffer::Apart(_, room) => room,
                        Buffer::Owned(handle) => Data::F32(handle.wait().expect("it ended well")),
                        Buffer::OwnedApart(handle) => {
                            let (input, output) = handle.wait().expect("it ended well");
                            assert!(Data::F32(input).bytes() == inputs[at].bytes(), "{context}: the input");
                            Data::F32(output)
                        }
                        Buffer::Blocks(handle) => {
                            let (got, (data, counts)) =
                                (handle.wait().expect("it ended well"), plan.blocks(&inputs, at));
                            assert!(got.data() == data && got.counts() == counts, "{context}: {got:?}");
                            self.seen.moved += 1;
                            continue;
                        }
                        Buffer::Gone => continue,
                    };
                    let want = reference(plan.kind, &inputs, plan.factors, at);
                    if self.one_host {
                        assert!(got.bytes() == want.bytes(), "{context}: {got:?} and not {want:?}");
                    } else {
                        assert!(got.is_close(&want), "{context}: {got:?} and not {want:?}");
                    }
                    self.seen.reduced += 1;
                    self.seen.apart += usize::from(plan.is_apart(self.seed, name, step, at));
                }
                (Err(Error::Mismatch(mismatch)), Some((odd, how))) => {
                    let ranks: Vec<u32> = mismatch.views.iter().map(|(rank, _)| *rank).collect();
                    assert_eq!(ranks, (0..self.ranks.len() as u32).collect::<Vec<_>>(), "{context}");
                    let (odd_view, other) = (&mismatch.views[odd].1, &mismatch.views[(odd + 1) % ranks.len()].1);
                    assert_ne!(odd_view, other, "{context}");
                    assert_eq!(matches!(how, Odd::Refused), odd_view.contains("on purpose"), "{context}: {odd_view}");
                    if let Buffer::Borrowed(data) = flying.buffer {
                        assert!(data.bytes() == plan.of(at).input(self.seed, name, step, at).bytes(), "{context}");
                    }
                    self.seen.mismatched += 1;
                }
                (Err(Error::Poisoned(_)), _) if self.reckless => {
                    self.seen.poisoned += 1;
                    self.ranks[at].over = true;
                }
                (outcome, _) => panic!("{context}: {outcome:?}; {}", self.describe()),
            }
        }
    }

    /// Nothing is in flight: then soon nobody has anything to do.
    fn settle(&mut self) {
        for turn in 0.. {
            self.time += Duration::from_millis(1);
            for rank in &self.ranks {
                rank.set.driver.set_time(self.time);
                rank.set.try_poll(self.time).expect("no other thread");
            }
            if self.ranks.iter().all(|rank| rank.set.driver.busy() == 0) {
                return;
            }
            assert!(turn < 5000, "somebody stays busy: {}", self.describe());
        }
    }

    fn describe(&self) -> String {
        let rank = |rank: &Rank| {
            let flying: Vec<usize> = (0..self.plans.len()).filter(|name| rank.flying[*name].is_some()).collect();
            format!("next {:?}, in flight {flying:?}, over {}, {:?}\n", rank.next, rank.over, rank.set)
        };
        self.ranks.iter().map(rank).collect()
    }
}
