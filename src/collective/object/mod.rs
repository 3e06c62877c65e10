//! Objects: values of any serde type, copied from one rank to all, or gathered from all.

mod steps;
#[cfg(all(test, not(kolo_loom)))]
mod tests;

use std::any::type_name;
use std::marker::PhantomData;
use std::sync::{Arc, Mutex, PoisonError};

use serde::Serialize;
use serde::de::DeserializeOwned;

use steps::{Brought, Terms, read};

use super::wire::{Deferred, Wire, at_once};
use crate::communicator::Communicator;
use crate::error::{Error, Result};
use crate::handle::{Course, Handle};
use crate::object::encode;
use crate::process_set::ProcessSet;
use crate::tensor::GiveBack;

/// Bytes of an object that move at a time, of each rank: the ranks hold so much of them twice.
const CHUNK: usize = 16 << 20;

impl Communicator {
    /// Copies the object of rank `root` to every rank. The root passes it and gets it back; what the others pass is dropped.
    ///
    /// See [`ProcessSet::broadcast_object`] for what an object may be, and how it is checked.
    ///
    /// # Collective
    /// Every rank calls it at the same place in its order, with the same type and `root`.
    ///
    /// # Errors
    /// As [`ProcessSet::broadcast_object`]. The communicator stays usable after those that every rank gets.
    pub fn broadcast_object<T>(&mut self, object: Option<T>, root: usize) -> Result<T>
    where
        T: Serialize + DeserializeOwned,
    {
        let terms = self.terms();
        broadcast_at_once(self, terms, object, root)
    }

    /// Begins to copy the object of rank `root` to every rank; the handle gives it. The object is written before this returns, and
    /// read by [`Handle::wait`].
    ///
    /// # Collective
    /// As [`broadcast_object`](Self::broadcast_object). Ranks may differ in whether they wait.
    ///
    /// # Errors
    /// As [`allreduce_async`](Self::allreduce_async). All others come from the handle: those of
    /// [`broadcast_object`](Self::broadcast_object).
    pub fn broadcast_object_async<T>(&mut self, object: Option<T>, root: usize) -> Result<Handle<T>>
    where
        T: Serialize + DeserializeOwned + Send + 'static,
    {
        let (queue, terms) = (self.queue()?, self.terms());
        let wire = Deferred::ordered(self, queue.next_title("broadcast_object"));
        let (course, brought, own) = broadcast_course(wire, terms, object, root);
        queue.embark("broadcast_object", course, Arc::new(One { own: Mutex::new(own), brought }))
    }

    /// Gathers an object of every rank, in rank order, on every rank.
    ///
    /// See [`ProcessSet::broadcast_object`] for what an object may be, and how it is checked.
    ///
    /// ```
    /// # kolo::threads(2, |kolo| -> kolo::Result<()> {
    /// let mut world = kolo.communicator()?;
    /// let hosts = world.allgather_object(&format!("host of rank {}", world.rank()))?;
    /// assert_eq!(hosts, ["host of rank 0", "host of rank 1"]);
    /// # Ok(())
    /// # })?.into_iter().collect::<kolo::Result<Vec<()>>>()?;
    /// # Ok::<(), kolo::Error>(())
    /// ```
    ///
    /// # Collective
    /// Every rank calls it at the same place in its order, with the same type.
    ///
    /// # Errors
    /// As [`broadcast_object`](Self::broadcast_object).
    pub fn allgather_object<T>(&mut self, object: &T) -> Result<Vec<T>>
    where
        T: Serialize + DeserializeOwned,
    {
        let terms = self.terms();
        allgather_at_once(self, terms, object)
    }

    /// Begins to gather an object of every rank; the handle gives them in rank order. The object is written before this returns,
    /// and the others are read by [`Handle::wait`].
    ///
    /// # Collective
    /// As [`allgather_object`](Self::allgather_object). Ranks may differ in whether they wait.
    ///
    /// # Errors
    /// As [`broadcast_object_async`](Self::broadcast_object_async).
    pub fn allgather_object_async<T>(&mut self, object: &T) -> Result<Handle<Vec<T>>>
    where
        T: Serialize + DeserializeOwned + 'static,
    {
        let (queue, terms) = (self.queue()?, self.terms());
        let wire = Deferred::ordered(self, queue.next_title("allgather_object"));
        let (course, brought) = allgather_course(wire, terms, object);
        queue.embark("allgather_object", course, All::new(brought))
    }

    fn terms(&self) -> Terms {
        Terms { most: self.config().object_bytes, chunk: CHUNK }
    }
}

impl ProcessSet {
    /// Copies the object `name` of rank `root` to every rank of the set. The root passes it and gets it back; what the others
    /// pass is dropped.
    ///
    /// An object is a value of any type that serde can write and read without being told its form by the bytes (so neither
    /// `#[serde(flatten)]` nor untagged enums). It travels in the format postcard, with its length and a checksum, and may
    /// have up to `KOLO_OBJECT_BYTES`; beyond some megabytes it moves in chunks. Reading it runs nothing but its
    /// `Deserialize`.
    ///
    /// `root` is a global rank, also in a set that has its own numbers.
    ///
    /// ```
    /// #[derive(Debug, PartialEq, serde::Serialize, serde::Deserialize)]
    /// struct Config {
    ///     layers: Vec<usize>,
    ///     name: String,
    /// }
    ///
    /// # kolo::threads(2, |kolo| -> kolo::Result<()> {
    /// let read = (kolo.rank() == 0).then(|| Config { layers: vec![64, 10], name: "digits".to_owned() });
    /// let config = kolo.broadcast_object("config", read, 0)?;
    /// assert_eq!((config.layers.len(), &*config.name), (2, "digits"));
    /// # Ok(())
    /// # })?.into_iter().collect::<kolo::Result<Vec<()>>>()?;
    /// # Ok::<(), kolo::Error>(())
    /// ```
    ///
    /// # Collective
    /// Every rank of the set submits the name, with the same type and root; in any order among names, from any thread. It is
    /// several operations of that name, one after another: while it lasts, no other call may use the name.
    ///
    /// # Errors
    /// Before the object moves, on every rank, and all stay usable: if the root passes `None`, if its object is larger than
    /// `KOLO_OBJECT_BYTES`, or its `Serialize` fails, [`Error::Argument`] there and [`Error::Mismatch`] with the reason on the
    /// others; [`Error::Mismatch`] if types or roots differ.
    ///
    /// [`Error::Object`] on a rank where the bytes arrive damaged, or its `Deserialize` refuses them; it names the root.
    /// [`Error::Argument`] if `root` is not in the set; else as [`broadcast`](Self::broadcast).
    pub fn broadcast_object<T>(&self, name: &str, object: Option<T>, root: usize) -> Result<T>
    where
        T: Serialize + DeserializeOwned,
    {
        let root = self.set.root(name, "broadcast an object from", root)? as usize;
        broadcast_by_name(self, name, self.terms(), object, root)
    }

    /// Begins to copy the object `name` of rank `root` to every rank of the set; the handle gives it.
    ///
    /// The object is written before this returns, and read by [`Handle::wait`], on the thread that waits. It moves while nobody
    /// waits, in all its steps. A handle that is dropped, or cancelled, reads nothing; but the root gets its own object back from
    /// [`Handle::cancel`].
    ///
    /// ```
    /// # kolo::threads(2, |kolo| -> kolo::Result<()> {
    /// let words = (kolo.rank() == 0).then(|| vec!["left".to_owned(), "right".to_owned()]);
    /// let handle = kolo.broadcast_object_async("words", words, 0)?;
    /// assert_eq!(handle.wait()?, ["left", "right"]);
    /// # Ok(())
    /// # })?.into_iter().collect::<kolo::Result<Vec<()>>>()?;
    /// # Ok::<(), kolo::Error>(())
    /// ```
    ///
    /// # Collective
    /// As [`broadcast_object`](Self::broadcast_object). Ranks may differ in whether they wait. Once the ranks have met in the
    /// first step, a cancel poisons the set. Until the handle's operation has ended, no other call may use the name.
    ///
    /// # Errors
    /// As [`allreduce_async`](Self::allreduce_async), and [`Error::Argument`] if `root` is not in the set. All others come from
    /// the handle: those of [`broadcast_object`](Self::broadcast_object).
    pub fn broadcast_object_async<T>(&self, name: &str, object: Option<T>, root: usize) -> Result<Handle<T>>
    where
        T: Serialize + DeserializeOwned + Send + 'static,
    {
        let root = self.set.root(name, "broadcast an object from", root)? as usize;
        let (course, brought, own) = broadcast_course(Deferred::named(self, name), self.terms(), object, root);
        self.set.begin_course(name, course, Arc::new(One { own: Mutex::new(own), brought }))
    }

    /// Gathers the object `name` of every rank, in rank order, on every rank of the set.
    ///
    /// See [`broadcast_object`](Self::broadcast_object) for what an object may be, and how it is checked. A rank holds the
    /// objects of all ranks as bytes before it reads them.
    ///
    /// # Collective
    /// Every rank of the set submits the name, with the same type; in any order among names, from any thread. It is several
    /// operations of that name, one after another: while it lasts, no other call may use the name. A rank that has
    /// [joined](Self::join) brings no object: the list is shorter by it.
    ///
    /// # Errors
    /// Before any object moves, on every rank, and all stay usable: if an object is larger than `KOLO_OBJECT_BYTES`, or its
    /// `Serialize` fails, [`Error::Argument`] on its rank and [`Error::Mismatch`] with the reason on the others;
    /// [`Error::Mismatch`] if types differ.
    ///
    /// [`Error::Object`] on a rank where bytes arrive damaged, or its `Deserialize` refuses them; it names the rank that sent
    /// them. Else as [`allgather`](Self::allgather).
    pub fn allgather_object<T>(&self, name: &str, object: &T) -> Result<Vec<T>>
    where
        T: Serialize + DeserializeOwned,
    {
        allgather_by_name(self, name, self.terms(), object)
    }

    /// Begins to gather the object `name` of every rank; the handle gives them, in rank order.
    ///
    /// See [`broadcast_object_async`](Self::broadcast_object_async) for when objects are written and read.
    ///
    /// # Collective
    /// As [`allgather_object`](Self::allgather_object), and as
    /// [`broadcast_object_async`](Self::broadcast_object_async) where that is cancelled.
    ///
    /// # Errors
    /// As [`allreduce_async`](Self::allreduce_async). All others come from the handle: those of
    /// [`allgather_object`](Self::allgather_object).
    pub fn allgather_object_async<T>(&self, name: &str, object: &T) -> Result<Handle<Vec<T>>>
    where
        T: Serialize + DeserializeOwned + 'static,
    {
        let (course, brought) = allgather_course(Deferred::named(self, name), self.terms(), object);
        self.set.begin_course(name, course, All::new(brought))
    }

    fn terms(&self) -> Terms {
        Terms { most: self.session.ground.job.config.object_bytes, chunk: CHUNK }
    }
}

/// What a broadcast is called, the bytes of this rank's object if it is the root, or what is wrong; and the object itself.
type Packed<T> = (String, Result<Option<Vec<u8>>, String>, Option<T>);

/// Writes the root's object.
fn pack<W: Wire, T: Serialize>(wire: &W, terms: Terms, object: Option<T>, root: usize) -> Packed<T> {
    let (me, ranks) = (wire.me(), wire.ranks());
    let from = if root < ranks { wire.global(root) as usize } else { root };
    let call = format!("broadcast_object of {} from rank {from}", type_name::<T>());
    if root >= ranks {
        let reason = format!("there is no rank {root} to broadcast from; the ranks are 0 to {}", ranks - 1);
        return (call, Err(reason), None);
    }
    match object {
        _ if root != me => (call, Ok(None), None),
        None => (call, Err("the root passes no object; pass Some there".to_owned()), None),
        Some(object) => (call, encode(&object, terms.most).map(Some), Some(object)),
    }
}

/// A broadcast whose steps are done as they are asked for.
fn broadcast_at_once<W, T>(wire: &mut W, terms: Terms, object: Option<T>, root: usize) -> Result<T>
where
    W: Wire,
    T: Serialize + DeserializeOwned,
{
    let (call, packed, own) = pack(wire, terms, object, root);
    let parcels = at_once(steps::broadcast(wire, terms, call, root, packed))?;
    own.map_or_else(|| only(read(&wire.title(), parcels)), Ok)
}

/// A broadcast of a set, to its end.
fn broadcast_by_name<T>(set: &ProcessSet, name: &str, terms: Terms, object: Option<T>, root: usize) -> Result<T>
where
    T: Serialize + DeserializeOwned,
{
    let (course, brought, own) = broadcast_course(Deferred::named(set, name), terms, object, root);
    set.set.run_course(name, course)?;
    own.map_or_else(|| only(brought.read().unwrap_or_else(|| Ok(Vec::new()))), Ok)
}

/// A broadcast to come, where its object will be, and the object on the root.
fn broadcast_course<T>(
    mut wire: Deferred,
    terms: Terms,
    object: Option<T>,
    root: usize,
) -> (Box<Course>, Arc<Brought>, Option<T>)
where
    T: Serialize,
{
    let (call, packed, own) = pack(&wire, terms, object, root);
    let (desk, brought) = (Arc::clone(&wire.desk), Brought::new(wire.title()));
    let course = {
        let brought = Arc::clone(&brought);
        Course::new(desk, async move {
            brought.put(steps::broadcast(&mut wire, terms, call, root, packed).await?);
            Ok(())
        })
    };
    (course, brought, own)
}

fn allgather_call<T>() -> String {
    format!("allgather_object of {}", type_name::<T>())
}

/// An allgather whose steps are done as they are asked for.
fn allgather_at_once<W, T>(wire: &mut W, terms: Terms, object: &T) -> Result<Vec<T>>
where
    W: Wire,
    T: Serialize + DeserializeOwned,
{
    let parcels = at_once(steps::allgather(wire, terms, allgather_call::<T>(), encode(object, terms.most)))?;
    read(&wire.title(), parcels)
}

/// An allgather of a set, to its end.
fn allgather_by_name<T>(set: &ProcessSet, name: &str, terms: Terms, object: &T) -> Result<Vec<T>>
where
    T: Serialize + DeserializeOwned,
{
    let (course, brought) = allgather_course(Deferred::named(set, name), terms, object);
    set.set.run_course(name, course)?;
    brought.read().unwrap_or_else(|| Ok(Vec::new()))
}

/// An allgather to come, and where its objects will be.
fn allgather_course<T: Serialize>(mut wire: Deferred, terms: Terms, object: &T) -> (Box<Course>, Arc<Brought>) {
    let packed = encode(object, terms.most);
    let (desk, brought) = (Arc::clone(&wire.desk), Brought::new(wire.title()));
    let course = {
        let brought = Arc::clone(&brought);
        Course::new(desk, async move {
            brought.put(steps::allgather(&mut wire, terms, allgather_call::<T>(), packed).await?);
            Ok(())
        })
    };
    (course, brought)
}

/// The object of a broadcast, which brings one to all but the root.
fn only<T>(objects: Result<Vec<T>>) -> Result<T> {
    let lost = || Error::Poisoned("kolo lost an object; that is a bug, please report it".into());
    objects?.pop().ok_or_else(lost)
}

/// The result of a broadcast in flight.
struct One<T> {
    /// The root's own, which it does not read.
    own: Mutex<Option<T>>,
    brought: Arc<Brought>,
}

impl<T> One<T> {
    fn own(&self) -> Option<T> {
        self.own.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

impl<T: DeserializeOwned + Send> GiveBack<T> for One<T> {
    /// Of an operation that was cancelled when it had ended: what cannot be read is nobody's.
    fn take(&self) -> Option<T> {
        self.read().and_then(Result::ok)
    }

    fn read(&self) -> Option<Result<T>> {
        match self.own() {
            Some(object) => Some(Ok(object)),
            None => self.brought.read().map(only),
        }
    }

    fn cancelled(&self) -> Option<T> {
        self.own()
    }
}

/// The result of an allgather in flight.
struct All<T> {
    brought: Arc<Brought>,
    of: PhantomData<fn() -> T>,
}

impl<T> All<T> {
    fn new(brought: Arc<Brought>) -> Arc<Self> {
        Arc::new(Self { brought, of: PhantomData })
    }
}

impl<T: DeserializeOwned> GiveBack<Vec<T>> for All<T> {
    fn take(&self) -> Option<Vec<T>> {
        self.read().and_then(Result::ok)
    }

    fn read(&self) -> Option<Result<Vec<T>>> {
        self.brought.read()
    }

    fn cancelled(&self) -> Option<Vec<T>> {
        None
    }
}
