//! The engine over a group in memory that delays and loses at will.

mod changes;
mod checker;
mod closed;
mod harness;
mod history;
mod random;
mod scenarios;
mod serving;
mod two_phases;
