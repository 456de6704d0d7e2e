//! Serves a RAM disk: `ramserve ADDRESS [GIB] [THREADS]`. What the measurements of this crate are made with.
#![allow(clippy::print_stdout, reason = "it says where it listens")]

use std::error::Error;
use std::sync::Arc;

use blockyard_blkmq::{
    Disk, DiskConfig, MonotonicClock, NoOps, OpenMode, Sector, TagSet, TagSetConfig,
};
use blockyard_driver_ram::Ram;
use blockyard_export_nbd::{Address, Config, Export, Server, bind};
use tokio::runtime::{Builder, Handle};

fn main() -> Result<(), Box<dyn Error>> {
    let mut args = std::env::args().skip(1);
    let address: Address = args.next().ok_or("where to listen?")?.parse()?;
    let gib: u64 = args.next().map_or(Ok(1), |text| text.parse())?;
    let threads: usize = args.next().map_or(Ok(1), |text| text.parse())?;

    let capacity = Sector::from_bytes_floor(gib << 30);
    let tags =
        TagSetConfig { cpus: threads, hw_queues: [threads, 0, 0], ..TagSetConfig::default() };
    let set = TagSet::new(Ram::new(), tags)?;
    let config = DiskConfig::new("ram0", capacity, Ram::limits());
    let disk = Disk::alloc(&set, (), config, Arc::new(NoOps), Arc::new(MonotonicClock::new()))?;
    let bdev = Arc::new(disk.open(None, OpenMode::ReadWrite)?);

    let handles = (0..threads).map(|_| queue_thread()).collect::<Result<Vec<_>, _>>()?;
    let config = Config { exports: vec![Export::new("ram", bdev)], ..Config::default() };
    let server = Server::new(config, handles)?;
    let listener = bind(&address, None)?;
    println!("listening at {:?}", listener.addresses());
    server.listen(listener);
    loop {
        std::thread::park();
    }
}

fn queue_thread() -> Result<Handle, std::io::Error> {
    let runtime = Builder::new_current_thread().enable_all().build()?;
    let handle = runtime.handle().clone();
    std::thread::Builder::new()
        .name("queue".into())
        .spawn(move || runtime.block_on(std::future::pending::<()>()))?;
    Ok(handle)
}
