//! A grid of ranks, and the sets along its axes.

use super::ProcessSet;
use crate::error::{Error, Result};

/// A grid of all ranks of a job, made by [`Kolo::mesh`](crate::Kolo::mesh).
///
/// Ranks count along the last axis first: with axes of 2 and 3, rank 4 has the coordinates 1 and 1. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Mesh {
    grid: Grid,
    sets: Vec<ProcessSet>,
}

impl Mesh {
    pub(crate) fn new(grid: Grid, sets: Vec<ProcessSet>) -> Self {
        Self { grid, sets }
    }

    /// The set of the ranks that share all coordinates of this rank but the one along the axis `name`; its ranks count
    /// along the axis.
    ///
    /// # Errors
    /// [`Error::Argument`] if there is no such axis.
    pub fn axis(&self, name: &str) -> Result<&ProcessSet> {
        let at = self.grid.axes.iter().position(|(axis, _)| axis == name);
        at.and_then(|at| self.sets.get(at)).ok_or_else(|| {
            let axes: Vec<&str> = self.grid.axes.iter().map(|(name, _)| name.as_str()).collect();
            Error::argument(format!("the mesh has no axis '{name}'; its axes are {}", axes.join(", ")))
        })
    }

    /// This rank's place along each axis, in the order in which the axes were given.
    #[must_use]
    pub fn coordinates(&self) -> &[usize] {
        &self.grid.place
    }

    /// The length of each axis.
    #[must_use]
    pub fn shape(&self) -> Vec<usize> {
        self.grid.axes.iter().map(|(_, length)| *length).collect()
    }
}

/// Where a rank lies in a grid.
#[derive(Clone, Debug)]
pub(crate) struct Grid {
    axes: Vec<(String, usize)>,
    place: Vec<usize>,
}

impl Grid {
    /// # Errors
    /// [`Error::Argument`] if the axes do not multiply to `size`, or two have one name.
    pub(crate) fn new(axes: &[(&str, usize)], rank: usize, size: usize) -> Result<Self> {
        let product = axes.iter().try_fold(1_usize, |product, (_, length)| product.checked_mul(*length));
        if product != Some(size) {
            let lengths: Vec<String> = axes.iter().map(|(name, length)| format!("{name} {length}")).collect();
            return Err(Error::argument(format!(
                "a mesh of {} for {size} ranks: the lengths must multiply to the number of ranks",
                lengths.join(" x ")
            )));
        }
        if let Some((at, (name, _))) =
            axes.iter().enumerate().find(|(at, (name, _))| axes[..*at].iter().any(|(other, _)| other == name))
        {
            return Err(Error::argument(format!(
                "axis {at} of the mesh is named '{name}' like another; name each once"
            )));
        }
        let mut rest = rank;
        let mut place: Vec<usize> = axes
            .iter()
            .rev()
            .map(|(_, length)| {
                let at = rest % length;
                rest /= length;
                at
            })
            .collect();
        place.reverse();
        let axes = axes.iter().map(|(name, length)| ((*name).to_owned(), *length)).collect();
        Ok(Self { axes, place })
    }

    /// The colour of the ranks that lie on one line with this one along `axis`, and this one's key among them.
    pub(crate) fn line(&self, axis: usize) -> (u32, i64) {
        let others = self.axes.iter().zip(&self.place).enumerate().filter(|(at, _)| *at != axis);
        let color = others.fold(0, |color, (_, ((_, length), place))| color * length + place);
        (color as u32, self.place[axis] as i64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_cover_the_grid() {
        let axes = [("data", 2), ("tensor", 3), ("pipeline", 2)];
        let grids: Vec<Grid> = (0..12).map(|rank| Grid::new(&axes, rank, 12).unwrap()).collect();
        assert_eq!(grids[11].place, [1, 2, 1]);
        assert_eq!(grids[4].place, [0, 2, 0]);
        for (axis, (_, length)) in axes.iter().enumerate() {
            for grid in &grids {
                let (color, _) = grid.line(axis);
                let mut line: Vec<i64> =
                    grids.iter().filter(|other| other.line(axis).0 == color).map(|other| other.line(axis).1).collect();
                line.sort_unstable();
                assert_eq!(line, (0..*length as i64).collect::<Vec<_>>());
            }
        }
    }

    #[test]
    fn wrong_axes_are_refused() {
        let refused = |axes: &[(&str, usize)]| Grid::new(axes, 0, 6).unwrap_err().to_string();
        assert!(refused(&[("a", 2), ("b", 2)]).contains("a 2 x b 2 for 6 ranks"));
        assert!(refused(&[("a", 2), ("a", 3)]).contains("named 'a' like another"));
        assert!(refused(&[("a", usize::MAX), ("b", 3)]).contains("multiply"));
        assert!(refused(&[("a", 0)]).contains("multiply"));
    }
}
