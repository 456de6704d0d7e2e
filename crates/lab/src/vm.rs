//! A Linux guest under software emulation.
