//! A set's place in its host's shared memory, and the order of its operations there.

use std::sync::Arc;

use super::adasum::AdasumRun;
use super::exchange::GOODBYE;
use super::host::HostRun;
use super::inline::InlineRun;
use super::operation::{Operation, describe, fingerprint};
use super::rounds::RoundRun;
use super::{Port, Step, Team};
use crate::error::{Error, Mismatch, Result};
use crate::plan::{Algorithm, Table, TwoLevel};
use crate::transport::Link;
use crate::transport::shm::{Arena, Fingerprint};

/// The operations of one set, run one after another in the order in which they are begun.
///
/// Every rank of the set begins the same operations in the same order; [`Fingerprint`]s prove it before data moves.
pub(crate) struct Channel {
    pub(super) port: Arc<Port>,
    pub(super) team: Arc<Team>,
    pub(super) arena: Arena,
    /// Ordered messages to every other rank of the set, for schedules that do not run in slots.
    pub(super) link: Box<dyn Link>,
    pub(super) table: Table,
    pub(super) two_level: TwoLevel,
    /// Bytes of a chunk: a slot, or less of it where a test wants many chunks.
    pub(super) chunk_bytes: usize,
    sequence: u32,
    /// Operations that have begun.
    begun: u64,
    /// Chunks that went through the slots since the arena began: the same on every member.
    pub(super) chunks: u64,
    current: Option<Run>,
    poisoned: Option<Error>,
    /// Set ranks on other hosts that have yet to be told that this rank gave up.
    farewells: Vec<usize>,
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
    pub(crate) fn new(port: Arc<Port>, team: Arc<Team>, arena: Arena, link: Box<dyn Link>, table: Table) -> Self {
        let two_level = TwoLevel::new(team.hosts().to_vec(), team.rank());
        let chunk_bytes = arena.slot_bytes();
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
            current: None,
            poisoned: None,
            farewells: Vec::new(),
        }
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
        self.current = Some(self.plan(operation, print));
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
    pub(crate) fn poll(&mut self) -> Result<Step> {
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
                let views = mismatch.views.iter().map(|(rank, view)| format!("rank {rank}: {view}"));
                let views = views.collect::<Vec<_>>().join("; ");
                let text = format!(
                    "{}: the ranks of a host ask for different things: {views}; make every rank pass the same, in the \
                     same order",
                    mismatch.name
                );
                self.current = Some(run);
                Err(self.give_up(Error::Poisoned(text.into())))
            }
            Err(error) => {
                self.current = Some(run);
                Err(self.give_up(error))
            }
        }
    }

    /// Moves on what was handed to the network: a large message arrives only while its sender asks for it, whatever the
    /// operation itself waits for meanwhile, and also after its end.
    pub(crate) fn progress(&mut self) -> Result<()> {
        if self.link.idle() {
            return Ok(());
        }
        self.link.progress().map_err(|error| self.give_up(error))
    }

    /// Ends a wait for a member that has given up this operation or an earlier one. Who gave up a later one has done its
    /// part of this.
    fn heed(&mut self, step: Step) -> Result<Step> {
        match self.arena.poisoned(self.begun) {
            Some(rank) if step == Step::Pending => Err(self.give_up(gone(rank))),
            _ => Ok(step),
        }
    }

    /// What ends a wait for `rank` of the set if that rank has given up, as far as this host knows.
    pub(crate) fn abandoned(&self, rank: usize) -> Option<Error> {
        let member = self.team.members().iter().position(|&member| member == rank)?;
        self.arena.poisoned_member(member).map(gone)
    }

    /// Gives up the operation in flight, if there is one: its buffers are not touched again. The channel is unusable
    /// from here on, here and on the peers, whose operations end with an error that names this rank.
    pub(crate) fn cancel(&mut self, why: &str) {
        if self.current.is_some() {
            self.give_up(Error::Poisoned(why.into()));
        }
    }

    /// Ends the channel with `error`, here and on the peers. Returns the error that ended it first.
    pub(crate) fn give_up(&mut self, error: Error) -> Error {
        if self.poisoned.is_none() {
            // An operation in flight is not done; without one, all that have begun are.
            let done = self.begun - u64::from(self.current.is_some());
            self.poison(error.clone());
            let culprit = self.arena.poisoned(u64::MAX).unwrap_or_else(|| self.team.global(self.team.rank()));
            self.arena.poison(done + 1, culprit);
            self.port.ring();
            self.farewells = (0..self.team.size()).filter(|peer| !self.team.members().contains(peer)).collect();
            self.take_leave();
        }
        error
    }

    /// Tells the other hosts that this rank gave up, as far as there is room for a message; true once all are told.
    ///
    /// A rank that cannot be told for good, because the link is broken, runs into its own deadline.
    pub(crate) fn take_leave(&mut self) -> bool {
        if !self.farewells.is_empty() {
            let link = &mut self.link;
            // An error of the link is one of the peers' farewells, or comes again when something is sent.
            let moved = link.progress();
            self.farewells.retain(|&peer| matches!(link.try_send(peer, GOODBYE), Ok(false)));
            if let (Err(error), false) = (moved, self.farewells.is_empty()) {
                log::debug!("telling the ranks {:?} of the set that this one gave up: {error}", self.farewells);
            }
        }
        self.farewells.is_empty()
    }

    /// Makes every later operation of this rank fail with `error`. Peers do not learn of it.
    pub(crate) fn poison(&mut self, error: Error) {
        self.current = None;
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
        let views = (0..self.team.members().len())
            .map(|member| {
                let theirs = self.announced(member, print);
                (self.global(member), theirs.map_or_else(|| "nothing yet".to_owned(), describe))
            })
            .collect();
        let name = format!("communicator operation {}", print.seq());
        Error::Mismatch(Arc::new(Mismatch { name, views }))
    }
}

fn gone(rank: u32) -> Error {
    Error::Poisoned(format!("rank {rank} gave up an operation that this rank counts on; see its error for why").into())
}
