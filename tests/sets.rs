//! Sets of ranks under a real `mpirun`: by colour, along the axes of a mesh, several at once; and what is wrong about them.

#[macro_use]
mod common;

use kolo::{Error, Kolo, ReduceOp, Result};

/// The sum of the set's global ranks, which every member must get.
fn sum(kolo: &Kolo, set: &kolo::ProcessSet, name: &str) -> Result<()> {
    let mut data = vec![kolo.rank() as i64; 1000];
    set.allreduce(name, &mut data, ReduceOp::Sum)?;
    assert_eq!(data, vec![set.ranks().iter().sum::<usize>() as i64; 1000]);
    assert_eq!(set.global_rank(set.rank()), Some(kolo.rank()));
    assert_eq!((set.set_rank(kolo.rank()), set.set_rank(kolo.size())), (Some(set.rank()), None));
    Ok(())
}

mpi_test!(
    splits_by_colour_and_key,
    np = [1, 2, 3, 4],
    hosts = ["1,1", "2,2", "3,1"],
    env = [("KOLO_DEADLINE", "30s")],
    |kolo| {
        let (size, me) = (kolo.size(), kolo.rank());
        // Odd and even ranks, in reverse; the last one is in none if there are others.
        let color = (me + 1 < size || size == 1).then_some(me as u32 % 2);
        let set = kolo.split(color, -(me as i64))?;
        assert_eq!(set.is_some(), color.is_some());
        if let Some(set) = &set {
            let mut want: Vec<usize> =
                (0..size).filter(|rank| rank % 2 == me % 2 && (rank + 1 < size || size == 1)).collect();
            want.reverse();
            assert_eq!(set.ranks(), want);
            sum(kolo, set, "x")?;
            let mut data = [me as u64];
            set.broadcast("root", &mut data, set.global_rank(0).expect("a member"))?;
            assert_eq!(data, [want[0] as u64]);
        }
        // All ranks, and ranks alone: every set works on, and none disturbs another.
        let all = kolo.split(Some(7), 0)?.expect("a colour");
        let alone = kolo.split(Some(me as u32), 0)?.expect("a colour");
        for _ in 0..3 {
            sum(kolo, &all, "x")?;
            sum(kolo, &alone, "x")?;
            if let Some(set) = &set {
                sum(kolo, set, "y")?;
            }
        }
        // The same without names.
        let mut world = kolo.communicator()?;
        let part = world.split(color, -(me as i64))?;
        assert_eq!(part.is_some(), color.is_some());
        if let (Some(mut part), Some(set)) = (part, &set) {
            assert_eq!((part.rank(), part.size()), (set.rank(), set.size()));
            let mut data = [1_u32; 5000];
            part.allreduce(&mut data, ReduceOp::Sum)?;
            assert_eq!(data, [part.size() as u32; 5000]);
        }
        world.barrier()?;
    }
);

mpi_test!(a_mesh_has_a_set_for_each_axis, np = [4], hosts = ["2,2", "1,3"], env = [("KOLO_DEADLINE", "30s")], |kolo| {
    let mesh = kolo.mesh(&[("data", 2), ("tensor", 2)])?;
    let (row, column) = (kolo.rank() / 2, kolo.rank() % 2);
    assert_eq!((mesh.coordinates(), mesh.shape()), (&[row, column][..], vec![2, 2]));
    assert_eq!(mesh.axis("data")?.ranks(), [column, 2 + column]);
    assert_eq!(mesh.axis("tensor")?.ranks(), [2 * row, 2 * row + 1]);
    sum(kolo, mesh.axis("data")?, "gradient")?;
    sum(kolo, mesh.axis("tensor")?, "activation")?;
    let Err(Error::Argument(text)) = mesh.axis("pipeline") else { panic!("there is no such axis") };
    assert!(text.contains("data, tensor"), "{text}");
    let Err(Error::Argument(text)) = kolo.mesh(&[("data", 3)]) else { panic!("it does not fit") };
    assert!(text.contains("data 3 for 4 ranks"), "{text}");
});
