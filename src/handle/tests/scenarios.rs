//! Scenarios of README.md, one by one.
