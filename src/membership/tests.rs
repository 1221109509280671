//! What the tests of membership share.

pub(crate) use crate::cluster::map::tests::plain as node;
