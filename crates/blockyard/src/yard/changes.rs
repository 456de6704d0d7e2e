//! Changes while a yard runs: one at a time, and nobody but those who use what is changed notices.

use std::sync::Arc;
use std::time::Duration;

use blockyard_blkmq::DiskFlags;

use super::events::Event;
use super::{Yard, YardExport};
use crate::disks::{DiskPlan, OptionSpec, Value};
use crate::error::{Error, ErrorKind, Result};
use crate::exports::{ExportKind, ExportPlan};

/// How long the clients of an export, and the last flush of a disk, have when it is removed.
const GRACE: Duration = Duration::from_secs(10);

/// What has come of a wish.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It was made.
    Made,
    /// It was there already, as it is wanted.
    Same,
}

/// Whether two plans are of the same disk, in the same words.
fn is_same(one: &DiskPlan, two: &DiskPlan) -> bool {
    format!("{one:?}") == format!("{two:?}")
}

impl Yard {
    /// Opens a disk, under the name that its plan gives it.
    ///
    /// # Errors
    /// What keeps it from being opened. There is another one of that name.
    pub async fn add_disk(self: &Arc<Self>, plan: DiskPlan) -> Result<Outcome> {
        let _one_at_a_time = self.changing.lock().await;
        let name = plan.options.name.clone().unwrap_or_default();
        let before = self.inside.read().disk(&name).ok().map(|disk| Arc::clone(&disk.plan));
        if let Some(before) = before {
            if is_same(&before, &plan) {
                return Ok(Outcome::Same);
            }
            let what = format!("there is a disk named {name:?} already: {}", before.uri);
            return Err(
                Error::new(ErrorKind::Busy, what).help("remove it first, or take another name")
            );
        }
        let yard = Arc::clone(self);
        let opened = tokio::task::spawn_blocking(move || {
            yard.open_disk(&plan, DiskFlags::empty()).map(drop)
        });
        opened.await.map_err(|err| Error::failed("cannot open the disk").caused_by(err))??;
        Ok(Outcome::Made)
    }

    /// Flushes and closes a disk that nobody uses.
    ///
    /// # Errors
    /// There is none of that name, it has exports, or its last flush has failed: it is closed all the same then.
    pub async fn remove_disk(&self, name: &str) -> Result<()> {
        let _one_at_a_time = self.changing.lock().await;
        let disk = {
            let mut inside = self.inside.write();
            inside.disk(name)?;
            let exports = inside.exports.iter().filter(|export| export.plan.disk == name);
            let labels: Vec<_> = exports.map(|export| export.plan.label()).collect();
            if !labels.is_empty() {
                let what = format!("the disk {name:?} has exports: {}", labels.join(", "));
                return Err(Error::new(ErrorKind::Busy, what).help("remove them first"));
            }
            let at = inside.disks.iter().position(|disk| disk.name == name);
            at.map(|at| inside.disks.remove(at))
        };
        let Some(disk) = disk else { return Ok(()) };
        let losses = disk.open.close(&self.layer, GRACE).await;
        disk.open.layers().for_each(|layer| self.watched.remove(layer.disk()));
        self.events.push(Event::DiskRemoved { disk: name.into() });
        losses.into_result()
    }

    /// Opens an export, and serves it.
    ///
    /// # Errors
    /// What keeps it from that. There is another one of that name, or no such disk.
    pub async fn add_export(self: &Arc<Self>, plan: ExportPlan) -> Result<Outcome> {
        let _one_at_a_time = self.changing.lock().await;
        let before =
            self.inside.read().export(plan.kind, &plan.name).map(|it| Arc::clone(&it.plan));
        if let Some(before) = before {
            if *before == plan {
                return Ok(Outcome::Same);
            }
            let what =
                format!("there is an export named {:?} already, of {}", plan.label(), before.disk);
            return Err(
                Error::new(ErrorKind::Busy, what).help("remove it first, or take another name")
            );
        }
        // A disk that is not there is told before a place is taken.
        self.disk(&plan.disk)?;
        let yard = Arc::clone(self);
        let opened = tokio::task::spawn_blocking(move || {
            let (kind, name) = (plan.kind, plan.name.clone());
            let bound = (kind.bind)(&plan)?;
            yard.open_export(plan, bound)?.start().inspect_err(|_| {
                yard.inside.write().take_export(kind, &name);
            })
        });
        opened.await.map_err(|err| Error::failed("cannot open the export").caused_by(err))??;
        Ok(Outcome::Made)
    }

    /// Ends an export: what its clients have asked for is answered, and nobody else is told.
    ///
    /// # Errors
    /// There is none of that name.
    pub async fn remove_export(&self, kind: &ExportKind, name: &str) -> Result<()> {
        let _one_at_a_time = self.changing.lock().await;
        let taken = self.inside.write().take_export(kind, name);
        let Some(YardExport { plan, export }) = taken else {
            let what = format!("there is no export {name:?} of kind {}", kind.name);
            return Err(Error::failed(what).help("see which there are: blockyard list"));
        };
        export.stop();
        export.end(GRACE).await;
        let (kind, name) = (plan.kind.name.into(), plan.name.clone());
        self.events.push(Event::ExportRemoved { kind, name });
        Ok(())
    }

    /// Changes a disk while it is used. It may take a while, as files are made longer for certain.
    ///
    /// # Errors
    /// It cannot be so; what comes after that is left as it is.
    pub async fn set(&self, disk: &str, settings: Vec<(&'static OptionSpec, Value)>) -> Result<()> {
        let _one_at_a_time = self.changing.lock().await;
        let open = self.disk(disk)?;
        let changed = tokio::task::spawn_blocking(move || {
            settings.iter().try_for_each(|(option, value)| match option.live {
                Some(change) => change(open.disk(), value),
                None => unreachable!("{} is no setting", option.name),
            })
        });
        changed.await.map_err(|err| Error::failed("cannot change the disk").caused_by(err))?
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::yard::plan::NbdPlan;

    #[tokio::test]
    async fn an_end_waits_for_a_change_under_way_and_lets_no_other_begin() {
        let yard = Yard::start(1, &NbdPlan::default()).unwrap();
        let mut plan: DiskPlan = "ram:1M?name=a".parse().unwrap();
        assert_eq!(yard.add_disk(plan.clone()).await.unwrap(), Outcome::Made);
        assert_eq!(yard.add_disk(plan.clone()).await.unwrap(), Outcome::Same);
        // As a removal holds it that closes a disk.
        let change = yard.changing.lock().await;
        let ending = Arc::clone(&yard);
        let ending = tokio::spawn(async move { ending.end(Duration::from_secs(60)).await });
        while !yard.inside.read().is_closed {
            tokio::task::yield_now().await;
        }
        assert!(!ending.is_finished());
        assert_eq!(yard.inside.read().disks.len(), 1);
        plan.options.name = Some("b".into());
        let refused = yard.open_disk(&plan, DiskFlags::empty()).map(drop).unwrap_err();
        assert!(refused.to_string().contains("is ending"), "{refused}");
        drop(change);
        ending.await.unwrap().into_result().unwrap();
        assert!(yard.inside.read().disks.is_empty() && yard.layer.disks().is_empty());
    }
}
