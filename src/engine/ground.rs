//! What a job gives to each of its sets: memory on the host, links to other hosts, and the settings all ranks share.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use super::inquiry::Inquiry;
use super::ringing::Ringing;
use super::routes::Routes;
use super::{Channel, Port, Team};
use crate::error::{Error, Result};
use crate::event::Event;
use crate::membership::{Job, share};
use crate::plan::{Algorithm, Layout, Table, Thresholds, TwoLevel};
use crate::transport::shm::{Arena, ArenaParams, Memory, Stamp};
use crate::transport::{Link, PIECE};

/// Gathers one message of every rank of a set, in set order. Every rank calls it the same number of times.
pub(super) type Gather<'a> = dyn FnMut(&[u8]) -> Result<Vec<Vec<u8>>> + 'a;

/// The streams of a set that may be under way at the same time.
#[derive(Clone, Copy, Debug)]
#[repr(u8)]
enum Stream {
    Collectives = 0,
    User = 1,
    Negotiation = 2,
    Inquiry = 3,
}

/// Where a rank's sets are built. Keeps the rank in the job.
#[derive(Debug)]
pub(crate) struct Ground {
    pub(crate) job: Arc<Job>,
    port: Arc<Port>,
    algorithm: Algorithm,
    next_set: AtomicU32,
}

/// A set as it was built: its collectives, and its other streams.
pub(crate) struct Built {
    pub(crate) channel: Channel,
    /// Messages between users: `send` and `recv`.
    pub(crate) user: Box<dyn Link>,
    /// Messages between host leaders about names, if the set negotiates and spans hosts.
    pub(crate) negotiation: Option<Box<dyn Link>>,
}

impl Ground {
    /// # Errors
    /// A knob with a value that cannot serve.
    pub(crate) fn new(job: Arc<Job>) -> Result<Arc<Self>> {
        let config = &job.config;
        let (roster, book) = (job.roster.clone(), job.roster.clone());
        let port = Arc::new(Port {
            control: job.control.clone(),
            crowded: config.spin.0.map_or(job.topology.host().oversubscribed, |spin| spin.is_zero()),
            deadline: config.deadline,
            warning: config.stall_warning.0.unwrap_or(Duration::MAX),
            abroad: (job.topology.hosts().len() > 1).then(|| Arc::clone(job.core())),
            sink: Arc::clone(&job.sink),
            absence: Box::new(move |rank| roster.missing(rank as usize)),
            standing: Box::new(move |rank| book.standing(rank as usize)),
        });
        let algorithm = config.algorithm.0.parse()?;
        Ok(Arc::new(Self { job, port, algorithm, next_set: AtomicU32::new(1) }))
    }

    pub(crate) fn port(&self) -> &Arc<Port> {
        &self.port
    }

    /// Builds a set of the global ranks `ranks`, which include this one.
    ///
    /// Collective over the set: every rank calls it with equal arguments, in an order that is the same for any two ranks
    /// that share two sets.
    pub(crate) fn build(&self, ranks: Vec<u32>, negotiated: bool, gather: &mut Gather<'_>) -> Result<Built> {
        let (config, topology) = (&self.job.config, &self.job.topology);
        let team = Arc::new(Team::new(ranks, self.job.rank() as u32, |rank| topology.host_of(rank as usize)));
        let id = self.agree_on_id(gather)?;
        let members = team.members().len();
        let params = ArenaParams {
            members,
            slot_bytes: config.slot_bytes.0,
            slots: config.slots,
            mail_bytes: ArenaParams::MAIL,
            negotiated,
        };
        let letters = ArenaParams { slots: 0, negotiated: false, ..params };
        let (first, second) = (Arena::bytes(&params), Arena::bytes(&letters));
        let stamp = Stamp { job: self.job.id, epoch: self.job.epoch, set: u64::from(id) };
        let open = |memory: &Memory| Arena::new(&memory.part(0, first), &params, team.member());
        let memory = self.share(&team, first + second, &open, &stamp, gather)?;
        let arena = open(&memory)?;
        arena.populate()?;
        let letters = Arena::new(&memory.part(first, second), &letters, team.member())?;
        let contiguous = TwoLevel::new(team.hosts().to_vec(), team.rank()).contiguous();
        let layout = Layout { hosts: team.hosts().len(), ranks: team.size(), contiguous };
        let table = Table::new(layout, Thresholds::DEFAULT, config.deterministic, self.algorithm)?;
        let routes = |arena: &Arena, stream| -> Result<Routes> {
            let network = self.network(id, stream, &team, PIECE)?;
            Ok(Routes::new(Arc::clone(&self.port), &team, arena, network))
        };
        let link = routes(&arena, Stream::Collectives)?;
        let user = Box::new(routes(&letters, Stream::User)?);
        let negotiation = if negotiated { self.network(id, Stream::Negotiation, &team, PIECE)? } else { None };
        let piece = Inquiry::piece(&team);
        let inquiry = if negotiated { None } else { self.network(id, Stream::Inquiry, &team, piece)? };
        let inquiry = inquiry.map(|link| Inquiry::new(&team, &arena, link));
        self.port.sink.event(&Event::Set { id, named: negotiated, ranks: team.globals().to_vec() });
        let mut channel = Channel::new(Arc::clone(&self.port), team, arena, link, table).of_set(id);
        if let Some(inquiry) = inquiry {
            channel.inquire_by(inquiry);
        }
        Ok(Built { channel, user, negotiation })
    }

    /// Takes part in the building of a set that this rank is not in, where all ranks of the job exchange.
    pub(crate) fn attend(&self, gather: &mut Gather<'_>) -> Result<()> {
        self.agree_on_id(gather)?;
        refuse(&gather(&[0])?)?;
        refuse(&gather(&[0])?)
    }

    fn network(&self, id: u32, stream: Stream, team: &Team, piece: usize) -> Result<Option<Box<dyn Link>>> {
        if team.is_local() {
            return Ok(None);
        }
        let ranks: Vec<usize> = team.globals().iter().map(|&rank| rank as usize).collect();
        let link = self.job.link(id, stream as u8, &ranks, piece)?;
        let hosts = ranks.iter().map(|&rank| self.job.topology.host_of(rank)).collect();
        Ok(Some(Box::new(Ringing::new(link, Arc::clone(self.job.core()), hosts))))
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
    ///
    /// The leader stamps the arena in it before the others learn of it, and they check that it is that very memory.
    fn share(
        &self,
        team: &Team,
        bytes: usize,
        open: &impl Fn(&Memory) -> Result<Arena>,
        stamp: &Stamp,
        gather: &mut Gather<'_>,
    ) -> Result<Memory> {
        let leads = team.member() == 0;
        let offer = leads.then(|| {
            let offer = share::create(self.job.way, bytes)?;
            open(&Memory::new(Arc::clone(offer.mapping())))?.stamp(stamp);
            Ok::<_, Error>(offer)
        });
        let message = match &offer {
            Some(Ok(offer)) => [&[0][..], &offer.token()].concat(),
            Some(Err(error)) => [&[1][..], error.to_string().as_bytes()].concat(),
            None => vec![0],
        };
        let offers = gather(&message)?;
        refuse(&offers)?;
        let mapping = match &offer {
            Some(Ok(offer)) => Ok(Arc::clone(offer.mapping())),
            _ => share::open(&offers[team.members()[0]][1..]).and_then(|mapping| {
                open(&Memory::new(Arc::clone(&mapping)))?.verify(stamp)?;
                Ok(mapping)
            }),
        };
        // The offer stands until every member has taken it.
        let message = match &mapping {
            Ok(_) => vec![0],
            Err(error) => [&[1][..], error.to_string().as_bytes()].concat(),
        };
        refuse(&gather(&message)?)?;
        Ok(Memory::new(mapping?))
    }
}

/// An error if a rank sent one.
fn refuse(messages: &[Vec<u8>]) -> Result<()> {
    match messages.iter().position(|message| message.first() == Some(&1)) {
        None => Ok(()),
        Some(rank) => {
            let text = String::from_utf8_lossy(&messages[rank][1..]).into_owned();
            Err(Error::config(format!("rank {rank} of the set: {text}")))
        }
    }
}
