//! Persistent reservations: clients agree on who may use a disk (kernel: `struct pr_ops`,
//! `include/linux/pr.h`).
//!
//! A client registers a key; a registrant may reserve the disk, and then others are kept from writing or from
//! all access. The rules are those of SCSI, which the kernel's operations stand for: sections are of SPC-4 as
//! of revision 17, where 5.7 is "Reservations".

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::Mutex;

use crate::op::{Op, Status};

/// Most clients that are registered with a disk at a time.
pub const MAX_REGISTRANTS: usize = 1024;

/// A client of a front-end: who registers, and whose operations are let through (SCSI: I_T nexus).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Registrant(pub u64);

impl Registrant {
    /// The block layer itself, which no reservation keeps from a disk: its last flush, and a look at its partitions.
    pub const INTERNAL: Self = Self(0);
}

/// What a reservation keeps others from (kernel: `enum pr_type`, with its numbers).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum PrType {
    /// Only the holder writes.
    WriteExclusive = 1,
    /// Only the holder reads and writes.
    ExclusiveAccess = 2,
    /// Only registrants write.
    WriteExclusiveRegOnly = 3,
    /// Only registrants read and write.
    ExclusiveAccessRegOnly = 4,
    /// Only registrants write, and all of them hold the reservation.
    WriteExclusiveAllRegs = 5,
    /// Only registrants read and write, and all of them hold the reservation.
    ExclusiveAccessAllRegs = 6,
}

impl PrType {
    /// All of them.
    pub const ALL: [Self; 6] = [
        Self::WriteExclusive,
        Self::ExclusiveAccess,
        Self::WriteExclusiveRegOnly,
        Self::ExclusiveAccessRegOnly,
        Self::WriteExclusiveAllRegs,
        Self::ExclusiveAccessAllRegs,
    ];

    /// Whether every registrant holds it.
    #[must_use]
    pub const fn is_all_regs(self) -> bool {
        matches!(self, Self::WriteExclusiveAllRegs | Self::ExclusiveAccessAllRegs)
    }

    const fn lets_others_read(self) -> bool {
        matches!(
            self,
            Self::WriteExclusive | Self::WriteExclusiveRegOnly | Self::WriteExclusiveAllRegs
        )
    }

    const fn lets_registrants_write(self) -> bool {
        !matches!(self, Self::WriteExclusive | Self::ExclusiveAccess)
    }
}

/// A reservation (kernel: `struct pr_held_reservation`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Held {
    /// The key of the holder; 0 where all registrants hold it.
    pub key: u64,
    /// What it is for.
    pub kind: PrType,
    /// See [`Keys::generation`].
    pub generation: u32,
}

/// Who is registered (kernel: `struct pr_keys`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Keys {
    /// How often registrations changed; wraps (SPC-4: PRGENERATION).
    pub generation: u32,
    /// The keys, one for each registrant, several of which may have the same.
    pub keys: Vec<u64>,
}

/// Why a reservation was not changed. Nothing has changed then.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PrError {
    /// The key is not the client's, or another holds the reservation (SCSI: RESERVATION CONFLICT).
    #[error("reservation conflict")]
    Conflict,
    /// A holder releases a reservation of another type than it holds (SCSI: INVALID RELEASE OF PERSISTENT
    /// RESERVATION).
    #[error("the reservation is held with another type")]
    WrongType,
    /// A key that means nothing here (SCSI: INVALID FIELD IN PARAMETER LIST).
    #[error("key 0 cannot be preempted")]
    InvalidKey,
    /// A reservation is of a disk, not of one of its partitions (kernel: `blkdev_pr_allowed`).
    #[error("a partition cannot be reserved, only its disk")]
    NotWhole,
    /// There are [`MAX_REGISTRANTS`] already (SCSI: INSUFFICIENT REGISTRATION RESOURCES).
    #[error("too many registrants")]
    TooMany,
}

impl PrError {
    /// As the status of an operation.
    #[must_use]
    pub const fn status(self) -> Status {
        match self {
            Self::Conflict => Status::ReservationConflict,
            Self::WrongType | Self::InvalidKey => Status::Invalid,
            Self::NotWhole => Status::NotPermitted,
            Self::TooMany => Status::Resource,
        }
    }
}

/// Who holds a reservation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Holder {
    One(Registrant),
    AllRegistrants,
}

/// The registrations and the reservation of a disk.
///
/// They last until [`Reservations::forget`]: who comes back under the same number finds its registration.
#[derive(Clone, Debug, Default)]
pub struct Reservations {
    keys: BTreeMap<Registrant, u64>,
    held: Option<(Holder, PrType)>,
    generation: u32,
}

impl Reservations {
    /// None.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Whether someone holds the disk. While nobody does, [`Reservations::allows`] need not be asked.
    #[must_use]
    pub const fn is_reserved(&self) -> bool {
        self.held.is_some()
    }

    /// Whether a client may do that. `None` is one that cannot register.
    ///
    /// As SBC-3's table "commands that are allowed in the presence of various reservations" has it: without a
    /// reservation, or for a holder, everything; for registrants everything under the types for registrants;
    /// for others reading under the write-exclusive types. Whatever does not change the disk counts as reading,
    /// except a flush: SYNCHRONIZE CACHE counts as writing.
    #[must_use]
    pub fn allows(&self, registrant: Option<Registrant>, op: Op) -> bool {
        let Some((holder, kind)) = self.held else { return true };
        let registered = registrant.filter(|who| self.keys.contains_key(who));
        if let Some(who) = registered
            && (kind.lets_registrants_write() || holder == Holder::One(who))
        {
            return true;
        }
        kind.lets_others_read() && !op.is_write() && op != Op::Flush
    }

    /// [`Reservations::allows`] as a result to end an operation with.
    ///
    /// # Errors
    ///
    /// [`Status::ReservationConflict`].
    pub fn check(&self, registrant: Option<Registrant>, op: Op) -> Result<(), Status> {
        if self.allows(registrant, op) { Ok(()) } else { Err(Status::ReservationConflict) }
    }

    /// Registers a key, or changes it, or takes it back with `new` 0 (kernel: `pr_register`; SPC-4, 5.7.7 and
    /// 5.7.11.3).
    ///
    /// `old` is the key so far, 0 if there is none; with `ignore` (kernel: `PR_FL_IGNORE_KEY`) it does not
    /// matter. A holder that takes its key back releases the reservation.
    ///
    /// # Errors
    ///
    /// [`PrError::Conflict`], [`PrError::TooMany`].
    pub fn register(
        &mut self,
        who: Registrant,
        old: u64,
        new: u64,
        ignore: bool,
    ) -> Result<(), PrError> {
        let current = self.keys.get(&who).copied();
        if !ignore && old != current.unwrap_or(0) {
            return Err(PrError::Conflict);
        }
        match (current, new) {
            (None, 0) => return Ok(()),
            (Some(_), 0) => self.unregister(who),
            (None, _) if self.keys.len() >= MAX_REGISTRANTS => return Err(PrError::TooMany),
            (_, new) => {
                self.keys.insert(who, new);
            }
        }
        self.generation = self.generation.wrapping_add(1);
        Ok(())
    }

    /// Reserves the disk (kernel: `pr_reserve`; SPC-4, 5.7.9). A holder may repeat it with the same type.
    ///
    /// # Errors
    ///
    /// [`PrError::Conflict`] if the key is not that of `who`, if another holds the disk, or with another type.
    pub fn reserve(&mut self, who: Registrant, key: u64, kind: PrType) -> Result<(), PrError> {
        self.check_key(who, key)?;
        match self.held {
            None => {
                self.held = Some((Self::holder(who, kind), kind));
                Ok(())
            }
            Some((_, held)) if self.holds(who) && held == kind => Ok(()),
            Some(_) => Err(PrError::Conflict),
        }
    }

    /// Releases the reservation (kernel: `pr_release`; SPC-4, 5.7.11.2). Who holds none is told that all is
    /// well.
    ///
    /// # Errors
    ///
    /// [`PrError::Conflict`] if the key is not that of `who`, [`PrError::WrongType`].
    pub fn release(&mut self, who: Registrant, key: u64, kind: PrType) -> Result<(), PrError> {
        self.check_key(who, key)?;
        match self.held {
            Some((_, held)) if self.holds(who) && held != kind => return Err(PrError::WrongType),
            Some(_) if self.holds(who) => self.held = None,
            _ => {}
        }
        Ok(())
    }

    /// Takes the registrations with the key `victim` away, and the reservation if one of them holds it: `who`
    /// then has it with type `kind` (kernel: `pr_preempt`, whose `old_key` is `key` and whose `new_key` is
    /// `victim`; SPC-4, 5.7.11.4).
    ///
    /// Where all registrants hold it, `victim` 0 takes everyone else's registration, and the reservation with
    /// it. `who` stays registered, whatever `victim` is. Returns those who are not registered any more;
    /// `pr_preempt` with `abort` also aborts what they have under way, which is for the caller to do.
    ///
    /// # Errors
    ///
    /// [`PrError::Conflict`] if `key` is not that of `who`, or nobody has `victim`; [`PrError::InvalidKey`].
    pub fn preempt(
        &mut self,
        who: Registrant,
        key: u64,
        victim: u64,
        kind: PrType,
    ) -> Result<Vec<Registrant>, PrError> {
        self.check_key(who, key)?;
        let all_regs = matches!(self.held, Some((Holder::AllRegistrants, _)));
        if victim == 0 && !all_regs {
            return Err(PrError::InvalidKey);
        }
        if victim != 0 && !self.keys.values().any(|&key| key == victim) {
            return Err(PrError::Conflict);
        }
        let takes_over = match self.held {
            None => false,
            Some((Holder::AllRegistrants, _)) => victim == 0,
            Some((Holder::One(holder), _)) => self.keys.get(&holder) == Some(&victim),
        };
        let is_victim = |(&other, &key): (&Registrant, &u64)| {
            (other != who && (victim == 0 || key == victim)).then_some(other)
        };
        let victims: Vec<Registrant> = self.keys.iter().filter_map(is_victim).collect();
        for victim in &victims {
            self.keys.remove(victim);
        }
        if takes_over {
            self.held = Some((Self::holder(who, kind), kind));
        }
        self.generation = self.generation.wrapping_add(1);
        Ok(victims)
    }

    /// Takes all registrations and the reservation away (kernel: `pr_clear`; SPC-4, 5.7.11.6).
    ///
    /// # Errors
    ///
    /// [`PrError::Conflict`] if the key is not that of `who`.
    pub fn clear(&mut self, who: Registrant, key: u64) -> Result<(), PrError> {
        self.check_key(who, key)?;
        self.keys.clear();
        self.held = None;
        self.generation = self.generation.wrapping_add(1);
        Ok(())
    }

    /// A client is gone, and will not come back: its registration goes, and its reservation with it.
    pub fn forget(&mut self, who: Registrant) {
        if self.keys.contains_key(&who) {
            self.unregister(who);
            self.generation = self.generation.wrapping_add(1);
        }
    }

    /// Who is registered (kernel: `pr_read_keys`).
    #[must_use]
    pub fn read_keys(&self) -> Keys {
        Keys { generation: self.generation, keys: self.keys.values().copied().collect() }
    }

    /// The reservation, if there is one (kernel: `pr_read_reservation`).
    #[must_use]
    pub fn read_reservation(&self) -> Option<Held> {
        let (holder, kind) = self.held?;
        let key = match holder {
            Holder::One(who) => self.keys.get(&who).copied().unwrap_or(0),
            Holder::AllRegistrants => 0,
        };
        Some(Held { key, kind, generation: self.generation })
    }

    const fn holder(who: Registrant, kind: PrType) -> Holder {
        if kind.is_all_regs() { Holder::AllRegistrants } else { Holder::One(who) }
    }

    fn check_key(&self, who: Registrant, key: u64) -> Result<(), PrError> {
        if self.keys.get(&who) == Some(&key) { Ok(()) } else { Err(PrError::Conflict) }
    }

    fn holds(&self, who: Registrant) -> bool {
        match self.held {
            None => false,
            Some((Holder::One(holder), _)) => holder == who,
            Some((Holder::AllRegistrants, _)) => self.keys.contains_key(&who),
        }
    }

    /// Where all registrants hold the reservation it goes with the last of them.
    fn unregister(&mut self, who: Registrant) {
        self.keys.remove(&who);
        let released = match self.held {
            None => false,
            Some((Holder::One(holder), _)) => holder == who,
            Some((Holder::AllRegistrants, _)) => self.keys.is_empty(),
        };
        if released {
            self.held = None;
        }
    }
}

/// The reservations of a disk, and whether there is any, for those who let operations in.
#[derive(Debug, Default)]
pub(crate) struct Fence {
    reserved: AtomicBool,
    reservations: Mutex<Reservations>,
}

impl Fence {
    pub(crate) fn is_reserved(&self) -> bool {
        self.reserved.load(Ordering::Acquire)
    }

    pub(crate) fn allows(&self, from: Registrant, op: Op) -> bool {
        from == Registrant::INTERNAL || self.reservations.lock().allows(Some(from), op)
    }

    pub(crate) fn with<R>(&self, f: impl FnOnce(&mut Reservations) -> R) -> R {
        let mut reservations = self.reservations.lock();
        let result = f(&mut reservations);
        self.reserved.store(reservations.is_reserved(), Ordering::Release);
        result
    }
}

#[cfg(test)]
mod tests;
