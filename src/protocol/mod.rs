//! What clients say and what they are told: bytes to requests, requests to commands, replies to
//! bytes. And what nodes say to each other (`peer`). All of it is pure: no I/O, no waiting, no
//! clock.

pub mod args;
pub mod command;
pub mod glob;
pub mod http;
mod inline;
pub mod number;
pub mod peer;
pub mod reply;
pub mod resp;

pub use args::{ArgView, Args, OwnedArgs};
pub use reply::{Protocol, Reply};
pub use resp::{Limits, Parsed, Parser, ProtocolError};
