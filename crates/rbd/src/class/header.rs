//! Size, order, features, flags, times and stripes of an image.

use super::{Call, Method, NOTHING};
use crate::error::Result;
use crate::format::{Features, ImageFlags, OpFeatures, Parent, Snapshot, names};
use crate::store::NOSNAP;
use blockyard_rados::encoding::{Utime, Writer, encoded};
use rustix::io::Errno;

pub(super) const METHODS: &[(&str, Method)] = &[
    ("create", Method::writing(create)),
    ("get_size", Method::reading(get_size)),
    ("set_size", Method::writing(set_size)),
    ("get_features", Method::reading(get_features)),
    ("set_features", Method::writing(set_features)),
    ("get_all_features", Method::reading(|_| Ok(encoded(&Features::KNOWN.bits())))),
    ("get_flags", Method::reading(get_flags)),
    ("set_flags", Method::writing(set_flags)),
    ("op_features_get", Method::reading(op_features_get)),
    ("op_features_set", Method::writing(op_features_set)),
    ("get_object_prefix", Method::reading(get_object_prefix)),
    ("get_data_pool", Method::reading(get_data_pool)),
    ("get_stripe_unit_count", Method::reading(get_stripe_unit_count)),
    ("set_stripe_unit_count", Method::writing(set_stripe_unit_count)),
    ("get_create_timestamp", Method::reading(|call| get_timestamp(call, b"create_timestamp"))),
    ("get_access_timestamp", Method::reading(|call| get_timestamp(call, b"access_timestamp"))),
    ("get_modify_timestamp", Method::reading(|call| get_timestamp(call, b"modify_timestamp"))),
    ("set_access_timestamp", Method::writing(|call| set_timestamp(call, b"access_timestamp"))),
    ("set_modify_timestamp", Method::writing(|call| set_timestamp(call, b"modify_timestamp"))),
];

const NO_POOL: i64 = -1;

fn create(call: &mut Call<'_>) -> Result<Vec<u8>> {
    let (size, order): (u64, u8) = (call.input()?, call.input()?);
    let features = Features::from_bits_retain(call.input()?);
    let prefix = call.input_bytes()?;
    let data_pool: i64 = call.newer_input(NO_POOL)?;
    if !Features::KNOWN.contains(features) {
        return Err(Errno::NOSYS.into());
    }
    if prefix.is_empty() || features.contains(Features::OPERATIONS) {
        return Err(Errno::INVAL.into());
    }
    if call.object.omap_get(b"object_prefix")?.is_some() {
        return Err(Errno::EXIST.into());
    }
    if features.contains(Features::DATA_POOL) == (data_pool == NO_POOL) {
        return Err(Errno::INVAL.into());
    }
    let now = encoded(&call.object.now());
    let mut keys = vec![
        (b"size".to_vec(), encoded(&size)),
        (b"order".to_vec(), encoded(&order)),
        (b"features".to_vec(), encoded(&features.bits())),
        (b"object_prefix".to_vec(), super::text(&prefix)),
        (b"snap_seq".to_vec(), encoded(&0_u64)),
        (b"create_timestamp".to_vec(), now.clone()),
        (b"access_timestamp".to_vec(), now.clone()),
        (b"modify_timestamp".to_vec(), now),
    ];
    if data_pool != NO_POOL {
        keys.push((b"data_pool_id".to_vec(), encoded(&data_pool)));
    }
    call.set_keys(keys)?;
    Ok(NOTHING)
}

impl Call<'_> {
    /// A snapshot of the header, else ENOENT.
    pub(super) fn snapshot(&mut self, id: u64) -> Result<Snapshot> {
        self.required(names::snapshot_key(id).as_bytes())
    }

    /// The features; ENOENT if it is no header.
    pub(super) fn features(&mut self) -> Result<Features> {
        self.required(b"features").map(Features::from_bits_retain)
    }

    /// Whether the image has a feature; what has no features has none.
    pub(super) fn has_feature(&mut self, feature: Features) -> Result<bool> {
        let features: Option<u64> = self.key(b"features")?;
        Ok(features.is_some_and(|features| Features::from_bits_retain(features).contains(feature)))
    }

    /// ENOEXEC if the image does not have a feature.
    pub(super) fn require_feature(&mut self, feature: Features) -> Result<()> {
        if self.has_feature(feature)? { Ok(()) } else { Err(Errno::NOEXEC.into()) }
    }

    /// Changes features by operation, and the feature that says that there are some.
    pub(super) fn set_op_features(&mut self, set: OpFeatures, mask: OpFeatures) -> Result<()> {
        let features = self.features()?;
        let old = OpFeatures::from_bits_retain(self.key(b"op_features")?.unwrap_or_default());
        let new = old.difference(mask) | set & mask;
        if new == old {
            return Ok(());
        }
        let mut changed = features;
        changed.set(Features::OPERATIONS, !new.is_empty());
        if new.is_empty() {
            self.remove_key(b"op_features")?;
        } else {
            self.set_key(b"op_features", &new.bits())?;
        }
        if changed != features {
            self.set_key(b"features", &changed.bits())?;
        }
        Ok(())
    }
}

fn get_size(call: &mut Call<'_>) -> Result<Vec<u8>> {
    let snapshot: u64 = call.input()?;
    let order: u8 = call.required(b"order")?;
    let size = match snapshot {
        NOSNAP => call.required(b"size")?,
        snapshot => call.snapshot(snapshot)?.image_size,
    };
    let mut out = Writer::new();
    out.u8(order);
    out.u64(size);
    Ok(out.into_bytes())
}

fn set_size(call: &mut Call<'_>) -> Result<Vec<u8>> {
    let size: u64 = call.input()?;
    let old: u64 = call.required(b"size")?;
    call.set_key(b"size", &size)?;
    if size < old
        && let Some(mut parent) = call.key::<Parent>(b"parent")?
        && parent.spec.exists()
        && parent.overlap.is_some_and(|overlap| overlap > size)
    {
        parent.overlap = Some(size);
        call.set_key(b"parent", &parent)?;
    }
    Ok(NOTHING)
}

fn get_features(call: &mut Call<'_>) -> Result<Vec<u8>> {
    // A snapshot, which is not looked at any more.
    call.input::<u64>()?;
    let read_only = call.newer_input(0_u8)? != 0;
    let features = call.features()?;
    let incompatible = if read_only { Features::INCOMPATIBLE } else { Features::RW_INCOMPATIBLE };
    let mut out = Writer::new();
    out.u64(features.bits());
    out.u64((features & incompatible).bits());
    Ok(out.into_bytes())
}

fn set_features(call: &mut Call<'_>) -> Result<Vec<u8>> {
    let features = Features::from_bits_retain(call.input()?);
    let mask = Features::from_bits_retain(call.input()?);
    let old = Features::from_bits_retain(call.key(b"features")?.unwrap_or_default());
    if mask.intersects(Features::INTERNAL) {
        return Err(Errno::INVAL.into());
    }
    let mask = mask & Features::KNOWN;
    let (on, off) = (features & mask, mask.difference(features));
    let may_be_off = Features::MUTABLE | Features::DISABLE_ONLY;
    if !Features::MUTABLE.contains(on) || !may_be_off.contains(off) {
        return Err(Errno::INVAL.into());
    }
    call.set_key(b"features", &(old.difference(mask) | on).bits())?;
    Ok(NOTHING)
}

fn get_flags(call: &mut Call<'_>) -> Result<Vec<u8>> {
    let flags = match call.input()? {
        NOSNAP => call.key(b"flags")?.unwrap_or_default(),
        snapshot => call.snapshot(snapshot)?.flags.bits(),
    };
    Ok(encoded(&flags))
}

fn set_flags(call: &mut Call<'_>) -> Result<Vec<u8>> {
    let (flags, mask): (u64, u64) = (call.input()?, call.input()?);
    let changed = |old: u64| old & !mask | flags & mask;
    match call.newer_input(NOSNAP)? {
        NOSNAP => {
            let old = call.key(b"flags")?.unwrap_or_default();
            call.set_key(b"flags", &changed(old))?;
        }
        id => {
            let mut snapshot = call.snapshot(id)?;
            snapshot.flags = ImageFlags::from_bits_retain(changed(snapshot.flags.bits()));
            call.write_snapshot(snapshot)?;
        }
    }
    Ok(NOTHING)
}

fn op_features_get(call: &mut Call<'_>) -> Result<Vec<u8>> {
    let features: u64 = call.key(b"op_features")?.unwrap_or_default();
    Ok(encoded(&features))
}

fn op_features_set(call: &mut Call<'_>) -> Result<Vec<u8>> {
    let set = OpFeatures::from_bits_retain(call.input()?);
    let mask = OpFeatures::from_bits_retain(call.input()?);
    if !OpFeatures::KNOWN.contains(mask) {
        return Err(Errno::INVAL.into());
    }
    call.set_op_features(set, mask)?;
    Ok(NOTHING)
}

fn get_object_prefix(call: &mut Call<'_>) -> Result<Vec<u8>> {
    let prefix: String = call.required(b"object_prefix")?;
    Ok(super::text(prefix.as_bytes()))
}

fn get_data_pool(call: &mut Call<'_>) -> Result<Vec<u8>> {
    let pool: i64 = call.key(b"data_pool_id")?.unwrap_or(NO_POOL);
    Ok(encoded(&pool))
}

fn get_stripe_unit_count(call: &mut Call<'_>) -> Result<Vec<u8>> {
    call.check_exists()?;
    call.require_feature(Features::STRIPINGV2)?;
    let unit = match call.key(b"stripe_unit")? {
        Some(unit) => unit,
        None => object_bytes(call)?,
    };
    let mut out = Writer::new();
    out.u64(unit);
    out.u64(call.key(b"stripe_count")?.unwrap_or(1));
    Ok(out.into_bytes())
}

fn object_bytes(call: &mut Call<'_>) -> Result<u64> {
    let order: u8 = call.required(b"order")?;
    1_u64.checked_shl(order.into()).ok_or(Errno::IO.into())
}

fn set_stripe_unit_count(call: &mut Call<'_>) -> Result<Vec<u8>> {
    let (unit, count): (u64, u64) = (call.input()?, call.input()?);
    if unit == 0 || count == 0 {
        return Err(Errno::INVAL.into());
    }
    call.check_exists()?;
    call.require_feature(Features::STRIPINGV2)?;
    if !object_bytes(call)?.is_multiple_of(unit) {
        return Err(Errno::INVAL.into());
    }
    call.set_key(b"stripe_unit", &unit)?;
    call.set_key(b"stripe_count", &count)?;
    Ok(NOTHING)
}

fn get_timestamp(call: &mut Call<'_>, key: &[u8]) -> Result<Vec<u8>> {
    let time: Utime = call.key(key)?.unwrap_or_default();
    Ok(encoded(&time))
}

fn set_timestamp(call: &mut Call<'_>, key: &[u8]) -> Result<Vec<u8>> {
    call.check_exists()?;
    let now = call.object.now();
    call.set_key(key, &now)?;
    Ok(NOTHING)
}
