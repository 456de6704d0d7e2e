//! What goes wrong.

use crate::world::{ERASURE, Event, MILLI, MONITORS, OSDS, Process, World};
use blockyard_rados::encoding::PgId;
use std::time::Duration;

/// How much goes wrong.
#[derive(Clone, Debug)]
pub(crate) struct Chaos {
    pub(crate) active: bool,
    /// When it ends.
    pub(crate) until: Duration,
    pub(crate) reset_one_in: u64,
    pub(crate) delay_micros: u64,
    pub(crate) publish_micros: u64,
    pub(crate) work_micros: u64,
    pub(crate) backoff_one_in: u64,
    /// How often an OSD talks nonsense before it answers.
    pub(crate) nonsense_one_in: u64,
    /// How many changes of the map monitors keep.
    pub(crate) kept_changes: usize,
    /// Between two troubles.
    pub(crate) pause_micros: u64,
    pub(crate) deletes_a_pool: bool,
    /// How many streams to OSDs are slow ones.
    pub(crate) slow_one_in: u64,
    /// How many writes are large ones; none, if it does not say.
    pub(crate) large_one_in: Option<u64>,
}

/// Something that happens later.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Action {
    MarkDown(usize),
    Restart(usize),
    ClearFlags(u32),
    ClearPool(i64),
}

impl World {
    pub(crate) fn act(&mut self, action: Action) {
        match action {
            Action::MarkDown(osd) => {
                if !self.osds[osd].alive {
                    self.change_map(|model| model.osds[osd].up = false);
                }
            }
            Action::Restart(osd) => {
                if !self.osds[osd].alive {
                    self.restart(osd);
                }
            }
            Action::ClearFlags(flags) => self.change_map(|model| model.flags &= !flags),
            Action::ClearPool(pool) => self.change_map(|model| {
                if let Some(pool) = model.pools.get_mut(&pool) {
                    pool.flags = 0;
                }
            }),
        }
    }

    fn later(&mut self, micros: u64, action: Action) {
        let delay = self.rng.micros(micros);
        self.after(delay, Event::Later(action));
    }

    pub(crate) fn make_chaos(&mut self) {
        if self.now >= self.chaos.until {
            self.end_chaos();
            return;
        }
        let osd = self.rng.index(OSDS);
        match self.rng.below(16) {
            0 | 1 if self.osds[osd].alive => {
                self.kill(osd);
                if self.rng.one_in(2) {
                    self.later(3000 * MILLI, Action::MarkDown(osd));
                }
                self.later(6000 * MILLI, Action::Restart(osd));
            }
            2 => {
                let time = self.rng.micros(4000 * MILLI);
                let until = (self.now + time).max(self.osds[osd].frozen_until);
                self.osds[osd].frozen_until = until;
            }
            3 | 4 => {
                let pool = 1;
                let seed =
                    u32::try_from(self.rng.below(self.model.pools[&pool].pg_num.into())).unwrap();
                let pg = PgId { pool, seed };
                let clear = self.rng.one_in(3);
                let osd = i32::try_from(osd).unwrap();
                self.change_map(|model| {
                    if clear {
                        model.primary_temp.remove(&pg);
                    } else if model.osds[usize::try_from(osd).unwrap()].up {
                        model.primary_temp.insert(pg, osd);
                    }
                });
            }
            5 => {
                let pg_num = [8, 12, 16, 32][self.rng.index(4)];
                self.change_map(|model| {
                    model.pools.get_mut(&1).unwrap().pg_num = pg_num;
                    model.primary_temp.retain(|pg, _| pg.seed < pg_num);
                });
            }
            6 => {
                let flags = 1 << (1 + self.rng.below(3));
                self.change_map(|model| model.flags |= flags);
                self.later(2000 * MILLI, Action::ClearFlags(flags));
            }
            7 => {
                self.change_map(|model| model.pools.get_mut(&1).unwrap().flags = 2);
                self.later(2000 * MILLI, Action::ClearPool(1));
            }
            8 => self
                .change_map(|model| model.pools.get_mut(&1).unwrap().last_force_resend = u32::MAX),
            9 => self.break_all(Process::Monitor(osd % MONITORS)),
            10 => self.break_all(Process::Osd(osd, self.osds[osd].incarnation)),
            12 => {
                let size = [2, 3][self.rng.index(2)];
                self.change_map(|model| model.pools.get_mut(&1).unwrap().size = size);
            }
            13 => self.move_shards(),
            14 => {
                let willing = [0, 0x8000, 0x1_0000][self.rng.index(3)];
                self.change_map(|model| model.affinities[osd] = willing);
            }
            15 => self.disconnect_a_watch(),
            11 if self.chaos.deletes_a_pool && self.now > self.chaos.until / 2 => {
                self.change_map(|model| {
                    model.pools.remove(&2);
                });
            }
            _ => {}
        }
        let pause = self.rng.micros(self.chaos.pause_micros);
        self.after(pause, Event::Chaos);
    }

    /// Another list of OSDs serves an erasure-coded group: often with the same primary, at another position.
    pub(crate) fn move_shards(&mut self) {
        let seed = u32::try_from(self.rng.below(self.model.pools[&ERASURE].pg_num.into())).unwrap();
        let pg = PgId { pool: ERASURE, seed };
        let served = self.served(pg);
        let mut temp: Vec<_> = served.acting.iter().copied().flatten().collect();
        if self.rng.one_in(4) || temp.len() < served.acting.len() {
            self.change_map(|model| {
                model.pg_temp.remove(&pg);
                model.primary_temp.remove(&pg);
            });
            return;
        }
        let by = 1 + self.rng.index(temp.len() - 1);
        temp.rotate_left(by);
        let stays = served.primary.filter(|_| !self.rng.one_in(4));
        self.change_map(|model| {
            model.pg_temp.insert(pg, temp);
            match stays {
                Some(primary) => model.primary_temp.insert(pg, primary),
                None => model.primary_temp.remove(&pg),
            };
        });
    }

    /// All is well again.
    fn end_chaos(&mut self) {
        self.chaos.active = false;
        for osd in 0..OSDS {
            self.act(Action::Restart(osd));
        }
        let deletes = self.chaos.deletes_a_pool;
        self.change_map(|model| {
            model.flags = 0;
            for pool in model.pools.values_mut() {
                pool.flags = 0;
            }
            if deletes {
                model.pools.remove(&2);
            }
        });
    }
}
