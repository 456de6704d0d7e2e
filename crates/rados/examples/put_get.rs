//! Writes an object to a cluster, and reads it back: configuration and arguments as Ceph's own programs take them.
//!
//! ```text
//! CEPH_CONF=/etc/ceph/ceph.conf cargo run -p blockyard-rados --example put_get -- --id admin
//! rados -p rbd get blockyard-example -
//! ```
//!
//! The pool is `rbd`, or the one of the environment variable `POOL`.
#![allow(clippy::print_stdout, reason = "this is a program for a terminal")]

use blockyard_rados::Result;
use blockyard_rados::net::{Cluster, Config};
use bytes::Bytes;
use std::time::Instant;

const OBJECT: &str = "blockyard-example";

async fn example() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let cluster = Cluster::connect(Config::from_arguments(&arguments)?).await?;
    println!("client.{} at {:?}", cluster.global_id(), cluster.address());

    let name = std::env::var("POOL").unwrap_or_else(|_| "rbd".to_owned());
    let pool = cluster.pool(&name).await?;
    let place = pool.locate(OBJECT)?;
    println!("{OBJECT} -> {} -> {:?}", place.pg, place.placed.acting);

    let data: Bytes = format!("written by process {}\n", std::process::id()).repeat(50_000).into();
    let begin = Instant::now();
    pool.write_full(OBJECT, data.clone()).await?;
    println!("write: {:?}", begin.elapsed());
    let begin = Instant::now();
    let back = pool.read(OBJECT, 0, 0).await?;
    println!("read: {:?}, {} bytes, {}", begin.elapsed(), back.len(), back == data);
    println!("stat: {:?}", pool.stat(OBJECT).await?);
    Ok(())
}

#[tokio::main(flavor = "current_thread")]
async fn main() {
    if let Err(error) = example().await {
        println!("error: {error}");
        std::process::exit(1);
    }
}
