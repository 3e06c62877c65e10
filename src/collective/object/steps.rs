//! The steps of operations on objects, which know them as bytes alone; and what has come of objects, before it is read.

use std::sync::{Arc, Mutex, PoisonError};

use serde::de::DeserializeOwned;

use super::super::wire::{Wire, damaged, meet, unreadable};
use crate::config::Bytes;
use crate::error::Result;
use crate::handle::Declined;
use crate::object::{Label, Parcel};
use crate::tensor::Lent;

/// What the steps that move bytes are called.
const BYTES: &str = "its bytes";

/// What holds for every object, the same on every rank.
#[derive(Clone, Copy)]
pub(super) struct Terms {
    /// Bytes of the largest.
    pub(super) most: Bytes,
    /// Bytes that move at a time.
    pub(super) chunk: usize,
}

/// Objects that have come whole, by their global ranks.
pub(super) type Parcels = Vec<(u32, Parcel)>;

/// Copies the bytes of rank `root` to all. `packed` has them there. Returns none there, for the root has its object.
pub(super) async fn broadcast<W: Wire>(
    wire: &mut W,
    terms: Terms,
    call: String,
    root: usize,
    packed: Result<Option<Vec<u8>>, String>,
) -> Result<Parcels> {
    let said = match &packed {
        Ok(bytes) => Ok(bytes.as_deref().map(|bytes| Label::new(bytes).encode()).unwrap_or_default()),
        Err(reason) => Err(reason.clone()),
    };
    let labels = meet(wire, call, Some(root), said).await?;
    // Who has joined does not know how long the object is.
    let all_know = labels.iter().all(Option::is_some);
    // A rank that has a reason not to go on did not come so far.
    if let Ok(Some(bytes)) = packed {
        let start = Label::rest_at(&bytes);
        spread(wire, terms, (&Lent::new(bytes), start), root, all_know).await?;
        return Ok(Vec::new());
    }
    let label = labels.get(root).and_then(Option::as_deref).unwrap_or_default();
    let mut parcel = open(wire, terms, label, root)?;
    let missing = parcel.missing();
    let room = Lent::new(parcel.lend());
    spread(wire, terms, (&room, room.len() - missing), root, all_know).await?;
    parcel.put_back(room.take());
    Ok(vec![(wire.global(root), parcel)])
}

/// Copies the root's bytes from `start` on, in chunks.
async fn spread<W: Wire>(
    wire: &mut W,
    terms: Terms,
    (bytes, start): (&Lent<u8>, usize),
    root: usize,
    all_know: bool,
) -> Result<()> {
    for at in (start..bytes.len()).step_by(terms.chunk) {
        let chunk = bytes.part(at..bytes.len().min(at + terms.chunk));
        wire.spread(BYTES, chunk, root, all_know).await?;
    }
    Ok(())
}

/// Gathers the bytes of every rank.
pub(super) async fn allgather<W: Wire>(
    wire: &mut W,
    terms: Terms,
    call: String,
    packed: Result<Vec<u8>, String>,
) -> Result<Parcels> {
    let said = packed.as_ref().map(|bytes| Label::new(bytes).encode()).map_err(Clone::clone);
    let labels = meet(wire, call, None, said).await?;
    let mut parcels = Vec::with_capacity(labels.len());
    for (rank, label) in labels.iter().enumerate() {
        // A rank that has joined brings none.
        parcels.push(label.as_deref().map(|label| open(wire, terms, label, rank)).transpose()?);
    }
    // A rank that could pack nothing did not come so far.
    let mine = packed.unwrap_or_default();
    let mut at = Label::rest_at(&mine);
    let mine = Lent::new(mine);
    while parcels.iter().flatten().any(|parcel| parcel.missing() > 0) {
        let end = mine.len().min(at + terms.chunk);
        let blocks = wire.gather::<u8>(Some(BYTES), mine.part(at..end)).await?;
        at = end;
        for (rank, (block, parcel)) in blocks.iter().zip(&mut parcels).enumerate() {
            if !parcel.as_mut().map_or(block.is_empty(), |parcel| parcel.add(block, terms.chunk)) {
                let reason =
                    format!("{} bytes came where others were due; every rank must run the same kolo", block.len());
                return Err(unreadable(wire, Declined::Unknown, rank, &reason));
            }
        }
    }
    Ok((0..).zip(parcels).filter_map(|(rank, parcel)| Some((wire.global(rank), parcel?))).collect())
}

/// A parcel for the object of `rank`, as its label says.
fn open<W: Wire>(wire: &mut W, terms: Terms, label: &[u8], rank: usize) -> Result<Parcel> {
    Parcel::open(label, terms.most).map_err(|reason| unreadable(wire, Declined::Step(BYTES), rank, &reason))
}

/// What the steps have brought, until somebody reads it.
pub(super) struct Brought {
    what: String,
    parcels: Mutex<Option<Parcels>>,
}

impl Brought {
    /// Nothing yet, of the operation `what`.
    pub(super) fn new(what: String) -> Arc<Self> {
        Arc::new(Self { what, parcels: Mutex::new(None) })
    }

    pub(super) fn put(&self, parcels: Parcels) {
        *self.parcels.lock().unwrap_or_else(PoisonError::into_inner) = Some(parcels);
    }

    /// The objects, once: this runs the user's `Deserialize`.
    pub(super) fn read<T: DeserializeOwned>(&self) -> Option<Result<Vec<T>>> {
        let parcels = self.parcels.lock().unwrap_or_else(PoisonError::into_inner).take()?;
        Some(read(&self.what, parcels))
    }
}

/// Reads the objects of the operation `what`.
pub(super) fn read<T: DeserializeOwned>(what: &str, parcels: Parcels) -> Result<Vec<T>> {
    let object = |(rank, parcel): (u32, Parcel)| parcel.unpack().map_err(|reason| damaged(what, rank, &reason));
    parcels.into_iter().map(object).collect()
}
