//! CRUSH: Ceph's placement of data, as pure functions over a decoded map.
//!
//! A [`CrushMap`] is a tree of buckets (hosts, racks, rooms) with devices at its leaves, and rules.
//! [`CrushMap::do_rule`] maps an input, such as a placement group's number, to devices: the same ones on every
//! client that has the same map, so that nobody has to be asked where data is. The results equal those of Ceph's
//! `crushtool`, in all versions of the map.
//!
//! ```
//! use blockyard_crush::{Algorithm, Bucket, CrushMap, MapData, Op, Rule, RuleKind, Scratch, Step};
//!
//! let weights = vec![0x1_0000; 3]; // 16.16 fixed point: 1.0 each
//! let algorithm = Algorithm::Straw2 { weights: weights.clone() };
//! let root = Bucket { id: -1, kind: 1, weight: 3 * 0x1_0000, items: vec![0, 1, 2], algorithm };
//! let steps = vec![
//!     Step::new(Op::Take, -1, 0),
//!     Step::new(Op::ChooseFirstn, 0, 0), // as many as wanted, of type 0: devices
//!     Step::new(Op::Emit, 0, 0),
//! ];
//! let rule = Rule { ruleset: 0, kind: RuleKind::Replicated, min_size: 1, max_size: 10, steps };
//! let data = MapData { buckets: vec![Some(root)], rules: vec![Some(rule)], ..MapData::default() };
//! let map = CrushMap::new(data)?;
//!
//! let (mut devices, mut scratch) = ([0; 2], Scratch::new());
//! let found = map.do_rule(0, 1234, &weights, None, &mut devices, &mut scratch);
//! assert_eq!(devices[..found], [1, 0]);
//! # Ok::<(), blockyard_crush::Error>(())
//! ```
//!
//! # Where the facts are
//!
//! - The algorithm: Weil and others, *CRUSH: Controlled, Scalable, Decentralized Placement of Replicated Data*
//!   (2006).
//! - What Ceph made of it: `src/crush/mapper.c`, `hash.c`, `crush.h` and `CrushWrapper.cc` of Ceph,
//!   `net/ceph/crush` of
//!   Linux. The modules here name the functions that they agree with.
//! - Multi-step retry, which Ceph 19 added: `doc/dev/crush-msr.rst`.
//!
//! # Errors
//!
//! A map comes from a monitor, and may be damaged or hostile: decoding and checking it gives an [`Error`], never a
//! panic, and takes memory in proportion to its bytes. Mapping cannot fail; [`limits`] bound the work that a map
//! can ask for.
#![forbid(unsafe_code)]

mod bucket;
mod check;
mod data;
mod decode;
mod encode;
mod error;
mod hash;
mod lanes;
pub mod limits;
mod list;
mod ln;
mod location;
mod map;
mod mapper;
mod names;
mod overrides;
mod reader;
mod rule;
mod straw;
mod straw2;
mod tree;
mod tunables;
mod uniform;

pub use data::{Algorithm, Bucket, ChooseArg, MAGIC, MapData};
pub use encode::Release;
pub use error::{Error, ErrorKind, Result};
pub use hash::{hash32, hash32_2, hash32_3, hash32_4, hash32_5};
pub use map::{CrushMap, DEFAULT_CHOOSE_ARGS};
pub use mapper::{NONE, Scratch};
pub use overrides::ChooseArgs;
pub use rule::{Op, Rule, RuleKind, Step};
pub use tunables::Tunables;
