//! Trains a convolutional network on handwritten digits with all ranks, and shows what that costs and what it equals.
//!
//! ```text
//! cargo build --release --example 03_digits
//! mpirun -np 2 target/release/examples/03_digits --help
//! ```

mod digits;

use std::process::ExitCode;
use std::time::{Duration, Instant};

use digits::arguments::{Arguments, FULL_TRAINING, HELP};
use digits::dataset::Dataset;
use digits::network::{Network, PARAMETERS};
use digits::progress::{count, grouped};
use digits::training::{self, Trained};
use kolo::Kolo;

/// What the test must show after a full training.
const REQUIRED_ACCURACY: f64 = 0.96;

type Error = Box<dyn std::error::Error + Send + Sync>;

fn main() -> ExitCode {
    kolo::run(job)
}

fn job(kolo: &Kolo) -> Result<(), Error> {
    let is_first = kolo.rank() == 0;
    let arguments = Arguments::parse(std::env::args().skip(1))?;
    if arguments.help {
        if is_first {
            println!("{HELP}");
        }
        return Ok(());
    }
    let threads = threads(kolo, &arguments);
    rayon::ThreadPoolBuilder::new().num_threads(threads).build_global()?;

    let (training_data, test_data) = Dataset::load(arguments.seed)?;
    if is_first {
        println!(
            "kolo digits: {} on {}, {} each\n  {} to train on and {} to test, {}, {} a rank and step\n",
            count(kolo.size(), "rank"),
            count(kolo.cross_size(), "host"),
            count(threads, "thread"),
            count(training_data.len(), "image"),
            grouped(test_data.len() as f64),
            count(training::specs().map(|spec| spec.count()).sum(), "parameter"),
            count(training::batch_size(&arguments, kolo.size()), "image"),
        );
    }
    let mut trained = training::train(kolo, &arguments, &training_data)?;
    let accuracy = training::accuracy(kolo, &mut trained.network, &test_data)?;
    let same_on_ranks = training::ranks_agree(kolo, &trained.network)?;
    let enough = accuracy >= REQUIRED_ACCURACY;
    if is_first {
        report(kolo, &trained, accuracy, test_data.len());
    }

    // Rank 0 checks while the others wait for its verdict, so that all end alike.
    let mut equal = [u8::from(true)];
    if arguments.check {
        if is_first {
            equal[0] = u8::from(check(kolo, &arguments, &training_data, &trained.network, same_on_ranks)?);
        }
        kolo.broadcast("verdict", &mut equal, 0)?;
    }
    if !same_on_ranks {
        return Err("the ranks' weights differ".into());
    }
    if equal[0] == 0 && must_be_equal(kolo) {
        return Err("the weights differ from those of one process".into());
    }
    if !enough && arguments.epochs >= FULL_TRAINING {
        return Err(format!("{:.2} % of the test images are too few; 96 % are required", 100.0 * accuracy).into());
    }
    Ok(())
}

/// One host adds in rank order. Several do so where they are asked to: KOLO_DETERMINISTIC=1.
fn must_be_equal(kolo: &Kolo) -> bool {
    kolo.cross_size() == 1 || std::env::var("KOLO_DETERMINISTIC").is_ok_and(|value| value == "1" || value == "true")
}

/// A rank's share of the cores that it may use; where the launcher bound it to some, they are its own.
fn threads(kolo: &Kolo, arguments: &Arguments) -> usize {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    arguments.threads.unwrap_or((cores / kolo.local_size()).max(1))
}

fn report(kolo: &Kolo, trained: &Trained, accuracy: f64, tested: usize) {
    let Trained { steps, samples, time, hand_over, wait, .. } = trained;
    let right = accuracy * tested as f64;
    println!();
    line(
        "test accuracy",
        &format!("{:.2} %  ({right:.0} of {tested} images; 96 % wanted)", 100.0 * accuracy),
        Some(accuracy >= REQUIRED_ACCURACY),
    );
    let rate = grouped(*samples as f64 / time.as_secs_f64());
    line(
        "time",
        &format!("{}  ({steps} steps, {rate} samples/s on {})", seconds(*time), count(kolo.size(), "rank")),
        None,
    );
    let share = 100.0 * (*hand_over + *wait).as_secs_f64() / time.as_secs_f64();
    let parts = format!("hand-over {}, waits {}; mean of the ranks", seconds(*hand_over), seconds(*wait));
    line("communication", &format!("{share:.1} % of the time  ({parts})"), None);
}

/// Compares the weights with those of one process, and says where they part if they do.
fn check(
    kolo: &Kolo,
    arguments: &Arguments,
    data: &Dataset,
    network: &Network,
    same_on_ranks: bool,
) -> Result<bool, Error> {
    let ranks = kolo.size();
    let began = Instant::now();
    let alone = training::train_alone(ranks, arguments, data)?;
    let difference = PARAMETERS.iter().enumerate().find_map(|(index, (name, _))| {
        let (here, there) = (&network.parameters[index], &alone.parameters[index]);
        let place = here.iter().zip(there).position(|(here, there)| here.to_bits() != there.to_bits())?;
        Some(format!("{name}[{place}] is {:e} here, {:e} there", here[place], there[place]))
    });
    let digest = training::digest(network);
    let what = format!("one process adding {} in rank order", count(ranks, "micro-batch"));
    let verdict = match &difference {
        None => format!("equal, bit for bit, those of {what}"),
        Some(difference) => format!("differ from those of {what}: {difference}"),
    };
    if difference.is_some() && !must_be_equal(kolo) {
        line("weights", &verdict, None);
        line("", "as they may: several hosts add in rank order only with KOLO_DETERMINISTIC=1", None);
    } else {
        line("weights", &verdict, Some(difference.is_none()));
    }
    let ranks = if same_on_ranks { "the same on every rank" } else { "not the same on every rank" };
    line("", &format!("digest {digest:016x}, {ranks}; that process took {}", seconds(began.elapsed())), None);
    Ok(difference.is_none())
}

fn line(label: &str, text: &str, good: Option<bool>) {
    let mark = match good {
        Some(true) => "ok",
        Some(false) => "!!",
        None => "",
    };
    println!("  {mark:2}  {label:14} {text}");
}

fn seconds(time: Duration) -> String {
    if time < Duration::from_secs(1) {
        format!("{:.0} ms", 1e3 * time.as_secs_f64())
    } else {
        format!("{:.2} s", time.as_secs_f64())
    }
}
