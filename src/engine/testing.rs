//! Ranks of one thread over the shipping shared-memory protocol: a seeded scheduler decides who is polled next.

use std::sync::Arc;
use std::time::Duration;

use super::inquiry::Inquiry;
use super::routes::Routes;
use super::{Channel, Port, Step, Team};
use crate::event::Nobody;
use crate::membership::RankStatus;
use crate::os::memory::Mapping;
use crate::plan::{Algorithm, Layout, Table, Thresholds};
use crate::transport::shm::{Arena, ArenaParams, Control, Memory};
use crate::transport::sim::Network;
use crate::transport::{Link, Stamp};
pub(crate) use xtask::random::Random;

/// What a test may vary.
#[derive(Clone, Debug)]
pub(crate) struct Shape {
    /// Ranks on each pretend host.
    pub(crate) hosts: Vec<usize>,
    /// Bytes of a chunk; slots are whole pages.
    pub(crate) slot_bytes: usize,
    pub(crate) slots: usize,
    pub(crate) algorithm: Algorithm,
    pub(crate) deterministic: bool,
    pub(crate) negotiated: bool,
    pub(crate) seed: u64,
}

impl Shape {
    pub(crate) fn one_host(ranks: usize) -> Self {
        Self {
            hosts: vec![ranks],
            slot_bytes: 4096,
            slots: 2,
            algorithm: Algorithm::Auto,
            deterministic: false,
            negotiated: false,
            seed: 1,
        }
    }

    /// A channel for every rank.
    pub(crate) fn channels(&self) -> Vec<Channel> {
        let ranks: usize = self.hosts.iter().sum();
        let host_of: Vec<usize> =
            self.hosts.iter().enumerate().flat_map(|(host, &members)| std::iter::repeat_n(host, members)).collect();
        let network = Network::seeded(ranks, self.seed);
        let mut channels = Vec::new();
        for (host, &members) in self.hosts.iter().enumerate() {
            let params = ArenaParams {
                members,
                slot_bytes: self.slot_bytes,
                slots: self.slots,
                mail_bytes: 1 << 20,
                negotiated: self.negotiated,
            };
            let anonymous = |bytes| Memory::new(Arc::new(Mapping::anonymous(bytes).unwrap()));
            let control = anonymous(Control::bytes(members, ranks));
            let arena = anonymous(Arena::bytes(&params));
            for member in 0..members {
                let port = Arc::new(Port {
                    control: Control::new(&control, members, ranks, member).unwrap(),
                    crowded: true,
                    deadline: Duration::from_secs(60),
                    warning: Duration::from_secs(30),
                    abroad: None,
                    sink: Arc::new(Nobody),
                    absence: Box::new(|_| None),
                    standing: Box::new(RankStatus::unknown),
                });
                let me = self.hosts[..host].iter().sum::<usize>() + member;
                let all: Vec<u32> = (0..ranks as u32).collect();
                let team = Arc::new(Team::new(all.clone(), me as u32, |rank| host_of[rank as usize]));
                let arena = Arena::new(&arena, &params, member).unwrap();
                let link = |channel, piece| {
                    let stamp = Stamp { job: 1, epoch: 0, set: 0, channel };
                    Box::new(network.link(stamp, all.clone(), me, piece).unwrap()) as Box<dyn Link>
                };
                let inquiry = (!team.is_local() && !self.negotiated)
                    .then(|| Inquiry::new(&team, &arena, link(1, Inquiry::piece(&team))));
                let link = (!team.is_local()).then(|| link(0, 1 << 10));
                let routes = Routes::new(Arc::clone(&port), &team, &arena, link);
                let layout = Layout { hosts: self.hosts.len(), ranks, contiguous: true };
                let table = Table::new(layout, Thresholds::DEFAULT, self.deterministic, self.algorithm).unwrap();
                let mut channel = Channel::new(port, team, arena, routes, table);
                channel.chunk_bytes = self.slot_bytes;
                if let Some(inquiry) = inquiry {
                    channel.inquire_by(inquiry);
                }
                channels.push(channel);
            }
        }
        channels
    }
}

/// Polls the channels in the random order of `random` until each has ended its operation; returns how each ended.
///
/// # Panics
/// If nothing moves for long: a deadlock.
pub(crate) fn run(channels: &mut [Channel], random: &mut Random) -> Vec<crate::Result<()>> {
    let mut ended: Vec<Option<crate::Result<()>>> = channels.iter().map(|_| None).collect();
    let mut stuck = 0;
    while ended.iter().any(Option::is_none) {
        let rank = random.below(channels.len());
        // Bursts: a rank that runs far ahead meets other states than one that takes turns.
        for _ in 0..=random.below(4) {
            if ended[rank].is_some() {
                break;
            }
            stuck += 1;
            match channels[rank].poll() {
                Ok(Step::Ready(())) => ended[rank] = Some(Ok(())),
                Ok(Step::Progress) => stuck = 0,
                Ok(Step::Pending) => {}
                Err(error) => ended[rank] = Some(Err(error)),
            }
        }
        assert_moves(stuck, channels);
    }
    ended.into_iter().map(|end| end.expect("all have ended")).collect()
}

/// # Panics
/// After so many polls in a row that found nothing: nobody will ever move.
pub(crate) fn assert_moves(polls: usize, channels: &[Channel]) {
    let state = |channel: &Channel| {
        let end = channel.poisoned().map_or_else(|| format!("waits for {:?}", channel.missing()), ToString::to_string);
        format!("\nrank {}: {}: {end}", channel.team().rank(), channel.describe())
    };
    assert!(polls < 100_000, "deadlock: {}", channels.iter().map(state).collect::<String>());
}
