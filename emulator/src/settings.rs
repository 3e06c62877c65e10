//! The environment variables by which a test shapes the machine: read once, by `cuInit`.

use std::sync::OnceLock;
use std::time::Duration;

use crate::faults;

/// What the environment asks for.
#[derive(Clone, Debug)]
pub(crate) struct Settings {
    /// `CUDA_VISIBLE_DEVICES`: those that the process sees of `KOLO_EMULATOR_DEVICES`, in its order; physical numbers.
    pub(crate) visible: Vec<usize>,
    /// `KOLO_EMULATOR_MEMORY`: bytes of each device, for this process alone.
    pub(crate) memory: u64,
    /// `KOLO_EMULATOR_POOLS`: whether devices have memory pools.
    pub(crate) pools: bool,
    /// `KOLO_EMULATOR_PEERS`: whether devices reach each other's memory.
    pub(crate) peers: bool,
    /// `KOLO_EMULATOR_SPIN_LIMIT_MS`: how long a kernel, or a wait for a dead process, may go on without progress.
    pub(crate) spin_limit: Duration,
    /// `KOLO_EMULATOR_BLOCKS`: how many blocks run together, in kernels that wait.
    pub(crate) blocks: u32,
    /// `KOLO_EMULATOR_ORDER`: 0 runs threads in order; anything else is the seed of another order.
    pub(crate) order: u64,
    /// `KOLO_EMULATOR_FIBERS`: whether fibers switch by ucontext although there is an assembly switch.
    pub(crate) ucontext: bool,
    /// `KOLO_EMULATOR_KERNELS`: libraries of kernels besides the one beside this library.
    pub(crate) kernels: Vec<String>,
}

/// All variables, for a look at those that are misspelt.
const NAMES: &[&str] = &[
    "DEVICES",
    "MEMORY",
    "POOLS",
    "PEERS",
    "SPIN_LIMIT_MS",
    "BLOCKS",
    "ORDER",
    "FIBERS",
    "KERNELS",
    "FAULTS",
    "DELAYS",
    "TRACE",
    "LEAKS",
];
const PREFIX: &str = "KOLO_EMULATOR_";
/// What the tests of this crate tell their own processes.
const OF_TESTS: &str = "TEST_";

/// The settings; those of the first call stay.
pub(crate) fn settings() -> &'static Settings {
    static SETTINGS: OnceLock<Settings> = OnceLock::new();
    SETTINGS.get_or_init(|| {
        let read = |name: &str| std::env::var(name).ok();
        let names = std::env::vars_os().map(|(name, _)| name.to_string_lossy().into_owned());
        match check_names(names).and_then(|()| Settings::parse(&read)) {
            Ok(settings) => settings,
            // A test whose settings are wrong proves nothing, and a wrong code would say less than this.
            Err(message) => panic!("kolo emulator: {message}"),
        }
    })
}

/// A variable that nobody reads does nothing, and a test that sets it proves nothing.
fn check_names(mut names: impl Iterator<Item = String>) -> Result<(), String> {
    let is_wrong = |name: &String| {
        let own = name.strip_prefix(PREFIX);
        own.is_some_and(|rest| !NAMES.contains(&rest) && !rest.starts_with(OF_TESTS))
    };
    match names.find(is_wrong) {
        Some(name) => Err(format!("there is no variable {name}: {PREFIX} is followed by one of {}", NAMES.join(", "))),
        None => Ok(()),
    }
}

impl Settings {
    fn parse(read: &dyn Fn(&str) -> Option<String>) -> Result<Self, String> {
        let devices = number(read, "KOLO_EMULATOR_DEVICES", 1)? as usize;
        Ok(Self {
            visible: visible(read("CUDA_VISIBLE_DEVICES").as_deref(), devices),
            memory: bytes(read, "KOLO_EMULATOR_MEMORY", 4 << 30)?,
            pools: number(read, "KOLO_EMULATOR_POOLS", 1)? != 0,
            peers: number(read, "KOLO_EMULATOR_PEERS", 1)? != 0,
            spin_limit: Duration::from_millis(number(read, "KOLO_EMULATOR_SPIN_LIMIT_MS", 30_000)?),
            blocks: number(read, "KOLO_EMULATOR_BLOCKS", 64)?.clamp(1, 1024) as u32,
            order: number(read, "KOLO_EMULATOR_ORDER", 0)?,
            ucontext: match read("KOLO_EMULATOR_FIBERS").as_deref() {
                None | Some("" | "assembly") => false,
                Some("ucontext") => true,
                Some(other) => return Err(format!("KOLO_EMULATOR_FIBERS={other}: it is assembly or ucontext")),
            },
            kernels: read("KOLO_EMULATOR_KERNELS")
                .map(|paths| paths.split(':').filter(|path| !path.is_empty()).map(str::to_owned).collect())
                .unwrap_or_default(),
        })
    }
}

/// The physical devices that CUDA_VISIBLE_DEVICES names, by number or by the beginning of their UUID. What follows an
/// entry that names none is not seen, as with the driver.
fn visible(list: Option<&str>, devices: usize) -> Vec<usize> {
    let Some(list) = list else { return (0..devices).collect() };
    let mut seen = Vec::new();
    for entry in list.split(',').map(str::trim) {
        let by_uuid = || (0..devices).find(|&device| entry.len() > 4 && uuid_text(device).starts_with(entry));
        let Some(device) = entry.parse().ok().filter(|&device: &usize| device < devices).or_else(by_uuid) else {
            break;
        };
        // A device that is named twice makes the list worthless.
        if seen.contains(&device) {
            return Vec::new();
        }
        seen.push(device);
    }
    seen
}

/// The 16 bytes by which processes know that they have the same device.
pub(crate) fn uuid(physical: usize) -> [u8; 16] {
    let mut bytes = *b"kolo-emulator-\0\0";
    bytes[14..].copy_from_slice(&(physical as u16).to_be_bytes());
    bytes
}

/// The same, as CUDA_VISIBLE_DEVICES takes it.
fn uuid_text(physical: usize) -> String {
    let hex: String = uuid(physical).iter().map(|byte| format!("{byte:02x}")).collect();
    format!("GPU-{}-{}-{}-{}-{}", &hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..])
}

fn number(read: &dyn Fn(&str) -> Option<String>, name: &str, usual: u64) -> Result<u64, String> {
    let Some(text) = read(name) else { return Ok(usual) };
    text.trim().parse().map_err(|_| format!("{name}={text}: it takes a number"))
}

fn bytes(read: &dyn Fn(&str) -> Option<String>, name: &str, usual: u64) -> Result<u64, String> {
    let Some(text) = read(name) else { return Ok(usual) };
    let units = [("KiB", 10), ("MiB", 20), ("GiB", 30), ("", 0)];
    let parsed = units.iter().find_map(|(unit, shift)| {
        let count: u64 = text.trim().strip_suffix(unit)?.trim().parse().ok()?;
        count.checked_mul(1 << shift)
    });
    parsed.ok_or_else(|| format!("{name}={text}: it takes bytes, as 512 or 64MiB"))
}

/// Reads a list of `NAME=NUMBER`, separated by commas, in which a bare number stands for every name.
pub(crate) fn delays(text: &str) -> Result<Vec<(String, Duration)>, String> {
    let entries = text.split(',').filter(|entry| !entry.is_empty());
    let parse = |entry: &str| {
        let (name, micros) = entry.split_once('=').unwrap_or(("", entry));
        let micros = micros.parse().map_err(|_| format!("the delay {entry:?}: it takes NAME=MICROSECONDS"))?;
        Ok((faults::delayed(name)?.to_owned(), Duration::from_micros(micros)))
    };
    entries.map(parse).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(entries: &[(&str, &str)]) -> Result<Settings, String> {
        let entries: Vec<(String, String)> = entries.iter().map(|(a, b)| ((*a).to_owned(), (*b).to_owned())).collect();
        Settings::parse(&move |name| entries.iter().find(|entry| entry.0 == name).map(|entry| entry.1.clone()))
    }

    #[test]
    fn an_empty_environment_is_one_device() {
        let settings = parsed(&[]).unwrap();
        assert_eq!(settings.visible, [0]);
        assert!(settings.pools && settings.peers && !settings.ucontext);
    }

    #[test]
    fn visible_devices_are_chosen_and_ordered() {
        let two = uuid_text(2);
        for (list, expected) in [
            ("2,0", vec![2, 0]),
            ("", vec![]),
            ("-1", vec![]),
            ("1,9,0", vec![1]),
            ("0,0", vec![]),
            (two.as_str(), vec![2]),
            ("none", vec![]),
        ] {
            assert_eq!(visible(Some(list), 4), expected, "{list}");
        }
        assert_eq!(visible(None, 3), [0, 1, 2]);
    }

    #[test]
    fn wrong_values_name_their_variable() {
        for (name, value) in [
            ("KOLO_EMULATOR_DEVICES", "two"),
            ("KOLO_EMULATOR_MEMORY", "1 gallon"),
            ("KOLO_EMULATOR_FIBERS", "threads"),
        ] {
            assert!(parsed(&[(name, value)]).unwrap_err().contains(name));
        }
        assert_eq!(parsed(&[("KOLO_EMULATOR_MEMORY", "64MiB")]).unwrap().memory, 64 << 20);
    }

    #[test]
    fn misspelt_variables_are_found() {
        let check = |name: &str| check_names([name.to_owned()].into_iter());
        assert!(check("KOLO_EMULATOR_FAULT").unwrap_err().contains("KOLO_EMULATOR_FAULT"));
        assert!(check("KOLO_EMULATOR_FAULTS").is_ok() && check("KOLO_EMULATOR_TEST_ROLE").is_ok());
        assert!(check("KOLO_DEADLINE").is_ok());
    }

    #[test]
    fn delays_have_names() {
        let micros = Duration::from_micros;
        assert_eq!(delays("3000").unwrap(), [(String::new(), micros(3000))]);
        let listed = delays("copy=5,kernel/kolo_pack=7").unwrap();
        assert_eq!(listed, [("copy".to_owned(), micros(5)), ("kernel/kolo_pack".to_owned(), micros(7))]);
        assert!(delays("copies=5").is_err() && delays("copy=fast").is_err());
    }
}
