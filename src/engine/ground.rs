//! What a job gives to each of its sets: memory on the host, links to other hosts, and the settings all ranks share.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use super::routes::Routes;
use super::{Channel, Port, Team};
use crate::error::{Error, Result};
use crate::os::share;
use crate::plan::{Algorithm, Layout, Table, Thresholds};
use crate::transport::Link;
use crate::transport::shm::{Arena, ArenaParams, Memory};

/// Makes links between ranks of different hosts.
pub(crate) trait Network: Send + Sync {
    /// A link for stream `channel` of set `set` between the global ranks `ranks`, of which this one is `ranks[me]`.
    fn link(&self, set: u32, channel: u8, ranks: &[u32], me: usize) -> Result<Box<dyn Link>>;
}

/// Gathers one message of every rank of a set, in set order. Every rank calls it the same number of times.
pub(crate) type Gather<'a> = dyn FnMut(&[u8]) -> Result<Vec<Vec<u8>>> + 'a;

/// The streams of a set that may be under way at the same time.
#[derive(Clone, Copy, Debug)]
#[repr(u8)]
enum Stream {
    Collectives = 0,
    User = 1,
    Negotiation = 2,
}

/// Where sets are built.
pub(crate) struct Ground {
    pub(crate) port: Arc<Port>,
    /// This rank in the job.
    pub(crate) rank: u32,
    /// The host of each global rank.
    pub(crate) host_of: Vec<usize>,
    pub(crate) way: share::Way,
    pub(crate) network: Option<Box<dyn Network>>,
    pub(crate) slot_bytes: usize,
    pub(crate) slots: usize,
    pub(crate) deterministic: bool,
    pub(crate) algorithm: Algorithm,
    pub(crate) next_set: AtomicU32,
}

impl std::fmt::Debug for Ground {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Ground").field("rank", &self.rank).field("host_of", &self.host_of).finish_non_exhaustive()
    }
}

/// A set as it was built: its collectives, and its other streams.
pub(crate) struct Built {
    pub(crate) id: u32,
    pub(crate) channel: Channel,
    /// Messages between users: `send` and `recv`.
    pub(crate) user: Box<dyn Link>,
    /// Messages between host leaders about names, if the set negotiates and spans hosts.
    pub(crate) negotiation: Option<Box<dyn Link>>,
}

impl Ground {
    /// Builds a set of the global ranks `ranks`, which include this one.
    ///
    /// Collective over the set: every rank calls it with equal arguments, in an order that is the same for any two ranks
    /// that share two sets.
    pub(crate) fn build(&self, ranks: Vec<u32>, negotiated: bool, gather: &mut Gather<'_>) -> Result<Built> {
        let host_of = |rank: u32| self.host_of[rank as usize];
        let team = Arc::new(Team::new(ranks, self.rank, host_of));
        let id = self.agree_on_id(gather)?;
        let members = team.members().len();
        let params = ArenaParams {
            members,
            slot_bytes: self.slot_bytes,
            slots: self.slots,
            mail_bytes: ArenaParams::MAIL,
            negotiated,
        };
        let letters = ArenaParams { slots: 0, negotiated: false, ..params };
        let (first, second) = (Arena::bytes(&params), Arena::bytes(&letters));
        let memory = self.share(&team, first + second, gather)?;
        let arena = Arena::new(&memory.part(0, first), &params, team.member())?;
        let letters = Arena::new(&memory.part(first, second), &letters, team.member())?;
        let layout =
            Layout { hosts: team.hosts().len(), ranks: team.size(), contiguous: is_contiguous(team.hosts()) };
        let table = Table::new(layout, Thresholds::DEFAULT, self.deterministic, self.algorithm)?;
        let routes = |arena: &Arena, stream| -> Result<Box<dyn Link>> {
            let network = self.network(id, stream, &team)?;
            Ok(Box::new(Routes::new(Arc::clone(&self.port), &team, arena, network)))
        };
        let link = routes(&arena, Stream::Collectives)?;
        let user = routes(&letters, Stream::User)?;
        let negotiation = if negotiated { self.network(id, Stream::Negotiation, &team)? } else { None };
        let channel = Channel::new(Arc::clone(&self.port), team, arena, link, table);
        Ok(Built { id, channel, user, negotiation })
    }

    fn network(&self, id: u32, stream: Stream, team: &Team) -> Result<Option<Box<dyn Link>>> {
        if team.is_local() {
            return Ok(None);
        }
        let network = self.network.as_ref().ok_or_else(|| Error::config("ranks on several hosts without a network"))?;
        network.link(id, stream as u8, team.globals(), team.rank()).map(Some)
    }

    /// An id that no set of any of the ranks has.
    fn agree_on_id(&self, gather: &mut Gather<'_>) -> Result<u32> {
        let mine = self.next_set.load(Ordering::Relaxed);
        let all = gather(&mine.to_le_bytes())?;
        let words = all.iter().map(|bytes| bytes.as_slice().try_into().map(u32::from_le_bytes).unwrap_or(0));
        let id = words.max().unwrap_or(mine);
        self.next_set.fetch_max(id + 1, Ordering::Relaxed);
        Ok(id)
    }

    /// Memory shared by the members of each host. If a host has none to give, every rank gets that host's error.
    fn share(&self, team: &Team, bytes: usize, gather: &mut Gather<'_>) -> Result<Memory> {
        let leads = team.member() == 0;
        let offer = leads.then(|| share::create(self.way, bytes));
        let message = match &offer {
            Some(Ok(offer)) => [&[0][..], &offer.token()].concat(),
            Some(Err(error)) => [&[1][..], error.to_string().as_bytes()].concat(),
            None => vec![0],
        };
        let offers = gather(&message)?;
        refuse(&offers, team)?;
        let mapping = match &offer {
            Some(Ok(offer)) => Ok(Arc::clone(offer.mapping())),
            _ => share::open(&offers[team.members()[0]][1..]),
        };
        // The offer stands until every member has taken it.
        let message = match &mapping {
            Ok(_) => vec![0],
            Err(error) => [&[1][..], error.to_string().as_bytes()].concat(),
        };
        refuse(&gather(&message)?, team)?;
        Ok(Memory::new(mapping?))
    }
}

/// An error if a rank sent one.
fn refuse(messages: &[Vec<u8>], team: &Team) -> Result<()> {
    match messages.iter().position(|message| message.first() == Some(&1)) {
        None => Ok(()),
        Some(rank) => {
            let text = String::from_utf8_lossy(&messages[rank][1..]).into_owned();
            Err(Error::config(format!("rank {}: {text}", team.global(rank))))
        }
    }
}

fn is_contiguous(hosts: &[Vec<usize>]) -> bool {
    hosts.iter().flatten().enumerate().all(|(index, &rank)| index == rank)
}
