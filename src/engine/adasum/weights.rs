//! Adasum's weights: by which factor each rank's tensor counts.
//!
//! Adasum combines two vectors as (1 - a.b / 2|a|^2) a + (1 - a.b / 2|b|^2) b: orthogonal ones are added, equal ones are
//! averaged. Over n ranks it is applied along a tree. Whatever stands at a node of the tree is a weighted sum of the ranks'
//! tensors, so its dot products with others follow from those of the ranks, and the whole tree comes to one factor a rank.
//!
//! Source: Maleki et al., "Scaling distributed training with adaptive summation", MLSys 2021.

use crate::device::host::pair;

/// A node whose squared norm is less than this part of what its terms would have without cancelling out counts as zero:
/// what is left is the rounding of the dot products.
const NEGLIGIBLE: f64 = 1.0 / (1_u64 << 40) as f64;

/// The factor of each of `ranks` ranks, from the dot products of their tensors.
///
/// The tree over a range of ranks combines the largest power of two of them (fewer than all) with the rest: neighbours
/// first, then pairs of neighbours, and so on. A node of norm zero is orthogonal to all.
pub(super) fn weights(ranks: usize, dots: &[f64]) -> Vec<f64> {
    let mut weights = vec![1.0; ranks];
    combine(0, &mut weights, dots);
    weights
}

/// Combines the ranks from `first` on, of whose factors `weights` is a part.
fn combine(first: usize, weights: &mut [f64], dots: &[f64]) {
    if weights.len() < 2 {
        return;
    }
    let middle = weights.len().next_power_of_two() / 2;
    let (left, right) = weights.split_at_mut(middle);
    combine(first, left, dots);
    combine(first + middle, right, dots);
    // The dot product of two nodes, and what it would be if nothing cancelled out.
    let dot = |a: (usize, &[f64]), b: (usize, &[f64])| {
        let (mut sum, mut magnitude) = (0.0, 0.0);
        for (i, x) in a.1.iter().enumerate() {
            for (j, y) in b.1.iter().enumerate() {
                let term: f64 = x * y * dots[pair(a.0 + i, b.0 + j)];
                sum += term;
                magnitude += term.abs();
            }
        }
        (sum, magnitude)
    };
    let (a, b) = ((first, &*left), (first + middle, &*right));
    let (both, _) = dot(a, b);
    let factor = |(norm, magnitude): (f64, f64)| {
        if !(magnitude.is_finite() && both.is_finite()) {
            // Whatever one rank computed, the tensor is spoiled, and shall look it.
            f64::NAN
        } else if norm <= magnitude * NEGLIGIBLE || norm < f64::MIN_POSITIVE.sqrt() {
            1.0
        } else {
            1.0 - both / (2.0 * norm)
        }
    };
    let (of_left, of_right) = (factor(dot(a, a)), factor(dot(b, b)));
    left.iter_mut().for_each(|weight| *weight *= of_left);
    right.iter_mut().for_each(|weight| *weight *= of_right);
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::device::host::pairs;
    use crate::engine::testing::Random;

    fn dot(a: &[f64], b: &[f64]) -> f64 {
        a.iter().zip(b).map(|(a, b)| a * b).sum()
    }

    /// Adasum as it is defined: pair by pair, on the vectors themselves.
    pub(in super::super) fn adasum(vectors: &[Vec<f64>]) -> Vec<f64> {
        let [a, b] = match vectors.len() {
            1 => return vectors[0].clone(),
            n => {
                let (left, right) = vectors.split_at(n.next_power_of_two() / 2);
                [adasum(left), adasum(right)]
            }
        };
        let factor = |norm: f64| if norm == 0.0 { 1.0 } else { 1.0 - dot(&a, &b) / (2.0 * norm) };
        let (x, y) = (factor(dot(&a, &a)), factor(dot(&b, &b)));
        a.iter().zip(&b).map(|(a, b)| x * a + y * b).collect()
    }

    /// The weights of vectors.
    pub(in super::super) fn weights_of(vectors: &[Vec<f64>]) -> Vec<f64> {
        let mut dots = vec![0.0; pairs(vectors.len())];
        for (i, a) in vectors.iter().enumerate() {
            for (j, b) in vectors[..=i].iter().enumerate() {
                dots[pair(i, j)] = dot(a, b);
            }
        }
        weights(vectors.len(), &dots)
    }

    #[test]
    fn weighted_sums_are_the_tree_of_pairs() {
        let mut random = Random::new(3);
        for n in 1..=17 {
            for len in [1, 2, 5, 300] {
                let mut value = || (random.any() % 20_001) as f64 / 1e4 - 1.0;
                // With something in common, as gradients have.
                let common: Vec<f64> = (0..len).map(|_| value()).collect();
                let vectors: Vec<Vec<f64>> =
                    (0..n).map(|_| common.iter().map(|common| common + 0.7 * value()).collect()).collect();
                let weights = weights_of(&vectors);
                let expected = adasum(&vectors);
                for (at, expected) in expected.iter().enumerate() {
                    let terms = vectors.iter().zip(&weights).map(|(vector, weight)| vector[at] * weight);
                    let (sum, magnitude) = terms.fold((0.0, 1.0), |(sum, all), term| (sum + term, all + term.abs()));
                    assert!((sum - expected).abs() < 1e-9 * magnitude, "{n} ranks, {at} of {len}: {sum}, {expected}");
                }
            }
        }
    }

    #[test]
    fn equal_vectors_are_averaged_and_orthogonal_ones_added() {
        assert_eq!(weights_of(&vec![vec![3.0, -1.0]; 4]), [0.25; 4]);
        // Two of three are averaged, and the average with the third.
        assert_eq!(weights_of(&vec![vec![3.0, -1.0]; 3]), [0.25, 0.25, 0.5]);
        let unit = |rank| (0..5).map(|at| if at == rank { 1e5 * (rank + 1) as f64 } else { 0.0 }).collect();
        assert_eq!(weights_of(&(0..5).map(unit).collect::<Vec<_>>()), [1.0; 5]);
    }

    #[test]
    fn zeros_change_nothing_and_scale_does_not_matter() {
        let vectors = [vec![1.0, 2.0], vec![0.0; 2], vec![2.0, -0.5], vec![1.0, 1.0]];
        let weights = weights_of(&vectors);
        // The zero is the other half of the first pair.
        let without = weights_of(&[vectors[0].clone(), vectors[2].clone(), vectors[3].clone()]);
        assert_ne!(weights, [1.0; 4]);
        assert_eq!(weights_of(&[vec![0.0; 2], vectors[0].clone()]), [1.0; 2]);
        assert_eq!(weights_of(&vec![vec![0.0; 3]; 5]), [1.0; 5]);
        assert_eq!(
            weights_of(&[vec![0.0; 2], vectors[0].clone(), vectors[2].clone(), vectors[3].clone()])[1..],
            [weights[0], weights[2], weights[3]]
        );
        assert_ne!(without, [weights[0], weights[2], weights[3]], "the tree is another one");
        for scale in [1.0 / 1024.0, 2.0_f64.powi(200), 2.0_f64.powi(-200)] {
            let scaled: Vec<Vec<f64>> = vectors.iter().map(|v| v.iter().map(|x| x * scale).collect()).collect();
            assert_eq!(weights_of(&scaled), weights, "{scale}");
        }
    }

    #[test]
    fn what_cancels_out_counts_as_zero() {
        // The first two leave nothing but rounding, by which the third must not be multiplied up.
        let a = vec![1.0, 3.0, -2.0];
        let b: Vec<f64> = a.iter().map(|x| -x * (1.0 + 1e-9)).collect();
        let weights = weights_of(&[a, b, vec![5.0, 1.0, 1.0]]);
        assert!(weights.iter().all(|weight| weight.abs() < 2.0), "{weights:?}");
        assert!((weights[2] - 1.0).abs() < 1e-6, "{weights:?}");
    }

    #[test]
    fn what_is_no_number_goes_on() {
        for wrong in [f64::NAN, f64::INFINITY] {
            let weights = weights_of(&[vec![1.0, wrong], vec![1.0, 2.0], vec![0.5, 0.5]]);
            assert!(weights.iter().all(|weight| weight.is_nan()), "{weights:?}");
        }
    }
}
