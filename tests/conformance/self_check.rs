//! That the suite can fail: before any case runs, wrong results are shown to what judges them. This binary has a `main` of its
//! own, and so no test functions that could do it.

use kolo::{Kolo, ReduceOp, bf16, f16};

use super::memory::{Buffer, Memory};
use super::report::{Bits, Report};
use super::sample::{Sample, numbers, values};
use super::tally::Tally;
use super::value::Number;
use super::want::{Scale, Want, check_same, operations};

const SAMPLE: Sample = Sample { count: 37, special: false };
const RANKS: usize = 3;

/// # Panics
/// When something wrong would go unseen, or something right would not pass.
pub(crate) fn run() {
    reductions::<f16>();
    reductions::<bf16>();
    reductions::<f32>();
    reductions::<f64>();
    reductions::<i8>();
    reductions::<u64>();
    moves();
    frames().expect("a job of one rank");
    counts();
}

/// An element, as another of its bits would make it.
fn other<T: Number>(value: T, bit: usize) -> T {
    let mut bytes = bytemuck::bytes_of(&value).to_vec();
    bytes[bit / 8] ^= 1 << (bit % 8);
    bytemuck::pod_read_unaligned(&bytes)
}

fn reductions<T: Number>() {
    let data = numbers::<T>(1, RANKS, SAMPLE);
    let scales = [Scale::NONE, Scale::SOME[0]];
    for (op, scale) in operations::<T>().flat_map(|op| scales.map(|scale| (op, scale))) {
        let want = Want::new(&data, SAMPLE, op, scale);
        let right: Vec<T> = (0..SAMPLE.count)
            .map(|at| {
                let column: Vec<T> = data.iter().map(|row| row[at].scaled(scale.before)).collect();
                T::ordered(&column, op, scale.after)
            })
            .collect();
        let all = 0..SAMPLE.count;
        let what = &want.words;
        for ordered in [true, false] {
            assert_eq!(want.check(&right, all.clone(), ordered), Ok(()), "{what}");
            assert!(want.check(&right[1..], all.clone(), ordered).is_err(), "{what}: one element less passes");
            assert!(want.check(&right[1..], 0..36, ordered).is_err(), "{what}: a shift passes");
            // One bit of one element: the last for what is exact, one that a float's bound does not cover else.
            let bit = if ordered || !T::DTYPE.is_float() { 0 } else { 8 * size_of::<T>() - 9 };
            let mut wrong = right.clone();
            wrong[20] = other(wrong[20], bit);
            let said = want.check(&wrong, all.clone(), ordered).expect_err("a wrong bit");
            assert!(said.starts_with("element 20 of 37 is "), "{what}: {said}");
        }
        // A rank that was left out, and one that was counted twice.
        for rows in [[0, 1, 1], [0, 0, 2]].map(|ranks| ranks.map(|rank| data[rank].clone())) {
            let wrong = Want::new(&rows.to_vec(), SAMPLE, op, scale);
            let lasting = matches!(op, ReduceOp::Sum | ReduceOp::Average | ReduceOp::Xor | ReduceOp::Product);
            let passes = wrong.check(&right, all.clone(), false).is_ok();
            assert!(!lasting || !passes, "{what}: a rank that is left out goes unseen");
        }
    }
    if T::DTYPE.is_float() {
        let (adasum, sum) = (ReduceOp::Adasum, ReduceOp::Sum);
        let want = Want::new(&data, SAMPLE, adasum, Scale::NONE);
        let column = |at: usize| data.iter().map(|row| row[at]).collect::<Vec<T>>();
        let sums: Vec<T> = (0..SAMPLE.count).map(|at| T::ordered(&column(at), sum, 1.0)).collect();
        assert!(want.check(&sums, 0..SAMPLE.count, false).is_err(), "a sum passes for Adasum");
        let nan = vec![data[0][0].scaled(f64::NAN); SAMPLE.count];
        assert!(want.check(&nan, 0..SAMPLE.count, false).is_err(), "NaN passes for Adasum");
        assert!(Want::new(&data, SAMPLE, sum, Scale::NONE).check(&nan, 0..SAMPLE.count, false).is_err(), "NaN passes");
    }
}

fn moves() {
    let data = values::<bool>(1, &[50], &"moves").remove(0);
    assert_eq!(check_same(&data, &data), Ok(()));
    for at in 0..data.len() {
        let mut wrong = data.clone();
        wrong[at] = !wrong[at];
        assert!(check_same(&wrong, &data).is_err_and(|why| why.starts_with(&format!("element {at} of 50"))));
    }
    assert!(check_same(&data[1..], &data).is_err());
    assert!(check_same(&[0.0_f64], &[-0.0]).is_err(), "zeros have signs");
    assert_eq!(check_same(&[f64::NAN], &[-f64::NAN]), Ok(()), "the payload of a NaN is open");
}

fn frames() -> kolo::Result<()> {
    let seen = |kolo: &Kolo| -> kolo::Result<()> {
        for memory in [Memory::Unaligned, Memory::SharedUnaligned] {
            let mut buffer = Buffer::<u32>::poisoned(kolo, memory, 5)?;
            assert!(buffer.is_framed());
            buffer.overrun(7);
            assert!(!buffer.is_framed(), "{memory}: an element beyond the buffer goes unseen");
        }
        Ok(())
    };
    kolo::Builder::new().knob("KOLO_SEED", "off").threads(1, seen)?.into_iter().collect()
}

fn counts() {
    let ran = |digest: u64, here_only: bool| {
        let mut report = Report::default();
        report.begin("allreduce f32, one".to_owned(), 2);
        report.bits(Bits { digest, of: "it".to_owned(), here_only });
        report
    };
    let failed = |jobs: &[&[Report]]| {
        let mut tally = Tally::default();
        jobs.iter().for_each(|reports| tally.add(reports));
        assert_eq!(tally.cases(), 1, "a case counts once");
        assert!(tally.to_string().ends_with(&format!("1 cases, {} failed\n", tally.failed())));
        tally.failed()
    };
    assert_eq!(failed(&[&[ran(1, false), ran(1, false)], &[ran(1, false), ran(1, false)]]), 0);
    assert_eq!(failed(&[&[ran(1, true), ran(1, true)], &[ran(2, true), ran(2, true)]]), 0);
    assert_eq!(failed(&[&[ran(1, true), ran(2, true)]]), 1, "ranks with different bits");
    assert_eq!(
        failed(&[&[ran(1, false), ran(1, false)], &[ran(2, false), ran(2, false)]]),
        1,
        "jobs with different bits"
    );
    assert_eq!(failed(&[&[ran(1, false)]]), 1, "a rank that did not run it");
    let mut wrong = ran(1, false);
    wrong.check(1, Err("an element,\n\tand why".to_owned()));
    let file = tempfile::NamedTempFile::new().expect("a file");
    wrong.write(file.path()).expect("written");
    let read = Report::read(file.path()).expect("read");
    assert_eq!((&read.ran, read.failed.len()), (&wrong.ran, 1), "what a rank leaves is read");
    assert_eq!(failed(&[&[read, ran(1, false)]]), 1, "a failure of one rank");
}
