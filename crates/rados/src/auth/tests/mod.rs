//! Authentication, replayed from what a real client and a real cluster sent each other.

mod replay;
