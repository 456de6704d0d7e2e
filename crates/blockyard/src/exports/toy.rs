//! A kind of front-end that only tests have: one file and a line in [`super::KINDS`] are all that it takes. It has one client,
//! which counts what it hears of the disk.

use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;

use super::{Doing, Export, ExportKind};
use crate::disks::{OptionSpec, ValueKind};
use crate::error::Result;
use crate::yard::follow::State;
use crate::yard::report;

pub(super) static KIND: ExportKind = ExportKind {
    name: "toy",
    table: "[[toy]]",
    summary: "hears what becomes of a disk",
    options: &[OptionSpec::new("colour", ValueKind::Choice(&["red", "blue"]), "red", "its looks")],
    whole_yard: false,
    local_kernel: false,
    check: |_| Ok(()),
    bind: |_| {
        Ok(Box::new(|front| Ok(Arc::new(Toy { _bdev: front.bdev()?, heard: Mutex::default() }))))
    },
};

struct Toy {
    _bdev: Arc<blockyard_blkmq::Bdev>,
    heard: Mutex<Vec<State>>,
}

impl Export for Toy {
    fn start(&self) -> Result<()> {
        Ok(())
    }

    fn end(&self, _clients: Duration, _grace: Duration) -> Doing<'_, Result<()>> {
        Box::pin(std::future::ready(Ok(())))
    }

    fn follow(&self, now: State) {
        self.heard.lock().push(now);
    }

    fn report(&self) -> report::Served {
        let requests = self.heard.lock().len() as u64;
        report::Served { address: Some("toy".into()), clients: 1, queues: None, requests }
    }
}

#[cfg(test)]
mod tests {
    use blockyard_blkmq::DiskFlags;

    use crate::yard::Yard;
    use crate::yard::config;

    /// From yard.toml to the report, and nothing but that file knows of it.
    #[tokio::test]
    async fn one_file_makes_a_front_end_that_yards_know() {
        let text = "[[disk]]\nname = \"a\"\nuri = \"ram:1M\"\n\n[[toy]]\ndisk = \"a\"\ncolour = \"blue\"\n";
        let plan = config::parse("yard.toml", text, std::path::Path::new("/")).unwrap();
        let toy = plan.exports.iter().find(|export| export.kind.name == "toy").unwrap().clone();
        assert_eq!(toy.settings.text("colour"), Some("blue"));
        let yard = Yard::start(1, &plan.nbd).unwrap();
        let open = yard.open_disk(&plan.disks[0], DiskFlags::empty()).unwrap();
        let bound = (toy.kind.bind)(&toy).unwrap();
        yard.open_export(toy, bound).unwrap();
        yard.serve(Vec::new()).unwrap();
        open.disk().resize_bytes(2 << 20).unwrap();
        open.disk().set_read_only(true);
        let report = yard.report();
        let export = &report.exports[0];
        assert_eq!((&*export.kind, &*export.name, &*export.disk), ("toy", "a", "a"));
        assert_eq!(export.served.requests, 2, "a size, and that it is read-only");
        assert_eq!(report.disks[0].exports, ["toy:a"]);
        drop(open);
        yard.end(std::time::Duration::from_secs(5)).await.into_result().unwrap();
    }
}
