//! Replies go to the socket: in one message from wherever their parts lie, pages of a file as they are, or all through TLS.

use std::io;

use blockyard_nbd::server::{Connection, Piece};
use blockyard_sys::net::IoVecs;

use super::bios::{Carrier, Room};
use super::wire::Wire;

/// Bytes that are encrypted at a time: a TLS record.
const RECORD: usize = 16 << 10;

/// Sends what there is room for. Says whether that was all.
pub(super) fn send(
    connection: &mut Connection<Carrier, Room>,
    wire: &mut Wire,
    vecs: &mut IoVecs,
) -> io::Result<bool> {
    if wire.has_tls() {
        return send_tls(connection, wire);
    }
    while connection.wants_transmit() {
        let mut message = vecs.gather();
        let mut behind = None;
        for piece in connection.poll_transmit() {
            if message.is_full() {
                break;
            }
            match piece {
                Piece::Bytes(bytes) => message.push(bytes),
                Piece::Data { work, segment, skip } => match work.0.pages() {
                    Some(pages) => {
                        message.goes_on();
                        behind = Some((pages, pages.len() - skip));
                        break;
                    }
                    None => message.push_segment(&work.0.data()[segment], skip),
                },
            }
        }
        let mut len = message.len();
        let mut sent = if message.is_empty() { 0 } else { wire.send(message)? };
        if let Some((pages, left)) = behind {
            if sent == len {
                sent += wire.send_pages(pages, left)?;
            }
            len += left;
        }
        connection.sent(sent);
        if sent < len {
            return Ok(false);
        }
    }
    wire.all_sent();
    Ok(true)
}

fn send_tls(connection: &mut Connection<Carrier, Room>, wire: &mut Wire) -> io::Result<bool> {
    let mut record = [0; RECORD];
    loop {
        // What the socket has not taken counts as not sent: its memory is not free, and its client has to move.
        let Some(sent) = wire.flush_tls()? else { return Ok(false) };
        connection.sent(sent);
        if !connection.wants_transmit() {
            wire.all_sent();
            return Ok(true);
        }
        let filled = fill(connection, &mut record);
        wire.encrypt(&record[..filled])?;
    }
}

/// Copies what is next to `record`.
fn fill(connection: &Connection<Carrier, Room>, record: &mut [u8]) -> usize {
    let mut filled = 0;
    for piece in connection.poll_transmit() {
        let room = &mut record[filled..];
        if room.is_empty() {
            break;
        }
        filled += match piece {
            Piece::Bytes(bytes) => {
                let len = bytes.len().min(room.len());
                room[..len].copy_from_slice(&bytes[..len]);
                len
            }
            Piece::Data { work, segment, skip } => {
                let segment = &work.0.data()[segment];
                let len = (segment.len() - skip).min(room.len());
                segment.slice(skip, len).copy_to(&mut room[..len]);
                len
            }
        };
    }
    filled
}
