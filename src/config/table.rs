//! The one table of knobs: from it come the parser, the help text, `docs/knobs.md` and the check that ranks agree.

use std::time::Duration;

use super::value::{AlgorithmName, Auto, Bytes, Flight, Folder, Hosts, OrOff, Value};

/// A knob, as users see it.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct Knob {
    /// The name in the environment and in the configuration file.
    pub name: &'static str,
    /// What may be written.
    pub form: &'static str,
    /// The text of the default.
    pub default: fn() -> String,
    /// Whether every rank must have the same value.
    pub agree: bool,
    /// Names of the same knob in Horovod that are accepted too.
    pub aliases: &'static [Alias],
    /// What it does.
    pub doc: &'static str,
}

/// A name that another program gave to a knob of the same meaning.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct Alias {
    /// The name in the environment.
    pub name: &'static str,
    /// What a bare number there counts, appended before parsing: `s`, or nothing.
    pub unit: &'static str,
    /// A value that meant "the default" or "never" there and leaves this knob at its default.
    pub ignored: Option<&'static str>,
}

const fn alias(name: &'static str, unit: &'static str, ignored: Option<&'static str>) -> Alias {
    Alias { name, unit, ignored }
}

macro_rules! knobs {
    ($(
        $(#[doc = $doc:literal])+
        $field:ident: $t:ty = $default:expr, $name:literal, $agree:ident, [$($alias:expr),*];
    )*) => {
        /// Every knob, validated. Fields have the names of the knobs without `KOLO_`.
        #[derive(Clone, Debug, PartialEq)]
        pub(crate) struct Config {
            $($(#[doc = $doc])+ pub(crate) $field: $t,)*
        }

        impl Default for Config {
            fn default() -> Self {
                Self { $($field: $default),* }
            }
        }

        impl Config {
            /// Sets the knob called `name`. `Err` says what is wrong with the text.
            pub(super) fn set(&mut self, name: &str, text: &str) -> Result<(), String> {
                match name {
                    $($name => self.$field = <$t as Value>::parse(text)?,)*
                    _ => return Err("there is no such knob".to_owned()),
                }
                Ok(())
            }

            /// The text of the knob called `name`.
            pub(super) fn text(&self, name: &str) -> Option<String> {
                match name {
                    $($name => Some(Value::show(&self.$field)),)*
                    _ => None,
                }
            }
        }

        pub(crate) const KNOBS: &[Knob] = &[$(Knob {
            name: $name,
            form: <$t as Value>::FORM,
            default: || {
                let value: $t = $default;
                Value::show(&value)
            },
            agree: knobs!(@agree $agree),
            aliases: &[$($alias),*],
            doc: concat!($($doc),+),
        },)*];
    };
    (@agree agreed) => { true };
    (@agree local) => { false };
}

knobs! {
    /// How long any wait lasts before it is an error that names the ranks that are missing. A deadline passed to a
    /// call, and `Kolo::pause`, come on top.
    deadline: Duration = Duration::from_secs(300), "KOLO_DEADLINE", agreed,
        [alias("HOROVOD_STALL_SHUTDOWN_TIME_SECONDS", "s", Some("0"))];

    /// How long a wait lasts before a warning names the ranks that are missing.
    stall_warning: OrOff<Duration> = OrOff(Some(Duration::from_secs(60))), "KOLO_STALL_WARNING", local,
        [alias("HOROVOD_STALL_CHECK_TIME_SECONDS", "s", Some("0"))];

    /// How long another host may be out of reach before it counts as lost, while something of it is waited for. A
    /// network that drops out for longer, now and then, needs more.
    host_timeout: Duration = Duration::from_secs(1), "KOLO_HOST_TIMEOUT", agreed, [];

    /// Pretends that the ranks run on several hosts: the first 2 on one and the next 2 on another for `2,2`. Every
    /// pretend host has its own shared memory and reaches the others over messages. For tests and experiments.
    hosts: Hosts = Hosts::default(), "KOLO_HOSTS", agreed, [];

    /// Shared memory for `Kolo::alloc`, per rank. All of it is reserved when the job starts; it does not grow.
    shared_reserve: Bytes = Bytes::mib(16), "KOLO_SHARED_RESERVE", agreed, [];

    /// Bytes of one slot of shared memory. Tensors move between the ranks of a host in pieces of this size.
    slot_bytes: Bytes = Bytes::kib(256), "KOLO_SLOT_BYTES", agreed, [];

    /// Slots that each rank has in each set: how many pieces may be under way at once.
    slots: usize = 4, "KOLO_SLOTS", agreed, [];

    /// The allreduce algorithm. `auto` picks one by hosts, ranks and bytes for each operation.
    algorithm: AlgorithmName = AlgorithmName("auto"), "KOLO_ALGORITHM", agreed, [];

    /// Sums in rank order across hosts as well: the same bits on every rank, in every run. On one host sums are in
    /// rank order anyway.
    deterministic: bool = false, "KOLO_DETERMINISTIC", agreed, [];

    /// Tensors that are ready together are reduced as one operation up to this many bytes. 0 keeps each on its own.
    fusion_bytes: Bytes = Bytes::mib(64), "KOLO_FUSION_BYTES", agreed, [alias("HOROVOD_FUSION_THRESHOLD", "", None)];

    /// How long a tensor that is ready on every rank may wait for others to be fused with it. `auto` adapts.
    fusion_window: Auto<Duration> = Auto(None), "KOLO_FUSION_WINDOW", agreed, [];

    /// How many named tensors the ranks remember, so that agreeing on them again costs one bit. 0 turns it off.
    cache_capacity: usize = 1024, "KOLO_CACHE_CAPACITY", agreed, [alias("HOROVOD_CACHE_CAPACITY", "", None)];

    /// How many bytes the object of a rank may come to in `broadcast_object` and `allgather_object`. A larger one is an
    /// error on every rank before it moves; a rank holds the objects of all ranks at a time.
    object_bytes: Bytes = Bytes::mib(256), "KOLO_OBJECT_BYTES", agreed, [];

    /// How long a waiting rank spins before it yields the core. `auto`: briefly where the ranks of the host fit its
    /// cores, not at all where they do not.
    spin: Auto<Duration> = Auto(None), "KOLO_SPIN", local, [];

    /// Records what each rank does in a file that outlives its process, for `kolo-bench flight`. The files are removed
    /// when the job ends in order; `keep` leaves them then, too.
    flight: Flight = Flight::On, "KOLO_FLIGHT", local, [];

    /// Where the flight records of a job get a directory of their own: a directory of this user, best in memory (a tmpfs).
    /// By default `kolo-flight-UID` in the directory for temporary files, and only for jobs of several processes.
    flight_dir: Folder = Folder(None), "KOLO_FLIGHT_DIR", local, [];

    /// How many operations the flight records of a rank hold, at 96 bytes each: a power of two.
    flight_records: usize = 4096, "KOLO_FLIGHT_RECORDS", local, [];

    /// Seeds the delays and the order of work that tests use to provoke races.
    seed: OrOff<u64> = OrOff(None), "KOLO_SEED", agreed, [];
}

/// Whether a name is kolo's but no knob of a rank: the file of knobs, and switches of its tests.
pub(super) fn is_other_name(name: &str) -> bool {
    [FILE, "KOLO_REQUIRE_GPU", "KOLO_SEEDS", "KOLO_BLESS"].contains(&name) || name.starts_with("KOLO_TEST_")
}

/// Names the configuration file.
pub(super) const FILE: &str = "KOLO_CONFIG";
