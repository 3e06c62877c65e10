//! A set's place in its host's shared memory, and the order of its operations there.

use std::sync::Arc;
use std::time::Instant;

use super::adasum::AdasumRun;
use super::farewell::{GOODBYE, LastWords};
use super::host::HostRun;
use super::inline::InlineRun;
use super::inquiry::{Inquiry, disagreement};
use super::operation::{Operation, describe, fields, fingerprint};
use super::rounds::RoundRun;
use super::routes::Routes;
use super::stores::Choice;
use super::{Port, Step, Team};
use crate::device::host::can_stream;
use crate::error::{Error, Mismatch, Result};
use crate::event::{Begun, Mark, Stage, Verb};
use crate::plan::{Algorithm, Table, TwoLevel};
use crate::tensor::{DType, ReduceOp};
use crate::transport::Link;
use crate::transport::shm::{Arena, Fingerprint};

/// The first operation of all. Given up, it ends every wait.
const FIRST: u64 = 1;

/// The operations of one set, run one after another in the order in which they are begun.
///
/// Every rank of the set begins the same operations in the same order; [`Fingerprint`]s prove it before data moves.
pub(crate) struct Channel {
    pub(super) port: Arc<Port>,
    pub(super) team: Arc<Team>,
    pub(super) arena: Arena,
    /// Ordered messages to every other rank of the set, for schedules that do not run in slots.
    pub(super) link: Routes,
    pub(super) table: Table,
    pub(super) two_level: TwoLevel,
    /// Bytes of a chunk: a slot, or less of it where a test wants many chunks.
    pub(super) chunk_bytes: usize,
    sequence: u32,
    /// Operations that have begun.
    begun: u64,
    /// Chunks that went through the slots since the arena began: the same on every member.
    pub(super) chunks: u64,
    /// How this member writes its slots.
    pub(super) stores: Choice,
    current: Option<Run>,
    poisoned: Option<Error>,
    /// The set's number, in what is reported.
    set: u32,
    /// The operation in flight, where the channel reports it.
    mark: Mark,
    /// Set ranks on other hosts that have yet to be told that this rank gave up, and whether goodbye is said.
    farewells: Vec<(usize, bool)>,
    /// What they are told then.
    last_words: Vec<u8>,
    /// Finds out why operations between hosts stand still, where no log has agreed on them.
    inquiry: Option<Inquiry>,
}

/// An operation in flight.
#[derive(Debug)]
pub(super) enum Run {
    Inline(InlineRun),
    Host(Box<HostRun>),
    Rounds(Box<RoundRun>),
    Adasum(Box<AdasumRun>),
    /// The result is there, and the last messages are on their way out: a network may need this rank for them, and who
    /// knows when it comes back.
    Flush,
}

impl Run {
    #[inline]
    pub(super) fn poll(&mut self, channel: &mut Channel) -> Result<Step> {
        match self {
            Self::Inline(run) => run.poll(channel),
            Self::Host(run) => run.poll(channel),
            Self::Rounds(run) => run.poll(channel),
            Self::Adasum(run) => run.poll(channel),
            Self::Flush => channel.link.progress().map(|()| Step::Ready(())),
        }
    }

    /// Whether messages of other ranks may be what it waits for.
    pub(super) fn exchanges(&self) -> bool {
        match self {
            Self::Inline(_) => false,
            Self::Host(run) => run.exchanges(),
            Self::Rounds(run) => run.exchanges(),
            Self::Adasum(run) => run.exchanges(),
            Self::Flush => true,
        }
    }

    /// The global ranks that hold it up.
    pub(super) fn missing(&self, channel: &Channel) -> Vec<u32> {
        match self {
            Self::Inline(run) => channel.unannounced(run.print()),
            Self::Host(run) => run.missing(channel),
            Self::Rounds(run) => run.missing(channel),
            Self::Adasum(run) => run.missing(channel),
            Self::Flush => Vec::new(),
        }
    }
}

impl std::fmt::Debug for Channel {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Channel")
            .field("team", &self.team)
            .field("sequence", &self.sequence)
            .field("current", &self.current)
            .finish_non_exhaustive()
    }
}

impl Channel {
    pub(crate) fn new(port: Arc<Port>, team: Arc<Team>, arena: Arena, link: Routes, table: Table) -> Self {
        let two_level = TwoLevel::new(team.hosts().to_vec(), team.rank());
        let (chunk_bytes, crowded) = (arena.slot_bytes(), port.crowded);
        Self {
            port,
            team,
            arena,
            link,
            table,
            two_level,
            chunk_bytes,
            sequence: 0,
            begun: 0,
            chunks: 0,
            stores: Choice::new(can_stream() && !crowded),
            current: None,
            poisoned: None,
            set: 0,
            mark: Mark::NONE,
            farewells: Vec::new(),
            last_words: Vec::new(),
            inquiry: None,
        }
    }

    /// Reports what it does as set `id`.
    pub(crate) fn of_set(self, id: u32) -> Self {
        Self { set: id, ..self }
    }

    /// The set's number, in what is reported.
    pub(crate) fn set(&self) -> u32 {
        self.set
    }

    /// Reports an operation that begins; `peer` is a rank of the set.
    #[inline]
    pub(crate) fn report(
        &self,
        verb: Verb,
        (dtype, op): (DType, Option<ReduceOp>),
        peer: Option<usize>,
        bytes: u64,
        place: u64,
    ) -> Mark {
        self.port.sink.begun(&Begun {
            set: self.set,
            name: "",
            verb,
            dtype: dtype as u8,
            op: op.map_or(0, |op| op as u8),
            peer: peer.and_then(|rank| self.team.globals().get(rank)).copied(),
            bytes,
            place: Some(place),
            at: None,
        })
    }

    /// Reports the end of the operation in flight.
    #[inline]
    fn ended(&mut self, stage: Stage) {
        self.port.sink.reached(std::mem::take(&mut self.mark), stage, None);
    }

    /// Makes operations that stand still compare what the ranks call.
    pub(super) fn inquire_by(&mut self, inquiry: Inquiry) {
        self.inquiry = Some(inquiry);
    }

    /// Looks at what other hosts said with every operation.
    #[cfg(test)]
    pub(super) fn look_always(&mut self) {
        self.inquiry.iter_mut().for_each(|inquiry| inquiry.look_every = std::time::Duration::ZERO);
    }

    pub(crate) fn port(&self) -> &Arc<Port> {
        &self.port
    }

    pub(crate) fn team(&self) -> &Arc<Team> {
        &self.team
    }

    pub(crate) fn arena(&self) -> &Arena {
        &self.arena
    }

    /// Overrides the choice of algorithm. Every rank of the set must do so at the same place in its order.
    pub(crate) fn set_algorithm(&mut self, algorithm: Algorithm) -> Result<()> {
        self.table = self.table.with(algorithm)?;
        Ok(())
    }

    /// Whether an operation is in flight.
    #[cfg(test)]
    pub(crate) fn is_busy(&self) -> bool {
        self.current.is_some()
    }

    /// Whether messages of finished operations still wait to be handed to the network.
    pub(crate) fn is_flushed(&self) -> bool {
        self.link.idle()
    }

    /// Whether a message of another host may be what the operation in flight waits for.
    pub(crate) fn expects_messages(&self) -> bool {
        let exchanges = self.current.as_ref().is_some_and(Run::exchanges);
        !self.team.is_local() && (exchanges || !self.link.idle())
    }

    /// Begins an operation; nothing may be in flight. Its buffers are touched until it is ready, fails, or is cancelled.
    pub(crate) fn begin(&mut self, operation: Operation) -> Result<()> {
        debug_assert!(self.current.is_none(), "operations of a channel run one at a time");
        if let Some(error) = self.poisoned.clone() {
            self.take_leave();
            return Err(error);
        }
        let print = self.next_print(&operation);
        if let Some((verb, root)) = operation.reported() {
            let bytes = operation.pieces.iter().map(|piece| piece.input.len() as u64).sum();
            self.mark = self.report(verb, (operation.dtype, operation.reduce_op()), root, bytes, self.begun);
        }
        self.current = Some(self.plan(operation, print));
        match &mut self.inquiry {
            None => Ok(()),
            Some(inquiry) => inquiry.begin(print).map_err(|error| self.fail(error)),
        }
    }

    /// The operation in flight has not moved for so long that it is worth asking why. Asked again as long as it does not.
    ///
    /// # Errors
    /// The ranks call different things: the channel ends here and on the peers.
    pub(crate) fn stalled(&mut self, now: Instant) -> Result<()> {
        let (Some(inquiry), Some(_)) = (&mut self.inquiry, &self.current) else { return Ok(()) };
        if inquiry.stalled(now).map_err(|error| self.fail(error))? {
            self.port.ring();
        }
        Ok(())
    }

    /// The print of the next operation in order: of one that begins, or of a later stage of one that needs several.
    pub(super) fn next_print(&mut self, operation: &Operation) -> Fingerprint {
        self.sequence = self.sequence.wrapping_add(1);
        self.begun += 1;
        fingerprint(self.sequence, operation)
    }

    /// Advances the operation in flight by at most a chunk of work.
    ///
    /// A mismatch on the only host ends this operation only; any other error ends the channel here and on the peers,
    /// because they may have moved on.
    #[inline]
    pub(crate) fn poll(&mut self) -> Result<Step> {
        let step = self.poll_run();
        match &step {
            Ok(Step::Progress | Step::Pending) => {}
            Ok(Step::Ready(())) => self.ended(Stage::Done),
            Err(_) => self.ended(Stage::Failed),
        }
        step
    }

    fn poll_run(&mut self) -> Result<Step> {
        self.progress()?;
        let Some(mut run) = self.current.take() else {
            return self.poisoned.clone().map_or(Ok(Step::Ready(())), Err);
        };
        match run.poll(self) {
            Ok(Step::Ready(())) if self.link.idle() => Ok(Step::Ready(())),
            Ok(Step::Ready(())) => {
                let step = if matches!(run, Run::Flush) { Step::Pending } else { Step::Progress };
                self.current = Some(Run::Flush);
                self.heed(step)
            }
            Ok(step) => {
                self.current = Some(run);
                self.heed(step)
            }
            Err(Error::Mismatch(mismatch)) if self.team.is_local() => Err(Error::Mismatch(mismatch)),
            Err(Error::Mismatch(mismatch)) => {
                // The other hosts cannot know in time that this operation does not happen.
                let error = disagreement(&mismatch.name, &mismatch.views);
                self.current = Some(run);
                Err(self.fail(error))
            }
            Err(error) => {
                self.current = Some(run);
                Err(self.fail(error))
            }
        }
    }

    /// Moves on what was handed to the network: a large message arrives only while its sender asks for it, whatever the
    /// operation itself waits for meanwhile, and also after its end.
    pub(crate) fn progress(&mut self) -> Result<()> {
        if self.link.idle() {
            return Ok(());
        }
        self.link.progress().map_err(|error| self.fail(error))
    }

    /// Ends a wait for a member that has given up this operation or an earlier one. Who gave up a later one has done its
    /// part of this.
    fn heed(&mut self, step: Step) -> Result<Step> {
        match self.arena.poisoned(self.begun) {
            Some(rank) if step == Step::Pending => {
                let words = self.overhear(rank);
                Err(self.give_up_after(words.error(), words))
            }
            _ => Ok(step),
        }
    }

    /// What the members of this host that have given up say; `rank` is one because of which they did.
    #[cold]
    fn overhear(&self, rank: u32) -> LastWords {
        let earlier = self.arena.first_poisoned() == Some(FIRST);
        let said = |member| {
            Some(LastWords { rank: self.arena.poisoned_member(member)?, reason: self.arena.reason(member)?, earlier })
        };
        (0..self.team.members().len()).find_map(said).unwrap_or(LastWords { rank, reason: String::new(), earlier })
    }

    /// What ends a wait for `rank` of the set if that rank has given up, as far as this host knows.
    pub(crate) fn abandoned(&self, rank: usize) -> Option<Error> {
        let member = self.team.members().iter().position(|&member| member == rank)?;
        let rank = self.arena.poisoned_member(member)?;
        Some(LastWords { rank, reason: self.arena.reason(member).unwrap_or_default(), earlier: false }.error())
    }

    /// Gives up the operation in flight, if there is one, because of `cause`: its buffers are not touched again. The
    /// channel is unusable from here on: later operations here fail with `why`, the peers' with an error that names this
    /// rank and the cause.
    pub(crate) fn cancel(&mut self, why: &str, cause: &Error) {
        if self.current.is_some() {
            let words = self.words(cause, false);
            self.give_up_after(Error::Poisoned(why.into()), words);
        }
    }

    /// Ends the channel with `error`, here and on the peers. Returns the error that ended it first.
    pub(crate) fn give_up(&mut self, error: Error) -> Error {
        let words = self.words(&error, false);
        self.give_up_after(error, words)
    }

    /// The same, where what the ranks do no longer fits together: earlier operations that others wait in end, too.
    fn fail(&mut self, error: Error) -> Error {
        let words = self.words(&error, true);
        self.give_up_after(error, words)
    }

    /// What the peers are told when `error` makes this rank give up.
    fn words(&mut self, error: &Error, earlier: bool) -> LastWords {
        let own = || LastWords { rank: self.team.global(self.team.rank()), reason: error.to_string(), earlier };
        let heard = self.link.take_heard().or_else(|| self.inquiry.as_mut()?.take_heard());
        heard.unwrap_or_else(own)
    }

    /// The same, because of what `words` say.
    fn give_up_after(&mut self, error: Error, words: LastWords) -> Error {
        if self.poisoned.is_none() && self.port.check().is_err() {
            // Every rank hears of it as the job's failure. That this one gave up would only hide it.
            self.poison(error.clone());
        } else if self.poisoned.is_none() {
            let undone = if words.earlier { FIRST } else { self.undone() };
            self.poison(error.clone());
            self.arena.leave_reason(&words.reason);
            self.arena.poison(undone, words.rank);
            self.port.ring();
            if let Some(inquiry) = &mut self.inquiry {
                inquiry.say_goodbye(&words);
            }
            self.last_words = words.encode(self.link.piece());
            let far = (0..self.team.size()).filter(|peer| !self.team.members().contains(peer));
            self.farewells = far.map(|peer| (peer, false)).collect();
            self.take_leave();
        }
        error
    }

    /// How many operations have begun.
    pub(crate) fn begun(&self) -> u64 {
        self.begun
    }

    /// The first operation, counted from one, of which this rank has not done its part: the one in flight, or the next.
    pub(crate) fn undone(&self) -> u64 {
        self.begun + 1 - u64::from(self.current.is_some())
    }

    /// Tells the other hosts that this rank gave up, as far as there is room for messages; true once all are told.
    ///
    /// A rank that cannot be told for good, because the link is broken, runs into its own deadline.
    pub(crate) fn take_leave(&mut self) -> bool {
        // An error of a link is one of the peers' farewells, or comes again when something is sent.
        let mut moved = Ok(());
        if !self.farewells.is_empty() {
            let link = &mut self.link;
            moved = link.progress();
            let words = &self.last_words;
            self.farewells.retain_mut(|(peer, said)| {
                let mut tell = || {
                    *said = *said || link.try_send(*peer, GOODBYE)?;
                    Ok::<_, Error>(*said && link.try_send(*peer, words)?)
                };
                matches!(tell(), Ok(false))
            });
        }
        let leaders =
            if self.poisoned.is_some() { self.inquiry.as_mut().map_or(Ok(true), Inquiry::flush) } else { Ok(true) };
        if let Err(error) = moved.and(leaders.as_ref().map(|_| ()).map_err(Clone::clone)) {
            log::debug!("telling the ranks {:?} of the set that this one gave up: {error}", self.farewells);
        }
        self.farewells.is_empty() && leaders.unwrap_or(true)
    }

    /// Makes every later operation of this rank fail with `error`. Peers do not learn of it.
    pub(crate) fn poison(&mut self, error: Error) {
        self.current = None;
        self.ended(Stage::Failed);
        self.poisoned.get_or_insert(error);
    }

    /// The error that every later operation fails with, if the channel is poisoned.
    pub(crate) fn poisoned(&self) -> Option<&Error> {
        self.poisoned.as_ref()
    }

    /// The last operation that began, in words.
    pub(crate) fn describe(&self) -> String {
        let own = self.arena.announced(self.team.member(), self.sequence);
        let what = own.map_or_else(|| "not announced yet".to_owned(), describe);
        format!("communicator operation {} ({what})", self.sequence)
    }

    /// The global ranks of this host that the operation in flight waits for.
    pub(crate) fn missing(&self) -> Vec<u32> {
        self.current.as_ref().map_or_else(Vec::new, |run| run.missing(self))
    }

    /// Members that have not announced the operation with `print`'s sequence.
    pub(super) fn unannounced(&self, print: Fingerprint) -> Vec<u32> {
        let late = |member: &usize| self.announced(*member, print).is_none();
        (0..self.team.members().len()).filter(late).map(|member| self.global(member)).collect()
    }

    /// The global rank of a member.
    pub(crate) fn global(&self, member: usize) -> u32 {
        self.team.global(self.team.members()[member])
    }

    /// Publishes this member's request, and with it the payload and the first packed chunk.
    #[inline]
    pub(super) fn announce(&self, print: Fingerprint, payload: &[u64]) {
        self.arena.publish(print, payload);
        self.port.ring();
    }

    /// What `member` announced for the same place in the order, once it did.
    #[inline]
    pub(super) fn announced(&self, member: usize, print: Fingerprint) -> Option<Fingerprint> {
        self.arena.announced(member, print.seq())
    }

    /// Whether every member announced this very operation.
    ///
    /// # Errors
    /// [`Error::Mismatch`] with every member's view, once all have announced and some differ.
    pub(super) fn agreed(&self, print: Fingerprint) -> Result<bool> {
        let mut equal = true;
        for member in 0..self.team.members().len() {
            match self.announced(member, print) {
                None => return Ok(false),
                Some(theirs) => equal &= theirs == print,
            }
        }
        if equal { Ok(true) } else { Err(self.mismatch(print)) }
    }

    #[cold]
    fn mismatch(&self, print: Fingerprint) -> Error {
        let all = (0..self.team.members().len()).map(|member| (self.global(member), self.announced(member, print)));
        let all: Vec<_> = all.collect();
        let words = |theirs: Option<Fingerprint>| theirs.map_or_else(|| "nothing yet".to_owned(), describe);
        let views = all.iter().map(|(rank, theirs)| (*rank, words(*theirs))).collect();
        let mut mismatch = Mismatch::new(format!("communicator operation {}", print.seq()), views);
        for theirs in all.into_iter().filter_map(|(_, theirs)| theirs) {
            mismatch.explain(&describe(theirs), fields(theirs));
        }
        Error::Mismatch(Arc::new(mismatch))
    }
}
