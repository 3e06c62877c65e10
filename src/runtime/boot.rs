//! How a rank joins: who is there, where, with which settings; then memory, and the threads that watch.
//!
//! Every step ends in an exchange that carries either what the others need or why this rank cannot go on. So a rank
//! that fails takes all with it, at once and with its reason, and nobody waits for the deadline.

use std::fmt;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use super::Kolo;
use super::door::{Door, Opened};
use super::exchange::{Stop, Table, foreign};
use super::home::Home;
use crate::config::{Config, Flight, Loaded, Raw};
use crate::error::{Error, Result};
use crate::event::{self, Nobody, Sink};
use crate::fields::{put, take_array, take_text};
use crate::membership::{Core, CoreParts, Job, JobParts, Live, WatchParts, Watcher, World, record_panics};
use crate::observe::flight::{Recorder, Whose};
use crate::os::process::Identity;
use crate::os::{cpu, host, random};
use crate::topology::{Place, Topology};
use crate::transport::bootstrap::{Bootstrap, Solo, Threads};
use crate::transport::launcher::launched;
use crate::transport::link::JobKey;
use crate::transport::sim::Network;

#[cfg(feature = "mpi")]
use crate::transport::mpi;

/// How the ranks of a job come about.
pub(super) enum Kind {
    /// By a launcher, or alone.
    Launched {
        /// The application's communicator, where it has one.
        #[cfg(feature = "mpi")]
        adopt: Option<mpi::RawComm>,
    },
    /// As threads of this process.
    Thread { bootstrap: Threads, network: Network },
}

/// Why a rank did not join.
#[derive(Debug)]
pub(super) struct Refusal {
    pub(super) error: Error,
    /// Whether it is this rank that tells: one does.
    pub(super) tell: bool,
    who: String,
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} could not start: {}", self.who, self.error)
    }
}

/// The generation of a membership that nobody has joined later.
const FIRST_EPOCH: u64 = 1;

/// Joins. `settings` may hold a mistake, which the others must hear about.
pub(super) fn boot(settings: Result<Raw>, kind: Kind) -> Result<Kolo, Refusal> {
    record_panics();
    let hostname = host::hostname();
    let loaded = settings.and_then(Config::load);
    let deadline = loaded.as_ref().map_or(Config::default().deadline, |loaded| loaded.config.deadline);
    let (bootstrap, ground) = match kind.ground(deadline) {
        Ok(found) => found,
        Err(error) => {
            let rank = launched_rank();
            // A program that does not fit its launcher does not fit it anywhere: one rank is enough to say so.
            let tell = !matches!(error, Error::Config(_)) || rank.is_none_or(|rank| rank == 0);
            let who = rank.map_or_else(|| "the job".to_owned(), |rank| format!("rank {rank} on {hostname}"));
            return Err(Refusal { error, tell, who });
        }
    };
    let who = format!("rank {} on {hostname}", bootstrap.rank());
    let mut table = Table::new(bootstrap, hostname);
    match join(&mut table, loaded, &ground, deadline) {
        Ok((core, watcher)) => {
            let bootstrap = Mutex::new(table.into_bootstrap());
            let parts = JobParts { watcher, bootstrap, live: ground.live(&core) };
            Kolo::new(Arc::new(Job::new(core, parts))).map_err(|error| Refusal { error, tell: true, who })
        }
        Err(Stop { error, tell }) => Err(Refusal { error, tell, who }),
    }
}

/// What a job stands on before it has an id.
enum Ground {
    Solo,
    Threads(Network),
    #[cfg(feature = "mpi")]
    Mpi(Arc<mpi::MpiWorld>),
}

impl Kind {
    /// Finds the other ranks.
    #[cfg_attr(not(feature = "mpi"), allow(unused_variables, reason = "only MPI is waited for"))]
    fn ground(self, deadline: Duration) -> Result<(Box<dyn Bootstrap>, Ground)> {
        match self {
            Self::Thread { bootstrap, network } => Ok((Box::new(bootstrap), Ground::Threads(network))),
            #[cfg(feature = "mpi")]
            Self::Launched { adopt } if adopt.is_some() || launched().is_some() => {
                let world = mpi::MpiWorld::start(adopt, deadline)?;
                Ok((Box::new(mpi::MpiBootstrap::new(Arc::clone(&world), deadline)), Ground::Mpi(world)))
            }
            Self::Launched { .. } => {
                #[cfg(not(feature = "mpi"))]
                if let Some(text) = launched().and_then(|launcher| launcher.contradicts_no_mpi()) {
                    return Err(Error::config(text));
                }
                Ok((Box::new(Solo), Ground::Solo))
            }
        }
    }
}

impl Ground {
    /// The world of job `id`.
    ///
    /// # Collective
    /// Every rank.
    #[cfg_attr(not(feature = "mpi"), allow(unused_variables, reason = "only MPI has to know"))]
    fn world(&self, id: u128, epoch: u64, deadline: Duration) -> Result<World> {
        match self {
            Self::Solo => Ok(World::Solo),
            Self::Threads(network) => Ok(World::Threads(network.clone())),
            #[cfg(feature = "mpi")]
            Self::Mpi(world) => mpi::MpiJob::join(world, id, epoch, deadline).map(World::Mpi),
        }
    }

    #[cfg(not(feature = "mpi"))]
    #[allow(clippy::unused_self, reason = "as with MPI")]
    fn live(&self, _core: &Arc<Core>) -> Live {
        None
    }

    /// Makes an exit of the process a failure for as long as the rank belongs to the job.
    #[cfg(feature = "mpi")]
    fn live(&self, core: &Arc<Core>) -> Live {
        let Self::Mpi(world) = self else { return None };
        let core = Arc::clone(core);
        Some(world.live_guard(move |status| {
            let how = status.map_or_else(String::new, |status| format!(" with code {}", status & 0xff));
            core.fail(format!(
                "its process exited{how} while it belonged to the job (by process::exit, or with a Kolo that was never \
                 dropped); return from main instead, or drop every Kolo first",
            ));
            core.end_if_winner();
        }))
    }
}

/// Who hears of the operations, and what is odd about it, for the first rank to tell.
fn record(config: &Config, topology: &Topology, job: u128) -> (Arc<dyn Sink>, Vec<u8>) {
    let pids: Vec<u32> = (0..topology.size()).map(|rank| topology.place(rank).pid).collect();
    let processes = pids.iter().any(|pid| *pid != pids[0]);
    let chosen = config.flight_dir.0.as_deref();
    if config.flight == Flight::Off || !(processes || chosen.is_some()) {
        return (Arc::new(Nobody), Vec::new());
    }
    let host = topology.host();
    let (rank, size) = (topology.rank(), topology.size());
    let whose = Whose { job, epoch: FIRST_EPOCH, rank, size, host: &host.name, neighbours: &host.ranks };
    let keep = config.flight == Flight::Keep;
    let error = match Recorder::in_file(&whose, config.flight_records, chosen, keep) {
        Ok(recorder) => return (Arc::new(recorder), Vec::new()),
        Err(error) => error.to_string().into_bytes(),
    };
    match Recorder::in_memory(&whose, config.flight_records) {
        Ok(recorder) => (Arc::new(recorder), error),
        Err(_) => (Arc::new(Nobody), error),
    }
}

/// Warns of ranks whose flight records do not outlive them.
fn tell_odds(odds: &[Vec<u8>]) {
    let ranks: Vec<String> =
        (0..odds.len()).filter(|&rank| !odds[rank].is_empty()).map(|rank| rank.to_string()).collect();
    if let Some(first) = odds.iter().find(|odd| !odd.is_empty()) {
        event::tell_warning(&format!(
            "flight records of rank {} are lost if its process is ended: {}; name another directory with \
             KOLO_FLIGHT_DIR, or set KOLO_FLIGHT=off",
            ranks.join(", "),
            String::from_utf8_lossy(first)
        ));
    }
}

fn launched_rank() -> Option<usize> {
    launched().and_then(|launcher| launcher.rank)
}

/// What a rank tells first.
pub(super) struct Hello {
    pub(super) id: u128,
    pub(super) key: JobKey,
    pub(super) place: Place,
    pub(super) agreement: Vec<String>,
}

impl Hello {
    fn of_this_rank(hostname: &str, config: &Config) -> Result<Self> {
        let Identity { pid, start_time } = Identity::current()?;
        let place = Place {
            identity: host::identity(),
            hostname: hostname.to_owned(),
            pid,
            start_time,
            cpus: cpu::affinity()?,
            quota: cpu::quota(),
        };
        let id = u128::from_le_bytes(random::bytes()?);
        Ok(Self { id, key: JobKey::generate()?, place, agreement: config.agreement() })
    }

    pub(super) fn encode(&self) -> Vec<u8> {
        let mut out = Vec::new();
        put(&mut out, &self.id.to_le_bytes());
        put(&mut out, self.key.bytes());
        self.place.encode(&mut out);
        for text in &self.agreement {
            put(&mut out, text.as_bytes());
        }
        out
    }

    pub(super) fn decode(mut rest: &[u8]) -> Option<Self> {
        let id = u128::from_le_bytes(take_array(&mut rest)?);
        let key = JobKey::from_bytes(take_array(&mut rest)?);
        let place = Place::decode(&mut rest)?;
        let mut agreement = Vec::new();
        while !rest.is_empty() {
            agreement.push(take_text(&mut rest)?);
        }
        Some(Self { id, key, place, agreement })
    }
}

fn join(
    table: &mut Table,
    loaded: Result<Loaded>,
    ground: &Ground,
    deadline: Duration,
) -> Result<(Arc<Core>, Option<Watcher>), Stop> {
    let hello = loaded.as_ref().map_err(Clone::clone).and_then(|l| Hello::of_this_rank(table.hostname(), &l.config));
    let hellos = table.exchange(hello.map(|hello| hello.encode()))?;
    let Loaded { config, warnings } = loaded.map_err(Stop::own)?;
    if table.rank() == 0 {
        warnings.iter().for_each(|warning| event::tell_warning(warning));
    }
    let hellos: Option<Vec<Hello>> = hellos.iter().map(|bytes| Hello::decode(bytes)).collect();
    let hellos = hellos.ok_or_else(|| table.common(foreign(table.rank())))?;
    // The first rank's number and key are the job's.
    let (id, key) = (hellos[0].id, hellos[0].key.clone());
    let (places, agreements): (Vec<Place>, Vec<_>) = hellos.into_iter().map(|h| (h.place, h.agreement)).unzip();
    Config::check_agreement(&agreements).map_err(|error| table.common(error))?;
    let topology = Topology::new(table.rank(), places, &config.hosts.0).map_err(|error| table.common(error))?;

    let mut home = Home::build(table, &topology, id, FIRST_EPOCH, config.shared_reserve.0)?;
    let world = ground.world(id, FIRST_EPOCH, deadline);
    let door = home.check_members(&topology).and_then(|()| Door::new(&topology));
    let ready = world.and_then(|world| Ok((world, door?)));
    let greeting = ready.as_ref().map_err(Clone::clone).and_then(|(_, door)| door.greeting(&topology));
    let greetings = table.exchange(greeting)?;
    home.close();
    let (world, door) = ready.map_err(Stop::own)?;

    let opened = door.open(&topology, home.way, &greetings, (&key, id, FIRST_EPOCH), &config);
    let (sink, odd) = record(&config, &topology, id);
    let started = opened.and_then(|opened| {
        let Home { control, reserve, way, .. } = home;
        let Opened { doorway, nudge, links } = opened;
        let parts =
            CoreParts { id, epoch: FIRST_EPOCH, topology, config, control, way, reserve, world, links, nudge, sink };
        let core = Arc::new(Core::new(parts));
        let start = |doorway| Watcher::start(WatchParts { core: Arc::clone(&core), doorway });
        let watcher = doorway.map(start).transpose()?;
        Ok((core, watcher))
    });
    let odds = table.exchange(started.as_ref().map(|_| odd).map_err(Clone::clone))?;
    if table.rank() == 0 {
        tell_odds(&odds);
    }
    started.map_err(Stop::own)
}
