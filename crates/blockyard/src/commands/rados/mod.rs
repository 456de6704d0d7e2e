//! `blockyard rados`: objects of a Ceph cluster, for trying it.

mod transfer;

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::time::Duration;

use blockyard_rados::encoding::{ObjectName, PgId};
use blockyard_rados::net::{Cluster, Config, Pool};
use blockyard_rados::osd::ALL_NAMESPACES;
use blockyard_rados::{Blame, Error as RadosError, ErrorKind as RadosKind};
use serde::Serialize;

use super::size;
use crate::bench::{MAX_BLOCK, ObjectLoad, run_objects};
use crate::cli::{PlaceArgs, RadosArgs, RadosBenchArgs, RadosCommand, RadosRw};
use crate::disks::parse_duration;
use crate::error::{Error, ErrorKind, Result};
use crate::text::size as sizes;
use crate::text::term;

/// How long anything may take, if neither arguments nor ceph.conf say.
const TIMEOUT: Duration = Duration::from_secs(60);
const ENOENT: i32 = 2;
const EPERM: i32 = 1;
const EACCES: i32 = 13;

pub(super) fn run(args: &RadosArgs) -> Result<u8> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|err| Error::failed("cannot start a runtime").caused_by(err))?;
    runtime.block_on(perform(args))
}

async fn perform(args: &RadosArgs) -> Result<u8> {
    let name = args.place.pool.as_deref().ok_or_else(|| {
        Error::usage("no pool given").help("add --pool NAME; list pools: ceph osd pool ls")
    })?;
    let pool = open(&args.place, name).await?;
    let json = args.place.json;
    match &args.command {
        RadosCommand::Get { object, file } => transfer::get(&pool, object, file).await?,
        RadosCommand::Put { object, file } => transfer::put(&pool, object, file).await?,
        RadosCommand::Ls { all } => list(pool, *all, json).await?,
        RadosCommand::Stat { objects } => stat(&pool, objects, json).await?,
        RadosCommand::Rm { objects } => remove(&pool, objects).await?,
        RadosCommand::Map { objects } => {
            map(&pool, (name, &shown(&args.place.namespace)), objects, json)?;
        }
        RadosCommand::Bench(bench) => return self::bench(&pool, bench, json).await,
    }
    Ok(0)
}

/// Connects with what Ceph's own programs take.
async fn open(place: &PlaceArgs, name: &str) -> Result<Pool> {
    let timeout = place.timeout.as_deref().map(parse_duration).transpose();
    let timeout = timeout.map_err(|problem| Error::usage(format!("--timeout: {problem}")))?;
    let flags = [
        ("--conf", &place.conf),
        ("--id", &place.id),
        ("--keyring", &place.keyring),
        ("--mon-host", &place.mon_host),
    ];
    let words = flags.iter().filter_map(|(flag, value)| Some([*flag, value.as_deref()?]));
    let words: Vec<&str> = words.flatten().collect();
    let mut config =
        Config::from_arguments(&words).map_err(|err| cannot("use the cluster", err))?;
    let limits = [&mut config.connect_timeout, &mut config.monitor_timeout, &mut config.op_timeout];
    for limit in limits {
        *limit = timeout.or(*limit).or(Some(TIMEOUT));
    }
    let cluster =
        Cluster::connect(config).await.map_err(|err| cannot("connect to the cluster", err))?;
    let pool = cluster.pool(name).await.map_err(|err| cannot(&format!("open pool {name}"), err))?;
    Ok(pool.with_namespace(place.namespace.as_bytes()))
}

/// What could not be done, and what a person can do about it.
fn cannot(what: &str, err: RadosError) -> Error {
    let kind = match err.kind() {
        RadosKind::BadParameter { .. } => ErrorKind::Usage,
        RadosKind::Osd { errno: EPERM | EACCES }
        | RadosKind::Refused { errno: EPERM | EACCES, .. }
        | RadosKind::NotPermitted { .. }
        | RadosKind::WrongKey { .. } => ErrorKind::NotPermitted,
        _ => ErrorKind::Failed,
    };
    let help = match (err.kind(), err.blame()) {
        (RadosKind::Osd { errno: ENOENT }, _) => {
            Some("list objects: blockyard rados --pool POOL ls")
        }
        (RadosKind::NotPermitted { .. }, _) => Some("check --id and --keyring"),
        (RadosKind::Unreachable { .. }, _) => Some("check --mon-host, or `mon host` in ceph.conf"),
        (_, Blame::Network) => Some("increase --timeout if the cluster is busy"),
        _ => None,
    };
    let is_missing = matches!(err.kind(), RadosKind::Osd { errno: ENOENT });
    let problem = if is_missing { ": no such object" } else { "" };
    let error = Error::new(kind, format!("cannot {what}{problem}")).caused_by(err);
    match help {
        Some(help) => error.help(help),
        None => error,
    }
}

/// A name as it is shown: names are any bytes, which are taken as they come.
fn shown(object: &OsStr) -> String {
    ObjectName::from(object.as_bytes()).to_string()
}

#[derive(Serialize)]
struct ListedObject {
    namespace: String,
    name: String,
    key: String,
}

async fn list(pool: Pool, all: bool, json: bool) -> Result<()> {
    let pool = if all { pool.with_namespace(ALL_NAMESPACES) } else { pool };
    let mut list = pool.list();
    let mut objects = Vec::new();
    while let Some(object) = list.next().await.map_err(|err| cannot("list the objects", err))? {
        let [namespace, name, key] =
            [object.namespace, object.name, object.key].map(|name| name.to_string());
        let object = ListedObject { namespace, name, key };
        let is_read = match (json, all) {
            (true, _) => {
                objects.push(object);
                true
            }
            (false, true) => term::say_on(format_args!("{}\t{}", object.namespace, object.name))?,
            (false, false) => term::say_on(object.name)?,
        };
        if !is_read {
            return Ok(());
        }
    }
    if json { term::say_json(&objects) } else { Ok(()) }
}

#[derive(Serialize)]
struct ObjectStat {
    name: String,
    size: u64,
    modified_seconds: u32,
}

async fn stat(pool: &Pool, objects: &[OsString], json: bool) -> Result<()> {
    let mut all = Vec::new();
    for object in objects {
        let name = shown(object);
        let stat = pool.stat(object.as_bytes()).await;
        let stat = stat.map_err(|err| cannot(&format!("stat {name}"), err))?;
        let modified_seconds = stat.modified.seconds;
        all.push(ObjectStat { name, size: stat.size, modified_seconds });
    }
    if json {
        return term::say_json(&all);
    }
    let mut table = term::table(&["OBJECT", "SIZE", "BYTES", "MODIFIED (UNIX TIME)"]);
    for object in all {
        let (bytes, time) = (object.size.to_string(), object.modified_seconds.to_string());
        table.add_row([object.name, sizes::human(object.size), bytes, time]);
    }
    term::say(table.trim_fmt())
}

async fn remove(pool: &Pool, objects: &[OsString]) -> Result<()> {
    for object in objects {
        let removed = pool.remove(object.as_bytes()).await;
        removed.map_err(|err| cannot(&format!("remove {}", shown(object)), err))?;
    }
    Ok(())
}

/// With the keys and values of `ceph osd map -f json`.
#[derive(Serialize)]
struct ObjectPlace {
    epoch: u32,
    pool: String,
    pool_id: i64,
    objname: String,
    raw_pgid: String,
    pgid: String,
    up: Vec<i32>,
    up_primary: i32,
    acting: Vec<i32>,
    acting_primary: i32,
}

/// What Ceph's tools call a place without an OSD (`CRUSH_ITEM_NONE`), and an OSD that there is not.
const NO_PLACE: i32 = i32::MAX;
const NO_OSD: i32 = -1;

fn map(
    pool: &Pool,
    (pool_name, namespace): (&str, &str),
    objects: &[OsString],
    json: bool,
) -> Result<()> {
    let mut all = Vec::new();
    let places =
        |osds: Vec<Option<i32>>| osds.into_iter().map(|osd| osd.unwrap_or(NO_PLACE)).collect();
    for object in objects {
        let name = shown(object);
        let place = pool.locate(object.as_bytes());
        let place = place.map_err(|err| cannot(&format!("place {name}"), err))?;
        let objname = if namespace.is_empty() { name } else { format!("{namespace}/{name}") };
        all.push(ObjectPlace {
            epoch: place.epoch,
            pool: pool_name.to_owned(),
            pool_id: pool.id(),
            objname,
            raw_pgid: PgId { seed: place.hash, ..place.pg }.to_string(),
            pgid: place.pg.to_string(),
            up: places(place.placed.up),
            up_primary: place.placed.up_primary.unwrap_or(NO_OSD),
            acting: places(place.placed.acting),
            acting_primary: place.placed.primary.unwrap_or(NO_OSD),
        });
    }
    if json {
        return term::say_json(&all);
    }
    let name = |osd: i32| match osd {
        NO_PLACE | NO_OSD => "-".to_owned(),
        osd => osd.to_string(),
    };
    let osds = |osds: &[i32]| osds.iter().map(|&osd| name(osd)).collect::<Vec<_>>().join(",");
    let mut table = term::table(&["OBJECT", "EPOCH", "PG", "UP", "ACTING", "PRIMARY"]);
    for place in all {
        let primary = name(place.acting_primary);
        let (up, acting) = (osds(&place.up), osds(&place.acting));
        let epoch = place.epoch.to_string();
        table.add_row([place.objname, epoch, place.pgid, up, acting, primary]);
    }
    term::say(table.trim_fmt())
}

async fn bench(pool: &Pool, args: &RadosBenchArgs, json: bool) -> Result<u8> {
    let block = size("--bs", &args.bs)?;
    let block =
        u32::try_from(block).ok().filter(|&block| block > 0 && u64::from(block) <= MAX_BLOCK);
    let block = block.ok_or_else(|| {
        let most = sizes::human(MAX_BLOCK);
        Error::usage(format!("invalid --bs {}; use 1 to {most}", args.bs))
    })?;
    let time: Duration =
        parse_duration(&args.time).map_err(|problem| Error::usage(format!("--time: {problem}")))?;
    let (write, depth) = (args.rw == RadosRw::Write, args.depth as usize);
    let load = ObjectLoad {
        write,
        block,
        depth,
        time,
        objects: args.objects,
        run_name: args.run_name.clone(),
        prepare: !args.no_prepare,
        clean_up: !args.no_cleanup,
    };
    let report = run_objects(pool, &load).await?;
    if json {
        term::say_json(&report)?;
    } else {
        term::say(report.render())?;
    }
    Ok(if report.errors > 0 { ErrorKind::Failed.exit_code() } else { 0 })
}
