//! What `warren` and `kubectl warren` print: numbers, times and addresses as `wg` writes them ([`text`]), tables
//! ([`mod@table`]), JSON ([`json`]), the findings of a doctor
//! ([`finding`]), and how a command ends ([`outcome`]).
//!
//! It refuses to read anything, a clock or a terminal included, and writes to stdout and stderr alone. Text of others is made safe for a
//! terminal by [`text::clean`].

#![forbid(unsafe_code)]

pub mod finding;
pub mod json;
pub mod outcome;
pub mod table;
pub mod text;
