//! Ranks that go idle while others wait for them.

use std::time::Duration;

use super::World;

impl World {
    /// Some ranks go idle. Whoever waits for them is told, and at the deadline gets an error that names them all. Whether
    /// that ended the set: a refused call had its error before, so that nobody waits for what only refused calls stand for.
    pub(super) fn stall(&mut self) -> bool {
        for round in 0..250 {
            self.still = round >= 150;
            for rank in (0..self.ranks.len()).flat_map(|rank| [rank; 12]) {
                self.act(rank);
                if self.poisoned {
                    self.finish_poisoned();
                    return true;
                }
            }
        }
        let stalled = self.oracle.stalled();
        let waits = !self.nobody_waits();
        let begin = self.now;
        while self.now < begin + self.params.stall_deadline + self.params.grace && self.oracle.timed_out.is_none() {
            self.now += Duration::from_millis(50);
            for rank in (0..self.ranks.len()).flat_map(|rank| [rank; 24]) {
                self.drive(rank);
            }
        }
        assert_eq!(self.oracle.timed_out.is_some(), waits, "{stalled:?}: {}", self.describe());
        assert!(!(waits && stalled.is_empty()), "nobody is late: {}", self.describe());
        if stalled.is_empty() {
            return false;
        }
        // A warning lists the first of many.
        let told = self
            .warnings
            .iter()
            .any(|text| stalled.iter().filter(|line| text.contains(*line)).count() >= stalled.len().min(6));
        assert!(told, "{stalled:?} must be in {:?}: {}", self.warnings, self.describe());
        if !waits {
            return false;
        }
        for _ in 0..200 {
            for rank in 0..self.ranks.len() {
                self.drive(rank);
            }
        }
        assert!(self.nobody_waits(), "a ticket got nothing: {}", self.describe());
        true
    }

    /// Whether no submission has a ticket: refused calls at most are in flight.
    fn nobody_waits(&self) -> bool {
        let mut flights = self.ranks.iter().flat_map(|rank| rank.flights.iter().chain(&rank.parked)).flatten();
        flights.all(|flight| flight.ticket.is_none())
    }
}
