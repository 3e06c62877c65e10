//! The distributed optimizer as its users meet it: what it computes, and what it says when ranks go wrong.

use std::fmt::Debug;

use kolo::optim::{
    DistributedOptimizer, DistributedOptions, MissingGradients, Optimizer, ParameterSpec, Real, Sgd, SgdOptions,
    average_metric, average_weighted, broadcast_parameters,
};
use kolo::{Error, Kolo, ReduceOp, Result, SharedBuffer};

/// Keeps the gradients it is given; updates by them at a rate of 1.
#[derive(Debug, Default)]
struct Plain {
    seen: Vec<(usize, String)>,
}

impl<T: Real> Optimizer<T> for Plain {
    fn update(&mut self, index: usize, name: &str, values: &mut [T], gradient: &[T]) -> Result<()> {
        self.seen.push((index, name.to_owned()));
        values.iter_mut().zip(gradient).for_each(|(value, &gradient)| *value = *value - gradient);
        Ok(())
    }

    fn learning_rate(&self) -> f64 {
        1.0
    }

    fn set_learning_rate(&mut self, _: f64) {}
}

type Wrapped = DistributedOptimizer<Plain>;

fn specs() -> [ParameterSpec; 3] {
    [ParameterSpec::new("a", [2]), ParameterSpec::new("b", [1, 3]), ParameterSpec::new("c", [])]
}

fn zeros() -> Vec<Vec<f32>> {
    specs().iter().map(|spec| vec![0.0; spec.count()]).collect()
}

fn wrapped(kolo: &Kolo, options: DistributedOptions) -> Result<Wrapped> {
    Wrapped::with_options(kolo, Plain::default(), specs(), options)
}

/// Runs `rank` on `size` ranks, and gives what each returned.
fn ranks<R: Send>(size: usize, rank: impl Fn(&Kolo) -> Result<R> + Sync) -> Vec<Result<R>> {
    kolo::threads(size, rank).expect("ranks")
}

fn all<R: Send + Debug>(size: usize, rank: impl Fn(&Kolo) -> Result<R> + Sync) -> Vec<R> {
    ranks(size, rank).into_iter().map(|result| result.expect("a rank without errors")).collect()
}

/// Gradient of a parameter on a rank in a pass: numbers that no two share.
fn gradient(spec: &ParameterSpec, rank: usize, pass: usize) -> Vec<f32> {
    let salt = spec.name().as_bytes()[0] as usize * 100 + rank * 10 + pass;
    (0..spec.count()).map(|index| 1.0 / (salt + index) as f32).collect()
}

/// What a rank is said to ask for.
fn said(error: &Error, rank: usize) -> &str {
    let Error::Mismatch(mismatch) = error else { panic!("{error}") };
    &mismatch.views.iter().find(|(of, _)| *of as usize == rank).expect("every rank has a view").1
}

#[test]
fn average_and_sum_follow_their_formulas_over_ranks_and_passes() {
    for size in [1, 2, 3, 4] {
        for (op, passes) in [(ReduceOp::Average, 1), (ReduceOp::Average, 3), (ReduceOp::Sum, 1), (ReduceOp::Sum, 3)] {
            let options = DistributedOptions { op, backward_passes_per_step: passes, ..DistributedOptions::default() };
            let trained = all(size, |kolo| {
                let mut optimizer = wrapped(kolo, options.clone())?;
                let mut parameters = zeros();
                for pass in 0..passes {
                    for spec in specs().iter().rev() {
                        optimizer.gradient_ready(spec.name(), gradient(spec, kolo.rank(), pass))?;
                    }
                }
                optimizer.step(&mut parameters)?;
                Ok(parameters)
            });
            let expected = specs().map(|spec| {
                let of_rank = |rank| {
                    let passes = (0..passes).map(|pass| gradient(&spec, rank, pass));
                    passes.reduce(add).expect("at least one pass")
                };
                let mut sum = (0..size).map(of_rank).reduce(add).expect("at least one rank");
                for value in &mut sum {
                    if op == ReduceOp::Average {
                        *value /= size as f32;
                        *value /= passes as f32;
                    }
                    *value = 0.0 - *value;
                }
                sum
            });
            for parameters in trained {
                assert_eq!(parameters, expected, "{op} over {size} ranks and {passes} passes");
            }
        }
    }
}

fn add(mut sum: Vec<f32>, values: Vec<f32>) -> Vec<f32> {
    sum.iter_mut().zip(values).for_each(|(sum, value)| *sum += value);
    sum
}

#[test]
fn ranks_may_hand_gradients_over_in_different_orders() {
    let seen = all(3, |kolo| {
        let mut optimizer = wrapped(kolo, DistributedOptions::default())?;
        let mut parameters = zeros();
        for step in 0..4 {
            for place in 0..3 {
                let index = (place + step + kolo.rank()) % 3;
                optimizer.gradient_ready(index, gradient(&specs()[index], kolo.rank(), step))?;
            }
            optimizer.step(&mut parameters)?;
        }
        assert_eq!(optimizer.steps(), 4);
        Ok((parameters, optimizer.optimizer().seen.clone()))
    });
    let in_order: Vec<_> = (0..12).map(|update| (update % 3, specs()[update % 3].name().to_owned())).collect();
    for (parameters, updates) in &seen {
        assert_eq!(parameters, &seen[0].0);
        assert_eq!(updates, &in_order, "the optimizer sees the parameters in the order of the model");
    }
}

#[test]
fn buffers_come_back_for_the_next_step() {
    all(2, |kolo| {
        let mut optimizer = wrapped(kolo, DistributedOptions::default())?;
        let mut parameters = zeros();
        let mut addresses = Vec::new();
        for _ in 0..3 {
            let mut step = Vec::new();
            for (index, spec) in specs().iter().enumerate() {
                let buffer = optimizer.gradient_buffer(index)?;
                assert_eq!(buffer.len(), spec.count());
                step.push(buffer.as_ptr() as usize);
                optimizer.gradient_ready(index, buffer)?;
            }
            optimizer.step(&mut parameters)?;
            addresses.push(step);
        }
        assert_eq!(addresses[1], addresses[0]);
        assert_eq!(addresses[2], addresses[0]);
        Ok(())
    });
}

#[test]
fn gradients_can_live_in_shared_memory() {
    let trained = all(2, |kolo| {
        let mut optimizer: DistributedOptimizer<_, SharedBuffer<f32>> =
            DistributedOptimizer::new(kolo, Plain::default(), specs())?;
        let mut parameters = zeros();
        for step in 0..3 {
            for spec in specs() {
                let mut buffer = optimizer.gradient_buffer(spec.name())?;
                buffer.copy_from_slice(&gradient(&spec, kolo.rank(), step));
                optimizer.gradient_ready(spec.name(), buffer)?;
            }
            optimizer.step(&mut parameters)?;
        }
        Ok(parameters)
    });
    let mut expected = zeros();
    for step in 0..3 {
        for (values, spec) in expected.iter_mut().zip(specs()) {
            let sum = add(gradient(&spec, 0, step), gradient(&spec, 1, step));
            values.iter_mut().zip(sum).for_each(|(value, sum)| *value -= sum / 2.0);
        }
    }
    assert_eq!(trained, [expected.clone(), expected]);
}

#[test]
fn gradients_can_be_clipped_between_synchronize_and_step() {
    let trained = all(2, |kolo| {
        let mut optimizer = wrapped(kolo, DistributedOptions::default())?;
        let mut parameters = zeros();
        for spec in specs() {
            optimizer.gradient_ready(spec.name(), vec![8.0; spec.count()])?;
        }
        assert!(optimizer.gradient_mut("a").is_err(), "not reduced yet");
        optimizer.synchronize()?;
        optimizer.synchronize()?;
        let late = optimizer.gradient_ready("a", vec![1.0; 2]).expect_err("the step is complete").to_string();
        assert!(late.contains("call step before the next pass"), "{late}");
        optimizer.gradient_mut("b")?.fill(0.5);
        optimizer.step(&mut parameters)?;
        assert!(optimizer.communication_time().wait > std::time::Duration::ZERO);
        Ok(parameters)
    });
    for parameters in trained {
        assert_eq!(parameters, [vec![-8.0; 2], vec![-0.5; 3], vec![-8.0]]);
    }
}

#[test]
fn two_optimizers_with_prefixes_of_their_own_do_not_meet() {
    let trained = all(2, |kolo| {
        let with_prefix =
            |prefix: &str| DistributedOptions { prefix: prefix.to_owned(), ..DistributedOptions::default() };
        let mut one = wrapped(kolo, with_prefix("generator"))?;
        let mut other = wrapped(kolo, with_prefix("critic"))?;
        let (mut first, mut second) = (zeros(), zeros());
        for spec in specs() {
            one.gradient_ready(spec.name(), vec![1.0; spec.count()])?;
            other.gradient_ready(spec.name(), vec![2.0; spec.count()])?;
        }
        other.step(&mut second)?;
        one.step(&mut first)?;
        Ok((first[0][0], second[0][0]))
    });
    assert_eq!(trained, [(-1.0, -2.0); 2]);
}

/// Hands over every gradient but those named, makes a step, and gives its error.
fn step_without(kolo: &Kolo, optimizer: &mut Wrapped, parameters: &mut [Vec<f32>], skipped: &[&str]) -> Result<()> {
    for spec in specs().iter().filter(|spec| !skipped.contains(&spec.name())) {
        optimizer.gradient_ready(spec.name(), gradient(spec, kolo.rank(), 0))?;
    }
    optimizer.step(parameters)
}

#[test]
fn a_skipped_gradient_is_an_error_on_every_rank_that_names_it_and_the_job_goes_on() {
    for size in [1, 2, 3] {
        for culprit in 0..size {
            let results = all(size, |kolo| {
                let mut optimizer = wrapped(kolo, DistributedOptions::default())?;
                let mut parameters = zeros();
                step_without(kolo, &mut optimizer, &mut parameters, &[])?;
                let before = parameters.clone();
                let skipped: &[&str] = if kolo.rank() == culprit { &["a", "c"] } else { &[] };
                let error = step_without(kolo, &mut optimizer, &mut parameters, skipped);
                assert_eq!(parameters, before, "a failed step changes nothing");
                step_without(kolo, &mut optimizer, &mut parameters, &[])?;
                assert_ne!(parameters, before, "the next step is a step again");
                Ok((error.expect_err("a gradient is missing"), parameters))
            });
            for (error, parameters) in &results {
                let text = error.to_string();
                assert!(matches!(error, Error::Mismatch(_)), "{text}");
                assert!(text.contains("gradients of step 1"), "{text}");
                let view = "no gradient for 'a', no gradient for 'c'; give it, or set";
                assert!(said(error, culprit).starts_with(view) && text.contains(view), "{text}");
                for innocent in (0..size).filter(|rank| *rank != culprit) {
                    assert_eq!(said(error, innocent), "all 3 gradients", "{text}");
                }
                assert_eq!(parameters, &results[0].1);
            }
        }
    }
}

#[test]
fn gradients_that_all_ranks_skip_are_named_as_well() {
    let errors = ranks(2, |kolo| {
        let mut optimizer = wrapped(kolo, DistributedOptions::default())?;
        step_without(kolo, &mut optimizer, &mut zeros(), &["b"])
    });
    for error in errors {
        let error = error.expect_err("b is missing");
        assert!((0..2).all(|rank| said(&error, rank).starts_with("no gradient for 'b'")), "{error}");
    }
}

#[test]
fn too_few_passes_are_counted() {
    let options = DistributedOptions { backward_passes_per_step: 3, ..DistributedOptions::default() };
    let errors = ranks(2, |kolo| {
        let mut optimizer = wrapped(kolo, options.clone())?;
        for pass in 0..3 {
            for spec in specs().iter().filter(|spec| spec.name() != "b" || kolo.rank() == 0 || pass < 2) {
                optimizer.gradient_ready(spec.name(), gradient(spec, kolo.rank(), pass))?;
            }
        }
        optimizer.step(&mut zeros())
    });
    for error in errors {
        let text = error.expect_err("a pass is missing").to_string();
        assert!(text.contains("rank 1: 2 of 3 gradients for 'b'"), "{text}");
    }
}

#[test]
fn missing_gradients_can_count_as_zero() {
    let options = DistributedOptions { missing: MissingGradients::Zero, ..DistributedOptions::default() };
    let trained = all(2, |kolo| {
        let mut optimizer = wrapped(kolo, options.clone())?;
        let mut parameters = zeros();
        let skipped: &[&str] = if kolo.rank() == 0 { &["a"] } else { &["a", "b"] };
        step_without(kolo, &mut optimizer, &mut parameters, skipped)?;
        Ok(parameters)
    });
    let b = gradient(&specs()[1], 0, 0).into_iter().map(|value| 0.0 - value / 2.0).collect::<Vec<_>>();
    for parameters in &trained {
        assert_eq!(parameters[0], [0.0; 2]);
        assert_eq!(parameters[1], b);
        assert_ne!(parameters[2], [0.0]);
    }
}

#[test]
fn a_gradient_too_many_or_of_another_shape_is_refused_and_the_step_can_be_completed() {
    all(2, |kolo| {
        let mut optimizer = wrapped(kolo, DistributedOptions::default())?;
        let mut parameters = zeros();
        let refused = |result: Result<()>| result.expect_err("a wrong gradient").to_string();
        let text = refused(optimizer.gradient_ready("b", vec![0.0; 4]));
        assert!(text.contains("gradient of 'b': its shape is [4], the parameter's [1, 3]"), "{text}");
        let text = refused(optimizer.gradient_ready("d", vec![0.0; 4]));
        assert!(text.contains("no parameter 'd'") && text.contains("a, b, c"), "{text}");
        let text = refused(optimizer.gradient_ready(3, vec![0.0; 4]));
        assert!(text.contains("no parameter 3"), "{text}");
        for spec in specs() {
            optimizer.gradient_ready(spec.name(), vec![1.0; spec.count()])?;
        }
        let text = refused(optimizer.gradient_ready("a", vec![0.0; 2]));
        assert!(text.contains("gradient of 'a': it was already given 1 time(s)"), "{text}");
        let text = refused(optimizer.step(&mut parameters[..2]));
        assert!(text.contains("got 2 parameters, but the model has 3"), "{text}");

        for spec in specs() {
            optimizer.gradient_ready(spec.name(), vec![1.0; spec.count()])?;
        }
        parameters.swap(0, 1);
        let text = refused(optimizer.step(&mut parameters));
        assert!(text.contains("3 values for 'a', which has the shape [2]"), "{text}");
        parameters.swap(0, 1);
        assert_eq!(parameters, zeros(), "refused steps change nothing");
        Ok(())
    });
}

/// Builds a model that differs on rank `culprit`, gives every rank's error, and builds the right one afterwards.
fn differing(size: usize, culprit: usize, other: &(dyn Fn(&Kolo) -> Result<()> + Sync)) -> Vec<Error> {
    all(size, |kolo| {
        let result =
            if kolo.rank() == culprit { other(kolo) } else { wrapped(kolo, DistributedOptions::default()).map(drop) };
        wrapped(kolo, DistributedOptions::default())?;
        Ok(result.expect_err("the models differ"))
    })
}

fn with_specs(specs: Vec<ParameterSpec>) -> impl Fn(&Kolo) -> Result<()> + Sync {
    move |kolo| Wrapped::new(kolo, Plain::default(), specs.clone()).map(drop)
}

#[test]
fn a_model_that_differs_is_shown_by_its_first_difference_on_every_rank() {
    let [a, b, c] = specs();
    let wide = ParameterSpec::new("b", [1, 4]);
    let cases: [(Vec<ParameterSpec>, [&str; 3]); 4] = [
        (vec![a.clone(), wide, c.clone()], ["parameter 1", "\"b\" f32 [1, 3]", "\"b\" f32 [1, 4]"]),
        (
            vec![a.clone(), c.clone()],
            ["parameter 1", "\"b\" f32 [1, 3] (\"c\" is its parameter 2)", "\"c\" f32 [] (it has no \"b\")"],
        ),
        (
            vec![b.clone(), a.clone(), c.clone()],
            ["parameter 0", "\"a\" f32 [2] (\"b\" is its parameter 1)", "\"b\" f32 [1, 3] (\"a\" is its parameter 1)"],
        ),
        (vec![a, b], ["parameter 2", "\"c\" f32 []", "none, its model has 2 (it has no \"c\")"]),
    ];
    for (specs, [what, right, wrong]) in cases {
        for size in [2, 3] {
            for culprit in 0..size {
                for error in differing(size, culprit, &with_specs(specs.clone())) {
                    let text = error.to_string();
                    assert!(matches!(error, Error::Mismatch(_)) && text.contains(what), "{text}");
                    for rank in 0..size {
                        let view = if rank == culprit { wrong } else { right };
                        assert!(said(&error, rank) == view && text.contains(view), "{text}");
                    }
                }
            }
        }
    }
}

#[test]
fn another_type_or_other_settings_are_shown_too() {
    let doubles = |kolo: &Kolo| DistributedOptimizer::<_, Vec<f64>>::new(kolo, Plain::default(), specs()).map(drop);
    for error in differing(2, 1, &doubles) {
        let text = error.to_string();
        assert!(text.contains("rank 0: \"a\" f32 [2]\n") && text.contains("rank 1: \"a\" f64 [2]\n"), "{text}");
    }
    let descending = |kolo: &Kolo| {
        let sgd = Sgd::new(SgdOptions { learning_rate: 0.25, ..SgdOptions::default() })?;
        DistributedOptimizer::<_, Vec<f32>>::new(kolo, sgd, specs()).map(drop)
    };
    for error in differing(2, 1, &descending) {
        let text = error.to_string();
        assert!(text.contains("settings of the optimizer") && text.contains("learning_rate 0.25"), "{text}");
    }
    let summing = |kolo: &Kolo| {
        wrapped(kolo, DistributedOptions { op: ReduceOp::Sum, ..DistributedOptions::default() }).map(drop)
    };
    for error in differing(2, 0, &summing) {
        let text = error.to_string();
        assert!(text.contains("rank 0: sum of 1 pass(es)") && text.contains("rank 1: average of 1 pass(es)"), "{text}");
    }
}

#[test]
fn a_rank_that_cannot_build_its_optimizer_tells_the_others_why() {
    let twice = with_specs(vec![ParameterSpec::new("a", [2]), ParameterSpec::new("a", [2])]);
    let errors = differing(3, 1, &twice);
    assert!(matches!(&errors[1], Error::Argument(text) if text.contains("both called 'a'")), "{}", errors[1]);
    for error in [&errors[0], &errors[2]] {
        let view = "cannot build its optimizer: parameters 0 and 1 are both called 'a'";
        assert!(said(error, 1).starts_with(view) && error.to_string().contains(view), "{error}");
    }
}

#[test]
fn parameters_come_from_any_root() {
    for root in 0..3 {
        let ranks = all(3, |kolo| {
            let mut parameters = vec![vec![kolo.rank() as f64; 5], vec![], vec![10.0 + kolo.rank() as f64]];
            broadcast_parameters(kolo, ["x", "y", "z"].into_iter().zip(&mut parameters), root)?;
            Ok(parameters)
        });
        let expected = vec![vec![root as f64; 5], vec![], vec![10.0 + root as f64]];
        assert!(ranks.iter().all(|parameters| *parameters == expected), "from rank {root}: {ranks:?}");
    }
}

#[test]
fn metrics_are_weighted_by_samples() {
    let averages = all(3, |kolo| {
        let rank = kolo.rank();
        // Values 1 and 4 with weights 3 and 1; rank 2 saw nothing.
        let (value, weight) = [(1.0, 3.0), (4.0, 1.0), (f64::NAN, 0.0)][rank];
        average_metric(kolo, "loss", value, weight)
    });
    assert_eq!(averages, [1.75; 3]);
}

#[test]
fn tensors_are_averaged_by_samples_of_those_that_are_left() {
    let averages = all(4, |kolo| {
        let rank = kolo.rank();
        // Rank 3 has no more data, rank 2 has an empty batch.
        if rank == 3 {
            return kolo.join().map(|_| [vec![1.75, -2.5], vec![0.0]]);
        }
        let (first, weight) = [(1.0, 3.0), (4.0, 1.0), (f64::NAN, 0.0)][rank];
        let mut data = vec![first, [-2.0, -4.0, f64::INFINITY][rank]];
        average_weighted(kolo, "gradient", &mut data, weight)?;
        let mut halves = [kolo::f16::from_f64(60_000.0); 1];
        average_weighted(kolo, "halves", &mut halves, 1.0 + rank as f64)?;
        kolo.join()?;
        Ok([data, vec![halves[0].to_f64() - 60_000.0]])
    });
    for [data, halves] in averages {
        assert_eq!(data, [1.75, -2.5]);
        assert!(halves[0].abs() <= 64.0, "no overflow on the way: {halves:?}");
    }
}

#[test]
fn bad_weights_are_errors_on_every_rank() {
    let errors = ranks(2, |kolo| average_metric(kolo, "loss", 1.0, [1.0, -2.0][kolo.rank()]));
    let text = |rank: usize| errors[rank].as_ref().expect_err("a bad weight").to_string();
    assert!(text(0).contains("1 other rank(s) passed a weight"), "{}", text(0));
    assert!(text(1).contains("the weight is -2 on this rank"), "{}", text(1));
    let errors = ranks(2, |kolo| average_metric(kolo, "loss", 1.0, 0.0));
    assert!(
        errors.iter().all(|error| error.as_ref().is_err_and(|error| error.to_string().contains("0 on every rank")))
    );
}
