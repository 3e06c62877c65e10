//! Where cases run: how many ranks, on which hosts, as threads or as processes.

use std::fmt;
use std::path::Path;
use std::time::Duration;

use kolo::{Builder, Kolo};
use xtask::harness::mpirun;
use xtask::network::Network;

use super::bench::Task;
use super::report::Report;
use super::sample::SLOT;

/// How long a job may live. Far above what it takes, so that what passes it hangs.
const PATIENCE: Duration = Duration::from_secs(240);
/// How long a rank waits for another.
const DEADLINE: &str = "60s";

/// How the ranks of a job are started.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Ranks as threads of this process.
    Threads,
    /// Processes, by mpirun.
    Processes,
    /// Processes on hosts that are namespaces of this machine.
    Namespaces,
}

/// A job.
#[derive(Clone, Debug)]
pub(crate) struct Place {
    pub(crate) kind: Kind,
    /// Ranks of each host. Several are pretended, unless they are namespaces.
    hosts: &'static [usize],
    /// Whether sums are in rank order across hosts as well.
    pub(crate) deterministic: bool,
    /// Whether tensors that are ready together are reduced as one.
    pub(crate) fusion: bool,
    /// It runs one in so many of its cases.
    pub(crate) share: u64,
}

const fn place(kind: Kind, hosts: &'static [usize], share: u64) -> Place {
    Place { kind, hosts, deterministic: false, fusion: true, share }
}

const fn deterministic(kind: Kind, hosts: &'static [usize], share: u64) -> Place {
    Place { deterministic: true, ..place(kind, hosts, share) }
}

/// All jobs. Those that stand twice run twice, to find the same bits.
pub(crate) const PLACES: &[Place] = &[
    place(Kind::Threads, &[1], 1),
    place(Kind::Threads, &[2], 1),
    place(Kind::Threads, &[3], 1),
    place(Kind::Threads, &[4], 1),
    place(Kind::Threads, &[5], 2),
    place(Kind::Threads, &[1, 1], 2),
    place(Kind::Threads, &[2, 1], 2),
    place(Kind::Threads, &[2, 2], 2),
    place(Kind::Threads, &[2, 2], 2),
    place(Kind::Threads, &[3, 1], 3),
    place(Kind::Threads, &[1, 1, 1], 3),
    place(Kind::Threads, &[2, 1, 2], 3),
    deterministic(Kind::Threads, &[1, 2], 3),
    deterministic(Kind::Threads, &[2, 2], 3),
    deterministic(Kind::Threads, &[2, 3], 3),
    Place { fusion: false, ..place(Kind::Threads, &[3], 3) },
    Place { fusion: false, ..deterministic(Kind::Threads, &[2, 1], 3) },
    place(Kind::Processes, &[1], 2),
    place(Kind::Processes, &[2], 2),
    place(Kind::Processes, &[3], 3),
    place(Kind::Processes, &[4], 4),
    place(Kind::Processes, &[1, 1], 4),
    place(Kind::Processes, &[2, 1], 6),
    place(Kind::Processes, &[2, 2], 8),
    deterministic(Kind::Processes, &[2, 2], 8),
    deterministic(Kind::Processes, &[2, 2], 8),
    place(Kind::Namespaces, &[1, 1], 8),
    place(Kind::Namespaces, &[2, 2], 8),
    deterministic(Kind::Namespaces, &[2, 1], 8),
];

/// The settings by which the ranks are told what is to run.
const PLACE: &str = "TEST_PLACE";
const SEED: &str = "TEST_SEED";
const SHARE: &str = "TEST_SHARE";
const ALL: &str = "TEST_ALL";
const ONLY: &str = "TEST_ONLY";
const DIRECTORY: &str = "TEST_DIRECTORY";

/// The program of a rank.
type Program = fn(&Kolo, &Task, &Place) -> (Report, kolo::Result<()>);

impl Place {
    fn ranks(&self) -> usize {
        self.hosts.iter().sum()
    }

    /// Whether these ranks of the job share memory.
    pub(crate) fn is_one_host(&self, ranks: &[usize]) -> bool {
        let host = |rank: usize| {
            let ends = self.hosts.iter().scan(0, |end, ranks| {
                *end += ranks;
                Some(*end)
            });
            ends.into_iter().position(|end| rank < end)
        };
        ranks.iter().all(|&rank| host(rank) == host(ranks[0]))
    }

    fn knobs(&self) -> [(&'static str, String); 5] {
        let hosts: Vec<String> = self.hosts.iter().map(usize::to_string).collect();
        let pretended = self.kind != Kind::Namespaces && hosts.len() > 1;
        [
            ("KOLO_SLOT_BYTES", SLOT.to_string()),
            ("KOLO_DEADLINE", DEADLINE.to_owned()),
            ("KOLO_HOSTS", if pretended { hosts.join(",") } else { String::new() }),
            ("KOLO_DETERMINISTIC", u8::from(self.deterministic).to_string()),
            ("KOLO_FUSION_BYTES", if self.fusion { "64MiB" } else { "0" }.to_owned()),
        ]
    }

    /// Runs the job that stands at `index` of the table; gives what each rank reports, and why it failed as a whole.
    pub(crate) fn run(&self, index: usize, task: &Task, program: Program) -> (Vec<Report>, Option<String>) {
        if self.kind == Kind::Threads {
            return self.run_threads(task, program);
        }
        let job = match self.kind {
            Kind::Namespaces => None,
            _ => Some(mpirun(self.ranks())),
        };
        // It must outlive the job.
        let network = job.is_none().then(|| Network::new(self.hosts.len()).expect("hosts out of namespaces"));
        let mut job = job.or(network.as_ref().map(|network| network.mpirun(self.hosts))).expect("one of both");
        for (name, value) in self.knobs() {
            job = job.env(name, value);
        }
        let job = job
            .env(PLACE, index.to_string())
            .env(SEED, task.seed.to_string())
            .env(SHARE, task.share.to_string())
            .env(ALL, u8::from(task.all).to_string())
            .env(ONLY, &task.only)
            .env(DIRECTORY, &task.directory)
            .timeout(PATIENCE);
        let binary = std::env::current_exe().expect("the path of this binary");
        let finished = job.try_program(binary, &[]);
        let mut reports = Vec::new();
        let mut why = None;
        for rank in 0..self.ranks() {
            match Report::read(&report_of(&task.directory, rank)) {
                Ok(report) => reports.push(report),
                Err(error) => why = Some(format!("rank {rank} left no report: {error}")),
            }
        }
        if !finished.success() || !finished.left_behind.is_empty() {
            let left = &finished.left_behind;
            why = Some(format!("{}, processes left: {left:?}; it printed:\n{}", finished.ending(), finished.output));
        }
        (reports, why)
    }

    fn run_threads(&self, task: &Task, program: Program) -> (Vec<Report>, Option<String>) {
        // A seed from outside is the data's, and not that of delays.
        let builder = Builder::new().knob("KOLO_SEED", "off");
        let builder = self.knobs().into_iter().fold(builder, |builder, (name, value)| builder.knob(name, value));
        match builder.threads(self.ranks(), |kolo| program(kolo, task, self)) {
            Ok(outcomes) => {
                let (reports, ends): (Vec<Report>, Vec<kolo::Result<()>>) = outcomes.into_iter().unzip();
                let why = ends.into_iter().find_map(Result::err).map(|error| error.to_string());
                (reports, why)
            }
            Err(error) => (Vec::new(), Some(error.to_string())),
        }
    }

    /// The life of a rank that is a process: it does what the settings say.
    pub(crate) fn run_rank(program: Program) -> std::process::ExitCode {
        let text = |name: &str| std::env::var(name).unwrap_or_else(|error| panic!("{name}: {error}"));
        let number = |name: &str| text(name).parse::<u64>().unwrap_or_else(|error| panic!("{name}: {error}"));
        let (all, directory) = (number(ALL) == 1, text(DIRECTORY).into());
        let task = Task { seed: number(SEED), share: number(SHARE), all, only: text(ONLY), directory };
        let place = &PLACES[number(PLACE) as usize];
        kolo::run(|kolo| {
            let (report, outcome) = program(kolo, &task, place);
            report.write(&report_of(&task.directory, kolo.rank())).expect("a report");
            outcome
        })
    }
}

fn report_of(directory: &Path, rank: usize) -> std::path::PathBuf {
    directory.join(format!("report-{rank}"))
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = match self.kind {
            Kind::Threads => "threads",
            Kind::Processes => "processes",
            Kind::Namespaces => "namespaces",
        };
        let hosts: Vec<String> = self.hosts.iter().map(usize::to_string).collect();
        write!(f, "{kind} {}", hosts.join("+"))?;
        let marks = [(self.deterministic, " deterministic"), (!self.fusion, " without fusion")];
        marks.into_iter().filter(|(is, _)| *is).try_for_each(|(_, mark)| f.write_str(mark))
    }
}
