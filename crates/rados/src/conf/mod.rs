//! Configuration as Ceph's own programs read it: files, arguments, variables, addresses of monitors. Nothing here opens
//! a file or looks at the environment: texts and names come in as arguments.

mod arguments;
mod file;
mod mon_host;
mod settings;

pub use arguments::Arguments;
pub use file::{ConfFile, MAX_CONF};
pub use mon_host::{Host, MonHost, mon_hosts};
pub use settings::{Settings, Surroundings};
