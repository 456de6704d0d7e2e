//! A kind of disk that only tests have: one file and a line in [`super::KINDS`] are all that it takes. It lies on another disk,
//! and passes on what it is asked.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use blockyard_blkmq::{
    Bdev, Bio, BlockDeviceOps, Busy, Disk, Driver, Error as BlockError, Features, HctxHandle,
    OpenMode, Request,
};
use parking_lot::Mutex;

use super::identity::DiskIdentity;
use super::kind::{Body, DiskKind, DiskSource, Fresh};
use super::live::{Change, Live};
use super::maker::{DiskMaker, Parts};
use super::options::{NO_LIMIT, OptionSpec, Value, ValueKind};
use super::plan::DiskPlan;
use crate::error::{Error, Result};

pub(super) static KIND: DiskKind = DiskKind {
    name: "toy",
    schemes: &["toy", "toys"],
    body: Body::Below,
    usage: "toy:URI",
    summary: "passes on what it is asked to the disk below",
    options: &[
        OptionSpec::new("colour", ValueKind::Choice(&["red", "blue"]), "red", "how it looks"),
        OptionSpec::new(
            "id",
            ValueKind::Text,
            "that of the disk below",
            "what it is told apart by",
        ),
        OptionSpec {
            live: Some(Live { check: |_, _, _| Ok(()), change: Change::Disk(set_patience) }),
            ..OptionSpec::new(
                "patience",
                ValueKind::Time { zero: false, most: NO_LIMIT },
                "30s",
                "how long it waits",
            )
        },
    ],
    without: &["size"],
    has_below: true,
    stays_read_only: true,
    is_volatile: false,
    source: |said| {
        let is_blue = said.settings.text("colour") == Some("blue");
        Ok(Box::new(Source { is_blue, id: said.settings.text("id").map(str::to_owned) }))
    },
};

fn set_patience(disk: &Disk, value: &Value) -> Result<()> {
    let Value::Time(time) = *value else { unreachable!("{value:?}") };
    disk.set_timeout(time.max(Duration::from_millis(1)));
    Ok(())
}

#[derive(Clone, Debug)]
pub(super) struct Source {
    pub(super) is_blue: bool,
    id: Option<String>,
}

impl DiskSource for Source {
    fn open(
        &self,
        plan: &DiskPlan,
        below: Option<&Arc<Disk>>,
        maker: &mut DiskMaker,
    ) -> Result<Fresh> {
        let below = below.ok_or_else(|| Error::failed("it lies on nothing"))?;
        let mode = if plan.options.read_only { OpenMode::ReadOnly } else { OpenMode::ReadWrite };
        let bdev = below
            .open(None, mode)
            .map_err(|err| Error::failed("cannot open the disk below").caused_by(err))?;
        let mut limits = below.limits();
        let own = Features::BLOCK_STATUS | Features::NOWAIT | Features::FILE_RANGES;
        limits.features.remove(Features::OWN_MEMORY | own);
        limits.max_hw_discard_sectors = 0;
        limits.max_write_zeroes_sectors = 0;
        let driver = Arc::new(PassOn { below: bdev });
        let parts = Parts::new(plan, maker, driver, below.size_bytes(), limits);
        Ok(Fresh { disk: maker.alloc(plan, parts)?, remote: None })
    }

    fn identity(&self) -> io::Result<Option<DiskIdentity>> {
        Ok(self.id.as_ref().map(|id| DiskIdentity::of_words("toy", [id.as_str()])))
    }
}

struct PassOn {
    below: Bdev,
}

impl BlockDeviceOps for PassOn {}

impl Driver for PassOn {
    type Disk = ();
    type Hctx = usize;
    type Cmd = ();

    fn init_hctx(&self, _: &(), queue: HctxHandle<Self>) -> Result<usize, BlockError> {
        Ok(queue.index())
    }

    fn queue_rq(&self, cpu: &mut usize, rq: Request<Self>, _: bool) -> Result<(), Busy<Self>> {
        let data = rq.segments().collect();
        let bio = if rq.op().has_data() {
            Bio::with_data(rq.op(), rq.sector(), data)
        } else {
            Bio::new(rq.op(), rq.sector(), rq.len())
        };
        let rq = Mutex::new(Some(rq));
        let ended = move |bio: Box<Bio>| {
            if let Some(rq) = rq.lock().take() {
                rq.complete(bio.status());
            }
        };
        self.below.submit(*cpu, bio.on_end(Arc::new(ended)));
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use blockyard_blkmq::{Op, Sector, Status};
    use blockyard_buf::{Segment, Segments};

    use super::*;
    use crate::disks::{DiskPlan, help, settings};
    use crate::error::ErrorKind;

    fn plan(uri: &str) -> DiskPlan {
        uri.parse().unwrap_or_else(|err| panic!("{uri}: {err}"))
    }

    #[test]
    fn one_file_makes_a_kind_that_uris_and_help_know() {
        let toy = plan("TOY:/p?colour=blue&name=t&patience=3s");
        let source = toy.source.as_any().downcast_ref::<Source>().unwrap();
        assert!(source.is_blue);
        let below = toy.below.as_deref().unwrap();
        assert_eq!(below.source.file(), Some(Path::new("/p")));
        let escaped = plan("toys:ram:1M%3Fblock=4096");
        assert_eq!(escaped.below.unwrap().options.block.unwrap().bytes(), 4096);
        let stack = plan("toy:?below=toy:ram:1M");
        assert_eq!(stack.below.unwrap().below.unwrap().kind.name, "ram");
        for (uri, part) in [
            ("toy:", "the disk below is missing"),
            ("toy:floppy:1", "unknown disk type \"floppy\""),
            ("toy:ram:1M?colour=green", "supported: red and blue"),
            ("toy:ram:1M?size=1M", "no option \"size\""),
            ("ram:1M?colour=red", "an option of toy: disks"),
            ("ram:1M?below=null:1M", "an option of toy: disks"),
            ("tpy:x", "did you mean \"toy\"?"),
        ] {
            let error = uri.parse::<DiskPlan>().expect_err(uri).to_string();
            assert!(error.contains(part), "{uri}: {error}");
        }
        let help = help::uris_and_options();
        for part in ["toy:URI", "Options of toy: disks", "colour=red|blue", "below=URI", "[live]"] {
            assert!(help.contains(part), "{part} is not in\n{help}");
        }
        assert!(settings().any(|option| option.name == "patience"));
    }

    /// Each is one more than a stack has room for, if there were no limit.
    #[test]
    fn disks_that_lie_on_each_other_without_end_are_refused() {
        let uri = format!("{}ram:1M", "toy:".repeat(100_000));
        let error = uri.parse::<DiskPlan>().unwrap_err();
        assert!(error.problem().contains("layers of disks"), "{}", error.problem());
    }

    #[test]
    fn what_is_said_of_a_disk_holds_for_those_that_it_lies_on() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("p");
        std::fs::write(&path, [7; 4096]).unwrap();
        let file = path.to_str().unwrap();
        let mut toy = plan(&format!("toy:{file}"));
        let identity = DiskIdentity::of(&toy).unwrap();
        assert!(identity.same_disk(&DiskIdentity::of_path(&path).unwrap()));
        assert!(DiskIdentity::of(&plan("toy:ram:1M")).unwrap().is_volatile());
        let mut absent = plan(&format!("toy:file:{file}x%3Fcreate=1M"));
        absent.never_make();
        let mut session = crate::tools::session::Session::start(1).unwrap();
        let flags = blockyard_blkmq::DiskFlags::NO_PART_SCAN;
        assert!(session.open(&absent, flags).is_err());
        // Two cannot have the file, unless one of them only looks on.
        let first = session.open(&toy, flags).unwrap();
        let again = session.open(&toy, flags).err().map(|err| err.kind());
        assert_eq!(again, Some(ErrorKind::Busy));
        toy.share();
        session.open(&toy, flags).unwrap();
        assert_eq!(first.size_bytes(), 4096);
        drop(first);
        session.close().unwrap();
    }

    /// Compared, and written to a record and read back, with nothing that knows of the kind.
    #[test]
    fn one_file_says_what_tells_its_disks_apart() {
        let of = |uri: &str| DiskIdentity::of(&plan(uri)).unwrap();
        let (one, two) = (of("toy:ram:1M?id=a/1"), of("toy:null:1M?id=b"));
        assert!(one.same_disk(&of("toy:null:2M?id=a/1")) && !one.same_disk(&two));
        assert!(!one.overlaps(&two) && !one.is_volatile() && one.is_still(&one));
        let record = one.to_string();
        assert_eq!(record, "toy/a%2F1");
        assert!(one.same_disk(&record.parse().unwrap()));
        assert!(of("toy:ram:1M").is_volatile());
    }

    #[test]
    fn bytes_go_through_and_layers_are_closed_from_the_top() {
        let mut session = crate::tools::session::Session::start(1).unwrap();
        let flags = blockyard_blkmq::DiskFlags::NO_PART_SCAN;
        let disk = session.open(&plan("toy:toy:ram:1M"), flags).unwrap();
        let bdev = disk.open(None, OpenMode::ReadWrite).unwrap();
        let written = Segment::from_vec(vec![0xa5; 4096]);
        assert_eq!(submit(&bdev, Op::Write, written), Status::Ok);
        let read = Segment::from_vec(vec![0; 4096]);
        assert_eq!(submit(&bdev, Op::Read, read.clone()), Status::Ok);
        assert_eq!(read.to_vec(), [0xa5; 4096]);
        drop(bdev);
        session.close().unwrap();
    }

    fn submit(bdev: &Bdev, op: Op, data: Segment) -> Status {
        let (tell, told) = std::sync::mpsc::channel();
        let ended = move |bio: Box<Bio>| tell.send(bio.status()).unwrap();
        let mut segments = Segments::new();
        segments.push(data);
        bdev.submit(0, Bio::with_data(op, Sector(0), segments).on_end(Arc::new(ended)));
        told.recv_timeout(Duration::from_secs(30)).unwrap()
    }
}
