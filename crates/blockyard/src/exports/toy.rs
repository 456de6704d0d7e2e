//! A kind of front-end that only tests have: one file and a line in [`super::KINDS`] are all that it takes for `yard.toml`, the
//! control API, and the flags of `serve` and `add`. It has one client, which counts what it hears of the disk, and reads of it
//! twice before it leaves.

use std::sync::Arc;
use std::time::Duration;

use blockyard_blkmq::{Bdev, Bio, Op, Sector};
use parking_lot::Mutex;

use super::{Doing, Export, ExportKind, Flag};
use crate::disks::{OptionSpec, ValueKind};
use crate::error::Result;
use crate::yard::follow::State;
use crate::yard::report;

pub(super) static KIND: ExportKind = ExportKind {
    options: &[OptionSpec::new("colour", ValueKind::Choice(&["red", "blue"]), "red", "its looks")],
    flags: &[Flag { option: "colour", value_name: "COLOUR", help: "Show the disk in this colour" }],
    ..ExportKind::new("toy", "[[toy]]", "hears what becomes of a disk", |plan| {
        let colour = plan.settings.text("colour").unwrap_or("red").to_owned();
        Ok(Box::new(|front| {
            Ok(Arc::new(Toy { colour, bdev: front.bdev()?, heard: Mutex::default() }))
        }))
    })
};

struct Toy {
    colour: String,
    bdev: Arc<Bdev>,
    heard: Mutex<Vec<State>>,
}

impl Export for Toy {
    fn start(&self) -> Result<()> {
        Ok(())
    }

    fn end(&self, _clients: Duration, _grace: Duration) -> Doing<'_, Result<()>> {
        Box::pin(async {
            for _ in 0..2 {
                let read = self.bdev.submit_async(0, Bio::new(Op::Read, Sector(0), 4096)).await;
                assert!(read.status().is_ok(), "{read:?}");
            }
            Ok(())
        })
    }

    fn follow(&self, now: State) {
        self.heard.lock().push(now);
    }

    fn report(&self) -> report::Served {
        let requests = self.heard.lock().len() as u64;
        let address = Some(format!("toy:{}", self.colour));
        report::Served { address, clients: 1, queues: None, requests }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Duration;

    use blockyard_blkmq::DiskFlags;
    use clap::Parser;

    use crate::api::client::{Ask, ask_at};
    use crate::cli::{Cli, Command};
    use crate::commands::{add, serve};
    use crate::exports::ExportPlan;
    use crate::yard::plan::NbdPlan;
    use crate::yard::{Yard, config};

    fn parse(line: &str) -> Result<Command, String> {
        let cli = Cli::try_parse_from(line.split(' ')).map_err(|err| err.to_string())?;
        Ok(cli.command)
    }

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
        yard.end(Duration::from_secs(5)).await.into_result().unwrap();
    }

    #[tokio::test]
    async fn an_export_that_is_removed_does_not_wait_for_the_limits_of_its_disk() {
        let yard = Yard::start(1, &NbdPlan::default()).unwrap();
        let plan = "null:1M?name=a&read_bps=1".parse().unwrap();
        yard.add_disk(plan, false, None).await.unwrap();
        let toy = ExportPlan::new(&super::KIND, "a", "e");
        yard.add_export(toy, None).await.unwrap();
        let removed = yard.remove_export(&super::KIND, "e", None);
        let removed = tokio::time::timeout(Duration::from_secs(60), removed).await;
        removed.expect("it waits for more than an hour").unwrap();
        yard.end(Duration::from_secs(5)).await.into_result().unwrap();
    }

    /// From the flag of `serve` to the report, and from that of `add` to the API of the daemon.
    #[tokio::test]
    async fn one_file_makes_a_front_end_that_commands_know() {
        let Ok(Command::Serve(args)) = parse("blockyard serve ram:1M?name=a --toy blue") else {
            panic!("a line as any other")
        };
        let plan = serve::plan(&args, false, None).unwrap();
        let bound = plan.exports.iter().map(|export| (export.kind.bind)(export));
        let bound = bound.collect::<super::Result<Vec<_>>>().unwrap();
        let yard = crate::daemon::open(plan, bound).unwrap();
        yard.serve(Vec::new()).unwrap();
        let dir = tempfile::tempdir().unwrap();
        let server = crate::api::Server::bind_in(dir.path(), 7, Arc::clone(&yard), None).unwrap();
        tokio::spawn(server.serve());
        let Ok(Command::Add(args)) = parse("blockyard add ram:1M --no-nbd --toy red") else {
            panic!("a line as any other")
        };
        let mut asked = add::exports_of(&args, "a", dir.path()).unwrap();
        let (kind, body) = asked.pop().unwrap();
        let (path, socket) = (format!("/v1/exports/{kind}/x"), dir.path().join("7.sock"));
        let put = move || ask_at(&socket, &Ask::put(path, body.into()));
        let put = tokio::task::spawn_blocking(put).await.unwrap().unwrap().unwrap();
        assert!(put.is_made());
        let exports = yard.report().exports;
        let shown =
            exports.iter().filter_map(|it| Some((&*it.name, it.served.address.as_deref()?)));
        assert_eq!(shown.collect::<Vec<_>>(), [("a", "toy:blue"), ("x", "toy:red")]);
        assert_eq!(yard.report().disks[0].exports, ["a", "toy:a", "toy:x"]);
        yard.end(Duration::from_secs(5)).await.into_result().unwrap();
        for (line, part) in [
            ("blockyard serve ram:1M --toy green", "supported: red and blue"),
            ("blockyard serve ram:1M --toy red --toy red", "the number of disks is 1"),
        ] {
            let Ok(Command::Serve(args)) = parse(line) else { panic!("{line}") };
            let err = serve::plan(&args, false, None).unwrap_err().to_string();
            assert!(err.contains(part), "{line}: {err}");
        }
        let help = parse("blockyard serve --help").unwrap_err();
        assert!(help.contains("--toy <COLOUR>"), "{help}");
    }
}
