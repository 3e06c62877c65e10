//! Adasum under a real `mpirun`: by communicator and by name, fused and alone, on one host and on several, against the tree
//! of pairs in f64.

#[macro_use]
mod common;

use kolo::{Error, Kolo, Options, ReduceOp, Result, SharedBuffer};

/// Tensors of many lengths; the longest need several slots of these jobs.
const LENGTHS: [usize; 7] = [1, 5, 333, 0, 20_000, 77, 8192];

/// A rank's tensor: something that all have in common, and something of its own.
fn input(rank: usize, tensor: usize) -> Vec<f32> {
    let noise = |seed: u64| {
        let mixed = (seed + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        ((mixed ^ (mixed >> 29)).wrapping_mul(0xbf58_476d_1ce4_e5b9) >> 40) as f32 / (1 << 23) as f32 - 1.0
    };
    let at = |at: usize| {
        let place = (tensor * 100_003 + at) as u64;
        noise(place) + 0.8 * noise(place + ((rank as u64 + 1) << 40))
    };
    (0..LENGTHS[tensor]).map(at).collect()
}

/// Adasum as it is defined, in f64: the largest power of two of the ranks with the rest.
fn adasum(vectors: &[Vec<f64>]) -> Vec<f64> {
    if let [alone] = vectors {
        return alone.clone();
    }
    let (left, right) = vectors.split_at(vectors.len().next_power_of_two() / 2);
    let (a, b) = (adasum(left), adasum(right));
    let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
    let factor = |norm: f64| if norm == 0.0 { 1.0 } else { 1.0 - dot(&a, &b) / (2.0 * norm) };
    let (x, y) = (factor(dot(&a, &a)), factor(dot(&b, &b)));
    a.iter().zip(&b).map(|(a, b)| x * a + y * b).collect()
}

/// What `ranks`, in this order, must get for a tensor.
fn expected(ranks: &[usize], tensor: usize) -> Vec<f64> {
    let wide = |&rank: &usize| input(rank, tensor).into_iter().map(f64::from).collect();
    adasum(&ranks.iter().map(wide).collect::<Vec<_>>())
}

fn check(got: &[f32], expected: &[f64], what: &str) {
    assert_eq!(got.len(), expected.len(), "{what}");
    for (at, (got, expected)) in got.iter().zip(expected).enumerate() {
        assert!((f64::from(*got) - expected).abs() < 4e-6, "{what} at {at}: {got}, not {expected}");
    }
}

/// Equal bits on every rank.
fn same_everywhere(kolo: &Kolo, data: &[f32], what: &str) -> Result<()> {
    let mut first = data.to_vec();
    kolo.broadcast("first", &mut first, 0)?;
    assert_eq!(bytemuck::cast_slice::<f32, u32>(data), bytemuck::cast_slice::<f32, u32>(&first), "{what}");
    Ok(())
}

mpi_test!(
    tensors_keep_their_own_factors,
    np = [1, 2, 3, 4],
    hosts = ["1,1", "2,2", "3,1"],
    env = [("KOLO_SLOT_BYTES", "8KiB"), ("KOLO_DEADLINE", "30s")],
    |kolo| {
        let (me, all) = (kolo.rank(), (0..kolo.size()).collect::<Vec<_>>());
        let mut world = kolo.communicator()?;
        // All at once: fused, as far as they fit.
        let together = || -> Result<Vec<Vec<f32>>> {
            let mut tensors: Vec<Vec<f32>> = (0..LENGTHS.len()).map(|tensor| input(me, tensor)).collect();
            kolo.scope(|scope| {
                for (tensor, data) in tensors.iter_mut().enumerate() {
                    scope.allreduce_async(&format!("t{tensor}"), data, ReduceOp::Adasum)?;
                }
                Ok(())
            })?;
            Ok(tensors)
        };
        let fused = together()?;
        assert_eq!(together()?, fused, "names that the ranks know by now");
        for (tensor, fused) in fused.iter().enumerate() {
            let what = format!("tensor {tensor}");
            check(fused, &expected(&all, tensor), &what);
            same_everywhere(kolo, fused, &what)?;
            // One by one, named and by order, apart and in place, private and shared: the same bits.
            let mut alone = input(me, tensor);
            kolo.allreduce("alone", &mut alone, ReduceOp::Adasum)?;
            assert_eq!(alone, *fused, "{what} alone");
            let own = input(me, tensor);
            let mut apart = vec![f32::NAN; own.len()];
            world.allreduce_into(&own, &mut apart, ReduceOp::Adasum)?;
            assert_eq!((&apart, &own), (fused, &input(me, tensor)), "{what} by order");
            let mut shared: SharedBuffer<f32> = kolo.alloc(own.len())?;
            shared.copy_from_slice(&own);
            world.allreduce(&mut shared, ReduceOp::Adasum)?;
            assert_eq!(shared[..], fused[..], "{what} in shared memory");
            // A scale changes no factor.
            let options = Options { prescale: 2.0, postscale: 0.25, ..Options::default() };
            let mut scaled = input(me, tensor);
            kolo.allreduce_with("scaled", &mut scaled, ReduceOp::Adasum, &options)?;
            let half: Vec<f32> = fused.iter().map(|value| value / 2.0).collect();
            assert_eq!(scaled, half, "{what} scaled");
            // What comes next is in order.
            let mut ones = [1_i32; 100];
            world.allreduce(&mut ones, ReduceOp::Sum)?;
            assert_eq!(ones, [kolo.size() as i32; 100]);
        }
        // Groups.
        let mut group = [input(me, 1), input(me, 4), input(me, 2)];
        world.allreduce_group(&mut group.each_mut().map(|tensor| &mut tensor[..]), ReduceOp::Adasum)?;
        assert!(group.iter().zip([1, 4, 2]).all(|(tensor, at)| *tensor == fused[at]), "a group by order");
        let mut group = [input(me, 1), input(me, 4), input(me, 2)];
        kolo.allreduce_group("group", &mut group.each_mut().map(|tensor| &mut tensor[..]), ReduceOp::Adasum)?;
        assert!(group.iter().zip([1, 4, 2]).all(|(tensor, at)| *tensor == fused[at]), "a named group");
    }
);

mpi_test!(
    sets_in_any_order_of_ranks,
    np = [3, 4],
    hosts = ["2,2", "3,1"],
    env = [("KOLO_SLOT_BYTES", "8KiB"), ("KOLO_DEADLINE", "30s")],
    |kolo| {
        // On several hosts, an order in which no host holds contiguous ranks.
        for ranks in [vec![2, 0], vec![0, kolo.size() - 1, 1], (0..kolo.size()).rev().collect()] {
            let Some(set) = kolo.process_set(&ranks)? else { continue };
            let mut fused: Vec<Vec<f32>> = (0..LENGTHS.len()).map(|tensor| input(kolo.rank(), tensor)).collect();
            set.scope(|scope| {
                for (tensor, data) in fused.iter_mut().enumerate() {
                    scope.allreduce_async(&format!("t{tensor}"), data, ReduceOp::Adasum)?;
                }
                Ok(())
            })?;
            for (tensor, fused) in fused.iter().enumerate() {
                check(fused, &expected(&ranks, tensor), &format!("tensor {tensor} of {ranks:?}"));
                let mut alone = input(kolo.rank(), tensor);
                set.allreduce("alone", &mut alone, ReduceOp::Adasum)?;
                assert_eq!(alone, *fused, "tensor {tensor} of {ranks:?} alone");
            }
        }
    }
);

mpi_test!(mistakes, np = [1, 2, 3], hosts = ["1,1"], |kolo| {
    let mut world = kolo.communicator()?;
    let text = |outcome: Result<()>| match outcome {
        Err(Error::Argument(text)) => text.to_string(),
        other => panic!("{other:?}"),
    };
    let found = text(world.allreduce(&mut [1_i32], ReduceOp::Adasum));
    assert!(found.contains("adasum does not take i32, only f16, bf16, f32, f64"), "{found}");
    let found = text(world.reduce_scatter(&vec![1.0_f32; kolo.size()], &mut [0.0], ReduceOp::Adasum));
    assert!(found.contains("use allreduce"), "{found}");
    let found = text(kolo.allreduce("x", &mut [1_u8], ReduceOp::Adasum));
    assert!(found.contains("'x': adasum does not take u8"), "{found}");
    // Tensors that are cut elsewhere are other tensors.
    if kolo.local_size() == kolo.size() && kolo.size() > 1 {
        let mut data = [1.0_f32; 10];
        let (left, right) = data.split_at_mut(if kolo.rank() == 0 { 3 } else { 4 });
        match world.allreduce_group(&mut [left, right], ReduceOp::Adasum) {
            Err(Error::Mismatch(mismatch)) => assert_ne!(mismatch.views[0].1, mismatch.views[1].1, "{mismatch}"),
            other => panic!("{other:?}"),
        }
        let (left, right) = data.split_at_mut(5);
        world.allreduce_group(&mut [left, right], ReduceOp::Adasum)?;
        assert_eq!(data, [1.0; 10], "of equals, the same");
    }
    let mut data = [2.0_f64; 3];
    kolo.allreduce("x", &mut data, ReduceOp::Adasum)?;
    assert_eq!(data, [2.0; 3], "of equals, the same");
});
