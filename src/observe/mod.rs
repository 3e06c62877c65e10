//! Readers of events: what a job leaves for people who want to know how it went.

pub mod flight;
