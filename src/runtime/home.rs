//! The memory that the ranks of a host share from the start: the control area, and their reserves for `kolo.alloc`.

use std::sync::Arc;

use crate::error::{Error, Result};
use crate::membership::share::{self, Offer, Way};
use crate::os::memory::Mapping;
use crate::os::process::Identity;
use crate::tensor::Reserve;
use crate::topology::{Host, Topology};
use crate::transport::shm::{Control, MemberState, Memory, Stamp};

use super::exchange::{Stop, Table};

const PAGE: usize = 4096;

/// The memory of a host, as one of its ranks has mapped it.
#[derive(Debug)]
pub(super) struct Home {
    pub(super) control: Control,
    pub(super) reserve: Arc<Reserve>,
    pub(super) way: Way,
    /// The leader's, until everyone has mapped it.
    offer: Option<Offer>,
}

/// Which parts of the mapping are whose.
#[derive(Clone, Copy, Debug)]
struct Layout {
    control: usize,
    /// Of each rank.
    reserve: usize,
    ranks: usize,
    /// Ranks of the job.
    all: usize,
}

impl Layout {
    fn new(topology: &Topology, reserve: usize) -> Self {
        let (ranks, all) = (topology.local_size(), topology.size());
        let control = Control::bytes(ranks, all).next_multiple_of(PAGE);
        Self { control, reserve: reserve.next_multiple_of(PAGE), ranks, all }
    }

    fn bytes(&self) -> Result<usize> {
        self.reserve.checked_mul(self.ranks).and_then(|all| all.checked_add(self.control)).ok_or_else(|| {
            Error::config(format!("KOLO_SHARED_RESERVE: {} bytes for each of {} ranks", self.reserve, self.ranks))
        })
    }
}

impl Home {
    /// Maps the host's memory. The leader makes it, everyone tells whether it can open it; if somebody cannot, all
    /// hosts take memory with a name instead.
    pub(super) fn build(
        table: &mut Table,
        topology: &Topology,
        id: u128,
        epoch: u64,
        reserve: usize,
    ) -> Result<Self, Stop> {
        let first = natural_way(topology);
        let attempt = Attempt { topology, stamp: Stamp { job: id, epoch, set: 0 }, reserve };
        let (home, all_opened) = attempt.run(table, first, first == Way::Named)?;
        if all_opened {
            return home.map_err(|error| table.common(error));
        }
        let (home, _) = attempt.run(table, Way::Named, true)?;
        home.map_err(Stop::own)
    }

    /// Everyone has mapped the memory: nobody else needs to find it.
    pub(super) fn close(&mut self) {
        self.offer = None;
    }

    /// Whether this rank sees every other rank of the host as it is: then memory is really shared, both ways.
    pub(super) fn check_members(&self, topology: &Topology) -> Result<()> {
        for (local, &rank) in topology.host().ranks.iter().enumerate() {
            let (place, record) = (topology.place(rank), self.control.member(local));
            let process = Identity { pid: place.pid, start_time: place.start_time };
            let as_told = record.rank as usize == rank && record.process == process;
            if !as_told || record.state != MemberState::Joined {
                return Err(Error::config(format!(
                    "memory that ranks of {} map is not shared: rank {rank} wrote itself there, and rank {} does not \
                     see it; run the ranks of a host in one container",
                    place.hostname,
                    topology.rank()
                )));
            }
        }
        Ok(())
    }
}

/// Threads of one process share what it has; processes share files.
fn natural_way(topology: &Topology) -> Way {
    let one_process =
        |host: &Host| host.ranks.iter().all(|&rank| topology.place(rank).pid == topology.place(host.ranks[0]).pid);
    if topology.hosts().iter().all(one_process) { Way::Threads } else { Way::Memfd }
}

struct Attempt<'a> {
    topology: &'a Topology,
    stamp: Stamp,
    reserve: usize,
}

impl Attempt<'_> {
    /// One way for all. With `last`, a rank that cannot open the memory stops the boot; else it is only told.
    fn run(&self, table: &mut Table, way: Way, last: bool) -> Result<(Result<Home>, bool), Stop> {
        let layout = Layout::new(self.topology, self.reserve);
        let offer = if self.topology.is_leader() { self.offer(way, layout).map(Some) } else { Ok(None) };
        let token = offer.as_ref().map(|offer| offer.as_ref().map(Offer::token).unwrap_or_default());
        let tokens = table.exchange(token.map_err(Clone::clone))?;
        let offer = offer.map_err(Stop::own)?;
        let opened = self.open(offer, &tokens[self.topology.host().ranks[0]], way, layout);
        let report = match &opened {
            Err(error) if last => Err(error.clone()),
            opened => Ok(vec![u8::from(opened.is_ok())]),
        };
        let all = table.exchange(report)?;
        if let Err(error) = &opened {
            log::debug!("{error}; trying another way");
        }
        Ok((opened, all.iter().all(|body| body == &[1])))
    }

    fn offer(&self, way: Way, layout: Layout) -> Result<Offer> {
        let offer = share::create(way, layout.bytes()?)?;
        self.control(offer.mapping(), layout)?.stamp(&self.stamp);
        Ok(offer)
    }

    fn open(&self, offer: Option<Offer>, token: &[u8], way: Way, layout: Layout) -> Result<Home> {
        let mapping = match &offer {
            Some(offer) => Arc::clone(offer.mapping()),
            None => share::open(token)?,
        };
        let control = self.control(&mapping, layout)?;
        control.verify(&self.stamp)?;
        let place = self.topology.place(self.topology.rank());
        control.join(self.topology.rank() as u32, Identity { pid: place.pid, start_time: place.start_time });
        let start = layout.control + self.topology.local_rank() * layout.reserve;
        let reserve = Arc::new(Reserve::new(mapping, start, layout.reserve));
        Ok(Home { control, reserve, way, offer })
    }

    fn control(&self, mapping: &Arc<Mapping>, layout: Layout) -> Result<Control> {
        Control::new(&Memory::new(Arc::clone(mapping)), layout.ranks, layout.all, self.topology.local_rank())
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::os::cpu::CpuMask;
    use crate::topology::Place;
    use crate::transport::bootstrap::Threads;

    #[test]
    fn every_way_gives_all_ranks_the_same_memory_and_leaves_no_name() {
        let me = Identity::current().expect("/proc");
        let place = Place {
            identity: "here".to_owned(),
            hostname: "here".to_owned(),
            pid: me.pid,
            start_time: me.start_time,
            cpus: CpuMask::default(),
            quota: None,
        };
        for (number, way) in [Way::Threads, Way::Memfd, Way::Named].into_iter().enumerate() {
            let id = u128::from(std::process::id()) << 64 | number as u128;
            std::thread::scope(|scope| {
                for (rank, bootstrap) in Threads::group(3, Duration::from_secs(60)).into_iter().enumerate() {
                    let topology = Topology::new(rank, vec![place.clone(); 3], &[]).expect("valid");
                    scope.spawn(move || {
                        let mut table = Table::new(Box::new(bootstrap), "here".to_owned());
                        let stamp = Stamp { job: id, epoch: 1, set: 0 };
                        let attempt = Attempt { topology: &topology, stamp, reserve: 5000 };
                        let (home, all) = attempt.run(&mut table, way, true).expect("nobody stops");
                        let mut home = home.expect("opened");
                        assert!(all);
                        home.check_members(&topology).expect("shared");
                        home.close();
                        assert_eq!(home.reserve.left(), 8192, "whole pages");
                        // The others look before this one goes.
                        table.exchange(Ok(Vec::new())).expect("all come");
                    });
                }
            });
        }
    }
}
