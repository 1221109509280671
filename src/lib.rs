#![doc = include_str!("../README.md")]

pub mod cluster;
pub mod config;
pub mod error;
pub mod http;
pub mod membership;
pub mod protocol;
pub mod replication;
pub mod rt;
pub mod shard;
pub mod storage;
pub mod types;
