//! From an image to a disk. One that is written is open beside others, who may want it now and then.

use std::sync::Arc;

use blockyard_blkmq::Disk;
use blockyard_driver_rbd::{Rbd, limits};
use blockyard_rbd::dir::{Directory, Owned};
use blockyard_rbd::format::{Features, Layout};
use blockyard_rbd::image::{CreateOptions, create};
use blockyard_rbd::live::{LiveImage, Options};
use blockyard_rbd::store::ObjectStore;
use tokio::runtime::Handle;

use super::RbdSource;
use crate::disks::kind::Fresh;
use crate::disks::maker::{DiskMaker, Parts, shown_size};
use crate::disks::plan::DiskPlan;
use crate::disks::remote::{Goodbye, RemoteDriver};
use crate::error::{Error, Result};
use crate::images::{
    CLOSE_LIMIT, Holder, Store, holder_name, is_kept_out, lock, rbd_error, read, wait, wait_on,
};

/// The order of images that are made by opening them: objects of 4 MiB, as `rbd` makes them.
const ORDER: u8 = 22;

pub(super) fn open(source: &RbdSource, plan: &DiskPlan, maker: &mut DiskMaker) -> Result<Fresh> {
    let spec = &source.spec;
    let store = source.place.open(&spec.namespace, source.create.is_some())?;
    let read_only = plan.options.read_only || spec.snapshot.is_some();
    if read_only || source.is_shared {
        let image = wait(async {
            source.make(&store).await?;
            read(&store, spec).await
        })??;
        let (layout, size) = (image.layout(), image.size());
        let driver = Rbd::new(spec.to_string(), image, (), maker.threads());
        let disk = disk_of(&driver, plan, maker, read_only, (layout, size))?;
        return Ok(Fresh { disk, remote: None });
    }
    let [thread, ..] = maker.threads() else {
        return Err(Error::failed("an image needs a queue thread"));
    };
    let thread = thread.clone();
    let Taken { live, shape, guard, holder } = wait_on(&thread, take(source, &store))??;
    let driver = Rbd::new(spec.to_string(), live, guard, maker.threads());
    let (holder, thread) = (holder.map(Arc::new), thread.clone());
    let remote = Arc::new(Remote { driver, holder, thread: thread.clone() });
    match disk_of(&remote.driver, plan, maker, read_only, shape) {
        Ok(disk) => Ok(Fresh { disk, remote: Some(remote) }),
        Err(err) => {
            wait_on(&thread, remote.disconnect())?;
            Err(err)
        }
    }
}

fn disk_of(
    driver: &Arc<Rbd<Store>>,
    plan: &DiskPlan,
    maker: &mut DiskMaker,
    read_only: bool,
    (layout, size): (Layout, u64),
) -> Result<Arc<Disk>> {
    let size = shown_size(plan, size)?;
    driver.show(size);
    let limits = limits(&layout, read_only);
    let mut parts = Parts::new(plan, maker, Arc::clone(driver), size, limits);
    parts.read_only = read_only;
    maker.alloc(plan, parts)
}

/// An image that this process has, to write it.
struct Taken {
    live: LiveImage<Store>,
    /// Its layout, and its size.
    shape: (Layout, u64),
    guard: Option<Owned<Directory>>,
    holder: Option<Holder>,
}

/// Opens an image to write it, and takes its lock, so that the first write need not wait for it.
async fn take(source: &RbdSource, store: &Store) -> Result<Taken> {
    let spec = &source.spec;
    source.make(store).await?;
    let id = read(store, spec).await?.id().to_owned();
    // Nobody else of this machine has it as a disk.
    let guard = lock(store, spec, &id).await?;
    let (holder, dead_self) = match store {
        Store::Dir(_) => (None, None),
        Store::Rados(_) => {
            let name = holder_name(&store.cluster_id(), store.pool(), store.namespace(), &id);
            let (holder, dead_self) = Holder::take(&name, spec)?;
            (Some(holder), dead_self)
        }
    };
    let cannot = |err| rbd_error(format!("cannot open {spec}"), err);
    let has_died = dead_self.clone();
    let options = Options { dead_self, ..Options::default() };
    let live = LiveImage::open(store, &spec.image, options).await.map_err(cannot)?;
    let shape = {
        let image = live.owned().await.map_err(cannot)?;
        (image.layout(), image.size())
    };
    if let Some(dead) = has_died {
        tracing::info!(image = %spec, client = %dead.client.client, "lock of a dead process on this host broken");
    }
    if let (Some(holder), Some(owner)) = (&holder, live.owner())
        && let Err(error) = holder.note(&owner)
    {
        tracing::warn!(image = %spec, %error, "cannot record the owner; after a kill the image stays locked for 30 s");
    }
    Ok(Taken { live, shape, guard, holder })
}

/// A disk whose image others may want, and change.
struct Remote {
    driver: Arc<Rbd<Store>>,
    holder: Option<Arc<Holder>>,
    /// What goes on later goes on here.
    thread: Handle,
}

impl RemoteDriver for Remote {
    fn clear_queue(&self) {
        self.driver.clear_queue();
    }

    fn disconnect(&self) -> Goodbye<'_> {
        Box::pin(async {
            let closed = tokio::time::timeout(CLOSE_LIMIT, self.driver.close()).await;
            let is_over = match &closed {
                Ok(Ok(())) => true,
                Ok(Err(error)) => {
                    tracing::warn!(%error, "cannot release the lock of an image");
                    // Who is kept out writes nothing any more: this process may open it again, as somebody new.
                    is_kept_out(error)
                }
                Err(_) => {
                    tracing::warn!(limit = ?CLOSE_LIMIT, "cannot release the lock of an image in time");
                    false
                }
            };
            if !matches!(closed, Ok(Ok(()))) {
                // Nor is anything else waited for.
                self.driver.end();
            }
            let Some(holder) = &self.holder else { return };
            if is_over {
                return holder.forget();
            }
            let (driver, holder) = (Arc::clone(&self.driver), Arc::clone(holder));
            self.thread.spawn(holder.close_later(move || {
                let driver = Arc::clone(&driver);
                async move { driver.close().await }
            }));
        })
    }

    fn changes_size_frozen(&self) -> bool {
        true
    }

    fn follow_size(&self, thread: &Handle, tell: Box<dyn FnMut(u64) -> bool + Send>) {
        thread.spawn(self.driver.sizes(tell));
    }
}

impl RbdSource {
    /// Makes the image, if that is wanted and it is not there.
    async fn make(&self, store: &Store) -> Result<()> {
        let Some(size) = self.create else { return Ok(()) };
        let cannot = |err| rbd_error(format!("cannot create {}", self.spec), err);
        let layout = Layout::new(ORDER).map_err(cannot)?;
        let options = CreateOptions { size, layout, features: Features::DEFAULT };
        match create(store, &self.spec.image, &options).await {
            Err(err) if err.errno().is_some_and(|errno| errno.raw_os_error() == EEXIST) => Ok(()),
            made => made.map_err(cannot),
        }
    }
}

const EEXIST: i32 = 17;
