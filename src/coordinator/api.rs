//! What goes in and what comes out of a step.

use std::sync::Arc;
use std::time::Duration;

use super::request::{Request, Spec};
use crate::error::{Error, Failure};

#[cfg(test)]
/// The largest frame of a request ring in bytes.
pub(crate) const MAX_FRAME: usize = 1024;

/// The caller's name for one of its submissions. Never 0 twice in flight: the caller makes them unique.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Ticket(pub(crate) u64);

/// Numbers that must be equal on every rank of the set, but for the two marked *local*.
#[derive(Clone, Debug)]
pub(crate) struct Params {
    /// Cached slots, 1 to 65,536. A member has `capacity.div_ceil(64)` words.
    pub(crate) capacity: usize,
    /// The largest log entry in bytes, at least [`Params::MIN_ENTRY`].
    pub(crate) max_entry: usize,
    /// The largest message between leaders in bytes, at least `max_entry + 64`.
    pub(crate) max_message: usize,
    /// The most bytes of one batch. One tensor may be larger; it then runs alone.
    pub(crate) fusion_bytes: u64,
    /// The longest that ready names wait for others to join them. *Local.*
    pub(crate) window: Duration,
    /// A slot may be evicted once this many names ran after its last run.
    pub(crate) evict_after: u64,
    /// A warning after a name was pending this long.
    pub(crate) stall_warn: Duration,
    /// An error after a name was pending this long, unless its submission says otherwise.
    pub(crate) stall_deadline: Duration,
    /// How long after its deadline a rank waits for the decider before it gives up by itself. *Local.*
    pub(crate) grace: Duration,
}

impl Params {
    /// Room for one name with the views of a few ranks.
    pub(crate) const MIN_ENTRY: usize = 4096;
}

impl Default for Params {
    fn default() -> Self {
        Self {
            capacity: 4096,
            max_entry: 16 << 10,
            max_message: (16 << 10) + 64,
            fusion_bytes: 256 << 20,
            window: Duration::from_micros(200),
            evict_after: 4 * 4096,
            stall_warn: Duration::from_secs(60),
            stall_deadline: Duration::from_secs(300),
            grace: Duration::from_secs(5),
        }
    }
}

/// Who is where.
#[derive(Clone, Debug)]
pub(crate) struct Topology {
    /// The set ranks of each host, in the order of its members. Member 0 is the host's leader, host 0's the first leader.
    pub(crate) hosts: Vec<Vec<u32>>,
    /// The global rank of each set rank, for messages.
    pub(crate) global: Vec<u32>,
    /// This rank's set rank.
    pub(crate) me: u32,
}

impl Topology {
    /// `size` ranks on one host, set rank = global rank.
    #[cfg(test)]
    pub(crate) fn one_host(size: u32, me: u32) -> Self {
        Self { hosts: vec![(0..size).collect()], global: (0..size).collect(), me }
    }
}

/// What happened. Bytes are borrowed: nothing is kept beyond the step.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Event<'a> {
    /// A local thread submits a tensor.
    Submit {
        /// Comes back in `Run` or `Fail`, exactly once.
        ticket: Ticket,
        /// The operation.
        request: &'a Request,
        /// Someone already blocks on it.
        urgent: bool,
        /// How long it may stay pending; the default is `stall_deadline`.
        deadline: Option<Duration>,
    },
    /// A call was refused on this rank before it had a request. The peers that submit the name are told.
    SubmitFailed {
        /// The tensor's name.
        name: &'a str,
        /// Why, in words.
        reason: &'a str,
    },
    /// This rank has no more data: the others go on without its submissions until all have joined.
    Join {
        /// Comes back in `Joined` or `Fail`, exactly once.
        ticket: Ticket,
        /// How long nothing may move before this rank gives up; the default is `stall_deadline`.
        deadline: Option<Duration>,
    },
    /// Someone begins to wait for the ticket. Unknown tickets (already run or failed) are fine.
    Urgent {
        /// Of a submission.
        ticket: Ticket,
    },
    /// The submission is cancelled. Unknown tickets were run or failed already: then the caller decides.
    Withdraw {
        /// Of a submission.
        ticket: Ticket,
    },
    /// The next frame of a local member's ring.
    PeerRequest {
        /// Host-local index of the writer.
        member: usize,
        /// One frame.
        bytes: &'a [u8],
    },
    /// A ready word of a local member, as just read.
    PeerBits {
        /// Host-local index of the writer.
        member: usize,
        /// Which word.
        word: usize,
        /// Its value.
        bits: u64,
    },
    /// The next entry of this host's log.
    Entry {
        /// Its index; entries come without gaps.
        index: u64,
        /// The entry.
        bytes: &'a [u8],
    },
    /// The last `Propose` was not installed for lack of a buffer: it is made again at a later tick.
    ProposeFailed {
        /// The index that was proposed.
        index: u64,
    },
    /// The next message from the leader of another host.
    HostMessage {
        /// Its host.
        host: usize,
        /// One message.
        bytes: &'a [u8],
    },
    /// `kolo.pause`: until then nothing counts as late.
    Pause {
        /// A time of the clock that `now` is read from.
        until: Duration,
    },
    /// The job failed.
    Failed(&'a Failure),
    /// Another rank or the engine poisoned the set.
    Poisoned(&'a Error),
    /// A round of reading is complete: log, then rings, then words (README, section 3).
    Tick,
}

/// One tensor of a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct BatchItem {
    /// Whose turn it is.
    pub(crate) ticket: Ticket,
    /// Elements of the tensor: equal on every rank.
    pub(crate) elements: u64,
}

/// Tensors to run as one operation, equal on every rank in everything but the tickets and who sits them out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Batch {
    /// The log entry it stands in.
    pub(crate) index: u64,
    /// What the tensors have in common.
    pub(crate) spec: Spec,
    /// The tensors in agreed order. None if this rank has joined.
    pub(crate) items: Vec<BatchItem>,
    /// The same if it has: what it contributes the identity to. Else none.
    pub(crate) sat_out: Vec<Arc<Request>>,
    /// How many ranks have not joined.
    pub(crate) contributors: u32,
    /// Bytes of all.
    pub(crate) bytes: u64,
}

/// What the glue has to do, in this order.
#[derive(Clone, Debug)]
pub(crate) enum Action {
    /// Append the frame to the own ring. Frames keep their order; one may wait for room while later actions of other kinds proceed.
    PublishRequest(Vec<u8>),
    /// Store the own ready word (release), before any later action.
    SetBits {
        /// Which word.
        word: usize,
        /// Its new value.
        bits: u64,
    },
    /// Install the entry at the index of this host's log unless there is one. At most one is outstanding; its end is an
    /// `Entry` with that index (ours or another's) or `ProposeFailed`.
    Propose {
        /// Where.
        index: u64,
        /// What. Give the vector back with [`super::Coordinator::recycle_bytes`].
        bytes: Vec<u8>,
    },
    /// Entries up to this index are processed (store release, after earlier actions).
    Executed(u64),
    /// Run the batch. Batches come in the same order on every rank.
    Run(Batch),
    /// All ranks have joined, and go on as before once they have run the batches before this entry.
    Joined {
        /// Of the join.
        ticket: Ticket,
        /// The entry.
        index: u64,
        /// The global rank that joined last.
        last: u32,
    },
    /// The submission failed.
    Fail {
        /// Which.
        ticket: Ticket,
        /// Why.
        error: Error,
    },
    /// The set is over: tell the other ranks. The pending tickets fail in actions of their own.
    Poison(Error),
    /// Names wait for ranks for too long. Said at every look while that is so.
    Warn {
        /// The names, and who submitted them.
        text: String,
        /// The global ranks that are missing or unknown.
        ranks: Vec<u32>,
        /// Whether this text was not said before: then tell the user; else only if the ranks are known to do worse.
        news: bool,
    },
    /// Something waits. Have the leaders of all hosts drive this set for a while, though nothing of theirs is in flight.
    Summon,
    /// Send to the leader of that host, in order.
    SendHost {
        /// Which host.
        host: usize,
        /// The message. Give the vector back with [`super::Coordinator::recycle_bytes`].
        bytes: Vec<u8>,
    },
    /// Say `Tick` not later than this. Replaces an earlier one; a tick too many does no harm.
    WakeAt(Duration),
}
