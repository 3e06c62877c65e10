//! The command line. Its options and their meaning are stable: scripts depend on them.

use crate::presets::Preset;
use crate::sizes::Sweep;
use clap::{Args, CommandFactory, Parser, Subcommand, ValueEnum, error::ErrorKind};
use kolo::{Algorithm, DType, ReduceOp};
use std::path::PathBuf;

/// Measures kolo's allreduce, side by side with its peers.
///
/// Start it with an MPI launcher: `mpirun -np 2 kolo-bench allreduce --bytes 4:256MiB:4 --against mpi`.
#[derive(Debug, Parser)]
#[command(name = "kolo-bench", version, max_term_width = 100)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// One tensor, over a range of sizes.
    Allreduce(AllreduceArgs),
    /// A model's list of gradients: named, negotiated, fused and cached, in place.
    List(ListArgs),
    /// What an initialised, idle runtime costs: CPU and wake-ups of all threads, after 100 cached lists.
    Idle(IdleArgs),
    /// What waiting for a late rank costs the others.
    Late(LateArgs),
    /// Where the ranks of a job part, from its flight records. Needs no launcher.
    Flight(FlightArgs),
    /// What a flight record costs. Needs no launcher.
    FlightCost(FlightCostArgs),
}

#[derive(Args, Clone, Debug)]
pub(crate) struct AllreduceArgs {
    /// Sizes in bytes, minimum:maximum:factor, with units if you like; or a single size.
    #[arg(long, default_value = "4:256MiB:4", value_name = "MIN:MAX:FACTOR")]
    pub(crate) bytes: Sweep,
    #[command(flatten)]
    pub(crate) element: ElementArgs,
    /// Which interface: `communicator` is matched by call order, `named` is negotiated (blocking, cached, in place).
    #[arg(long, value_enum, default_value_t = Api::Communicator)]
    pub(crate) api: Api,
    /// Whose memory holds our tensors: the process's own, or `kolo.alloc`'s. Peers always get the process's own.
    #[arg(long, value_enum, default_value_t = Buffers::Private)]
    pub(crate) buffers: Buffers,
    /// Reduce in place, for us and for the peer. The named interface always does.
    #[arg(long)]
    pub(crate) in_place: bool,
    /// kolo's algorithm; without it what KOLO_ALGORITHM says, or auto.
    #[arg(long)]
    pub(crate) algorithm: Option<Algorithm>,
    #[command(flatten)]
    pub(crate) contest: ContestArgs,
}

#[derive(Args, Clone, Debug)]
pub(crate) struct ListArgs {
    /// The model whose gradients are reduced.
    #[arg(long, value_enum, default_value_t = Preset::Resnet50)]
    pub(crate) preset: Preset,
    #[command(flatten)]
    pub(crate) element: ElementArgs,
    /// Whose memory holds our tensors: the process's own, or `kolo.alloc`'s. Peers always get the process's own.
    #[arg(long, value_enum, default_value_t = Buffers::Private)]
    pub(crate) buffers: Buffers,
    /// kolo's algorithm; without it what KOLO_ALGORITHM says, or auto.
    #[arg(long)]
    pub(crate) algorithm: Option<Algorithm>,
    #[command(flatten)]
    pub(crate) contest: ContestArgs,
}

#[derive(Args, Clone, Debug)]
pub(crate) struct IdleArgs {
    /// How long to stay idle while measuring.
    #[arg(long, default_value_t = 5.0, value_parser = parse_seconds)]
    pub(crate) seconds: f64,
    /// The list that is reduced 100 times before.
    #[arg(long, value_enum, default_value_t = Preset::Resnet50)]
    pub(crate) preset: Preset,
    /// Write the results to this file.
    #[arg(long, value_name = "FILE")]
    pub(crate) json: Option<PathBuf>,
}

#[derive(Args, Clone, Debug)]
pub(crate) struct LateArgs {
    /// How late the last rank comes.
    #[arg(long, default_value_t = 1.0, value_parser = parse_seconds)]
    pub(crate) seconds: f64,
    /// How often.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) rounds: u32,
    /// Write the results to this file.
    #[arg(long, value_name = "FILE")]
    pub(crate) json: Option<PathBuf>,
}

#[derive(Args, Clone, Debug)]
pub(crate) struct FlightArgs {
    /// The directory of a job, or that of all jobs, of which the newest is taken; several where hosts keep theirs apart.
    #[arg(required = true, value_name = "DIR")]
    pub(crate) paths: Vec<PathBuf>,
    /// Write what was found to this file.
    #[arg(long, value_name = "FILE")]
    pub(crate) json: Option<PathBuf>,
}

#[derive(Args, Clone, Debug)]
pub(crate) struct FlightCostArgs {
    /// Where the file lies meanwhile; without it where jobs have theirs.
    #[arg(long, value_name = "DIR")]
    pub(crate) directory: Option<PathBuf>,
    /// Rounds of 20,000 records.
    #[arg(long, default_value_t = 31, value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) rounds: u32,
    /// Write the results to this file.
    #[arg(long, value_name = "FILE")]
    pub(crate) json: Option<PathBuf>,
}

#[derive(Args, Clone, Copy, Debug)]
pub(crate) struct ElementArgs {
    /// Element type: f16, bf16, f32, f64, or i or u and 8, 16, 32 or 64.
    #[arg(long, default_value = "f32", value_parser = parse_dtype)]
    pub(crate) dtype: DType,
    /// Operation: sum, average, min, max or product; of integers also and, or, xor.
    #[arg(long, default_value = "sum", value_parser = parse_op)]
    pub(crate) op: ReduceOp,
}

#[derive(Args, Clone, Debug)]
pub(crate) struct ContestArgs {
    /// Whom to measure against, in alternation with us: `mpi`, and for lists `mpi-fused`; several with commas.
    #[arg(long, value_enum, value_delimiter = ',')]
    pub(crate) against: Vec<Peer>,
    /// Rounds of each contender.
    #[arg(long, default_value_t = 7, value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) rounds: u32,
    /// Write the results to this file.
    #[arg(long, value_name = "FILE")]
    pub(crate) json: Option<PathBuf>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Api {
    Communicator,
    Named,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Buffers {
    Private,
    Shared,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Peer {
    /// MPI_Allreduce, tensor by tensor.
    Mpi,
    /// Pack everything, one MPI_Allreduce in place, unpack.
    MpiFused,
}

/// The algorithm that a report names: what was asked for, here or in the environment, where kolo itself looks.
pub(crate) fn algorithm_name(asked: Option<Algorithm>) -> String {
    let environment = || std::env::var("KOLO_ALGORITHM").ok().filter(|name| !name.is_empty());
    asked.map(|algorithm| algorithm.to_string()).or_else(environment).unwrap_or_else(|| Algorithm::Auto.to_string())
}

/// The name a value has on the command line.
pub(crate) fn name_of(value: &impl ValueEnum) -> String {
    value.to_possible_value().map(|value| value.get_name().to_owned()).unwrap_or_default()
}

impl Cli {
    /// Parses and checks the arguments.
    ///
    /// # Errors
    ///
    /// What is wrong and what to write instead; also `--help` and `--version`, as clap reports them.
    pub(crate) fn from_args(args: impl IntoIterator<Item = std::ffi::OsString>) -> Result<Self, clap::Error> {
        let cli = Self::try_parse_from(args)?;
        cli.check().map_err(|text| Self::command().error(ErrorKind::ValueValidation, text))?;
        Ok(cli)
    }

    /// kolo's algorithm, where the command line chooses one.
    pub(crate) fn algorithm(&self) -> Option<Algorithm> {
        match &self.command {
            Command::Allreduce(args) => args.algorithm,
            Command::List(args) => args.algorithm,
            Command::Idle(_) | Command::Late(_) | Command::Flight(_) | Command::FlightCost(_) => None,
        }
    }

    /// The shared memory that our buffers take on each rank; `None` where they are private.
    pub(crate) fn shared_bytes(&self) -> Option<usize> {
        let (kind, buffers) = match &self.command {
            Command::Allreduce(args) => {
                let largest = args.bytes.sizes().last().map_or(0, |bytes| *bytes as usize);
                let in_place = args.in_place || args.api == Api::Named;
                (args.buffers, vec![largest; if in_place { 1 } else { 2 }])
            }
            Command::List(args) => {
                let size = args.element.dtype.size();
                (args.buffers, args.preset.counts(size).into_iter().map(|count| count * size).collect())
            }
            Command::Idle(_) | Command::Late(_) | Command::Flight(_) | Command::FlightCost(_) => return None,
        };
        // Each buffer may begin on a page of its own.
        (kind == Buffers::Shared)
            .then(|| buffers.iter().map(|bytes| bytes.next_multiple_of(4096) + 4096).sum::<usize>().max(16 << 20))
    }

    /// Whether a peer runs, and with it MPI's collectives.
    pub(crate) fn has_peer(&self) -> bool {
        match &self.command {
            Command::Allreduce(args) => !args.contest.against.is_empty(),
            Command::List(args) => !args.contest.against.is_empty(),
            Command::Idle(_) | Command::Late(_) | Command::Flight(_) | Command::FlightCost(_) => false,
        }
    }

    fn check(&self) -> Result<(), String> {
        match &self.command {
            Command::Allreduce(args) => {
                let size = args.element.dtype.size() as u64;
                if let Some(bytes) = args.bytes.sizes().into_iter().find(|bytes| bytes % size != 0) {
                    return Err(format!(
                        "{bytes} bytes are not a whole number of {} elements ({size} bytes each); \
                         start --bytes at a multiple of {size}",
                        args.element.dtype
                    ));
                }
                if args.contest.against.contains(&Peer::MpiFused) {
                    return Err("mpi-fused packs a list into one buffer; a single tensor has nothing to pack: \
                                use --against mpi, or the list command"
                        .into());
                }
                args.element.check(&args.contest)
            }
            Command::List(args) => args.element.check(&args.contest),
            Command::Idle(_) | Command::Late(_) | Command::Flight(_) | Command::FlightCost(_) => Ok(()),
        }
    }
}

impl ElementArgs {
    /// MPI has neither the 16-bit floats nor an average: measuring something else under its name would mislead.
    fn check(&self, contest: &ContestArgs) -> Result<(), String> {
        if !self.op.takes(self.dtype) {
            return Err(format!("{} does not take {}; use an integer type, such as --dtype i32", self.op, self.dtype));
        }
        if contest.against.is_empty() {
            return Ok(());
        }
        if matches!(self.dtype, DType::F16 | DType::BF16) {
            return Err(format!(
                "MPI has no type for {}; leave out --against to measure kolo alone, or use --dtype f32",
                self.dtype
            ));
        }
        if self.op == ReduceOp::Average {
            return Err("MPI has no operation for average; leave out --against to measure kolo alone, \
                        or use --op sum"
                .into());
        }
        Ok(())
    }
}

fn parse_dtype(text: &str) -> Result<DType, String> {
    let reducible = || DType::ALL.into_iter().filter(|dtype| ReduceOp::Sum.takes(*dtype));
    reducible().find(|dtype| dtype.name().eq_ignore_ascii_case(text)).ok_or_else(|| {
        let names: Vec<_> = reducible().map(DType::name).collect();
        format!("no such element type; use one of {}", names.join(", "))
    })
}

fn parse_op(text: &str) -> Result<ReduceOp, String> {
    let short = match text.to_ascii_lowercase().as_str() {
        "avg" => "average".to_owned(),
        "prod" => "product".to_owned(),
        other => other.to_owned(),
    };
    // Adasum's results are no small whole numbers, by which a benchmark could tell right from wrong.
    let known = || ReduceOp::ALL.into_iter().filter(|op| *op != ReduceOp::Adasum);
    known().find(|op| op.name() == short).ok_or_else(|| {
        let names: Vec<_> = known().map(ReduceOp::name).collect();
        format!("no such operation; use one of {}", names.join(", "))
    })
}

fn parse_seconds(text: &str) -> Result<f64, String> {
    match text.trim_end_matches('s').parse::<f64>() {
        Ok(seconds) if seconds > 0.0 && seconds <= 3600.0 => Ok(seconds),
        Ok(_) => Err("use more than 0 seconds and at most 3600".into()),
        Err(_) => Err("write a number of seconds, as in 5 or 0.5".into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Result<Cli, String> {
        Cli::from_args(line.split_whitespace().map(Into::into)).map_err(|error| error.to_string())
    }

    #[test]
    fn the_definition_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn the_documented_lines_parse() {
        let cli = parse(
            "kolo-bench allreduce --bytes 4:256MiB:4 --dtype f32 --op sum --api communicator --buffers private \
             --in-place --algorithm auto --against mpi --rounds 7 --json out.json",
        )
        .unwrap();
        assert!(cli.has_peer());
        let Command::Allreduce(args) = cli.command else { panic!("not an allreduce") };
        assert_eq!(args.bytes.sizes().len(), 14);
        assert_eq!((args.element.dtype, args.element.op), (DType::F32, ReduceOp::Sum));
        assert_eq!((args.api, args.buffers, args.in_place), (Api::Communicator, Buffers::Private, true));
        assert_eq!((args.contest.against, args.contest.rounds), (vec![Peer::Mpi], 7));
        assert_eq!(args.contest.json, Some("out.json".into()));

        let cli = parse("kolo-bench list --preset bert-large --against mpi,mpi-fused --rounds 3").unwrap();
        let Command::List(args) = cli.command else { panic!("not a list") };
        assert_eq!(args.preset, Preset::BertLarge);
        assert_eq!(args.contest.against, [Peer::Mpi, Peer::MpiFused]);

        let cli = parse("kolo-bench idle --seconds 5 --json idle.json").unwrap();
        assert!(!cli.has_peer());
        let Command::Idle(args) = cli.command else { panic!("not idle") };
        assert_eq!(args.seconds, 5.0);
        let Command::Late(args) = parse("kolo-bench late --seconds 1").unwrap().command else { panic!("not late") };
        assert_eq!(args.seconds, 1.0);
    }

    #[test]
    fn defaults() {
        let Command::Allreduce(args) = parse("kolo-bench allreduce").unwrap().command else { panic!() };
        assert_eq!((args.contest.rounds, args.api, args.in_place), (7, Api::Communicator, false));
        assert!(args.contest.against.is_empty());
    }

    #[test]
    fn shared_buffers_fit_the_reserve() {
        let bytes = |line: &str| parse(&format!("kolo-bench {line}")).unwrap().shared_bytes();
        assert_eq!(bytes("allreduce"), None);
        assert!(bytes("allreduce --bytes 4:64MiB:4 --buffers shared").unwrap() >= 2 * (64 << 20));
        let in_place = bytes("allreduce --bytes 64MiB --buffers shared --in-place").unwrap();
        assert!((64 << 20..65 << 20).contains(&in_place));
        assert_eq!(bytes("allreduce --bytes 64MiB --buffers shared --api named"), Some(in_place));
        assert!(bytes("list --buffers shared").unwrap() >= 25_557_032 * 4);
        assert_eq!(bytes("list --preset small161 --buffers shared"), Some(16 << 20));
    }

    #[test]
    fn bad_arguments_say_what_to_write() {
        for (line, words) in [
            ("allreduce --dtype f64", "multiple of 8"),
            ("allreduce --dtype f16 --bytes 2 --against mpi", "no type for f16"),
            ("allreduce --op avg --against mpi", "no operation for average"),
            ("list --dtype bf16 --against mpi-fused", "no type for bf16"),
            ("allreduce --against mpi-fused", "the list command"),
            ("allreduce --dtype f8", "use one of f16, bf16, f32"),
            ("allreduce --dtype bool", "use one of f16, bf16, f32"),
            ("allreduce --op nand", "use one of sum, average"),
            ("allreduce --op xor", "xor does not take f32; use an integer type"),
            ("list --op and --dtype bf16", "and does not take bf16"),
            ("allreduce --bytes 8:4", "below the minimum"),
            ("allreduce --rounds 0", "--rounds"),
            ("allreduce --algorithm magic", "--algorithm"),
            ("list --preset alexnet", "resnet50"),
            ("idle --seconds 0", "more than 0"),
            ("late --seconds soon", "number of seconds"),
            ("allreduce --buffers gpu", "private"),
        ] {
            let error = parse(&format!("kolo-bench {line}")).unwrap_err();
            assert!(error.contains(words), "{line}: {error}");
        }
    }
}
