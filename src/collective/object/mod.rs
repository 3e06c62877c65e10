//! Objects: values of any serde type, copied from one rank to all, or gathered from all.

#[cfg(all(test, not(kolo_loom)))]
mod tests;

use std::any::type_name;

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::wire::{Named, Wire, damaged, meet, unreadable};
use crate::communicator::Communicator;
use crate::config::Bytes;
#[cfg(doc)]
use crate::error::Error;
use crate::error::Result;
use crate::object::{Label, Parcel, encode};
use crate::process_set::ProcessSet;

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
        let terms = Terms::new(self.config().object_bytes);
        broadcast(self, terms, object, root)
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
        let terms = Terms::new(self.config().object_bytes);
        allgather(self, terms, object)
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
        broadcast(&mut Named { set: self, name }, self.terms(), object, root)
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
        allgather(&mut Named { set: self, name }, self.terms(), object)
    }

    fn terms(&self) -> Terms {
        Terms::new(self.session.ground.job.config.object_bytes)
    }
}

/// What holds for every object, the same on every rank.
#[derive(Clone, Copy)]
struct Terms {
    /// Bytes of the largest.
    most: Bytes,
    /// Bytes that move at a time.
    chunk: usize,
}

impl Terms {
    fn new(most: Bytes) -> Self {
        Self { most, chunk: CHUNK }
    }
}

fn broadcast<W, T>(wire: &mut W, terms: Terms, object: Option<T>, root: usize) -> Result<T>
where
    W: Wire,
    T: Serialize + DeserializeOwned,
{
    let (me, ranks) = (wire.me(), wire.ranks());
    let from = if root < ranks { wire.global(root) as usize } else { root };
    let call = format!("broadcast_object of {} from rank {from}", type_name::<T>());
    let packed = match object {
        _ if root >= ranks => {
            Err(format!("there is no rank {root} to broadcast from; the ranks are 0 to {}", ranks - 1))
        }
        _ if root != me => Ok(None),
        None => Err("the root passes no object; pass Some there".to_owned()),
        Some(object) => encode(&object, terms.most).map(|bytes| Some((bytes, object))),
    };
    let said = match &packed {
        Ok(None) => Ok(Vec::new()),
        Ok(Some((bytes, _))) => Ok(Label::new(bytes).encode()),
        Err(reason) => Err(reason.clone()),
    };
    let labels = meet(wire, call, Some(root), said)?;
    // A rank that has a reason not to go on did not come so far.
    if let Ok(Some((mut bytes, object))) = packed {
        for chunk in Label::rest_mut(&mut bytes).chunks_mut(terms.chunk) {
            wire.spread(chunk, root)?;
        }
        return Ok(object);
    }
    let label = labels.get(root).and_then(Option::as_deref).unwrap_or_default();
    let mut parcel = open(wire, terms, label, root)?;
    for chunk in parcel.rest_mut().chunks_mut(terms.chunk) {
        wire.spread(chunk, root)?;
    }
    parcel.unpack().map_err(|reason| damaged(wire, root, &reason))
}

fn allgather<W, T>(wire: &mut W, terms: Terms, object: &T) -> Result<Vec<T>>
where
    W: Wire,
    T: Serialize + DeserializeOwned,
{
    let call = format!("allgather_object of {}", type_name::<T>());
    let packed = encode(object, terms.most);
    let said = packed.as_ref().map(|bytes| Label::new(bytes).encode()).map_err(Clone::clone);
    let labels = meet(wire, call, None, said)?;
    let mut parcels = Vec::with_capacity(labels.len());
    for (rank, label) in labels.iter().enumerate() {
        // A rank that has joined brings none.
        parcels.push(label.as_deref().map(|label| open(wire, terms, label, rank)).transpose()?);
    }
    // A rank that could pack nothing did not come so far.
    let mine = packed.unwrap_or_default();
    let mut rest = Label::rest(&mine);
    while parcels.iter().flatten().any(|parcel| parcel.missing() > 0) {
        let (chunk, later) = rest.split_at(rest.len().min(terms.chunk));
        rest = later;
        let blocks = wire.gather(chunk)?;
        for (rank, (block, parcel)) in blocks.iter().zip(&mut parcels).enumerate() {
            if !parcel.as_mut().map_or(block.is_empty(), |parcel| parcel.add(block, terms.chunk)) {
                let reason =
                    format!("{} bytes came where others were due; every rank must run the same kolo", block.len());
                return Err(unreadable(wire, rank, &reason));
            }
        }
    }
    let objects = parcels.into_iter().enumerate().filter_map(|(rank, parcel)| Some((rank, parcel?)));
    objects.map(|(rank, parcel)| parcel.unpack().map_err(|reason| damaged(wire, rank, &reason))).collect()
}

/// A parcel for the object of `rank`, as its label says.
fn open<W: Wire>(wire: &mut W, terms: Terms, label: &[u8], rank: usize) -> Result<Parcel> {
    Parcel::open(label, terms.most).map_err(|reason| unreadable(wire, rank, &reason))
}
