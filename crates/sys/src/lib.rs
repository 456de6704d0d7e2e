//! System calls that the rest of Blockyard needs, behind safe interfaces.

pub mod net;
pub mod reactor;
