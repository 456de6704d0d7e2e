//! stub
use crate::op::Op;
/// x
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Registrant(pub u64);
/// x
#[derive(Debug, Default)]
pub struct Reservations;
/// x
#[derive(Debug)]
pub struct PrError;
impl Reservations {
    /// x
    pub fn allows(&self, _r: Option<Registrant>, _op: Op) -> bool {
        true
    }
    /// x
    pub fn is_reserved(&self) -> bool {
        false
    }
}
