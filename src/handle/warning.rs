//! What the user is told of names that wait for ranks, and when.

use std::time::Duration;

use crate::engine::BLAMED;
use crate::event;
use crate::membership::{RankState, RankStatus};

/// How long a warning waits for what other hosts answer about their ranks. They have just been asked.
const PATIENCE: Duration = Duration::from_secs(2);

/// The warnings of one set.
#[derive(Debug, Default)]
pub(super) struct Warnings {
    /// What the last one said of each rank, but for times.
    told: Vec<(usize, RankState)>,
    /// When one that has not been told fell due: another host has yet to answer.
    held_since: Option<Duration>,
}

impl Warnings {
    /// Tells the user of names that wait, and what the missing ranks do: once, and again when either changes.
    ///
    /// To be called at every look while they wait; `news` says that `text` is new.
    pub(super) fn say(
        &mut self,
        text: &str,
        ranks: &[u32],
        news: bool,
        now: Duration,
        standing: impl Fn(u32) -> RankStatus,
    ) {
        let standings: Vec<RankStatus> = ranks.iter().take(BLAMED).map(|&rank| standing(rank)).collect();
        if self.is_due(&standings, news, now) {
            let lines: String = standings.iter().map(|standing| format!("\n  {standing}")).collect();
            let more = ranks.len() - standings.len();
            let more = if more > 0 { format!("\n  and {more} more ranks") } else { String::new() };
            event::tell_warning(&format!("{text}; of the missing ranks is known:{lines}{more}"));
        }
    }

    fn is_due(&mut self, standings: &[RankStatus], news: bool, now: Duration) -> bool {
        let told: Vec<_> = standings.iter().map(RankStatus::gist).collect();
        if !news && self.held_since.is_none() && told == self.told {
            return false;
        }
        let since = *self.held_since.get_or_insert(now);
        if standings.iter().any(|rank| rank.state == RankState::Unknown) && now.saturating_sub(since) < PATIENCE {
            return false;
        }
        self.held_since = None;
        self.told = told;
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn rank(state: RankState) -> [RankStatus; 1] {
        [RankStatus { state, ..RankStatus::unknown(3) }]
    }

    #[test]
    fn a_warning_is_told_once_and_again_when_something_changes() {
        let mut warnings = Warnings::default();
        assert!(warnings.is_due(&rank(RankState::Sleeping), true, SECOND));
        assert!(!warnings.is_due(&rank(RankState::Running), false, SECOND * 2), "a living process does both");
        assert!(warnings.is_due(&rank(RankState::Stopped), false, SECOND * 3));
        assert!(!warnings.is_due(&rank(RankState::Stopped), false, SECOND * 4));
        assert!(warnings.is_due(&rank(RankState::Stopped), true, SECOND * 5), "another text");
    }

    #[test]
    fn a_warning_waits_for_the_answer_of_another_host_but_not_for_ever() {
        let mut warnings = Warnings::default();
        assert!(!warnings.is_due(&rank(RankState::Unknown), true, SECOND));
        assert!(warnings.is_due(&rank(RankState::Running), false, SECOND * 2), "the answer");
        assert!(!warnings.is_due(&rank(RankState::Running), false, SECOND * 9));
        let mut warnings = Warnings::default();
        assert!(!warnings.is_due(&rank(RankState::Unknown), true, SECOND));
        assert!(!warnings.is_due(&rank(RankState::Unknown), false, SECOND * 2));
        assert!(warnings.is_due(&rank(RankState::Unknown), false, SECOND * 3), "no answer");
        assert!(!warnings.is_due(&rank(RankState::Unknown), false, SECOND * 9), "told as it is");
    }
}
