//! The map of an image's objects, which is the bytes of an object.

use super::{Call, Method, NOTHING};
use crate::error::Result;
use crate::format::{MAX_OBJECTS, ObjectMap, ObjectState};
use crate::store::Mutation;
use blockyard_rados::encoding::{Writer, encoded};
use rustix::io::Errno;

pub(super) const METHODS: &[(&str, Method)] = &[
    ("object_map_load", Method::reading(load)),
    ("object_map_save", Method::writing(save)),
    ("object_map_resize", Method::writing(resize)),
    ("object_map_update", Method::writing(update)),
    ("object_map_snap_add", Method::writing(snap_add)),
    ("object_map_snap_remove", Method::writing(snap_remove)),
];

impl Call<'_> {
    fn read_map(&mut self) -> Result<ObjectMap> {
        let bytes = self.read_all()?;
        ObjectMap::parse(&bytes).map_err(|_| Errno::INVAL.into())
    }

    fn write_map(&mut self, map: &ObjectMap) -> Result<()> {
        self.object.apply(Mutation::WriteFull(encoded(map).into()))
    }

    fn input_map(&mut self) -> Result<ObjectMap> {
        ObjectMap::parse(self.reader.rest()).map_err(|_| Errno::INVAL.into())
    }

    fn input_state(&mut self) -> Result<ObjectState> {
        ObjectState::from_number(self.input()?).ok_or(Errno::INVAL.into())
    }
}

fn load(call: &mut Call<'_>) -> Result<Vec<u8>> {
    let mut out = Writer::new();
    call.read_map()?.encode_without_checksums(&mut out);
    Ok(out.into_bytes())
}

fn save(call: &mut Call<'_>) -> Result<Vec<u8>> {
    let map = call.input_map()?;
    call.write_map(&map)?;
    Ok(NOTHING)
}

fn resize(call: &mut Call<'_>) -> Result<Vec<u8>> {
    let objects: u64 = call.input()?;
    let state = call.input_state()?;
    if objects > MAX_OBJECTS {
        return Err(Errno::INVAL.into());
    }
    let mut map = match call.read_map() {
        Err(error) if error.is_not_found() => ObjectMap::default(),
        read => read?,
    };
    let cut = objects..map.objects();
    if cut.clone().any(|object| map.state(object) != Some(state)) {
        return Err(Errno::STALE.into());
    }
    map.resize(objects, state)?;
    call.write_map(&map)?;
    Ok(NOTHING)
}

fn update(call: &mut Call<'_>) -> Result<Vec<u8>> {
    let (start, end): (u64, u64) = (call.input()?, call.input()?);
    let new = call.input_state()?;
    let only = if call.input::<u8>()? == 0 { None } else { Some(call.input_state()?) };
    call.check_exists()?;
    let mut map = call.read_map()?;
    if start >= end || end > map.objects() {
        return Err(Errno::RANGE.into());
    }
    let is_meant = |state| match only {
        None => true,
        // One that has not changed is there, too.
        Some(ObjectState::Exists) => {
            matches!(state, ObjectState::Exists | ObjectState::ExistsClean)
        }
        Some(only) => state == only,
    };
    let mut changed = false;
    for object in start..end {
        if map.state(object).is_some_and(|state| state != new && is_meant(state)) {
            changed |= map.set(object, new);
        }
    }
    if changed {
        call.write_map(&map)?;
    }
    Ok(NOTHING)
}

/// Changes those states of the map that `change` says another one for.
fn convert(
    call: &mut Call<'_>,
    change: impl Fn(u64, ObjectState) -> Option<ObjectState>,
) -> Result<Vec<u8>> {
    let mut map = call.read_map()?;
    let mut changed = false;
    for object in 0..map.objects() {
        if let Some(new) = map.state(object).and_then(|state| change(object, state)) {
            changed |= map.set(object, new);
        }
    }
    if changed {
        call.write_map(&map)?;
    }
    Ok(NOTHING)
}

fn snap_add(call: &mut Call<'_>) -> Result<Vec<u8>> {
    convert(call, |_, state| (state == ObjectState::Exists).then_some(ObjectState::ExistsClean))
}

fn snap_remove(call: &mut Call<'_>) -> Result<Vec<u8>> {
    let snapshot = call.input_map()?;
    convert(call, |object, state| {
        (state == ObjectState::ExistsClean && snapshot.has_changed(object))
            .then_some(ObjectState::Exists)
    })
}
