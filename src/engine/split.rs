//! Which ranks belong together when ranks are split by colour.

/// What a rank tells the others: its colour, if it has one, and its key.
pub(crate) fn wish(color: Option<u32>, key: i64) -> Vec<u8> {
    let color = color.map_or_else(Vec::new, |color| color.to_le_bytes().to_vec());
    [&key.to_le_bytes()[..], &color].concat()
}

/// The ranks whose wish has this colour, in the order of their keys, then of their ranks; none without a colour.
pub(crate) fn group(wishes: &[Vec<u8>], color: Option<u32>) -> Vec<usize> {
    let Some(color) = color else { return Vec::new() };
    let key = |wish: &[u8]| -> Option<i64> {
        let (key, theirs) = wish.split_first_chunk()?;
        (theirs == color.to_le_bytes()).then(|| i64::from_le_bytes(*key))
    };
    let mut ranks: Vec<(i64, usize)> =
        wishes.iter().enumerate().filter_map(|(rank, wish)| Some((key(wish)?, rank))).collect();
    ranks.sort_unstable();
    ranks.into_iter().map(|(_, rank)| rank).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn colours_come_together_in_the_order_of_their_keys() {
        let wishes = [wish(Some(1), 5), wish(None, 0), wish(Some(1), -2), wish(Some(0), 9), wish(Some(1), 5)];
        assert_eq!(group(&wishes, Some(1)), [2, 0, 4]);
        assert_eq!(group(&wishes, Some(0)), [3]);
        assert!(group(&wishes, None).is_empty() && group(&wishes, Some(7)).is_empty());
    }
}
