//! What operations are called.

/// What is done (ceph: `src/include/rados.h`, `CEPH_OSD_OP_*`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct OpCode(pub u16);

macro_rules! codes {
    ($($(#[$doc:meta])* $constant:ident = $code:literal $name:literal;)*) => {
        impl OpCode {
            $($(#[$doc])* pub const $constant: Self = Self($code);)*

            /// What it is called, as Ceph's logs do.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self {
                    $(Self::$constant => $name,)*
                    _ => "another operation",
                }
            }
        }
    };
}

codes! {
    /// Reads bytes.
    READ = 0x1201 "read";
    /// Asks for size and time.
    STAT = 0x1202 "stat";
    /// Reads bytes, and says where there are some.
    SPARSE_READ = 0x1205 "sparse-read";
    /// Compares bytes.
    CMPEXT = 0x1220 "cmpext";
    /// Compares the object's version.
    ASSERT_VER = 0x1208 "assert-version";
    /// Asks who watches.
    LIST_WATCHERS = 0x1209 "list-watchers";
    /// Asks for clones and snapshots.
    LIST_SNAPS = 0x120a "list-snaps";
    /// Writes bytes.
    WRITE = 0x2201 "write";
    /// Writes the whole object.
    WRITE_FULL = 0x2202 "write-full";
    /// Cuts or grows it.
    TRUNCATE = 0x2203 "truncate";
    /// Makes bytes zero.
    ZERO = 0x2204 "zero";
    /// Removes it.
    DELETE = 0x2205 "delete";
    /// Writes bytes behind its end.
    APPEND = 0x2206 "append";
    /// Makes it, if it is not there.
    CREATE = 0x220d "create";
    /// Makes it what it was in a snapshot.
    ROLLBACK = 0x220e "rollback";
    /// Writes the same bytes again and again.
    WRITE_SAME = 0x2226 "write-same";
    /// Says what sizes to expect.
    SET_ALLOC_HINT = 0x2223 "set-alloc-hint";
    /// Reads keys.
    OMAP_GET_KEYS = 0x1211 "omap-get-keys";
    /// Reads keys and values.
    OMAP_GET_VALS = 0x1212 "omap-get-vals";
    /// Reads the header of the keys.
    OMAP_GET_HEADER = 0x1213 "omap-get-header";
    /// Reads the values of given keys.
    OMAP_GET_VALS_BY_KEYS = 0x1214 "omap-get-vals-by-keys";
    /// Compares values.
    OMAP_CMP = 0x1219 "omap-cmp";
    /// Sets keys.
    OMAP_SET_VALS = 0x2215 "omap-set-vals";
    /// Sets the header of the keys.
    OMAP_SET_HEADER = 0x2216 "omap-set-header";
    /// Removes all keys and the header.
    OMAP_CLEAR = 0x2217 "omap-clear";
    /// Removes keys.
    OMAP_RM_KEYS = 0x2218 "omap-rm-keys";
    /// Reads an attribute.
    GET_XATTR = 0x1301 "getxattr";
    /// Reads all attributes.
    GET_XATTRS = 0x1302 "getxattrs";
    /// Compares an attribute.
    CMP_XATTR = 0x1303 "cmpxattr";
    /// Sets an attribute.
    SET_XATTR = 0x2301 "setxattr";
    /// Removes an attribute.
    RM_XATTR = 0x2304 "rmxattr";
    /// Runs a method of a class.
    CALL = 0x1401 "call";
    /// Lists objects of a group.
    PG_LIST = 0x1505 "pgnls";
    /// Watches it.
    WATCH = 0x220f "watch";
    /// Tells its watchers.
    NOTIFY = 0x1206 "notify";
    /// Answers one who told.
    NOTIFY_ACK = 0x1207 "notify-ack";
}

impl OpCode {
    const MODE_WRITE: u16 = 0x2000;

    /// Whether it brings an answer whose size the request does not say.
    #[must_use]
    pub const fn gives_much(self) -> bool {
        matches!(
            self,
            Self::CALL
                | Self::OMAP_GET_KEYS
                | Self::OMAP_GET_VALS
                | Self::OMAP_GET_HEADER
                | Self::OMAP_GET_VALS_BY_KEYS
                | Self::GET_XATTR
                | Self::GET_XATTRS
                | Self::PG_LIST
                | Self::LIST_SNAPS
                | Self::LIST_WATCHERS
        )
    }

    /// Whether it changes the object. Of [`CALL`](Self::CALL) only the caller knows.
    #[must_use]
    pub const fn is_write(self) -> bool {
        self.0 & Self::MODE_WRITE != 0
    }
}
