//! Objects over communicators and sets of ranks that are threads, with small chunks, and over a wire that damages them.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::thread::ThreadId;
use std::time::Duration;

use serde::de::{Deserializer, Error as _};
use serde::ser::{Error as _, Serializer};
use serde::{Deserialize, Serialize};

use super::super::wire::Wire;
use super::*;
use crate::config::Bytes;
use crate::error::Error;
use crate::handle::{Declined, Label, Waited};
use crate::runtime::{Builder, Kolo};
use crate::tensor::{Blocks, Element, Lent, Part, ReduceOp};

/// Small enough that a few kilobytes take many steps.
const SMALL: Terms = Terms { most: Bytes::kib(64), chunk: 700 };

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Report {
    rank: usize,
    table: BTreeMap<String, Vec<f32>>,
    note: Option<String>,
}

/// Of a size that depends on the rank: rank 0 has the smallest.
fn report(rank: usize, scale: usize) -> Report {
    let rows = (0..rank * scale).map(|row| (format!("row {row}"), vec![row as f32; row % 9]));
    Report { rank, table: rows.collect(), note: (rank % 2 == 1).then(|| "odd".to_owned()) }
}

/// Refuses to be written or to be read, as it is told.
#[derive(Debug)]
struct Stubborn {
    writes: bool,
}

impl Serialize for Stubborn {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if self.writes { serializer.serialize_u8(7) } else { Err(S::Error::custom("no")) }
    }
}

impl<'de> Deserialize<'de> for Stubborn {
    fn deserialize<D: Deserializer<'de>>(_: D) -> Result<Self, D::Error> {
        Err(D::Error::custom("no"))
    }
}

fn job() -> Builder {
    Builder::new().knob("KOLO_SLOT_BYTES", "4KiB").knob("KOLO_DEADLINE", "60s").knob("KOLO_OBJECT_BYTES", "64KiB")
}

/// Runs the program on every rank of jobs on one host and on several. A rank that fails leaves, and the others with it.
fn everywhere(sizes: impl IntoIterator<Item = usize>, program: impl Fn(&Kolo) -> Result<()> + Sync) {
    let one_host = sizes.into_iter().map(|ranks| (ranks, job()));
    for (ranks, job) in one_host.chain([(2, job().hosts([1, 1])), (4, job().hosts([3, 1]))]) {
        let outcomes = job.threads(ranks, |kolo| program(kolo)).expect("no rank panics");
        outcomes.into_iter().collect::<Result<Vec<()>>>().expect("no rank fails");
    }
}

/// A way to do operations on objects, which small chunks go.
trait Form {
    fn me(&self) -> usize;
    fn ranks(&self) -> usize;
    fn global(&self, rank: usize) -> u32;

    fn broadcast<T>(&mut self, object: Option<T>, root: usize) -> Result<T>
    where
        T: Serialize + DeserializeOwned + Send + 'static;

    fn allgather<T>(&mut self, object: &T) -> Result<Vec<T>>
    where
        T: Serialize + DeserializeOwned + 'static;
}

/// Every step when it is asked for.
struct AtOnce<'a, W>(&'a mut W);

/// By name, blocking.
struct Named<'a>(&'a ProcessSet, &'a str);

/// By name, and moved by whoever drives.
struct Later<'a>(&'a ProcessSet, &'a str);

/// By order, and moved by whoever drives.
struct InTurn<'a>(&'a mut Communicator);

impl<W: Wire> Form for AtOnce<'_, W> {
    fn me(&self) -> usize {
        self.0.me()
    }

    fn ranks(&self) -> usize {
        self.0.ranks()
    }

    fn global(&self, rank: usize) -> u32 {
        self.0.global(rank)
    }

    fn broadcast<T>(&mut self, object: Option<T>, root: usize) -> Result<T>
    where
        T: Serialize + DeserializeOwned + Send + 'static,
    {
        broadcast_at_once(self.0, SMALL, object, root)
    }

    fn allgather<T>(&mut self, object: &T) -> Result<Vec<T>>
    where
        T: Serialize + DeserializeOwned + 'static,
    {
        allgather_at_once(self.0, SMALL, object)
    }
}

macro_rules! of_set {
    ($form:ident, |$set:ident, $name:ident, $object:ident, $root:ident| $broadcast:expr, $allgather:expr) => {
        impl Form for $form<'_> {
            fn me(&self) -> usize {
                self.0.rank()
            }

            fn ranks(&self) -> usize {
                self.0.size()
            }

            fn global(&self, rank: usize) -> u32 {
                self.0.set.team().global(rank)
            }

            fn broadcast<T>(&mut self, $object: Option<T>, $root: usize) -> Result<T>
            where
                T: Serialize + DeserializeOwned + Send + 'static,
            {
                let Self($set, $name) = *self;
                $broadcast
            }

            fn allgather<T>(&mut self, $object: &T) -> Result<Vec<T>>
            where
                T: Serialize + DeserializeOwned + 'static,
            {
                let Self($set, $name) = *self;
                $allgather
            }
        }
    };
}

of_set!(
    Named,
    |set, name, object, root| broadcast_by_name(set, name, SMALL, object, root),
    allgather_by_name(set, name, SMALL, object)
);

of_set!(
    Later,
    |set, name, object, root| begin_broadcast(set, name, object, root)?.wait(),
    begin_allgather(set, name, object)?.wait()
);

fn begin_broadcast<T>(set: &ProcessSet, name: &str, object: Option<T>, root: usize) -> Result<Handle<T>>
where
    T: Serialize + DeserializeOwned + Send + 'static,
{
    let (course, brought, own) = broadcast_course(Deferred::named(set, name), SMALL, object, root);
    set.set.begin_course(name, course, Arc::new(One { own: Mutex::new(own), brought }))
}

fn begin_allgather<T>(set: &ProcessSet, name: &str, object: &T) -> Result<Handle<Vec<T>>>
where
    T: Serialize + DeserializeOwned + 'static,
{
    let (course, brought) = allgather_course(Deferred::named(set, name), SMALL, object);
    set.set.begin_course(name, course, All::new(brought))
}

impl Form for InTurn<'_> {
    fn me(&self) -> usize {
        self.0.rank()
    }

    fn ranks(&self) -> usize {
        self.0.size()
    }

    fn global(&self, rank: usize) -> u32 {
        self.0.team().global(rank)
    }

    fn broadcast<T>(&mut self, object: Option<T>, root: usize) -> Result<T>
    where
        T: Serialize + DeserializeOwned + Send + 'static,
    {
        let queue = self.0.queue()?;
        let wire = Deferred::ordered(self.0, queue.next_title("broadcast_object"));
        let (course, brought, own) = broadcast_course(wire, SMALL, object, root);
        queue.embark("broadcast_object", course, Arc::new(One { own: Mutex::new(own), brought }))?.wait()
    }

    fn allgather<T>(&mut self, object: &T) -> Result<Vec<T>>
    where
        T: Serialize + DeserializeOwned + 'static,
    {
        let queue = self.0.queue()?;
        let wire = Deferred::ordered(self.0, queue.next_title("allgather_object"));
        let (course, brought) = allgather_course(wire, SMALL, object);
        queue.embark("allgather_object", course, All::new(brought))?.wait()
    }
}

/// The program in every form.
fn in_every_form(kolo: &Kolo, mut program: impl Forms) -> Result<()> {
    let mut world = kolo.communicator()?;
    program.on(&mut AtOnce(&mut world))?;
    program.on(&mut InTurn(&mut world))?;
    program.on(&mut Named(kolo.world(), "object"))?;
    program.on(&mut Later(kolo.world(), "object"))?;
    program.on(&mut AtOnce(&mut world))
}

/// What is to be done in every form.
trait Forms {
    fn on<F: Form>(&mut self, form: &mut F) -> Result<()>;
}

struct Move;

impl Forms for Move {
    fn on<F: Form>(&mut self, form: &mut F) -> Result<()> {
        objects_move(form)
    }
}

fn objects_move<F: Form>(wire: &mut F) -> Result<()> {
    // Beside the label, in a chunk or two, in many.
    for scale in [0, 1, 30, 200] {
        let all: Vec<Report> = (0..wire.ranks()).map(|rank| report(rank, scale)).collect();
        assert_eq!(wire.allgather(&all[wire.me()])?, all);
        for (root, want) in all.iter().enumerate() {
            let mine = (wire.me() == root).then(|| want.clone());
            assert_eq!(&wire.broadcast(mine, root)?, want);
            // What the others pass does not matter.
            assert_eq!(&wire.broadcast(Some(all[wire.me()].clone()), root)?, want);
        }
    }
    assert_eq!(wire.allgather(&())?, vec![(); wire.ranks()]);
    Ok(())
}

#[test]
fn objects_reach_every_rank_whole_in_however_many_chunks() {
    everywhere(1..=4, |kolo| in_every_form(kolo, Move));
}

#[test]
fn a_set_has_its_own_objects() {
    everywhere([3], |kolo| {
        let ranks: Vec<usize> = (1..kolo.size()).rev().collect();
        let Some(set) = kolo.process_set(&ranks)? else { return kolo.barrier() };
        let all = set.allgather_object("who", &kolo.rank())?;
        assert_eq!(all, ranks);
        let last = kolo.size() - 1;
        let object = (kolo.rank() == last).then(|| report(last, 20));
        assert_eq!(set.broadcast_object("what", object, last)?, report(last, 20));
        // A root is a global rank, and must be in the set.
        match set.broadcast_object("what", Some(1_u8), 0) {
            Err(Error::Argument(text)) => assert!(text.contains("rank 0, which is not in the set"), "{text}"),
            other => panic!("{other:?}"),
        }
        kolo.barrier()
    });
}

#[test]
fn a_rank_that_has_joined_brings_no_object_and_is_no_root() {
    everywhere([3], |kolo| {
        let (ranks, me) = (kolo.size(), kolo.rank());
        if me == 1 {
            return kolo.join().map(drop);
        }
        // The others' operations wait until rank 1 has joined.
        let others: Vec<Report> = (0..ranks).filter(|rank| *rank != 1).map(|rank| report(rank, 40)).collect();
        assert_eq!(kolo.allgather_object("object", &report(me, 40))?, others);
        assert_eq!(kolo.broadcast_object("object", (me == 0).then_some(report(5, 40)), 0)?, report(5, 40));
        let Err(Error::Mismatch(mismatch)) = kolo.broadcast_object("object", None::<u8>, 1) else {
            panic!("the root has joined")
        };
        assert_eq!(mismatch.views[1], (1, "has joined".to_owned()));
        kolo.join().map(drop)
    });
}

/// The outcome where this rank's call is refused: an argument error here, and on the others a mismatch with the reason.
fn refused<R: std::fmt::Debug>(outcome: Result<R>, odd: u32, is_odd: bool, words: &str) {
    match outcome {
        Err(Error::Argument(text)) if is_odd => assert!(text.contains(words), "{text}"),
        Err(Error::Mismatch(mismatch)) if !is_odd => {
            let view = mismatch.views.iter().find(|(rank, _)| *rank == odd);
            assert!(view.is_some_and(|(_, view)| view.contains("refused there") && view.contains(words)), "{mismatch}");
        }
        other => panic!("rank {odd} is refused for '{words}', but: {other:?}"),
    }
}

struct Refuse;

impl Forms for Refuse {
    fn on<F: Form>(&mut self, form: &mut F) -> Result<()> {
        refusals(form)
    }
}

fn refusals<F: Form>(wire: &mut F) -> Result<()> {
    let (me, ranks) = (wire.me(), wire.ranks());
    for odd in 0..ranks {
        let (is_odd, who) = (me == odd, wire.global(odd));
        let large = vec![1_u8; if is_odd { SMALL.most.0 } else { 5000 }];
        refused(wire.allgather(&large), who, is_odd, "more than KOLO_OBJECT_BYTES (64KiB)");
        refused(wire.broadcast(Some(large), odd), who, is_odd, "has 65539 bytes");
        let stubborn = Stubborn { writes: !is_odd };
        refused(wire.allgather(&stubborn), who, is_odd, "Stubborn cannot be serialised");
        refused(wire.broadcast(Some(stubborn), odd), who, is_odd, "Stubborn cannot be serialised");
        refused(wire.broadcast(None::<u8>, odd), who, is_odd, "passes no object");
        // Everything goes on as if nothing had been.
        assert_eq!(wire.allgather(&me)?, (0..ranks).collect::<Vec<_>>());
    }
    Ok(())
}

#[test]
fn a_refused_object_is_an_error_on_every_rank_at_once() {
    everywhere(1..=3, |kolo| {
        in_every_form(kolo, Refuse)?;
        // A root that is no rank, on one of them.
        let (mut world, size) = (kolo.communicator()?, kolo.size());
        let root = if kolo.rank() == 0 { size } else { 0 };
        refused(world.broadcast_object(Some(1), root), 0, kolo.rank() == 0, "there is no rank");
        assert_eq!(world.allgather_object(&1)?, vec![1; size]);
        Ok(())
    });
}

struct Disagree;

impl Forms for Disagree {
    fn on<F: Form>(&mut self, form: &mut F) -> Result<()> {
        disagreements(form)
    }
}

fn disagreements<F: Form>(wire: &mut F) -> Result<()> {
    let (me, ranks) = (wire.me(), wire.ranks());
    for odd in 0..ranks {
        let outcomes = if me == odd {
            [
                wire.allgather(&1_u16).map(drop),
                wire.broadcast(Some(1_u8), (odd + 1) % ranks).map(drop),
                wire.allgather(&1_u8).map(drop),
            ]
        } else {
            [
                wire.allgather(&1_u8).map(drop),
                wire.broadcast(Some(1_u8), odd).map(drop),
                wire.broadcast(Some(1_u8), odd).map(drop),
            ]
        };
        let who = |rank: usize| wire.global(rank);
        let (this, next) = (who(odd), who((odd + 1) % ranks));
        let odd_views = [
            "allgather_object of u16".to_owned(),
            format!("broadcast_object of u8 from rank {next}"),
            "allgather_object of u8".to_owned(),
        ];
        let views = [
            "allgather_object of u8".to_owned(),
            format!("broadcast_object of u8 from rank {this}"),
            format!("broadcast_object of u8 from rank {this}"),
        ];
        for ((outcome, odd_view), view) in outcomes.into_iter().zip(odd_views).zip(views) {
            let Err(Error::Mismatch(mismatch)) = outcome else { panic!("{odd_view} and {view}: {outcome:?}") };
            let want = |rank| (who(rank), if rank == odd { odd_view.clone() } else { view.clone() });
            assert_eq!(mismatch.views, (0..ranks).map(want).collect::<Vec<_>>());
        }
    }
    assert_eq!(wire.allgather(&me)?, (0..ranks).collect::<Vec<_>>());
    Ok(())
}

#[test]
fn ranks_that_call_different_things_are_told_so() {
    everywhere(2..=3, |kolo| in_every_form(kolo, Disagree));
}

#[test]
fn an_object_that_cannot_be_read_names_its_rank() {
    everywhere(1..=3, |kolo| {
        let mut world = kolo.communicator()?;
        let Err(Error::Object { rank, reason, .. }) = world.allgather_object(&Stubborn { writes: true }) else {
            panic!("it refuses to be read")
        };
        assert_eq!(rank, 0);
        assert!(reason.contains("are no kolo::collective::object::tests::Stubborn"), "{reason}");
        // The root does not read its own.
        let root = kolo.size() - 1;
        match kolo.broadcast_object("stubborn", Some(Stubborn { writes: true }), root) {
            Ok(_) => assert_eq!(kolo.rank(), root),
            Err(Error::Object { what, rank, .. }) => assert_eq!((&*what, rank as usize), ("stubborn", root)),
            Err(other) => panic!("{other}"),
        }
        assert_eq!(world.allgather_object(&1)?, vec![1; kolo.size()]);
        Ok(())
    });
}

/// A wire of which one step damages what it brings to this rank.
struct Damaging<'a, W> {
    wire: &'a mut W,
    /// Steps before that.
    after: Option<usize>,
    /// Whose bytes a gather damages.
    of: usize,
}

impl<W: Wire> Damaging<'_, W> {
    /// Whether this step is the one.
    fn now(&mut self) -> bool {
        let now = self.after == Some(0);
        self.after = self.after.and_then(|after| after.checked_sub(1));
        now
    }
}

impl<W: Wire> Wire for Damaging<'_, W> {
    fn joins(&self) -> bool {
        self.wire.joins()
    }

    fn me(&self) -> usize {
        self.wire.me()
    }

    fn ranks(&self) -> usize {
        self.wire.ranks()
    }

    fn global(&self, rank: usize) -> u32 {
        self.wire.global(rank)
    }

    fn title(&self) -> String {
        self.wire.title()
    }

    async fn gather<T: Element>(&mut self, label: Option<Label>, mine: Part) -> Result<Blocks<T>> {
        let blocks = self.wire.gather(label, mine).await?;
        if !self.now() {
            return Ok(blocks);
        }
        let counts = blocks.counts().to_vec();
        let at = counts[..self.of].iter().sum::<usize>() + counts[self.of] / 2;
        let mut data = blocks.into_data();
        data[at] = T::zeroed();
        Ok(Blocks::new(data, counts))
    }

    async fn spread(&mut self, label: Label, data: Part, root: usize, all_know: bool) -> Result<()> {
        let elsewhere = Lent::new(vec![0_u8; data.count()]);
        // What comes goes elsewhere, and zeros stay.
        let data = if self.now() { elsewhere.all() } else { data };
        self.wire.spread(label, data, root, all_know).await
    }

    /// No object needs it.
    async fn combine(&mut self, label: Label, data: Part, op: ReduceOp, rows_of: Option<usize>) -> Result<()> {
        self.wire.combine(label, data, op, rows_of).await
    }

    fn decline(&mut self, next: Declined, error: Error) -> Error {
        self.wire.decline(next, error)
    }
}

/// No byte of its object is zero, so that zeroing one is damage.
fn full(len: usize) -> String {
    "x".repeat(len)
}

/// Each step of an allgather and of a broadcast brings damaged bytes to one rank: it names the rank they came from, and no
/// other rank waits for it until the deadline.
#[test]
fn damage_names_the_rank_it_came_from_and_nobody_waits() {
    everywhere(2..=3, |kolo| {
        let (ranks, me) = (kolo.size(), kolo.rank());
        for victim in 0..ranks {
            let culprit = (victim + 1) % ranks;
            for step in 0..4 {
                for broadcasts in [false, true] {
                    // Four steps: the labels, and three chunks.
                    let object = full(1000 + 3 * SMALL.chunk);
                    let mut world = kolo.communicator()?;
                    let after = (me == victim).then_some(step);
                    let mut wire = Damaging { wire: &mut world, after, of: culprit };
                    let outcome = if broadcasts {
                        broadcast_at_once(&mut wire, SMALL, Some(object.clone()), culprit)
                            .map(|got| assert_eq!(got, object))
                    } else {
                        let check = |got| assert_eq!(got, vec![object.clone(); ranks]);
                        allgather_at_once(&mut wire, SMALL, &object).map(check)
                    };
                    let what = format!("step {step} of rank {victim}, broadcast {broadcasts}, here {me}: {outcome:?}");
                    match outcome {
                        Err(Error::Object { rank, reason, .. }) if me == victim => {
                            assert_eq!(rank as usize, culprit, "{what}");
                            assert!(reason.contains("damaged on the way"), "{what}");
                        }
                        // Who has what it needs is done; who goes on hears of the one that does not.
                        Ok(()) if me != victim => {}
                        Err(Error::Mismatch(_) | Error::Poisoned(_)) if me != victim && step == 0 => {}
                        _ => panic!("{what}"),
                    }
                    // On one host the operation is over for everybody. Between hosts a rank that has to be told ends it all.
                    let several = kolo.local_size() < ranks && step == 0;
                    assert_eq!(world.barrier().is_err(), several, "after {what}");
                    kolo.barrier()?;
                }
            }
        }
        Ok(())
    });
}

#[test]
fn bytes_that_are_no_object_name_their_rank() {
    everywhere(2..=3, |kolo| {
        let foreign = |outcome: Result<Vec<usize>>| {
            let Err(Error::Object { rank, reason, .. }) = outcome else { panic!("not foreign: {outcome:?}") };
            assert_eq!(rank, 1);
            assert!(reason.contains("nothing of the kind"), "{reason}");
        };
        let mut world = kolo.communicator()?;
        let by_name = if kolo.rank() == 1 {
            world.allgatherv(b"something else")?;
            kolo.allgather("object", b"something else").map(drop)
        } else {
            foreign(world.allgather_object(&1_usize));
            kolo.allgather_object("object", &1_usize).map(drop)
        };
        // By name that is found before anything moves.
        let Err(Error::Mismatch(mismatch)) = by_name else { panic!("not found: {by_name:?}") };
        let views: Vec<&str> = mismatch.views.iter().map(|(_, view)| view.as_str()).collect();
        assert!(
            views[0] == "an operation on objects or sparse rows" && views[1].starts_with("allgather of u8"),
            "{mismatch}"
        );
        let all = kolo.allgather_object("object", &kolo.rank())?;
        assert_eq!(all, (0..kolo.size()).collect::<Vec<_>>());
        kolo.barrier()
    });
}

/// Written and read by threads that the user chose, and by no other: not by whoever moves it on.
#[derive(Debug)]
struct Homesick {
    /// Who may write, and read.
    home: ThreadId,
    filler: Vec<u8>,
}

thread_local! {
    /// The thread that may read here, as far as a `Deserialize` can know.
    static HOME: Cell<bool> = const { Cell::new(false) };
}

impl Serialize for Homesick {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        assert_eq!(std::thread::current().id(), self.home, "written elsewhere");
        self.filler.serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Homesick {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        assert!(HOME.get(), "read by another than who waits");
        Ok(Self { home: std::thread::current().id(), filler: Vec::deserialize(deserializer)? })
    }
}

/// All steps are taken while this rank does not wait for anything, and no code of the user's runs meanwhile.
#[test]
fn objects_move_while_nobody_waits_and_are_read_by_who_does() {
    everywhere(1..=3, |kolo| {
        let (ranks, me) = (kolo.size(), kolo.rank());
        let mut world = kolo.communicator()?;
        let home = std::thread::current().id();
        let object = |len: usize| Homesick { home, filler: vec![me as u8; len] };
        for len in [3, 5000] {
            let mut all =
                vec![kolo.allgather_object_async("all", &object(len))?, world.allgather_object_async(&object(len))?];
            let mut one = vec![begin_broadcast(kolo.world(), "one", (me == 0).then(|| object(len)), 0)?];
            one.push(world.broadcast_object_async((me == 0).then(|| object(len)), 0)?);
            all.push(begin_allgather(kolo.world(), "chunks", &object(len))?);
            while !(all.iter().all(Handle::poll) && one.iter().all(Handle::poll)) {
                std::thread::yield_now();
            }
            HOME.set(true);
            for handle in all {
                let came = handle.wait()?.into_iter().map(|object| object.filler);
                assert!(came.eq((0..ranks).map(|rank| vec![rank as u8; len])));
            }
            for handle in one {
                let Waited::Done(came) = handle.wait_timeout(Duration::ZERO)? else { panic!("it has ended") };
                assert_eq!(came.filler, vec![0; len]);
            }
            HOME.set(false);
            // Nobody reads what nobody asks for.
            drop((kolo.allgather_object_async("dropped", &object(len))?, world.allgather_object_async(&object(len))?));
            drop(begin_broadcast(kolo.world(), "chunks", (me == 0).then(|| object(len)), 0)?);
            std::mem::forget(kolo.allgather_object_async("leaked", &object(len))?);
            kolo.barrier()?;
        }
        world.barrier()
    });
}

/// Whoever gives an object up: before the ranks have met it is withdrawn, and the root has its own again.
#[test]
fn an_object_that_is_given_up_comes_back_to_its_root() {
    everywhere([2], |kolo| {
        if kolo.rank() == 0 {
            let handle = kolo.broadcast_object_async("object", Some(report(5, 9)), 0)?;
            assert!(matches!(kolo.allgather_object("object", &1), Err(Error::Argument(_))), "the name is taken");
            let Waited::Pending(handle) = handle.wait_timeout(Duration::from_millis(1))? else { panic!("alone") };
            assert_eq!(handle.cancel(), Some(report(5, 9)));
        }
        kolo.barrier()?;
        let mine = (kolo.rank() == 0).then(|| report(3, 9));
        let handle = kolo.broadcast_object_async("object", mine, 0)?;
        while !handle.poll() {
            std::thread::yield_now();
        }
        // Too late to give it up: it has come.
        assert_eq!(handle.cancel(), Some(report(3, 9)));
        let handle = kolo.broadcast_object_async("object", Some(Stubborn { writes: true }), 0)?;
        while !handle.poll() {
            std::thread::yield_now();
        }
        assert_eq!(handle.cancel().is_some(), kolo.rank() == 0, "what cannot be read is nobody's");
        kolo.barrier()
    });
}

/// Small objects travel with what the ranks meet with, and those of one size in steps that are cached.
#[test]
fn objects_of_a_name_are_cached() {
    everywhere(2..=3, |kolo| {
        let published = || kolo.world().set.published();
        kolo.allgather_object("object", &report(kolo.rank(), 50))?;
        kolo.broadcast_object("other", Some(report(7, 90)), 0)?;
        kolo.barrier()?;
        let first = published();
        for scale in [50, 3, 0, 70] {
            kolo.allgather_object("object", &report(kolo.rank(), scale))?;
            kolo.broadcast_object("other", Some(report(7, 90)), 0)?;
            kolo.broadcast_object("other", Some(report(1, scale)), 0)?;
        }
        kolo.barrier()?;
        assert!(first > 0 || kolo.size() == 1);
        assert_eq!(published(), first, "full requests after the first time");
        Ok(())
    });
}
