//! How ranks will reach each other's watchers: pipes within a host, connections between the leaders of hosts.

use std::sync::Arc;

use super::exchange::foreign;
use crate::config::Config;
use crate::error::Result;
use crate::fields::{put, take, take_array};
use crate::membership::{Doorway, Nudge, Way};
use crate::topology::Topology;
use crate::transport::link::{Card, JobKey, Links, Listener, Party, Reach, connect};

/// What a rank opens before it greets the others.
#[derive(Debug)]
pub(super) struct Door {
    doorway: Option<Doorway>,
    listener: Option<Listener>,
}

/// What it has once it knows the others' greetings.
#[derive(Debug)]
pub(super) struct Opened {
    pub(super) doorway: Option<Doorway>,
    pub(super) nudge: Nudge,
    pub(super) links: Option<Links>,
}

impl Door {
    pub(super) fn new(topology: &Topology) -> Result<Self> {
        let pid = std::process::id();
        let speaks = topology.is_leader() && topology.hosts().len() > 1;
        // The thread that watches is needed for peers in other processes, and to speak with other hosts.
        let watches = speaks || topology.host().ranks.iter().any(|&rank| topology.place(rank).pid != pid);
        let first = &topology.place(0).identity;
        let one_machine = (0..topology.size()).all(|rank| topology.place(rank).identity == *first);
        let reach = if one_machine { Reach::Machine } else { Reach::Network };
        Ok(Self {
            doorway: watches.then(Doorway::new).transpose()?,
            listener: speaks.then(|| Listener::bind(reach)).transpose()?,
        })
    }

    /// What the others have to know: where the pipe is, and where the leader listens.
    pub(super) fn greeting(&self, topology: &Topology) -> Result<Vec<u8>> {
        let mut out = Vec::new();
        let (pid, fd) = self.doorway.as_ref().map_or((0, -1), Doorway::address);
        put(&mut out, &pid.to_le_bytes());
        put(&mut out, &fd.to_le_bytes());
        if let Some(listener) = &self.listener {
            put(&mut out, &listener.card(topology.host().name.as_str())?.encode());
        }
        Ok(out)
    }

    /// Connects the leaders, and opens the pipe of this host's.
    pub(super) fn open(
        self,
        topology: &Topology,
        way: Way,
        greetings: &[Vec<u8>],
        party: (&JobKey, u128, u64),
        config: &Config,
    ) -> Result<Opened> {
        let (key, job, epoch) = party;
        let own = self.doorway.as_ref().map(|doorway| Arc::clone(&doorway.write));
        let mut opened = Opened { doorway: self.doorway, nudge: Nudge { own, leader: None }, links: None };
        if topology.hosts().len() == 1 {
            return Ok(opened);
        }
        // First of all, because the other leaders wait for it.
        if let Some(listener) = self.listener {
            let cards: Result<Vec<Card>> = topology.hosts().iter().map(|h| card(greetings, h.ranks[0])).collect();
            let party =
                Party { me: topology.host_index(), hosts: &cards?, key, job, epoch, timeout: config.host_timeout };
            opened.links = Some(connect(listener, &party, config.deadline)?);
        } else {
            match Doorway::open_peer(pipe(greetings, topology.host().ranks[0])?) {
                Ok(pipe) => opened.nudge.leader = Some(Arc::new(pipe)),
                // The leader knows, and looks by itself.
                Err(error) if way == Way::Named => log::debug!("{error}"),
                Err(error) => return Err(error),
            }
        }
        Ok(opened)
    }
}

fn pipe(greetings: &[Vec<u8>], rank: usize) -> Result<(u32, i32)> {
    let mut rest = &greetings[rank][..];
    let pid = take_array(&mut rest).map(u32::from_le_bytes);
    let fd = take_array(&mut rest).map(i32::from_le_bytes);
    pid.zip(fd).ok_or_else(|| foreign(rank))
}

fn card(greetings: &[Vec<u8>], rank: usize) -> Result<Card> {
    let mut rest = &greetings[rank][..];
    let fields = [take(&mut rest), take(&mut rest), take(&mut rest)];
    fields[2].and_then(Card::decode).ok_or_else(|| foreign(rank))
}
