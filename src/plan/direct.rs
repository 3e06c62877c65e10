//! Direct schedules of the slot plane: members of one host read each other's slots, without going through a third.
//!
//! Source: the shared-memory reduce of Jain et al., "Framework for scalable intra-node collective operations using
//! shared memory", SC 2018, and the one-shot and two-shot allreduce of GPU libraries, on a host's slots.
//!
//! Work is cut into chunks that fit a slot. For each chunk a member: packs own input into its slot; says *packed*; waits
//! until every member has; reduces its part; says *reduced*; in two-shot waits until every member has; unpacks from the
//! others' slots; says *done*. Chunk c uses slot c mod slots, once every member has done chunk c - slots. With m bytes a
//! member (RS and AG: of a block), n members and w owners, a member moves, reads and writes counted:
//!
//! | operation | waits | bytes moved, own input packed | own input read privately |
//! |---|---|---|---|
//! | one-shot allreduce | 1 | 2m + nm + m | nm + m, and 2m for the pack, which the others need |
//! | two-shot allreduce (owner) | 2 | 2m + (n+2)m/w + 2m(w-1)/w | 2m less on m/w: for w = n, (5 - 2/n) m |
//! | broadcast | 1 | 2m | |
//! | allgather | 1 | 2m + 2nm | |
//! | reduce-scatter | 1 | 2nm + nm + m | 2m less |
//!
//! Every reduction takes the members in order, so the bits are those of a sum in rank order, on every member.

use super::span::Span;

/// What the members of a host do together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum HostOp {
    /// Allreduce in which every member reduces everything.
    OneShot,
    /// Allreduce in which the first `owners` members reduce a slice each and share it.
    TwoShot { owners: usize },
    /// `root`'s elements to everyone.
    Broadcast { root: usize },
    /// Everyone's block of `count` elements to everyone.
    Allgather,
    /// Block i of everyone's `members * count` elements, reduced, to member i.
    ReduceScatter,
}

/// What one member does for each chunk of one operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct HostPlan {
    op: HostOp,
    members: usize,
    me: usize,
    count: usize,
    /// Elements of `count` that one chunk covers.
    step: usize,
    align: usize,
    own: bool,
}

/// What a member does for one chunk. Spans of `slot` count from the start of a slot, all others from the start of the
/// operation's input or output.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ChunkSteps {
    /// Own input to own slot.
    pub(crate) pack: Vec<Pack>,
    /// After every member has packed.
    pub(crate) reduce: Option<ReducePart>,
    /// After the member unpacked from has done what `after` says.
    pub(crate) unpack: Vec<Unpack>,
    pub(crate) after: UnpackAfter,
}

/// Copy own input elements `data` to own slot from `slot` on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Pack {
    pub(crate) data: Span,
    pub(crate) slot: usize,
}

/// Reduce `slot` of every member's slot, in order of members.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ReducePart {
    pub(crate) slot: Span,
    /// Where own contribution lies.
    pub(crate) own: Own,
    /// Write the result to own output from here on.
    pub(crate) output: Option<usize>,
    /// Write the result to own slot too, over the same span: others unpack it.
    pub(crate) share: bool,
}

/// Where a member's own contribution to its reduction lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Own {
    /// In its slot, packed like everyone's.
    Slot,
    /// In its input from this element on; it was not packed, nobody else needs it.
    Input(usize),
}

/// Copy `slot` of member `from`'s slot to own output from `output` on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Unpack {
    pub(crate) from: usize,
    pub(crate) slot: Span,
    pub(crate) output: usize,
}

/// What the member unpacked from must have done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum UnpackAfter {
    #[default]
    Packed,
    Reduced,
}

impl Default for ChunkSteps {
    fn default() -> Self {
        Self { pack: Vec::new(), reduce: None, unpack: Vec::new(), after: UnpackAfter::Packed }
    }
}

impl ChunkSteps {
    fn clear(&mut self) {
        self.pack.clear();
        self.reduce = None;
        self.unpack.clear();
        self.after = UnpackAfter::Packed;
    }

    fn pack(&mut self, data: Span, slot: usize) {
        if !data.is_empty() {
            self.pack.push(Pack { data, slot });
        }
    }

    fn unpack(&mut self, from: usize, slot: Span, output: usize) {
        if !slot.is_empty() {
            self.unpack.push(Unpack { from, slot, output });
        }
    }
}

impl HostPlan {
    /// The plan of member `me` of `members`, for `count` elements (allgather and reduce-scatter: a block of `count`),
    /// where a slot holds `chunk` elements and slices start at multiples of `align` elements (64 bytes' worth).
    ///
    /// Every argument but `me` must be equal on all members.
    ///
    /// # Panics
    /// If `me`, the root or the owners are not among the members, or `chunk` is zero or, for reduce-scatter, less
    /// than one element for each member. The configuration rules that out.
    pub(crate) fn new(op: HostOp, members: usize, me: usize, count: usize, chunk: usize, align: usize) -> Self {
        assert!(me < members && chunk > 0 && align > 0, "member {me} of {members}, slots of {chunk}, align {align}");
        let mut step = chunk;
        match op {
            HostOp::TwoShot { owners } => assert!((1..=members).contains(&owners), "{owners} owners of {members}"),
            HostOp::Broadcast { root } => assert!(root < members, "root {root} of {members}"),
            HostOp::ReduceScatter => {
                assert!(chunk >= members, "a slot of {chunk} elements for {members} blocks");
                // A slot holds a sub-block for each member; keep them aligned if they are long enough.
                step = chunk / members;
                step -= if step >= align { step % align } else { 0 };
            }
            HostOp::OneShot | HostOp::Allgather => {}
        }
        Self { op, members, me, count, step, align, own: false }
    }

    /// The same plan, but what only the member itself reduces is read from its input instead of being packed.
    ///
    /// For an engine that packs without changing values (no prescale). Members may differ in this.
    #[must_use]
    pub(crate) fn read_own_input(self) -> Self {
        Self { own: true, ..self }
    }

    /// How many chunks there are: the same on every member.
    pub(crate) fn chunks(&self) -> usize {
        self.count.div_ceil(self.step)
    }

    /// The elements of `0..count` that a chunk covers.
    pub(crate) fn span(&self, chunk: usize) -> Span {
        Span::new(0, self.count).piece(chunk, self.step)
    }

    /// Owner `index`'s slice of a chunk of `len` elements, in the slot. Empty for whoever owns nothing.
    fn slice(&self, index: usize, len: usize) -> Span {
        match self.op {
            HostOp::TwoShot { owners } if index < owners => Span::new(0, len).part(index, owners, self.align),
            _ => Span::default(),
        }
    }

    /// The other members, each once, the next one first: so that not all read the same slot at once.
    fn others(&self) -> impl Iterator<Item = usize> + use<> {
        let (me, members) = (self.me, self.members);
        (1..members).map(move |far| (me + far) % members)
    }

    /// What this member does for `chunk`, written over `steps`.
    pub(crate) fn steps(&self, chunk: usize, steps: &mut ChunkSteps) {
        steps.clear();
        let data = self.span(chunk);
        if data.is_empty() {
            return;
        }
        let whole = Span::new(0, data.len);
        match self.op {
            HostOp::OneShot => {
                let alone = self.own && self.members == 1;
                if !alone {
                    steps.pack(data, 0);
                }
                // The slot is packed for the others; own input is closer, unless the pack just left the slot in cache.
                let own = if self.own { Own::Input(data.start) } else { Own::Slot };
                steps.reduce = Some(ReducePart { slot: whole, own, output: Some(data.start), share: false });
            }
            HostOp::TwoShot { .. } => self.two_shot(data, steps),
            HostOp::Broadcast { root } if root == self.me => {
                if self.members > 1 {
                    steps.pack(data, 0);
                }
            }
            HostOp::Broadcast { root } => steps.unpack(root, whole, data.start),
            HostOp::Allgather => {
                steps.pack(data, 0);
                steps.unpack(self.me, whole, self.me * self.count + data.start);
                for from in self.others() {
                    steps.unpack(from, whole, from * self.count + data.start);
                }
            }
            HostOp::ReduceScatter => {
                for block in 0..self.members {
                    if !(self.own && block == self.me) {
                        steps.pack(data.shifted(block * self.count), block * self.step);
                    }
                }
                let own = if self.own { Own::Input(self.me * self.count + data.start) } else { Own::Slot };
                let slot = Span::new(self.me * self.step, data.len);
                steps.reduce = Some(ReducePart { slot, own, output: Some(data.start), share: false });
            }
        }
    }

    fn two_shot(&self, data: Span, steps: &mut ChunkSteps) {
        steps.after = UnpackAfter::Reduced;
        let slice = self.slice(self.me, data.len);
        if self.own && !slice.is_empty() {
            steps.pack(Span::new(data.start, slice.start), 0);
            steps.pack(Span::new(data.start + slice.end(), data.len - slice.end()), slice.end());
        } else {
            steps.pack(data, 0);
        }
        if !slice.is_empty() {
            let at = data.start + slice.start;
            let own = if self.own { Own::Input(at) } else { Own::Slot };
            steps.reduce = Some(ReducePart { slot: slice, own, output: Some(at), share: self.members > 1 });
        }
        for from in self.others() {
            let slice = self.slice(from, data.len);
            steps.unpack(from, slice, data.start + slice.start);
        }
    }
}
