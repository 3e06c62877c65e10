//! Objects: broadcast from each rank, and gathered from all; of many forms and sizes, in every form of call.

use std::collections::BTreeMap;
use std::fmt;

use kolo::Result;
use serde::{Deserialize, Serialize};

use super::bench::{Bench, Team};
use super::sample::{SLOT, Spread, mix};
use super::value::Random;

const BROADCAST: &str = "broadcast_object";
const ALLGATHER: &str = "allgather_object";

/// Something of everything that serde knows.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
enum Object {
    Nothing,
    Flag(bool),
    Numbers { small: i8, signed: i64, wide: u128, reals: [f64; 3] },
    Text(String, Option<char>),
    Table(BTreeMap<String, Vec<u16>>),
    Bytes(Vec<u8>),
    Tree(Vec<Object>),
}

/// What an object is drawn from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Sort {
    Plain,
    Texts,
    Tables,
    Bytes,
    Trees,
}

impl Sort {
    const ALL: [Self; 5] = [Self::Plain, Self::Texts, Self::Tables, Self::Bytes, Self::Trees];

    /// An object of this sort, with about `size` parts.
    fn draw(self, random: &mut Random, size: usize) -> Object {
        match self {
            Self::Plain if size == 0 => Object::Nothing,
            Self::Plain if size == 1 => Object::Flag(random.below(2) == 1),
            Self::Plain => Object::Numbers {
                small: random.next() as i8,
                signed: random.next() as i64,
                wide: u128::from(random.next()) << random.below(64),
                reals: [0.1, f64::INFINITY, -0.0].map(|real| real * (1 + random.below(9)) as f64),
            },
            Self::Texts => {
                let letter = |random: &mut Random| ['a', 'ß', '→', '🎶'][random.below(4)];
                let text = (0..size).map(|_| letter(random)).collect();
                Object::Text(text, (size > 1).then(|| letter(random)))
            }
            Self::Tables => {
                let row = |random: &mut Random| (0..random.below(9)).map(|_| random.next() as u16).collect();
                Object::Table((0..size / 8).map(|at| (format!("row {at}"), row(random))).collect())
            }
            Self::Bytes => Object::Bytes((0..size).map(|_| random.next() as u8).collect()),
            Self::Trees => {
                let leaf = |random: &mut Random, at: usize| Self::ALL[at % 4].draw(random, at % 3);
                Object::Tree((0..size / 16).map(|at| leaf(random, at)).collect())
            }
        }
    }
}

impl fmt::Display for Sort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Plain => "plain values",
            Self::Texts => "texts",
            Self::Tables => "tables",
            Self::Bytes => "bytes",
            Self::Trees => "trees",
        })
    }
}

/// Parts of an object: it travels with its label, partly so, in several slots.
const SIZES: [usize; 5] = [0, 1, 300, 1100, 3 * SLOT + 5];

/// How an operation is called.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Form {
    Order,
    OrderAsync,
    Name,
    NameAsync,
}

impl Form {
    const ALL: [Self; 4] = [Self::Order, Self::OrderAsync, Self::Name, Self::NameAsync];
}

impl fmt::Display for Form {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Order => "by order",
            Self::OrderAsync => "by order, async",
            Self::Name => "by name",
            Self::NameAsync => "by name, async",
        })
    }
}

pub(crate) fn run(bench: &mut Bench<'_>, team: &mut Team) -> Result<()> {
    for sort in Sort::ALL {
        for size in SIZES {
            for root in 0..team.size() {
                Form::ALL.into_iter().try_for_each(|form| broadcast(bench, team, (sort, size), root, form))?;
            }
            for spread in Spread::ALL {
                Form::ALL.into_iter().try_for_each(|form| allgather(bench, team, (sort, size), spread, form))?;
            }
        }
    }
    two_at_a_time(bench, team)
}

/// The object of a rank, equal wherever it is drawn.
fn object(bench: &Bench<'_>, (sort, size): (Sort, usize), rank: usize) -> Object {
    sort.draw(&mut Random(mix(bench.task.seed, &[&sort, &size, &rank])), size)
}

fn broadcast(bench: &mut Bench<'_>, team: &mut Team, kind: (Sort, usize), root: usize, form: Form) -> Result<()> {
    let (sort, size) = kind;
    if !bench.begin(team, BROADCAST, &"none", format_args!("{sort} of {size} from {root}, {form}")) {
        return Ok(());
    }
    let want = object(bench, kind, root);
    let (mine, global) = ((team.me() == root).then(|| want.clone()), team.global(root));
    let got = match form {
        Form::Order => team.comm.broadcast_object(mine, root)?,
        Form::OrderAsync => team.comm.broadcast_object_async(mine, root)?.wait()?,
        // The same name for every root and size: both may change from call to call.
        Form::Name => team.named.broadcast_object("object", mine, global)?,
        Form::NameAsync => team.named.broadcast_object_async("object", mine, global)?.wait()?,
    };
    bench.holds(got == want, "another object than the root's");
    Ok(())
}

fn allgather(bench: &mut Bench<'_>, team: &mut Team, kind: (Sort, usize), spread: Spread, form: Form) -> Result<()> {
    let (sort, size) = kind;
    if !bench.begin(team, ALLGATHER, &"none", format_args!("{sort} of {size}, {spread}, {form}")) {
        return Ok(());
    }
    let sizes = spread.rows(team.size(), size, size);
    let want: Vec<Object> = (0..).zip(&sizes).map(|(rank, size)| object(bench, (sort, *size), rank)).collect();
    let mine = &want[team.me()];
    let got = match form {
        Form::Order => team.comm.allgather_object(mine)?,
        Form::OrderAsync => team.comm.allgather_object_async(mine)?.wait()?,
        Form::Name => team.named.allgather_object("objects", mine)?,
        Form::NameAsync => team.named.allgather_object_async("objects", mine)?.wait()?,
    };
    bench.holds(got == want, "other objects than the ranks had");
    Ok(())
}

/// Several in flight, waited for from the last to the first.
fn two_at_a_time(bench: &mut Bench<'_>, team: &mut Team) -> Result<()> {
    for sort in Sort::ALL {
        for size in SIZES {
            if !bench.begin(team, ALLGATHER, &"none", format_args!("{sort} of {size}, beside a broadcast, async")) {
                continue;
            }
            let want: Vec<Object> = (0..team.size()).map(|rank| object(bench, (sort, size), rank)).collect();
            let root = size % team.size();
            let (mine, own) = (&want[team.me()], (team.me() == root).then(|| want[root].clone()));
            let by_name = team.named.allgather_object_async("all of them", mine)?;
            let from_root = team.named.broadcast_object_async("one of them", own.clone(), team.global(root))?;
            let by_order = team.comm.allgather_object_async(mine)?;
            let in_order = team.comm.broadcast_object_async(own, root)?;
            bench.holds(in_order.wait()? == want[root] && from_root.wait()? == want[root], "another object");
            bench.holds(by_order.wait()? == want && by_name.wait()? == want, "other objects");
        }
    }
    Ok(())
}
