//! What `lineradb` is made of: a whole cluster in one process ([`dev`]), sample
//! data ([`sample`]), a SQL shell ([`sql_shell`]), and the commands that talk to
//! a running cluster ([`kv`], [`cluster`]).

pub mod cluster;
pub mod dev;
pub mod kv;
pub mod local;
pub mod sample;
pub mod sql_shell;
