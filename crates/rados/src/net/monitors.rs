//! What monitors are asked for.

use super::cluster::Cluster;
use crate::encoding::{EntityAddr, Reader};
use crate::error::{Error, ErrorKind, Result};
use crate::mon::{Answer, PoolOp, Request};
use crate::osd::whole_seconds;
use bytes::Bytes;
use std::time::Duration;

/// A word on the outcome of a command that does not have one.
const ENOENT: i32 = 2;
const NEWEST_MAP: &str = "asking for the newest map";

/// Text as a JSON string.
fn quoted(text: &str) -> String {
    let mut json = String::from("\"");
    for c in text.chars() {
        match c {
            '"' | '\\' => json.extend(['\\', c]),
            c if c < ' ' => json += &format!("\\u{:04x}", u32::from(c)),
            c => json.push(c),
        }
    }
    json + "\""
}

fn refused(doing: &'static str, reason: String, errno: i32) -> Error {
    Error::new(doing, ErrorKind::Refused { reason, errno })
}

impl Cluster {
    async fn ask(&self, doing: &'static str, request: Request) -> Result<Answer> {
        self.in_time(doing, self.engine.ask(request)).await
    }

    /// Waits for the newest map that there is when this is called: its epoch.
    ///
    /// # Errors
    /// No monitor answers in time, or the map does not come in that time, or cannot be used.
    pub async fn newest_map(&self) -> Result<u32> {
        self.in_time(NEWEST_MAP, async {
            let epoch = self.newest_epoch().await?;
            self.engine.wait_for_map(epoch).await?;
            Ok(epoch)
        })
        .await
    }

    async fn newest_epoch(&self) -> Result<u32> {
        let answer = self.engine.ask(Request::GetVersion("osdmap".to_owned())).await?;
        let Answer::Version { newest, .. } = answer else {
            return Err(Error::violation(NEWEST_MAP, "a question is answered with a version", 0));
        };
        Ok(u32::try_from(newest).unwrap_or(u32::MAX))
    }

    /// Runs a command, given as JSON (such as `{"prefix": "osd pool ls"}`): what it prints.
    ///
    /// # Errors
    /// The monitors refuse it, with their reason; or none answers in time.
    pub async fn command(&self, json: &str, input: Bytes) -> Result<Bytes> {
        const DOING: &str = "running a command of the monitors";
        let request = Request::Command { command: json.to_owned(), input };
        match self.ask(DOING, request).await? {
            Answer::Command { errno: 0, output, .. } => Ok(output),
            Answer::Command { errno, status, .. } => Err(refused(DOING, status, errno)),
            _ => Err(Error::violation(DOING, "a command is answered as one", 0)),
        }
    }

    /// Makes a replicated pool, unless it is there. The map with it is in use when this ends.
    ///
    /// # Errors
    /// As [`command`](Self::command).
    pub async fn create_pool(&self, name: &str, groups: u32) -> Result<()> {
        let name = quoted(name);
        let json =
            format!(r#"{{"prefix": "osd pool create", "pool": {name}, "pg_num": {groups}}}"#);
        self.command(&json, Bytes::new()).await?;
        self.newest_map().await.map(|_| ())
    }

    /// Removes a pool with all that is in it. The monitors have to be configured to allow that.
    ///
    /// # Errors
    /// As [`command`](Self::command).
    pub async fn delete_pool(&self, name: &str) -> Result<()> {
        let name = quoted(name);
        let json = format!(
            r#"{{"prefix": "osd pool delete", "pool": {name}, "pool2": {name}, "yes_i_really_really_mean_it": true}}"#
        );
        self.command(&json, Bytes::new()).await?;
        self.newest_map().await.map(|_| ())
    }

    async fn pool_op(&self, pool: i64, op: PoolOp) -> Result<(u32, Bytes)> {
        const DOING: &str = "changing the snapshots of a pool";
        let pool = u32::try_from(pool).map_err(|_| Error::new(DOING, ErrorKind::NoPool))?;
        match self.ask(DOING, Request::Pool { pool, op }).await? {
            Answer::Pool { errno: 0, epoch, data } => Ok((epoch, data)),
            Answer::Pool { errno: ENOENT, .. } => Err(Error::new(DOING, ErrorKind::NoPool)),
            Answer::Pool { errno, .. } => {
                Err(refused(DOING, "refused by the monitors".to_owned(), errno))
            }
            _ => Err(Error::violation(DOING, "a change of a pool is answered as one", 0)),
        }
    }

    /// A new number for a snapshot that clients make themselves, of a pool that has no snapshots of its own.
    ///
    /// # Errors
    /// There is no such pool, it has snapshots of its own, or no monitor answers in time.
    pub async fn create_snapshot_id(&self, pool: i64) -> Result<u64> {
        let (_, data) = self.pool_op(pool, PoolOp::CreateUnmanagedSnapshot).await?;
        Reader::new("reading the number of a snapshot", &data).u64()
    }

    /// Gives a number back: what is kept for the snapshot is removed in time.
    ///
    /// # Errors
    /// As [`create_snapshot_id`](Self::create_snapshot_id).
    pub async fn delete_snapshot_id(&self, pool: i64, snapshot: u64) -> Result<()> {
        let op = PoolOp::DeleteUnmanagedSnapshot(snapshot);
        let (epoch, _) = self.pool_op(pool, op).await?;
        self.wait_for_map(epoch).await
    }

    /// Keeps a client out for a while, in seconds that are rounded up: when this ends, the map in use has it on the list, and
    /// so has every OSD before it does anything that is sent from here on. Which client is said by its address, as
    /// [`Watcher::addr`](crate::osd::Watcher::addr) has it. The epoch of the map is given: other handles of the cluster
    /// are to [wait for it](Self::set_barrier) before they touch what that client had.
    ///
    /// # Errors
    /// As [`command`](Self::command).
    pub async fn blocklist(&self, client: &EntityAddr, time: Duration) -> Result<u32> {
        let Some(socket) = client.socket else {
            let (problem, text) = ("a client has an address", format!("{client:?}"));
            let kind = ErrorKind::BadParameter { problem, text };
            return Err(Error::new("putting a client on the blocklist", kind));
        };
        let json = |command: &str, op: &str| {
            format!(
                r#"{{"prefix": "osd {command}", "{op}": "add", "addr": "{socket}/{}", "expire": {}.0}}"#,
                client.nonce,
                whole_seconds(time).max(1)
            )
        };
        let done = self.command(&json("blocklist", "blocklistop"), Bytes::new()).await;
        if let Err(error) = done {
            // Before Ceph 16 it had another name.
            const EINVAL: i32 = 22;
            if !matches!(error.kind(), ErrorKind::Refused { errno: EINVAL, .. }) {
                return Err(error);
            }
            self.command(&json("blacklist", "blacklistop"), Bytes::new()).await?;
        }
        self.in_time(NEWEST_MAP, async {
            let epoch = self.newest_epoch().await?;
            self.set_barrier(epoch);
            self.engine.wait_for_map(epoch).await?;
            Ok(epoch)
        })
        .await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_cannot_leave_their_quotes() {
        assert_eq!(quoted("a\"b\\c\n"), r#""a\"b\\c\u000a""#);
    }
}
