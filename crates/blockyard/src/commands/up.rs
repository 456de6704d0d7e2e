//! x
use crate::cli::UpArgs;
use crate::error::Result;
pub(super) fn run(_: &UpArgs) -> Result<()> {
    Ok(())
}
